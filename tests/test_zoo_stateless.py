"Numbers from a sample's number alone: as random as a generator's, the same everywhere, and data sets made of them."
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
from scipy import stats

from scaling_nb.zoo.stateless import Drawn, mix64, normals, uniforms, words

M = (1 << 64) - 1
seeds, streams = st.integers(-(1 << 70), 1 << 70), st.integers(-(1 << 63), (1 << 63) - 1)
numbers = st.lists(st.integers(0, (1 << 63) - 1), min_size=1, max_size=20)


pytestmark = pytest.mark.usefixtures("one_thread")

def splitmix(x):
    "The reference's finaliser, in Python's own integers."
    x = (x ^ (x >> 30))*0xBF58476D1CE4E5B9 & M
    x = (x ^ (x >> 27))*0x94D049BB133111EB & M
    return x ^ (x >> 31)

def signed(x): return x - (1 << 64) if x >> 63 else x


# --- the hash

@given(st.lists(st.integers(0, M), min_size=1, max_size=50))
def test_mix_is_the_reference_bit_for_bit(xs):
    assert [int(v) & M for v in mix64(torch.tensor([signed(x) for x in xs]))] == [splitmix(x) for x in xs]

def test_published_numbers():
    "Of seed 1234567, as in the reference implementation's test of many languages."
    got = mix64(torch.tensor([signed((1234567 + k*0x9E3779B97F4A7C15) & M) for k in range(1, 6)]))
    assert [int(v) & M for v in got] == [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]

@settings(max_examples=30)
@given(seeds, numbers, st.integers(1, 9), streams)
def test_a_sample_depends_on_its_number_alone(seed, index, n, stream):
    i = torch.tensor(index)
    for f in (words, uniforms, normals):
        whole = f(seed, i, n, stream)
        assert whole.shape == (len(index), n)
        assert torch.equal(whole, torch.cat([f(seed, i[k:k + 1], n, stream) for k in range(len(i))]))
    assert torch.equal(words(seed, i, n + 5, stream)[:, :n], words(seed, i, n, stream)) and torch.equal(uniforms(seed, i, n + 5, stream)[:, :n], uniforms(seed, i, n, stream))

def test_another_process_draws_the_same_and_no_generator_is_touched():
    code = "import torch; torch.manual_seed(9); from scaling_nb.zoo.stateless import normals; print(normals(3, torch.tensor([0, 7, 1 << 50]), 5).tolist())"
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "1"}).stdout
    torch.manual_seed(1); before = torch.get_rng_state()
    assert eval(got) == normals(3, torch.tensor([0, 7, 1 << 50]), 5).tolist() and torch.equal(before, torch.get_rng_state())

def test_pinned_numbers():
    "A change of these is another data set under the same name."
    assert [int(v) & M for v in words(0, torch.tensor([0, 1]), 2).flatten()] == [16294208416658607535, 7960286522194355700, 12035550249420947055, 12935080325729570654]


# --- are they random? every bound is at odds of about one in a million, and the numbers are fixed

def tail(z): return 2*stats.norm.sf(abs(z)) > 1e-6

def test_every_bit_is_fair_and_no_two_go_together():
    w = words(0, torch.arange(20_000), 4).flatten().numpy().view(np.uint64)
    bits = (w[:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)).astype(float)*2 - 1
    assert tail(np.abs(bits.sum(0)).max()/math.sqrt(len(w))/1.35)   # the largest of 64
    c = bits.T @ bits/len(w); np.fill_diagonal(c, 0)
    assert np.abs(c).max()*math.sqrt(len(w)) < 6

@pytest.mark.parametrize("flip", ["index", "seed", "stream"])
def test_one_bit_in_moves_half_of_the_bits_out(flip):
    base = torch.arange(1000)*7919
    for b in (0, 1, 5, 20, 40, 62):
        changed = dict(index=lambda b=b: words(3, base ^ (1 << b), 2, 5), seed=lambda b=b: words(3 ^ (1 << b), base, 2, 5), stream=lambda b=b: words(3, base, 2, 5 ^ (1 << b)))[flip]()
        x = (words(3, base, 2, 5) ^ changed).numpy().view(np.uint64)
        n = int(np.unpackbits(x.view(np.uint8)).sum())
        assert tail((n - 64_000)/math.sqrt(128_000/4)), (flip, b)

