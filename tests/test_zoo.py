"The reference models and data: shapes, costs, errors that teach, and a text that is the same everywhere."
import hashlib
import math
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, default_collate
from torch.utils.flop_counter import FlopCounterMode

from scaling_nb.flops import count_params
from scaling_nb.zoo.data import SKIP, TokenWindows, byte_tokens, stdlib_text
from scaling_nb.zoo.gpt import GPT, Attention, gpt_for_params, gpt_params, next_token_loss, rms_norm, rotary_tables, rotate

pytestmark = pytest.mark.usefixtures("one_thread")

def counted(model, T, B=1):
    x = torch.zeros(B, T, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as c: next_token_loss(model(x), x).backward()
    return c.get_total_flops()/(B*T)

def on_meta(*a, **kw):
    with torch.device("meta"): return GPT(*a, **kw)


# --- zoo.gpt

def test_gpt2_124m_flops_to_the_last_one():
    m = on_meta(768, depth=12, heads=12, vocab=50304, seq_len=1024, tied=True)
    assert m.matmul_params() == 123_568_128 and m.num_params() == 123_568_128
    assert counted(m, 1024) == 854_654_976

@pytest.mark.parametrize("width, kw", [(8, {}), (32, {}), (64, dict(depth=3, heads=4, vocab=128, seq_len=32)), (48, dict(mlp_ratio=3)), (12, dict(heads=1, tied=True)), (16, dict(depth=1))])
def test_flops_are_6N_plus_12LTd(width, kw):
    m = on_meta(width, **kw)
    assert counted(m, m.seq_len, B=3) == 6*m.matmul_params() + 12*m.depth*m.seq_len*width

def test_swiglu_costs_as_much():
    a, b = on_meta(96), on_meta(96, activation="swiglu")
    assert a.num_params() == b.num_params() and counted(a, 64) == counted(b, 64)

def test_width_is_the_only_thing_that_changes():
    a, b = on_meta(16), on_meta(64)
    assert [n for n, _ in a.named_parameters()] == [n for n, _ in b.named_parameters()]
    assert {m.heads for m in a.modules() if isinstance(m, Attention)} == {m.heads for m in b.modules() if isinstance(m, Attention)} == {2}

def test_num_params_counts_a_tied_head_once():
    a, b = on_meta(32), on_meta(32, tied=True)
    assert a.num_params() - b.num_params() == 256*32 and a.matmul_params() == b.matmul_params()
    assert isinstance(a.num_params(), int)

@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("activation", ["relu2", "swiglu"])
def test_forward_shape_and_gradients(activation, tied):
    torch.manual_seed(0)
    m = GPT(16, vocab=50, activation=activation, tied=tied)
    x = torch.randint(50, (3, 64))
    assert m(x).shape == (3, 64, 50) and m(x[:, :7]).shape == (3, 7, 50)
    opt = torch.optim.SGD(m.parameters(), lr=.1)
    for _ in range(3):   # zero-initialised projections pass no gradient at the first step
        opt.zero_grad(); next_token_loss(m(x), x.roll(-1, 1)).backward(); opt.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in m.parameters())

@pytest.mark.parametrize("width", [8, 64, 256])
def test_untrained_loss_is_that_of_a_guess(width):
    m = GPT(width, vocab=128); x = torch.randint(128, (2, 64))
    assert next_token_loss(m(x), x).item() == pytest.approx(math.log(128), abs=1e-5)

def test_the_stream_has_unit_scale_at_the_start():
    for tied in (False, True):
        torch.manual_seed(0); m = GPT(128, tied=tied)
        seen = []
        m.blocks[0].register_forward_pre_hook(lambda mod, args, seen=seen: seen.append(args[0].std().item()))
        m(torch.randint(256, (4, 64)))
        assert seen[0] == pytest.approx(1, abs=.05)

def test_causal():
    torch.manual_seed(0); m = GPT(16)
    for p in m.parameters(): torch.nn.init.normal_(p, std=.3)
    x = torch.randint(256, (1, 64)); y = x.clone(); y[0, 40:] = (y[0, 40:] + 1) % 256
    a, b = m(x), m(y)
    torch.testing.assert_close(a[0, :40], b[0, :40]); assert not torch.allclose(a[0, 40], b[0, 40])

