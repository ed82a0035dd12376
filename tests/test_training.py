"""One run: exactly D tokens, bitwise repeatable and resumable, and honest about its end."""
import math
import random

import numpy as np
import pytest
import torch
from problems import MLP, Bomb, TinyLM, lm_problem, mlp_problem, xy
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from scaling_nb.recipes import Recipe
from scaling_nb.records import StorageMismatch, open_storage
from scaling_nb.sweep import RunSpec, plan_sweep
from scaling_nb.training import MockLaw, Trainer, train_run, width_scales
from scaling_nb.zoo.gpt import GPT


@pytest.fixture(autouse=True)
def one_thread():
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


def spec(D=20_000, size=16, f=3000., **kw): return RunSpec(budget=f*D, size=size, N=500, D=D, flops_per_token=f, **kw)


@pytest.mark.parametrize("D", [1_000, 100_000, 1_000_000])
def test_a_run_sees_the_tokens_that_were_planned(D):
    "Counted where the tokens arrive, in the model's forward."
    problem = lm_problem(val_samples=64)
    plan = plan_sweep(problem, [D*9000.], sizes=[16], speed=None)
    s = plan.specs[0]
    s = RunSpec(s.budget, s.size, s.N, D, s.flops_per_token)
    TinyLM.seen = 0
    record = train_run(problem, s, Recipe(batch_size=32))
    batch = 32*16
    assert abs(TinyLM.seen - D) < batch and 0 <= TinyLM.seen - D < 16       # in truth to one sample
    assert record.D == TinyLM.seen
    assert record.flops_measured == s.measured_flops_per_token*TinyLM.seen and record.C == s.flops_per_token*TinyLM.seen


def test_recorded_flops_are_those_done():
    "Against FlopCounterMode around the whole run, which knows nothing of plans."
    from torch.utils.flop_counter import FlopCounterMode
    problem = mlp_problem(val_samples=4)
    s = plan_sweep(problem, [3e6], sizes=[16], speed=None).specs[0]
    t = Trainer(problem, s, Recipe(batch_size=7), device="cpu")
    with FlopCounterMode(display=False) as counter:
        while not t.done: t.step()
    assert counter.get_total_flops() == s.measured_flops_per_token*t.tokens


@pytest.mark.parametrize("batch_size", [1, 7, "auto", ((0, 4), (500, 16))])
def test_any_batch_ends_on_the_token(batch_size):
    t = Trainer(mlp_problem(), spec(D=1001), Recipe(batch_size=batch_size), device="cpu")
    while not t.done: t.step()
    assert t.tokens == 1001


class Counting(IterableDataset):
    def __init__(self, n=100): self.n = n
    def __iter__(self): return iter([(torch.full((8,), float(i)), torch.tensor(i % 4)) for i in range(self.n)])


@pytest.mark.parametrize("data", [Counting(), DataLoader(Counting(), batch_size=16)], ids=["iterable", "loader"])
def test_streams_are_read_in_order_and_again(data):
    seen = []
    class Spy(MLP):
        def forward(self, x):
            if self.training: seen.extend(x[:, 0].tolist())
            return super().forward(x)
    t = Trainer(mlp_problem(model=Spy, data=data, val_data=xy(8)), spec(D=250), Recipe(batch_size=16, lr=1e-4), device="cpu")
    while not t.done: t.step()
    assert t.tokens == 250 and seen == [float(i % 100) for i in range(250)]


def test_a_stream_resumes_where_it_stopped():
    problem = mlp_problem(data=Counting(), val_data=xy(8))
    whole = Trainer(problem, spec(D=400), Recipe(batch_size=16), device="cpu")
    losses = [whole.step().item() for _ in range(20)]
    half = Trainer(problem, spec(D=400), Recipe(batch_size=16), device="cpu")
    for _ in range(9): half.step()
    rest = Trainer(problem, spec(D=400), Recipe(batch_size=16), device="cpu"); rest.load(half.save())
    assert [rest.step().item() for _ in range(11)] == losses[9:]