@pytest.mark.parametrize("seed", [0, 1, -5, 12345])
def test_uniforms_fill_the_line_and_the_square(seed):
    u = uniforms(seed, torch.arange(20_000), 10).numpy()
    assert u.dtype == np.float32 and u.min() >= 0 and u.max() < 1
    assert stats.chisquare(np.bincount((u.ravel()*1000).astype(int), minlength=1000)).pvalue > 1e-6
    others = [uniforms(seed + 1, torch.arange(20_000), 10).numpy(), uniforms(seed, torch.arange(20_000), 10, stream=1).numpy()]
    for a, b in ((u[:, :-1], u[:, 1:]), (u[:-1], u[1:]), (u[:-64], u[64:]), (u[1:, :-1], u[:-1, 1:]), (u, others[0]), (u, others[1])):
        cells = (a.ravel()*16).astype(int)*16 + (b.ravel()*16).astype(int)
        assert stats.chisquare(np.bincount(cells, minlength=256)).pvalue > 1e-6

@pytest.mark.parametrize("n", [1, 2, 7, 10])
def test_normals_are_normal_alone_and_in_pairs(n):
    z = normals(0, torch.arange(100_000//n), n).numpy()
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-6
    pairs = [(z[:-1], z[1:])] + ([(z[:, :-1], z[:, 1:]), (z[:, :n//2], z[:, -(-n//2):][:, :n//2])] if n > 1 else [])
    for a, b in pairs:
        for f in (lambda v: v, np.abs, np.square):    # a shared radius would show in the squares
            assert tail(np.corrcoef(f(a.ravel()), f(b.ravel()))[0, 1]*math.sqrt(a.size)), f

def test_the_tail_is_there_and_finite():
    z = normals(1, torch.arange(100_000), 40)
    assert torch.isfinite(z).all() and 4.6 < z.abs().max() < 5.8
    assert tail(((z > 3).sum().item() - 4e6*stats.norm.sf(3))/math.sqrt(4e6*stats.norm.sf(3)))

@pytest.mark.parametrize("bits", [0, -1, (1 << 40) - 1, -(1 << 40)])
def test_the_extreme_words_give_numbers_in_range(monkeypatch, bits):
    monkeypatch.setattr("scaling_nb.zoo.stateless.words", lambda seed, index, n, stream=0: torch.full((len(index), n), bits))
    u, z = uniforms(0, torch.arange(2), 3), normals(0, torch.arange(2), 3)
    assert ((u >= 0) & (u < 1)).all() and (z.abs() < 5.8).all()

def test_far_numbers_are_as_good_as_near_ones():
    z = torch.cat([normals(0, torch.arange(1000) + start, 20) for start in (0, 1 << 40, (1 << 62) - 500)])
    assert len(z.unique(dim=0)) == 3000 and stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-6


# --- data sets made of them

class Rows(Drawn):
    def __init__(self, width=3, **kw): super().__init__(**kw); self.width = width
    def draw(self, numbers): return normals(self.seed, numbers, self.width), (uniforms(self.seed, numbers, 1, 1)[:, 0]*10).long()

class Shifted(Rows):
    def draw(self, numbers): x, y = super().draw(numbers); return x + .5, y

def test_two_ranges_share_nothing_and_tile():
    a, b, whole = Rows(length=50), Rows(first=50, length=50), Rows(length=100)
    assert torch.equal(torch.cat([a.batch(range(50))[0], b.batch(range(50))[0]]), whole.batch(range(100))[0])
    assert len(whole.batch(range(100))[0].unique(dim=0)) == 100

def test_fingerprint_sees_settings_and_code_and_travels():
    d = Rows()
    others = [Rows(seed=1), Rows(first=1), Rows(length=7), Rows(width=4), Shifted()]
    assert len({d.fingerprint(), *(o.fingerprint() for o in others)}) == 6
    class Rows2(Rows):
        def draw(self, numbers): x, y = super().draw(numbers); return x, 9 - y
    Rows2.__name__ = "Rows"    # the same name and settings, other labels
    assert Rows2().fingerprint() != d.fingerprint() == pickle.loads(pickle.dumps(d)).fingerprint()

@pytest.mark.parametrize("kw, words_", [(dict(seed=.5), "`seed` must be an integer"), (dict(length=0), "1 <= `length`"), (dict(first=-1), "0 <= `first`"),
                                        (dict(first=1 << 62, length=1 << 62), "< 2.*63"),
                                        (dict(length=True), "integer"), (dict(length=2.**40), "integer")])
def test_bad_ranges(kw, words_):
    with pytest.raises(ValueError, match=words_): Rows(**kw)
