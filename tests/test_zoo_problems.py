"Images and a vision model, a teacher and its student: labels that are known, costs by formula, models that learn, a floor that holds."
import math
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import default_collate

from scaling_nb import Problem, Recipe, RunSpec, check_problem, count_params, measure_cost, plan_sweep, train_run
from scaling_nb.contracts import data_fingerprint
from scaling_nb.zoo.data import TokenWindows
from scaling_nb.zoo.gpt import Attention, rms_norm
from scaling_nb.zoo.hub import LabelledImages
from scaling_nb.zoo.images import ShapeImages, draw_shapes, shape_images
from scaling_nb.zoo.teacher import ResidualMLP, Teacher, TeacherRows, teacher_rows
from scaling_nb.zoo.vit import ViT, patches

pytestmark = pytest.mark.usefixtures("one_thread")

def trained(model, data, steps, batch, lr, seed=0):
    opt = torch.optim.AdamW(model.parameters(), lr=lr, betas=(.9, .95), weight_decay=0, fused=True)
    plan = torch.optim.lr_scheduler.LambdaLR(opt, lambda i: min(1, (i + 1)/10, (steps - i)/(steps/4)))
    for i in range(steps):
        x, y = data.batch(range(i*batch, (i + 1)*batch))
        F.cross_entropy(model(x), y).backward(); nn.utils.clip_grad_norm_(model.parameters(), 1); opt.step(); opt.zero_grad(); plan.step()
    return model.eval()

def loss(model, data, n):
    x, y = data.batch(range(n))
    with torch.inference_mode(): return F.cross_entropy(model(x), y).item()


# --- what every data set keeps

def pixels(n=40, seed=0): return torch.randint(256, (n, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))

DATA = {"windows": lambda: TokenWindows(torch.arange(999) % 200, 16), "shapes": ShapeImages, "shapes held out": lambda: shape_images(val=77)[1],
        "rows": TeacherRows, "rows held out": lambda: teacher_rows(val=77)[1], "labelled images": lambda: LabelledImages(pixels(), torch.arange(40) % 10, (.5,)*3, (.3,)*3)}

@pytest.mark.parametrize("make", DATA.values(), ids=DATA)
def test_the_protocol(make):
    d = make(); n = len(d); i = [3, 0, n - 1, 3, n//2]
    x, y = d.batch(i)
    assert len(x) == len(y) == 5 and torch.equal(x[0], x[3]) and not torch.equal(x[0], x[1])
    for k, (a, b) in enumerate(d.__getitems__(i)):
        assert torch.equal(a, x[k]) and torch.equal(b, y[k]) and torch.equal(d[i[k]][0], a) and torch.equal(d[i[k]][1], b)
    cx, cy = default_collate(d.__getitems__(i)); assert torch.equal(cx, x) and torch.equal(cy, y) and cx.dtype == x.dtype
    assert torch.equal(d.batch(torch.tensor(i))[0], x) and torch.equal(d.batch(np.array(i))[0], x) and torch.equal(d[-1][0], d[n - 1][0])
    assert d.batch([])[0].shape == (0, *x.shape[1:]) and d.batch([])[1].shape == (0, *y.shape[1:])
    for bad in (n, -n - 1):
        with pytest.raises(IndexError, match=rf"0 \.\. {n - 1}"): d[bad]
    assert isinstance(d.tokens_per_sample, int) and d.unique_tokens == n*d.tokens_per_sample and (d.tokens_per_sample == 1) == (not isinstance(d, TokenWindows))
    back = pickle.loads(pickle.dumps(d))
    assert torch.equal(back.batch(i)[0], x) and back.fingerprint() == d.fingerprint() == make().fingerprint() and len(d.fingerprint()) == 12
    assert data_fingerprint(d) == data_fingerprint(back) and type(d).__name__ in repr(d) and f"{n:,}" in repr(d) and len(repr(d)) < 160

def test_endless_sets_are_endless_and_travel_as_a_few_bytes():
    for d in (ShapeImages(), TeacherRows()):
        assert len(d) == 1 << 40 and len(pickle.dumps(d)) < 20_000
        x, _ = d.batch([0, 1 << 39, (1 << 40) - 1]); assert torch.isfinite(x).all() and len(x.flatten(1).unique(dim=0)) == 3

@pytest.mark.parametrize("both", [shape_images, teacher_rows])
def test_held_out_samples_are_not_trained_on(both):
    train, val = both(val=500)
    assert train.first + len(train) == val.first and len(val) == 500 and val.seed == train.seed
    a, b = (d.batch(range(500))[0].flatten(1) for d in (train, val)); assert len(torch.cat([a, b]).unique(dim=0)) == 1000
    train, val = both(seed=4, val=5); assert train.seed == val.seed == 4

def test_another_process_draws_the_same_samples():
    code = """
import torch; torch.set_num_threads(1)
from scaling_nb.zoo.images import ShapeImages; from scaling_nb.zoo.teacher import TeacherRows
for d in (ShapeImages(2), TeacherRows(2), TeacherRows(2, soft=True)):
    x, y = d.batch([5, 1 << 39]); print(d.fingerprint(), x.double().sum().item(), y.double().sum().item())"""
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "3"}).stdout.split()
    want = []
    for d in (ShapeImages(2), TeacherRows(2), TeacherRows(2, soft=True)):
        x, y = d.batch([5, 1 << 39]); want += [d.fingerprint(), str(x.double().sum().item()), str(y.double().sum().item())]
    assert got == want