def test_a_generator_that_is_used_up_says_so():
    class Once(IterableDataset):
        def __init__(self): self.g = iter([(torch.ones(8), torch.tensor(1))]*50)
        def __iter__(self): return self.g
    r = train_run(mlp_problem(data=Once(), val_data=xy(8)), spec(D=1000), Recipe(batch_size=16))
    assert r.state == "FAILED" and "gave nothing when it was read again" in r.reason


def test_epochs_visit_every_sample_once():
    t = Trainer(mlp_problem(data=xy(50), val_data=xy(8)), spec(D=200), Recipe(batch_size=8), device="cpu")
    index = t.data.index(0, 100).tolist()
    assert sorted(index[:50]) == sorted(index[50:]) == list(range(50)) and index[:50] != index[50:]
    a, _ = t.data.take(44, 12)
    assert torch.equal(a, xy(50)[0][index[44:56]])


class Noisy(MLP):
    "Draws from all three generators while it trains."
    def forward(self, x):
        if self.training: x = x + .1*torch.randn_like(x) + .1*float(np.random.randn()) + .1*random.random()
        return nn.functional.dropout(super().forward(x), .2, self.training)


@pytest.mark.parametrize("optimizer", ["adamw", lambda p: torch.optim.SGD(p, lr=0.01, momentum=.9)], ids=["adamw", "sgd"])
def test_killed_and_resumed_is_bitwise_the_same(optimizer, tmp_path):
    problem, recipe = mlp_problem(model=Noisy), Recipe(batch_size=32, optimizer=optimizer)
    whole = train_run(problem, spec(), recipe, storage=tmp_path/"whole")
    calls = iter(range(10**9))
    assert train_run(problem, spec(), recipe, storage=tmp_path/"cut", should_stop=lambda: next(calls) == 100).state == "STOPPED"
    calls = iter(range(10**9))
    assert train_run(problem, spec(), recipe, storage=tmp_path/"cut", should_stop=lambda: next(calls) == 300).state == "STOPPED"
    done = train_run(problem, spec(), recipe, storage=tmp_path/"cut")
    assert (done.state, done.attempt, done.loss, done.D) == ("SUCCEEDED", 3, whole.loss, whole.D)
    curve = lambda d: {m["step"]: m["lr"] for m in open_storage(tmp_path/d).metrics(done.run_id)}
    assert curve("whole") == curve("cut")
    assert not (tmp_path/"cut"/done.run_id/"checkpoint").exists()


def test_training_leaves_the_notebooks_random_numbers_alone():
    torch.manual_seed(5); np.random.seed(5); random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    train_run(mlp_problem(model=Noisy), spec(D=500), Recipe(batch_size=50))
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all() and before[2] == random.getstate()


def test_sgd_at_a_hundredth_trains():
    r = train_run(mlp_problem(), spec(D=50_000), Recipe(optimizer=lambda p: torch.optim.SGD(p, lr=0.01), batch_size=16))
    assert r.state == "SUCCEEDED" and r.loss < 1.0


def test_nan_fails_the_run_and_keeps_its_metrics(tmp_path):
    class Nan(MLP):
        steps = 0
        def forward(self, x):
            self.steps += self.training
            return super().forward(x)*(float("nan") if self.steps > 50 else 1.)
    r = train_run(mlp_problem(model=Nan), spec(), Recipe(batch_size=32), storage=tmp_path)
    assert r.state == "FAILED" and "nan at step 51" in r.reason and math.isnan(r.loss)
    assert open_storage(tmp_path).metrics(r.run_id) and (tmp_path/r.run_id/"failure.json").exists()


def test_an_exception_is_a_reason_with_its_traceback_on_disk(tmp_path):
    r = train_run(mlp_problem(model=Bomb), spec(), Recipe(batch_size=32), storage=tmp_path)
    assert r.state == "FAILED" and r.reason == "RuntimeError: the bomb went off"
    assert "in forward" in open_storage(tmp_path).read_json(r.run_id, "failure.json")["traceback"]


def test_finished_runs_are_only_read(tmp_path):
    a = train_run(mlp_problem(), spec(), storage=tmp_path)
    b = train_run(mlp_problem(), spec(), storage=tmp_path)
    assert a == b and b.attempt == 1