def test_attention_sees_distance_not_place():
    torch.manual_seed(0)
    for head_dim in (2, 4, 6, 16):
        q, k = torch.randn(2, head_dim); cos, sin = rotary_tables(32, head_dim)
        P = rotate(q.expand(32, -1), cos, sin) @ rotate(k.expand(32, -1), cos, sin).T
        for d in range(-31, 32): assert P.diagonal(d).std(correction=0) < 1e-4
        torch.testing.assert_close(rotate(q.expand(32, -1), cos, sin).norm(dim=-1), q.norm().expand(32))

def test_rms_norm():
    x = torch.randn(5, 7, 12)*30
    torch.testing.assert_close(rms_norm(x).square().mean(-1), torch.ones(5, 7))

@pytest.mark.parametrize("width, heads, words", [(30, 2, "28 and 32"), (2, 2, "4 works"), (7, 1, "6 and 8"), (66, 4, "64 and 72")])
def test_a_width_that_cannot_be_cut_says_which_can(width, heads, words):
    with pytest.raises(ValueError, match=words): GPT(width, heads=heads)

@pytest.mark.parametrize("kw, words", [(dict(width=0), "positive integer"), (dict(width=16.0), "positive integer"), (dict(width=16, heads=0), "positive integer"),
                                       (dict(width=16, activation="gelu"), "relu2")])
def test_bad_arguments(kw, words):
    with pytest.raises(ValueError, match=words): GPT(**kw)

def test_options_are_named():
    with pytest.raises(TypeError): GPT(32, 128)

def test_too_long_a_context_says_so():
    with pytest.raises(ValueError, match="seq_len=64"): GPT(16)(torch.zeros(1, 65, dtype=torch.long))

def test_next_token_loss_is_the_mean_in_nats():
    torch.manual_seed(0); logits, y = torch.randn(2, 5, 11), torch.randint(11, (2, 5))
    want = -logits.log_softmax(-1).gather(-1, y[..., None]).mean()
    torch.testing.assert_close(next_token_loss(logits, y), want)

def test_same_seed_same_model_and_a_state_dict_goes_round():
    torch.manual_seed(3); a = GPT(16); torch.manual_seed(3); b = GPT(16)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    c = pickle.loads(pickle.dumps(a)); d = GPT(16); d.load_state_dict(a.state_dict()); x = torch.randint(256, (2, 64))
    for m in (c, d): assert torch.equal(m(x), a(x))
    assert c.tied is False and pickle.loads(pickle.dumps(GPT(16, tied=True))).tied

def test_a_meta_model_can_be_filled():
    torch.manual_seed(5); a = on_meta(16).to_empty(device="cpu"); a.init_weights()
    b = GPT(16); torch.manual_seed(5); b.init_weights(); x = torch.randint(256, (2, 64))
    for m in (a, b): torch.nn.init.ones_(m.head.weight[:5]); m.eval()
    assert torch.equal(a.cos, b.cos) and torch.equal(a(x), b(x))

def test_learns_text_better_than_its_frequencies():
    text = stdlib_text(); data = TokenWindows(byte_tokens(text.train[:300_000]), 64)
    torch.manual_seed(0); m = GPT(16, vocab=128); opt = torch.optim.AdamW(m.parameters(), lr=1e-2, betas=(.9, .95), weight_decay=0)
    order = torch.randperm(len(data)); losses = []
    for i in range(100):
        x, y = data.batch(order[8*i:8*i + 8]); loss = next_token_loss(m(x), y); loss.backward(); opt.step(); opt.zero_grad(); losses.append(loss.item())
    p = np.bincount(data.tokens.numpy(), minlength=128)/len(data.tokens); p = p[p > 0]
    assert np.mean(losses[-10:]) < -(p*np.log(p)).sum() - .2   # entropy of single bytes

shapes = st.fixed_dictionaries(dict(vocab=st.integers(1, 70_000), depth=st.integers(1, 4), heads=st.integers(1, 8), mlp_ratio=st.sampled_from([1, 2, 8/3, 3.5, 4, 6]),
                                    activation=st.sampled_from(["relu2", "swiglu"]), tied=st.booleans()))

