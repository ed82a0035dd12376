"""What a recipe comes to: published numbers, schedules, batches, and who may share a trunk."""
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling_nb.recipes import (
    BATCH_RULES,
    LR_RULES,
    Recipe,
    critical_batch,
    deepseek_batch,
    deepseek_lr,
    olmo_batch,
    olmo_lr,
    resolve,
    step_law_batch,
    step_law_lr,
    trunk_of,
    why_apart,
)
from scaling_nb.sweep import RunSpec, share_trunks


def run(N=100_000, D=2_000_000): return SimpleNamespace(N=N, D=D, C=6*N*D)


def test_published_numbers():
    "METHODS A.3.7, from the papers' own tables."
    assert step_law_lr(1e9, 2e10) == pytest.approx(9.96e-4, rel=1e-3) and step_law_batch(2e10) == pytest.approx(4.42e5, rel=5e-3)
    assert deepseek_lr(1e20) == pytest.approx(9.86e-4, rel=1e-3) and deepseek_batch(1e20) == pytest.approx(1.017e6, rel=2e-3)
    assert olmo_lr(190_354_176) == pytest.approx(.003891, rel=1e-3) and olmo_batch(190_354_176)/2048 == pytest.approx(233.5, rel=1e-3)


@pytest.mark.parametrize("rule, expected", [("step_law", step_law_lr(1e6, 2e7)), ("deepseek", deepseek_lr(6*1e6*2e7)), ("olmo", olmo_lr(1e6)), (lambda N, D: N/D, .05), (.003, .003)])
def test_a_rate_by_any_rule(rule, expected):
    s = resolve(Recipe(lr=rule), run(10**6, 2*10**7), 64)
    assert s.lr == pytest.approx(expected) and (s.base_width is None) == (isinstance(rule, str))


def test_auto_is_by_width_or_by_size():
    assert (s := resolve(Recipe(lr="auto"), run(), 64)).lr == .01 and s.base_width == 32
    assert resolve(Recipe(lr="auto", base_width=None), run(10**9), 64).lr == olmo_lr(10**9)
    assert resolve(Recipe(lr="auto", base_width=None), run(10**4), 64).lr == .01


@pytest.mark.parametrize("rule", BATCH_RULES)
def test_batches_are_powers_of_two_within_the_critical_one(rule):
    for N, D in ((10**4, 10**5), (10**6, 10**7), (10**9, 2*10**10)):
        s = resolve(Recipe(batch_size=rule), run(N, D), 64)
        reached = [n for at, n in s.batch if at < D]
        assert all(n & (n - 1) == 0 for n in reached) and (max(reached) == 1 or max(reached)*64 <= 1.5*critical_batch(D))


def test_the_keyed_batch_follows_step_law():
    s = resolve(Recipe(), run(D=10**10), 64)
    for seen in (10**5, 10**6, 10**8, 10**10 - 1): assert step_law_batch(seen)/2 < s.samples(seen)*64 <= step_law_batch(seen)*1.001
    assert s.samples(0) == 1


def test_a_table_of_batches():
    s = resolve(Recipe(batch_size=((0, 4), (300, 8))), run(D=1000), 1)
    assert [s.samples(t) for t in (0, 299, 300, 999)] == [4, 4, 8, 8] and resolve(Recipe(batch_size=lambda N, D: 512), run(), 64).samples(0) == 8