def test_a_changed_recipe_is_another_run(tmp_path):
    a, b = (train_run(mlp_problem(), spec(D=1000), Recipe(lr=lr), storage=tmp_path) for lr in (.01, .02))
    assert a.run_id != b.run_id and a.recipe != b.recipe


def test_another_problem_is_refused(tmp_path):
    train_run(mlp_problem(), spec(D=1000), storage=tmp_path)
    with pytest.raises(StorageMismatch, match="data"): train_run(mlp_problem(data=xy(seed=9)), spec(D=1000), storage=tmp_path)


def test_a_broken_checkpoint_fails_with_the_remedy(tmp_path):
    calls = iter(range(10**9))
    r = train_run(mlp_problem(), spec(), storage=tmp_path, should_stop=lambda: next(calls) == 5)
    (tmp_path/r.run_id/"checkpoint").write_bytes(b"not a checkpoint")
    r = train_run(mlp_problem(), spec(), storage=tmp_path)
    assert r.state == "FAILED" and "to start the run anew" in r.reason


def test_a_checkpoint_cannot_run_code(tmp_path):
    import pickle
    class Evil:
        def __reduce__(self): return (open, (str(tmp_path/"owned"), "w"))
    t = Trainer(mlp_problem(), spec(), device="cpu")
    with pytest.raises(pickle.UnpicklingError): t.load(_torch_bytes(Evil()))
    assert not (tmp_path/"owned").exists()


def _torch_bytes(obj):
    import io
    b = io.BytesIO()
    torch.save(obj, b)
    return b.getvalue()


def test_held_out_data_is_never_trained_on():
    problem = mlp_problem(data=(torch.arange(800.).reshape(100, 8), torch.zeros(100, dtype=torch.long)))
    t = Trainer(problem, spec(D=1000), Recipe(batch_size=10), device="cpu")
    held = {float(t.val[i][0][0]) for i in range(len(t.val))}
    seen = {float(v) for i in range(0, 1000, 10) for v in t.data.take(i, 10)[0][:, 0]}
    assert len(held) == 5 and len(seen) == 95 and not held & seen


def test_evaluation_is_the_mean_over_the_same_samples():
    problem = mlp_problem(val_data=xy(1000, seed=0), val_samples=700)
    t = Trainer(problem, spec(), device="cpu")
    x, y = xy(1000, seed=0)
    with torch.no_grad(): expected = nn.functional.cross_entropy(t.model(x[(i := np.linspace(0, 999, 700).round())]), y[i]).item()
    assert t.evaluate()[0] == pytest.approx(expected, rel=1e-6)


def test_no_step_has_a_rate_of_zero():
    t = Trainer(mlp_problem(), spec(D=100), Recipe(batch_size=10), device="cpu")
    rates = []
    while not t.done: t.step(); rates.append(t.optimizer.param_groups[0]["lr"])
    assert len(rates) == 10 and min(rates) > 0


def test_width_scales_find_what_grows():
    x = torch.zeros(8, 65, dtype=torch.long)
    from scaling_nb.contracts import Problem
    from scaling_nb.zoo.gpt import next_token_loss
    problem = Problem(GPT, "width", data=(x[:, :-1], x[:, 1:]), loss_fn=next_token_loss, model_kwargs=dict(vocab=128, seq_len=64))
    s = width_scales(problem, 128, 32)
    matrices = {n for n, p in problem.build(128).named_parameters() if p.ndim > 1 and "embed" not in n}
    assert {n for n, v in s.items() if v == .25} == matrices and {v for n, v in s.items() if n not in matrices} == {1.0}


def test_depth_alone_scales_nothing():
    class Deep(nn.Module):
        def __init__(self, depth): super().__init__(); self.l = nn.Sequential(*[nn.Linear(8, 8) for _ in range(depth)], nn.Linear(8, 4))
        def forward(self, x): return self.l(x)
    problem = mlp_problem(model=Deep, size_param="depth")
    with pytest.warns(UserWarning, match="seen to get wider"): assert width_scales(problem, 3, 32) == {}