@given(st.integers(1, 60), shapes)
@settings(max_examples=60, deadline=None)
def test_every_count_is_that_of_the_built_model(k, kw):
    width = 2*kw["heads"]*k; m = on_meta(width, **kw); p = gpt_params(width, **kw)
    assert p == count_params(m, torch.zeros(2, 4, dtype=torch.long, device="meta"))   # which watches what is multiplied and what is looked up
    assert p.total == m.num_params() and p.matmul == m.matmul_params() and p.other == 0

def test_defaults_of_the_formula_are_those_of_the_model():
    assert gpt_params(64).matmul == on_meta(64).matmul_params() and on_meta(**gpt_for_params(1e6)).matmul_params() == gpt_params(**gpt_for_params(1e6)).matmul

def test_a_formula_refuses_the_widths_that_the_model_refuses():
    with pytest.raises(ValueError, match="28 and 32"): gpt_params(30)
    with pytest.raises(ValueError, match="relu2"): gpt_params(32, activation="gelu")

def grid_best(n, depth, vocab, heads, mlp_ratio, activation):
    "The nearest N by trying every width up to where N has passed n."
    best, width = math.inf, 0
    while True:
        width += 2*heads; N = gpt_params(width, vocab=vocab, depth=depth, heads=heads, mlp_ratio=mlp_ratio, activation=activation).matmul
        best = min(best, abs(N - n))
        if N > n: return best

@given(st.floats(3, 6.5).map(lambda e: 10**e), shapes.filter(lambda kw: kw["vocab"] < 2000))
@settings(max_examples=100, deadline=None)
def test_the_width_is_the_nearest_of_its_grid(n, kw):
    best = grid_best(n, **{k: v for k, v in kw.items() if k != "tied"})
    try: got = gpt_for_params(n, **kw, move_depth=False)
    except ValueError as e: assert best > .05*n and "depth move" in str(e); return
    assert abs(gpt_params(**got).matmul - n) == best <= .05*n and {k: got[k] for k in kw} == kw

@given(st.floats(3, 12).map(lambda e: 10**e), st.sampled_from([dict(), dict(vocab=128), dict(vocab=50304, depth=12, heads=12), dict(heads=1, activation="swiglu", tied=True)]))
@settings(max_examples=200, deadline=None)
def test_n_parameters_within_five_percent_or_it_says_so(n, kw):
    asked = dict(vocab=256, depth=2, heads=2, mlp_ratio=4, activation="relu2") | {k: v for k, v in kw.items() if k != "tied"}
    try: got = gpt_for_params(n, **kw)
    except ValueError as e:
        assert "nearest has N=" in str(e)
        assert all(grid_best(n, **{**asked, "depth": L}) > .05*n for L in range(1, 65))
        return
    assert abs(gpt_params(**got).matmul - n) <= .05*n and got["width"] % (2*got["heads"]) == 0
    if got["depth"] != asked["depth"]: assert grid_best(n, **asked) > .05*n   # depth moves only where it must

def test_byte_models_from_two_thousand_parameters_on_are_all_reached():
    for n in np.geomspace(1720, 1e6, 500): assert abs(gpt_params(**gpt_for_params(n)).matmul/n - 1) <= .05

@pytest.mark.parametrize("n", [0, -5, math.nan, math.inf, True, "1e6", None])
def test_a_number_of_parameters_is_positive(n):
    with pytest.raises(ValueError, match="positive number"): gpt_for_params(n)

def test_the_nearest_is_named_where_none_is_near():
    with pytest.raises(ValueError, match="N=1,408 .width=4, depth=2"): gpt_for_params(1500)
    assert gpt_for_params(1500, tolerance=.1) == dict(width=4, vocab=256, depth=2, heads=2, mlp_ratio=4, activation="relu2", tied=False)


# --- zoo.data

def test_bytes_per_token_is_kept_and_positive():
    t = torch.arange(100)
    assert TokenWindows(t, 8).bytes_per_token is None and pickle.loads(pickle.dumps(TokenWindows(t, 8, bytes_per_token=3.7))).bytes_per_token == 3.7
    for bad in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="bytes_per_token.*positive"): TokenWindows(t, 8, bytes_per_token=bad)
    with pytest.raises(TypeError): TokenWindows(t, 8, 1.0)