# --- zoo.images

def test_classes_are_even_and_pixels_of_unit_size():
    x, y = ShapeImages().batch(torch.arange(20_000))
    assert x.shape == (20_000, 1, 16, 16) and x.dtype == torch.float32 and y.dtype == torch.long
    assert (torch.bincount(y, minlength=10) - 2000).abs().max() < 5*math.sqrt(2000*.9) and len(torch.bincount(y)) == 10
    assert abs(x.mean()) < .03 and .9 < x.square().mean().sqrt() < 1.2

def test_a_shape_has_its_lobes():
    "Along a circle around the middle, the filled shape is entered once for each lobe."
    u = torch.full((5, 6), .5); lobes = torch.arange(2, 7)
    s = draw_shapes(lobes, torch.zeros(5, dtype=torch.bool), u, 128)
    t = torch.arange(720)*math.pi/360
    at = lambda r: s[:, ((r*t.sin() + 1)*64).long(), ((r*t.cos() + 1)*64).long()] > .5
    ring = at(.575)
    assert ((ring & ~ring.roll(1, 1)).sum(1) == lobes).all()
    line = draw_shapes(lobes, torch.ones(5, dtype=torch.bool), u, 128)
    assert (line[:, 63:65, 63:65] < .01).all() and (s[:, 63:65, 63:65] > .99).all() and (line.flatten(1).max(1).values > .9).all()

@pytest.mark.parametrize("size", [8, 16, 33])
def test_other_sizes_and_no_noise(size):
    a, b = ShapeImages(size=size, noise=0), ShapeImages(size=size, noise=.3)
    (x, y), (xn, yn) = a.batch(torch.arange(300)), b.batch(torch.arange(300))
    assert x.shape == (300, 1, size, size) and torch.equal(y, yn) and (xn - x).std().item() == pytest.approx(.3, rel=.05)

@pytest.mark.parametrize("kw, words", [(dict(size=4), "at least 8"), (dict(size=16.), "integer"), (dict(noise=-1), "noise"), (dict(noise=math.nan), "noise"), (dict(seed="a"), "seed")])
def test_bad_images(kw, words):
    with pytest.raises(ValueError, match=words): ShapeImages(**kw)

def test_a_linear_model_learns_nothing_from_the_pixels():
    train, val = shape_images(val=4000); x, y = train.batch(range(10_000)); x, (xv, yv) = x.flatten(1), val.batch(range(4000))
    X = torch.cat([x, torch.ones(len(x), 1)], 1); W = torch.linalg.lstsq(X, F.one_hot(y, 10).float()).solution
    right = ((torch.cat([xv.flatten(1), torch.ones(4000, 1)], 1) @ W).argmax(1) == yv).float().mean()
    assert right < .16   # a guess has .1


# --- zoo.vit

def on_meta(cls, *a, **kw):
    with torch.device("meta"): return cls(*a, **kw)

