"""What follows when some of C, N, D and loss are decided: consistent whatever is held, and refused where it is a guess."""
import json
import math
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_allocation import bent, general, held
from test_fitting import TRUTH, sweep

from scaling_nb import inference_optimal as public
from scaling_nb.allocation import NoAnswer, compute_optimal
from scaling_nb.choices import Choice, choose, inference_optimal, overtraining_frame
from scaling_nb.fitting import fit_law
from scaling_nb.isoflop import fit_isoflop
from scaling_nb.laws import ChinchillaLaw, DataConstrainedLaw, overtrained
from scaling_nb.laws import inference_optimal as serving_optimum


@lru_cache
def fitted(measured=False, **kw):
    N, D, L, C = sweep(sigma=.003, f=general if measured else None, **kw)
    return fit_law(N, D, L, C=C)


POINT = ("C", "N", "D", "loss")
values = lambda ch: [getattr(ch, k) for k in POINT]


@settings(max_examples=30, deadline=None)
@given(st.floats(15, 19.5), st.floats(-2.5, 2.5), st.sampled_from([("C", "N"), ("C", "D"), ("N", "D"), ("N", "loss"), ("D", "loss")]), st.booleans())
def test_whatever_two_are_held_the_point_is_the_same(ln_C, ln_ratio, two, measured):
    law = exact() if measured else TRUTH  # a bare law costs 6ND
    C = min(10 ** ln_C, 1e18 if measured else math.inf)
    best, cost = (law.law.optimum(C, law.curve)[0], law.curve) if measured else (TRUTH.optimum(C)[0], lambda N: 6 * N)
    point = dict(C=C, N=best * math.exp(ln_ratio), D=C / float(cost(best * math.exp(ln_ratio))))
    point["loss"] = float(getattr(law, "law", law).loss(point["N"], point["D"]))
    ch = choose(law, **{k: point[k] for k in two})
    assert values(ch) == pytest.approx([point[k] for k in POINT], rel=1e-7)
    assert 0 <= ch.regret < 1 and (ch.serving < 1) is (ch.N < ch.best_N) or abs(ln_ratio) < 1e-3


@lru_cache
def exact():
    N, D, L, C = sweep(f=general)
    return fit_law(N, D, L, C=C)


@settings(max_examples=20, deadline=None)
@given(st.floats(15, 19.5), st.sampled_from(POINT))
def test_one_held_gives_the_frontier(ln_C, one):
    N, D, loss = TRUTH.optimum(10 ** ln_C)
    point = dict(C=10 ** ln_C, N=N, D=D, loss=loss)
    ch = choose(TRUTH, **{one: point[one]})
    assert values(ch) == pytest.approx([point[k] for k in POINT], rel=1e-8) and ch.regret == pytest.approx(0, abs=1e-9) and ch.serving == pytest.approx(1)
    assert ch.intervals == {} and ch.extrapolation is None


@pytest.mark.parametrize("one", [dict(N=1e12), dict(D=1e12), dict(N=1e300), dict(D=1e300)])
def test_a_size_that_no_budget_is_split_best_at_is_refused(one):
    scarce = DataConstrainedLaw(1.69, 406.4, 410.7, .34, .28, unique=1e9)  # 1e12 tokens are a thousand epochs: there the loss no longer falls
    with pytest.raises(NoAnswer, match="No budget is split best at") as e: choose(scarce, **one)
    assert e.value.refusal.kind == "no_optimum"
    reached = choose(scarce, **{k: v / 50 if k == "D" else v / 1e3 for k, v in one.items()}) if max(one.values()) < 1e100 else None
    assert reached is None or reached.regret < 1e-3


def test_one_held_agrees_with_compute_optimal():
    for measured in (False, True):
        fit = fitted(measured)
        one, other = choose(fit, C=1e19), compute_optimal(fit, 1e19)
        assert (one.N, one.D, one.loss) == pytest.approx((other.N, other.D, other.loss), rel=1e-12)
        for k in ("N", "D", "loss"):
            assert one.intervals[k] == pytest.approx(getattr(other, f"{k}_interval"), rel=1e-4)
        assert one.loss_outer == pytest.approx(other.loss_outer, rel=1e-4) and one.in_range == other.in_range


def test_intervals_cover():
    "The tokens that a model needs for a loss, the least compute for it, and the loss of a model on a budget"
    right = dict(D=0, C=0, loss=0)
    truth = dict(D=choose(TRUTH, N=3e8, loss=2.9).D, C=choose(TRUTH, loss=2.9).C, loss=choose(TRUTH, C=1e19, N=1e8).loss)
    for seed in range(14):
        fit = fit_law(*sweep(sigma=.005, seed=seed)[:3])
        found = dict(D=choose(fit, N=3e8, loss=2.9), C=choose(fit, loss=2.9), loss=choose(fit, C=1e19, N=1e8))
        for k, ch in found.items():
            low, high = ch.intervals[k]
            assert low < getattr(ch, k) < high
            right[k] += low <= truth[k] <= high
    assert min(right.values()) >= 11, right