def test_stdlib_text_is_text_of_the_right_size():
    t = stdlib_text(); train, val = t
    assert train is t.train and val is t.val
    assert 6e6 < len(train) < 12e6 and .02 < len(val)/len(train) < .12
    assert t.val_files + t.train_files > 300 and .02 < t.val_files/t.train_files < .1
    assert sum(b > 127 for b in val)/len(val) < .005
    assert "MB" in repr(t) and len(repr(t)) < 200

def test_stdlib_text_is_the_same_in_another_process():
    code = "import hashlib; from scaling_nb.zoo.data import stdlib_text; t = stdlib_text(); print(hashlib.sha256(t.train).hexdigest(), hashlib.sha256(t.val).hexdigest())"
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "7"}).stdout.split()
    assert got == [hashlib.sha256(part).hexdigest() for part in stdlib_text()]

def library(tmp_path, n=120, size=12_000):
    root = tmp_path/"lib"
    for k in range(n):
        p = root/("pkg" if k % 2 else "")/f"m{k}.py"; p.parent.mkdir(parents=True, exist_ok=True); p.write_bytes(b"# %d\n" % k + b"x" * size)
    return root

def test_whole_files_are_held_out_and_tests_left_out(tmp_path):
    root = library(tmp_path); before = stdlib_text(root)
    for skip in sorted(SKIP): (root/"pkg"/skip).mkdir(); (root/"pkg"/skip/"a.py").write_text("SECRET"*1000)
    (root/"_sysconfigdata__linux.py").write_text("SECRET"); (root/"config-3.11-x86"/"b").mkdir(parents=True); (root/"config-3.11-x86"/"b"/"c.py").write_text("SECRET")
    (root/"notes.txt").write_text("SECRET"); (root/"native.so").write_bytes(b"\x00SECRET")
    assert stdlib_text(root) == before
    ids = {part: {line for line in data.split(b"\n") if line.startswith(b"# ")} for part, data in (("train", before.train), ("val", before.val))}
    assert len(ids["train"]) == before.train_files and len(ids["val"]) == before.val_files and not ids["train"] & ids["val"]
    assert before.train_files + before.val_files == 120

def test_a_new_file_moves_no_other(tmp_path):
    root = library(tmp_path); before = stdlib_text(root)
    (root/"zzz_new.py").write_bytes(b"new\n"); after = stdlib_text(root)
    assert after.train.startswith(before.train) and after.val.startswith(before.val)
    assert (after.train_files + after.val_files) == 121

def test_no_source_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="at least 1 MB.*root="): stdlib_text(tmp_path)
    with pytest.raises(FileNotFoundError, match="not there"): stdlib_text(tmp_path/"absent")
    (tmp_path/"python311.zip").write_bytes(b"PK")
    with pytest.raises(FileNotFoundError, match="zipped"): stdlib_text(tmp_path/"python311.zip")

def test_byte_tokens(tmp_path):
    raw = bytes(range(256)); (tmp_path/"t.bin").write_bytes(raw)
    assert byte_tokens(raw).tolist() == [min(i, 127) for i in range(256)] and byte_tokens(raw).dtype == torch.uint8
    assert byte_tokens(tmp_path/"t.bin", vocab=256).tolist() == list(range(256)) == byte_tokens(str(tmp_path/"t.bin"), vocab=256).tolist()
    with pytest.raises(ValueError, match="empty"): byte_tokens(b"")
    with pytest.raises(ValueError, match="128 or 256"): byte_tokens(raw, vocab=64)
    with pytest.raises(FileNotFoundError): byte_tokens(tmp_path/"absent.txt")

@pytest.mark.parametrize("n, T, want", [(65, 64, 1), (128, 64, 1), (129, 64, 2), (10, 3, 3), (2, 1, 1)])
def test_windows_do_not_overlap_and_targets_follow(n, T, want):
    t = torch.arange(n) % 256; w = TokenWindows(t, T)
    assert len(w) == want and w.tokens_per_sample == T and w.unique_tokens == want*T
    assert torch.equal(torch.cat([w[i][0] for i in range(want)]), t[:want*T]) and torch.equal(torch.cat([w[i][1] for i in range(want)]), t[1:want*T + 1])
    x, y = w[0]; assert x.dtype == y.dtype == torch.long and x.shape == y.shape == (T,)