def test_mock_is_the_law_and_says_so(tmp_path):
    law = MockLaw(noise=.01)
    a = train_run(mlp_problem(), spec(), storage=tmp_path, mock=law)
    exact = train_run(mlp_problem(), spec(), storage=tmp_path, mock=MockLaw())
    assert a.mock and exact.mock and exact.loss == law.loss(500, 20_000) and 0 < abs(a.loss - exact.loss) < .05
    assert a.run_id != exact.run_id != train_run(mlp_problem(), spec(), storage=tmp_path).run_id
    assert train_run(mlp_problem(), spec(), mock=law).loss == a.loss


def test_memory_is_released():
    import gc
    import weakref
    alive = []
    class Watched(MLP):
        def __init__(self, width): super().__init__(width); alive.append(weakref.ref(self))
    train_run(mlp_problem(model=Watched), spec(D=1000))
    gc.collect()
    assert not [r for r in alive if r() is not None]


def test_a_loader_that_shuffles_resumes_in_its_order_and_keeps_its_name():
    from torch.utils.data import TensorDataset

    from scaling_nb.contracts import data_fingerprint
    loader = DataLoader(TensorDataset(*xy(300)), batch_size=16, shuffle=True)
    problem = mlp_problem(data=loader, val_data=xy(8))
    assert data_fingerprint(loader) == data_fingerprint(loader) != data_fingerprint(DataLoader(TensorDataset(*xy(300, seed=2)), batch_size=16, shuffle=True))
    torch.manual_seed(1)
    whole = Trainer(problem, spec(D=900), device="cpu")
    losses = [whole.step().item() for _ in range(50)]
    torch.manual_seed(2)
    half = Trainer(problem, spec(D=900), device="cpu")
    for _ in range(25): half.step()
    rest = Trainer(problem, spec(D=900), device="cpu"); rest.load(half.save())
    assert [rest.step().item() for _ in range(25)] == losses[25:]


def test_a_checkpoint_is_read_on_the_cpu_wherever_the_model_lives():
    "On a GPU the states of the generators must not follow the model there."
    a = Trainer(mlp_problem(), spec(D=500), Recipe(batch_size=50), device="cpu")
    a.step()
    b = Trainer(mlp_problem(), spec(D=500), Recipe(batch_size=50), device="cpu")
    b.device = "meta"          # stands for a device whose tensors numpy cannot read
    b.load(a.save())
    assert b.steps == 1


def test_a_loader_with_its_own_generator_repeats():
    from torch.utils.data import TensorDataset
    loader = DataLoader(TensorDataset(*xy(300)), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(0))
    problem = mlp_problem(data=loader, val_data=xy(8))
    losses = [[t.step().item() for _ in range(30)] for t in (Trainer(problem, spec(D=900), device="cpu") for _ in range(2))]
    assert losses[0] == losses[1]


def test_batches_of_mappings_train():
    from torch.utils.data import Dataset
    class Named(Dataset):
        x, y = xy(200)
        def __len__(self): return 200
        def __getitem__(self, i): return dict(input_ids=dict(x=self.x[i], mask=torch.ones(8)), labels=self.y[i])
    class Takes(MLP):
        def forward(self, b): return super().forward(b["x"]*b["mask"])
    problem = mlp_problem(model=Takes, data=Named())
    plan = plan_sweep(problem, [1e6], sizes=[8, 16], speed="measure")
    r = train_run(problem, plan.specs[0], Recipe(batch_size=7))
    assert r.state == "SUCCEEDED" and r.D == plan.specs[0].D


def test_width_scales_at_the_top_of_a_ladder():
    widths = [4, 8, 16, 32, 64, 128]
    def ladder(i): return dict(width=widths[i])
    problem = mlp_problem(size_param=ladder)
    for i in (3, 4, 5): assert width_scales(problem, i, 32)["layers.2.weight"] == 32/widths[i]
    plan = plan_sweep(problem, [1e9], sizes=[3, 4, 5, 6], speed=None)
    assert sorted(set(plan.frame["size"])) == [3, 4, 5] and "IndexError" in plan.skipped_sizes[6]


def test_numpy_integers_are_integers():
    assert Recipe(batch_size=np.int64(8)) == Recipe(batch_size=8) and Recipe(batch_size=np.int64(8)).plain() == Recipe(batch_size=8).plain()