def test_what_is_held_has_no_interval_and_what_follows_from_it_alone_neither():
    fit = fitted()
    assert set(choose(fit, C=1e18, N=1e8).intervals) == {"loss"} and set(choose(fit, N=1e8, loss=3.).intervals) == {"C", "D"} and set(choose(fit, loss=3.).intervals) == {"C", "N", "D"}
    five = choose(fit_law(*(v[[0, 6, 14, 20, 34]] for v in sweep(sigma=.005)[:3])), C=1e18, N=1e8)
    assert five.intervals == {} and five.loss_outer is None and "No interval" in str(five)
    coupled = choose(fit_law(fit.N, fit.D, fit.L, law="coupled"), C=1e18, N=1e8)
    assert coupled.intervals == {} and "Chinchilla surface" in coupled.notes[0] and coupled.loss == pytest.approx(TRUTH.loss(1e8, 1e18 / 6e8), abs=.02)


def test_a_limit_on_the_size():
    fit = fitted()
    best = choose(fit, C=1e19)
    for limit in (best.N * 1.01, best.N * .5):
        ch = choose(fit, C=1e19, max_N=limit)
        assert (ch.limit, ch.N) == ((None, best.N) if limit > best.N else (limit, limit))
    assert ch.regret > .02 and ch.serving < 1 and ch.D == pytest.approx(1e19 / (6 * limit)) and "Given 1.00e19 FLOPs, and no more than" in str(ch)
    target = choose(fit, loss=best.loss, max_N=best.N / 2)
    assert target.C > 1e19 and target.N == best.N / 2 and target.loss == best.loss
    for kw in (dict(C=1e19, N=1e8), dict(N=1e8), dict(C=1e19, D=1e10)):
        with pytest.raises(ValueError, match="`max_N` must be positive"):
            choose(fit, **kw, max_N=1e8)


@pytest.mark.parametrize("kw", [dict(), dict(C=1e19, loss=3.), dict(C=1e19, N=1e8, D=1e10)])
def test_too_little_or_too_much(kw):
    with pytest.raises(ValueError, match="One or two of C, N, D and loss"):
        choose(TRUTH, **kw)


@pytest.mark.parametrize("kw", [dict(C=-1.), dict(N=math.inf), dict(loss=math.nan), dict(D=0., C=1e18)])
def test_nonsense(kw):
    with pytest.raises(ValueError, match="positive and finite"):
        choose(TRUTH, **kw)


def kind(ask):
    with pytest.raises(NoAnswer) as e:
        ask()
    return e.value.refusal.kind


def test_what_no_model_reaches_is_refused():
    fit = fitted()
    sd = (lambda r: r.high["E"] - r.estimate["E"])(fit.intervals(levels=.9).set_index("quantity"))
    for loss, refused in ((fit.law.E * .9, True), (fit.law.E + .5 * sd, True), (fit.law.E + 1.5 * sd, None)):
        if refused:
            assert kind(lambda loss=loss: choose(fit, loss=loss)) == "below_floor"
        else:
            assert kind(lambda loss=loss: choose(fit, loss=loss)) == "too_far"
    small = fit.law.loss(1e8, math.inf)
    assert kind(lambda: choose(fit, N=1e8, loss=small * 1.0005)) == kind(lambda: choose(fit, D=1e9, loss=fit.law.loss(math.inf, 1e9))) == kind(lambda: choose(TRUTH, N=1e8, loss=2.)) == "below_floor"
    assert choose(fit, N=1e8, loss=small * 1.2).D > 0
    assert kind(lambda: choose(fit, loss=fit.law.optimum(1e19)[2], max_N=1e6)) == "below_floor", "no number of tokens makes up for a model that is too small"


def test_the_loss_is_refused_where_compute_optimal_refuses_it():
    fit = fitted()
    far = choose(fit, C=1e21, N=1e9)
    assert far.loss is far.best_loss is far.loss_outer is None and "loss" not in far.intervals and far.refusals["loss"].kind == "too_far" and "withheld" in str(far) and far.regret > 0
    assert choose(fit, C=1e21, N=1e9, held_out=held(30)).loss
    assert kind(lambda: choose(fit, loss=fit.law.optimum(1e21)[2])) == "too_far" and choose(fit, loss=fit.law.optimum(1e21)[2], held_out=held(30)).C == pytest.approx(1e21)
    assert kind(lambda: choose(fit, N=1e8, loss=fit.law.optimum(1e19)[2] * 1.01, held_out=held(3, off=.03))) == "contradicted"


def test_fits_without_an_answer():
    N, D, L, C = sweep(K=1, M=9)
    assert kind(lambda: choose(fit_law(N, D, L), C=1e19)) == "not_identified"
    N, D, L, C = sweep(sigma=.003)
    L = np.where(np.arange(35) == 3, 9.5, L)
    assert kind(lambda: choose(fit_law(N, D, L, loss="mse"), C=1e19)) == "no_optimum"
    for ask in (lambda f: choose(f, C=1e19), lambda f: inference_optimal(f, 1e19, 1e10), lambda f: overtraining_frame(f, 1e19)):
        assert kind(lambda ask=ask: ask(fit_isoflop(N, C, L))) == "no_law"