def test_batched_fetch_is_item_by_item():
    w = TokenWindows(torch.randint(128, (5000,)), 16); i = [7, 0, 300, 7, 311]
    pairs = w.__getitems__(i); x, y = w.batch(i)
    assert isinstance(pairs, list) and len(pairs) == 5
    for k, (a, b) in enumerate(pairs): assert torch.equal(a, w[i[k]][0]) and torch.equal(b, w[i[k]][1]) and torch.equal(x[k], a) and torch.equal(y[k], b)
    cx, cy = default_collate(pairs); assert torch.equal(cx, x) and torch.equal(cy, y)
    assert w.batch(torch.tensor(i))[0].shape == (5, 16) and w.batch([])[0].shape == (0, 16)

def test_windows_in_a_dataloader():
    w = TokenWindows(torch.arange(1000) % 128, 10); seen = [x for x, _ in DataLoader(w, batch_size=7)]
    assert torch.equal(torch.cat(seen).flatten(), torch.arange(990) % 128)

def test_iterating_ends_and_negative_indices_count_from_the_end():
    w = TokenWindows(torch.arange(33), 4)
    assert len(list(w)) == 8 and torch.equal(w[-1][0], w[7][0])
    for i in (8, -9):
        with pytest.raises(IndexError, match="0 .. 7"): w[i]

@pytest.mark.parametrize("tokens, dtype", [(torch.randint(256, (99,)), torch.uint8), (np.arange(99, dtype=np.uint8), torch.uint8),
                                           (torch.tensor([0, 256]*50), torch.int32), (np.array([1, 60_000]*50, dtype=np.uint16), torch.int32), (torch.tensor([0, 1 << 40]*50), torch.int64)])
def test_tokens_are_kept_compact_and_whole(tokens, dtype):
    w = TokenWindows(tokens, 8); assert w.tokens.dtype == dtype
    assert torch.equal(w[0][0], torch.as_tensor(np.asarray(tokens).astype(np.int64))[:8])

@pytest.mark.parametrize("tokens, T, error, words", [(torch.rand(100), 8, TypeError, "integers"), (torch.arange(8), 8, ValueError, "9 tokens"), (torch.arange(8), 0, ValueError, "at least 1"),
                                                     (torch.tensor([]).long(), 8, ValueError, "got 0"),
                                                     (torch.arange(-5, 95), 8, ValueError, "negative"), (torch.ones(100, dtype=torch.bool), 8, TypeError, "integers")])
def test_bad_tokens(tokens, T, error, words):
    with pytest.raises(error, match=words): TokenWindows(tokens, T)

def test_windows_travel_light_and_arrive_whole():
    cloudpickle = pytest.importorskip("ray.cloudpickle")
    w = TokenWindows(torch.randint(128, (200_000,)), 64)
    for lib in (pickle, cloudpickle):
        wire = lib.dumps(w); back = pickle.loads(wire)
        assert len(wire) < 1.02*len(w.tokens) and len(back) == len(w) and torch.equal(back.batch([5, 9])[0], w.batch([5, 9])[0])
        assert back.fingerprint() == w.fingerprint()

def test_a_slice_of_a_large_tensor_does_not_travel_whole():
    big = torch.randint(128, (1_000_000,), dtype=torch.uint8)
    assert len(pickle.dumps(TokenWindows(big[:10_000], 64))) < 20_000

def test_fingerprint_sees_every_token_and_the_window():
    t = torch.randint(128, (10_000,)); u = t.clone(); u[4321] = (u[4321] + 1) % 128
    assert len({TokenWindows(t, 64).fingerprint(), TokenWindows(u, 64).fingerprint(), TokenWindows(t, 32).fingerprint()}) == 3
    assert TokenWindows(t, 64).fingerprint() == TokenWindows(t.to(torch.uint8), 64).fingerprint()