@given(D=st.integers(1, 10**6), b=st.integers(1, 200), per=st.sampled_from([1, 7, 64]))
def test_steps_are_counted_as_they_are_taken(D, b, per):
    s = resolve(Recipe(batch_size=((0, b), (1000, 2*b), (50_000, 5*b))), run(D=D), per)
    n = seen = 0
    while seen < D: seen, n = seen + min(s.samples(seen), -(-(D - seen)//per))*per, n + 1
    assert s.steps(per) == n


@pytest.mark.parametrize("schedule, end", [("wsd", 0), ("cosine", 0), ("constant", 1)])
def test_schedules_rise_hold_and_fall(schedule, end):
    s = resolve(Recipe(schedule=schedule, warmup=.1), run(D=1000), 1)
    f = [s.lr_factor(t) for t in range(1001)]
    assert f[0] == 0 and max(f) == 1 and f[50] == .5 and f[100] == 1 and f[-1] == pytest.approx(end, abs=1e-9)
    if schedule == "wsd": assert set(f[100:801]) == {1.0} and f[900] == .5


def test_the_root_shape_falls_faster_at_first():
    line, root = (resolve(Recipe(decay_shape=d, warmup=0), run(D=1000), 1) for d in ("linear", "1-sqrt"))
    assert root.lr_factor(850) == 1 - math.sqrt(.25) < line.lr_factor(850) == .75 and root.lr_factor(1000) == line.lr_factor(1000) == 0


def test_a_schedule_of_ones_own():
    s = resolve(Recipe(schedule=lambda p: 1 - p), run(D=1000), 1)
    assert s.lr_factor(250) == .75 and trunk_of(s) is None and "'wsd' has a trunk" in why_apart(Recipe(schedule=lambda p: 1 - p))


@pytest.mark.parametrize("warmup, expected", [("auto", 100_000), (.05, 100_000), (5000, 5000), (0, 0), (lambda N, D: N//2, 50_000)])
def test_warm_up_in_tokens(warmup, expected): assert resolve(Recipe(warmup=warmup), run(), 64).warmup == expected


def test_auto_warm_up_is_a_tenth_of_a_short_run_and_never_reaches_into_the_decay():
    assert resolve(Recipe(), run(D=200_000), 64).warmup == 20_000
    assert resolve(Recipe(warmup=10**9), run(D=1000), 1).warmup == 800


@pytest.mark.parametrize("bad, words", [(dict(lr=0), "lr"), (dict(lr="big"), "lr"), (dict(schedule="step"), "schedule"), (dict(warmup=.6, decay=.6), "decay"), (dict(warmup=-1), "warmup"),
                                        (dict(warmup=1.5), "warmup"), (dict(warmup="long"), "warmup"), (dict(optimizer="sgd"), "lambda params"), (dict(batch_size=0), "batch_size"),
                                        (dict(batch_size="big"), "batch_size"), (dict(batch_size=((5, 4),)), "batch_size"),
                                        (dict(batch_size=((0, 4), (9, 2), (5, 8))), "batch_size"), (dict(batch_size=()), "batch_size"),
                                        (dict(decay=1.2), "decay"), (dict(decay_shape="cubic"), "decay_shape"), (dict(eval_last=0), "eval_last"), (dict(precision="fp8"), "precision")])
def test_bad_recipes(bad, words):
    with pytest.raises(ValueError, match=words): Recipe(**bad)


def test_a_rule_that_gives_nonsense_says_where():
    with pytest.raises(ValueError, match="N=100,000.*-1"): resolve(Recipe(lr=lambda N, D: -1), run(), 64)


def test_numpy_integers_are_integers():
    assert Recipe(batch_size=np.int64(8)) == Recipe(batch_size=8) and Recipe(batch_size=np.int64(8)).plain() == Recipe(batch_size=8).plain()


def test_plain_data_tells_functions_apart():
    a, b = (Recipe(lr=f).plain() for f in (lambda N, D: .01, lambda N, D: .02))
    assert a != b and isinstance(a["lr"], str) and Recipe(lr=lambda N, D: .01).plain() == a
    import json
    json.dumps(resolve(Recipe(schedule=lambda p: 1.), run(), 64).plain())


def specs(Ds, size=16, seed=0): return [RunSpec(0, size, 8192, D, 6*8192., seed) for D in Ds]


def test_five_horizons_cost_613_thousandths():
    "METHODS A.3.6."
    s = specs([10**6*2**k for k in range(5)])
    t, = share_trunks(s, Recipe(), 64)
    assert t.runs == (4, 3, 2, 1, 0) and (sum(x.D for x in s) - sum(t.parts_at))/sum(x.D for x in s) == pytest.approx(.6129, abs=1e-4)


@pytest.mark.parametrize("apart", [dict(schedule="cosine"), dict(schedule="constant"), dict(lr="step_law"), dict(lr="deepseek"), dict(batch_size="step_law"), dict(warmup=.05)])
def test_what_follows_the_length_shares_nothing(apart): assert share_trunks(specs([10**6, 8*10**6]), Recipe(**apart), 64) == () and why_apart(Recipe(**apart))


@pytest.mark.parametrize("rule", [dict(), dict(lr="olmo"), dict(lr="auto"), dict(batch_size=8), dict(batch_size="olmo"), dict(decay_shape="1-sqrt"), dict(lr=lambda N, D: .01)])
def test_what_does_not_follow_it_shares(rule): assert len(share_trunks(specs([10**6, 2*10**6]), Recipe(**rule), 64)) == 1 and not why_apart(Recipe(**rule))


def test_other_sizes_and_seeds_have_trunks_of_their_own():
    both = [*specs([10**6, 2*10**6]), *specs([10**6, 2*10**6], size=32), *specs([10**6], seed=1), *specs([10**6])]
    assert [t.runs for t in share_trunks(both, Recipe(), 64)] == [(1, 0), (3, 2)]     # a copy is the same run


@pytest.mark.parametrize("rule", LR_RULES)
def test_settings_are_stored_as_numbers(rule):
    s = resolve(Recipe(lr=rule), run(), 64).plain()
    assert isinstance(s["lr"], float) and s["D"] == 2_000_000 and all(at < s["D"] for at, _ in s["batch"])


def test_lists_are_tuples():
    r = Recipe(betas=[.9, .95], batch_size=[(0, 4), (100, 8)])
    assert hash(r) == hash(Recipe(betas=(.9, .95), batch_size=((0, 4), (100, 8)))) and r.plain() == Recipe(batch_size=((0, 4), (100, 8))).plain()