@given(st.integers(1, 4), st.sampled_from([1, 3]), st.sampled_from([(16, 4), (16, 8), (12, 2), (32, 4)]), st.integers(1, 3), st.integers(1, 4), st.integers(2, 20),
       st.sampled_from(["relu2", "swiglu"]))
@settings(max_examples=20, deadline=None)
def test_vit_costs_what_the_formula_says(k, channels, grid, depth, heads, classes, activation):
    image, patch = grid; width = 6*heads*k
    kw = dict(image=image, patch=patch, channels=channels, classes=classes, depth=depth, heads=heads, activation=activation)
    P, first, head, body = (image//patch)**2, channels*patch**2*width, classes*width, depth*(4 + 8)*width**2   # 6*heads*k is a multiple of 3, so SwiGLU rounds nothing
    m = on_meta(ViT, width, **kw); x = torch.zeros(2, channels, image, image)
    assert m.matmul_params() == first + body + head and m.num_params() == m.matmul_params() + P*width
    p = count_params(m, x.to("meta")); assert (p.matmul, p.head, p.embedding, p.other) == (m.matmul_params(), head, 0, P*width)
    problem = Problem(ViT, "width", data=(x, torch.zeros(2, dtype=torch.long)), loss_fn=F.cross_entropy, model_kwargs=kw)
    assert measure_cost(problem, width).flops_per_token == 6*P*body + 4*P*first + 6*head + 12*depth*P**2*width

@pytest.mark.parametrize("width, image", [(8, 16), (64, 16), (48, 32)])
def test_an_untrained_vit_guesses(width, image):
    m = ViT(width, image=image, channels=3, classes=7); x = torch.randn(5, 3, image, image)
    assert F.cross_entropy(m(x), torch.arange(5)).item() == pytest.approx(math.log(7), abs=1e-5) and m(x).shape == (5, 7)

def test_the_vit_stream_has_unit_scale_and_only_width_grows():
    torch.manual_seed(0); a, b = ViT(128), ViT(32); seen = []
    a.blocks[0].register_forward_pre_hook(lambda mod, args: seen.append(args[0].square().mean().sqrt().item()))
    a(ShapeImages().batch(range(256))[0]); assert seen[0] == pytest.approx(1, abs=.15)
    assert [n for n, _ in a.named_parameters()] == [n for n, _ in b.named_parameters()] and not any("bias" in n for n, _ in a.named_parameters())
    assert {m.heads for m in a.modules() if isinstance(m, Attention)} == {m.heads for m in b.modules() if isinstance(m, Attention)} == {2}

def test_every_parameter_of_a_vit_learns_and_patches_see_all_others():
    torch.manual_seed(0); m = ViT(16); x, y = ShapeImages().batch(range(32)); opt = torch.optim.SGD(m.parameters(), lr=.1)
    for _ in range(3): opt.zero_grad(); F.cross_entropy(m(x), y).backward(); opt.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in m.parameters())
    for p in m.parameters(): nn.init.normal_(p, std=.3)
    seen = []; m.blocks[-1].register_forward_hook(lambda mod, args, out: seen.append(out))
    other = x.clone(); other[:, :, 12:, 12:] += 1     # the last patch
    m(x); m(other); assert ((seen[0] - seen[1]).abs().amax(-1) > 1e-6).all()   # changes every place, the first too

def test_place_matters_to_a_vit():
    torch.manual_seed(0); m = ViT(16); x = torch.randn(4, 1, 16, 16); moved = x.roll(4, -1)
    for p in m.parameters(): nn.init.normal_(p, std=.3)
    assert not torch.allclose(m(x), m(moved), atol=1e-3)
    nn.init.zeros_(m.position); torch.testing.assert_close(m(x), m(moved), atol=1e-4, rtol=1e-3)   # without the table a set of patches is a set