def test_a_surface_that_misses_the_runs_says_so():
    N, D, _, C = sweep()
    fit = fit_law(N, D, bent(N, D) + .003 * np.random.default_rng(0).standard_normal(35))
    assert compute_optimal(fit, 1e18).method == "isoflop" and "rests on the surface" in choose(fit, C=1e18, N=1e8).notes[-1]


def test_the_value():
    fit = fit_law(*sweep(sigma=.003)[:3], mock=True)
    for ch in (choose(fit, C=1e18, N=1e8), choose(fit, loss=3.), choose(fit, C=1e21, max_N=1e8), choose(TRUTH, N=1e8)):
        assert Choice.from_dict(json.loads(json.dumps(ch.to_dict(), allow_nan=False))) == ch
        assert ch._repr_html_().startswith("<table") and str(ch).startswith("Given ")
    assert "mock: losses" in str(choose(fit, C=1e18))


# ------------------------------------------------------------------ serving
def test_the_loss_of_a_training_budget_at_least_lifetime_cost():
    fit = fitted(True)
    best, engine = inference_optimal(fit, 1e19, 1e11), serving_optimum(fit, fit.law.optimum(1e19, fit.curve)[2], 1e11)
    assert best == engine and best.N < best.base_N and best.total < best.base_total and public is inference_optimal
    assert inference_optimal(TRUTH, 1e19, 0).N == pytest.approx(TRUTH.optimum(1e19)[0], rel=1e-4)
    dear = inference_optimal(fit, 1e19, 1e11, prices=(1, 5))
    assert dear.N < best.N and inference_optimal(fit, 1e19, 1e11, serving_flops=.1).N > best.N
    said = str(best)
    assert f"{best.loss:.4f} nats per token and 100B tokens served" in said and f"{100 * best.saving:.1f} % less" in said
    assert ", 0.0 % less" in str(inference_optimal(TRUTH, 1e19, 0))


@settings(max_examples=8, deadline=None)
@given(st.floats(17, 20), st.floats(8, 12), st.floats(.3, 3))
def test_the_whole_bill(ln_C, ln_T, price):
    C, T = 10 ** ln_C, 10 ** ln_T
    best = inference_optimal(TRUTH, C, T, total=True, prices=(1., price))
    assert best.total == pytest.approx(C, rel=1e-6)
    N = best.N * np.geomspace(.05, 20, 4001)
    D = (C - price * 2 * N * T) / (6 * N)
    losses = np.where(D > 0, TRUTH.loss(N, np.maximum(D, 1)), np.inf)
    assert best.loss <= losses.min() + 1e-9 and losses.min() == pytest.approx(best.loss, rel=1e-4)


def test_serving_is_refused_with_the_loss():
    fit = fitted()
    assert "a loss that is withheld" in str(inference_optimal(fit, 1e21, 1e10))
    assert inference_optimal(fit, 1e21, 1e10).loss is None and inference_optimal(fit, 1e21, 1e10, held_out=held(30)).loss and inference_optimal(fit, 1e18, 1e9).loss
    with pytest.raises(ValueError, match="`C` must be positive"):
        inference_optimal(fit, 0, 1e10)
    with pytest.raises(ValueError, match="serving alone takes more"):
        inference_optimal(TRUTH, 1e8, 1e25, total=True)
    with pytest.raises(ValueError, match="`tokens_served` must be finite"):
        inference_optimal(fit, 1e18, -1)


def test_the_dial():
    fit = fitted()
    frame = overtraining_frame(fit, 1e19)
    at = frame[np.isclose(frame.times, 1)].iloc[0]
    assert len(frame) == 8 and at.penalty == pytest.approx(0, abs=1e-9) and at.loss == pytest.approx(fit.law.optimum(1e19)[2]) and (6 * frame.N * frame.D).to_numpy() == pytest.approx(1e19)
    more = frame[frame.times > 1.5]
    assert more.penalty.is_monotonic_increasing and more.serving_saving.is_monotonic_increasing and (more.serving_saving > 0).all()
    own = overtraining_frame(fit, 1e19, ratios=[100, 1e5])
    assert own.loss[0] == overtrained(fit, 1e19, 100).loss and own.in_range.tolist() == [True, False]
    far = overtraining_frame(fit, 1e21)
    assert far.loss.isna().all() and far.penalty.notna().all() and overtraining_frame(fit, 1e21, held_out=held(30)).loss.notna().all()
    assert overtraining_frame(TRUTH, 1e21).in_range.all() and overtraining_frame(ChinchillaLaw(1.69, 406.4, 410.7, .34, .28), 1e21).loss.notna().all()