@given(st.integers(1, 3), st.sampled_from([1, 3]), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_patches_are_the_squares_of_the_image(B, C, rows, cols, p):
    x = torch.randn(B, C, rows*p, cols*p); got = patches(x, p)
    assert got.shape == (B, rows*cols, C*p*p)
    for r in range(rows):
        for c in range(cols): assert torch.equal(got[:, r*cols + c], x[:, :, r*p:(r + 1)*p, c*p:(c + 1)*p].flatten(1))

@pytest.mark.parametrize("kw, words", [(dict(width=33), "multiple of heads = 2.*next that can be cut is 34"), (dict(width=32, image=18), "multiple of patch = 4"), (dict(width=0), "positive integer"),
                                       (dict(width=32, patch=0), "positive integer"), (dict(width=32, activation="gelu"), "relu2")])
def test_bad_vits(kw, words):
    with pytest.raises(ValueError, match=words): ViT(**kw)

def test_the_wrong_image_says_which_is_right():
    with pytest.raises(ValueError, match="channels"): ViT(16, channels=3)(torch.zeros(2, 1, 16, 16))

def test_a_vit_learns_shapes():
    train, val = shape_images(val=1000); torch.manual_seed(0)
    m = trained(ViT(16), train, steps=250, batch=64, lr=1e-2)
    assert loss(m, val, 1000) < math.log(10) - .5


# --- zoo.teacher

def test_labels_are_drawn_from_the_teacher():
    d, s = TeacherRows(), TeacherRows(soft=True); x, y = d.batch(torch.arange(50_000)); xs, p = s.batch(torch.arange(50_000))
    assert torch.equal(x, xs) and torch.allclose(p.sum(1), torch.ones(50_000), atol=1e-5) and y.min() == 0 and y.max() == 9
    expected, seen = p.double().sum(0), torch.bincount(y, minlength=10)
    assert ((seen - expected).abs() < 5*(p*(1 - p)).double().sum(0).sqrt()).all()
    for k in range(10):                                       # calibrated: among rows with p[k] near q, a share q has label k
        for lo in (.1, .4, .7):
            rows = (p[:, k] > lo) & (p[:, k] < lo + .2)
            if rows.sum() > 200: assert abs((y[rows] == k).float().mean() - p[rows, k].mean()).item() < 5*.5/math.sqrt(rows.sum())

def test_irreducible_loss_is_the_mean_entropy_and_its_error_is_honest():
    _, val = teacher_rows(val=3000); x, p = val.batch(range(3000)); p = p.double()
    E, se = val.irreducible_loss()
    H = -(p*p.clamp(min=1e-300).log()).sum(1)
    assert E == pytest.approx(H.mean().item(), abs=1e-5) and se == pytest.approx(H.std().item()/math.sqrt(3000), rel=1e-3)
    others = [TeacherRows(first=k*1000, length=1000).irreducible_loss() for k in range(40)]   # disjoint sets of rows
    spread = np.std([e for e, _ in others], ddof=1); assert spread == pytest.approx(np.mean([s for _, s in others]), rel=.4)
    assert abs(np.mean([e for e, _ in others]) - E) < 4*math.hypot(se, spread/math.sqrt(40))
    assert TeacherRows(length=1).irreducible_loss()[0] > 0 and math.isnan(TeacherRows(length=1).irreducible_loss()[1])

def test_the_teacher_itself_is_at_the_floor_and_nothing_is_below():
    _, val = teacher_rows(val=2000); x, p = val.batch(range(2000)); E, _ = val.irreducible_loss(); log_p = val.teacher.log_probs(x)
    assert F.cross_entropy(log_p, p.double()).item() == pytest.approx(E, abs=1e-5)
    torch.manual_seed(0)
    for scale in (.01, .1, 1): assert F.cross_entropy(log_p + scale*torch.randn(2000, 10), p.double()).item() > E
    for heat in (.9, 1.1): assert F.cross_entropy(log_p*heat, p.double()).item() > E

def test_sharpness_and_seed_make_other_teachers():
    losses = [teacher_rows(sharpness=s)[1].irreducible_loss()[0] for s in (.1, 1, 6, 30)]
    assert losses == sorted(losses, reverse=True) and losses[0] > 2 > 1 > losses[2] > losses[3] > 0
    assert not torch.equal(Teacher(0).layers[0], Teacher(1).layers[0]) and torch.equal(Teacher(3).layers[2], Teacher(3).layers[2])
    assert len({TeacherRows(**kw).fingerprint() for kw in ({}, dict(seed=1), dict(sharpness=5), dict(soft=True), dict(inputs=9), dict(classes=9), dict(first=1))}) == 7

@pytest.mark.parametrize("kw, words", [(dict(sharpness=0), "sharpness"), (dict(sharpness=math.inf), "sharpness"), (dict(inputs=0), "inputs"), (dict(classes=2.5), "classes"),
                                       (dict(length=0), "length")])
def test_bad_rows(kw, words):
    with pytest.raises(ValueError, match=words): TeacherRows(**kw)

@pytest.mark.parametrize("width, kw", [(1, {}), (7, {}), (32, dict(depth=3)), (12, dict(activation="swiglu", inputs=5, classes=3))])
def test_student_costs_what_the_formula_says(width, kw):
    m = on_meta(ResidualMLP, width, **kw); inputs, classes, depth = (kw.get(k, v) for k, v in dict(inputs=8, classes=10, depth=2).items())
    assert m.matmul_params() == inputs*width + depth*8*width**2 + classes*width and m.num_params() == m.matmul_params() + width
    problem = Problem(ResidualMLP, "width", data=TeacherRows(inputs=inputs, classes=classes), loss_fn=F.cross_entropy, model_kwargs=kw)
    cost = measure_cost(problem, width); assert cost.flops_per_token == 6*cost.N - 2*inputs*width and cost.N == m.matmul_params() and cost.params.head == classes*width

def test_an_untrained_student_guesses_and_sees_scale():
    torch.manual_seed(0); m = ResidualMLP(64); x = torch.randn(100, 8)
    assert F.cross_entropy(m(x), torch.arange(100) % 10).item() == pytest.approx(math.log(10), abs=1e-5)
    assert m.embed(x).square().mean().sqrt().item() == pytest.approx(1, abs=.15)
    assert not torch.allclose(rms_norm(m.embed(x)), rms_norm(m.embed(2*x)), atol=.01)   # the one bias is what tells x from 2x

def test_a_student_comes_near_the_floor_and_not_below():
    train, val = teacher_rows(); E, _ = val.irreducible_loss(); gaps = []
    for steps in (60, 600):
        torch.manual_seed(0); gaps.append(loss(trained(ResidualMLP(32), train, steps=steps, batch=128, lr=1e-2), val, 8192) - E)
    assert 0 < gaps[1] < .14 and gaps[1] < .6*gaps[0] and gaps[0] < .5*(math.log(10) - E)


# --- both as problems of a study

@pytest.mark.parametrize("model, both, budgets, multiple", [(ViT, shape_images, [1e10, 1e11], 4), (ResidualMLP, teacher_rows, [1e8, 1e9], None)])
def test_a_study_can_be_planned(model, both, budgets, multiple):
    train, val = both(val=200)
    problem = Problem(model, "width", data=train, val_data=val, loss_fn=F.cross_entropy)
    report = check_problem(problem); assert report.tokens_per_sample == 1 and report.samples == 1 << 40 and report.loss == pytest.approx(math.log(10), abs=1e-4)
    plan = plan_sweep(problem, budgets, n_sizes=5, multiple=multiple, speed=None, slots=1)
    assert plan.budgets == budgets and len(plan) >= 8 and plan.unique_tokens == 1 << 40 and not any("more than four times" in n for n in plan.notes)
    for s in plan.specs: assert s.flops_per_token*s.D == pytest.approx(s.budget, rel=1e-3) and s.N == on_meta(model, s.size).matmul_params()


@pytest.mark.parametrize("model, both, D, guess", [(ViT, shape_images, 6000, math.log(10)), (ResidualMLP, teacher_rows, 30_000, math.log(10))])
def test_a_run_on_a_set_that_never_ends(model, both, D, guess):
    "By the package's own loop, at the full length of a trillion: no table of it is made, and the same run gives the same loss."
    train, val = both(val=512)
    problem = Problem(model, "width", data=train, val_data=val, loss_fn=F.cross_entropy)
    s = RunSpec(0, 16, 1000, D, 6000.)
    a, b = (train_run(problem, s, Recipe(batch_size=32)) for _ in range(2))
    assert a.state == "SUCCEEDED" and a.D == D and a.loss == b.loss < guess - .2
    if model is ResidualMLP: assert a.loss > val.irreducible_loss()[0]
