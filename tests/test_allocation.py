"""The answer: right where it can be, refused where it cannot, and honest about the rest."""
import json
import math
import pickle
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fitting import SMALL, TRUTH, sweep

from scaling_nb import allocation
from scaling_nb.allocation import GRADES, REFUSALS, Allocation, NoAnswer, Refusal, choose_method, compute_optimal, loss_band, optimum_frame
from scaling_nb.doubts import leave_future_out
from scaling_nb.fitting import FitStatus, fit_law
from scaling_nb.intervals import fit_intervals
from scaling_nb.isoflop import fit_isoflop
from scaling_nb.laws import ChinchillaLaw, CoupledLaw, DataConstrainedLaw
from scaling_nb.yardsticks import pure_error, regret, regret_band, surface_misfit


def general(N):
    return 6 * N + 4e6 * N ** .4


def bent(N, D, gamma=.6):
    "A law that no Chinchilla surface describes"
    return 1.69 + ((406.4 * N ** -.34) ** (1 / gamma) + (410.7 * D ** -.28) ** (1 / gamma)) ** gamma


def fits(seed=0, sigma=.005, law=None, **kw):
    N, D, L, C = sweep(sigma=sigma, seed=seed, **kw)
    if law:
        L = law(N, D) + L - TRUTH.loss(N, D)
    return fit_law(N, D, L, C=C), fit_isoflop(N, C, L, D=D)


@pytest.mark.parametrize("law, top", [(TRUTH, 1e18), (SMALL, 1.6e11)])
def test_exact(law, top):
    N, D, L, C = sweep(law, top)
    answer = fit_law(N, D, L).optimum(10 * top)
    assert (answer.N, answer.D, answer.loss) == pytest.approx(law.optimum(10 * top), rel=1e-6) and answer.method == "surface"
    assert answer.extrapolation == pytest.approx(10) and answer.tokens_per_param == answer.D / answer.N
    assert answer.N_interval == pytest.approx((answer.N, answer.N), rel=1e-5)


def test_exact_with_measured_flops():
    N, D, L, C = sweep(f=general)
    fit = fit_law(N, D, L, C=C)
    for target in (3e17, 1e18, 1e19):
        answer = fit.optimum(target, n_boot=50)
        assert (answer.N, answer.D) == pytest.approx(TRUTH.optimum(target, fit.flops_per_token)[:2], rel=1e-6)
        assert answer.D * fit.flops_per_token(answer.N) == pytest.approx(target, rel=1e-12)
        assert answer.N == pytest.approx(TRUTH.optimum(target, general)[0], rel=5e-3), "the interpolated cost is near the true one"
    assert not any("level off beyond" in w for w in fit.optimum(1e18, interval=None).warnings)
    far = fit.optimum(1e22, interval=None)
    assert any("level off beyond" in w for w in far.warnings)
    assert general(far.N) / far.N < fit.flops_per_token(far.N) / far.N < fit.flops_per_token(fit.N.max()) / fit.N.max()


@pytest.mark.parametrize("method", ["surface", "isoflop"])
def test_intervals_cover(method):
    "Ten sweeps of another seed each; 90 % intervals at 10 times the top budget"
    held = {"N": 0, "D": 0, "loss": 0}
    N, D, L = TRUTH.optimum(1e19)
    for seed in range(10):
        fit, iso = fits(seed)
        answer = compute_optimal(fit, 1e19, isoflop=iso, n_boot=200, seed=seed) if method == "surface" else compute_optimal(iso, 1e19, n_boot=200, seed=seed)
        assert answer.method == method
        for name, value in zip(held, (N, D, L)):
            low, high = getattr(answer, f"{name}_interval")
            assert low <= getattr(answer, name) <= high
            held[name] += low <= value <= high
    assert held["N"] >= 8 and held["D"] == held["N"] and held["loss"] >= 7, held


def test_level_and_seed():
    fit, iso = fits()
    narrow, wide = (compute_optimal(fit, 1e19, isoflop=iso, level=level) for level in (.5, .95))
    assert wide.N_interval[0] < narrow.N_interval[0] < narrow.N < narrow.N_interval[1] < wide.N_interval[1]
    assert compute_optimal(fit, 1e19, isoflop=iso) == compute_optimal(fit, 1e19, isoflop=iso)
    one, other = (compute_optimal(fit, 1e19, isoflop=iso, interval="stratified", seed=seed).N_interval for seed in (0, 1))
    assert one != other and compute_optimal(fit, 1e19, isoflop=iso, seed=1).N_interval == compute_optimal(fit, 1e19, isoflop=iso).N_interval


# ------------------------------------------------------------------ which estimator
@pytest.mark.parametrize("seed", range(5))
def test_the_surface_answers_where_it_fits(seed):
    fit, iso = fits(seed)
    for noise in (.005, .004, None):
        assert compute_optimal(fit, 1e19, isoflop=iso, seed_noise=noise, interval=None).method == "surface"


@pytest.mark.parametrize("seed", range(5))
def test_the_line_answers_where_the_surface_does_not_fit(seed):
    fit, iso = fits(seed, law=bent)
    answer = compute_optimal(fit, 1e19, isoflop=iso, seed_noise=.005)
    assert answer.method == "isoflop" and "rests on the IsoFLOP line" in answer.warnings[0] and answer.N == pytest.approx(iso.line(1e19))
    assert set(answer.estimates) == {"surface", "isoflop"} and answer.estimates["surface"] == pytest.approx(fit.law.optimum(1e19)[0])
    assert answer.method_spread == pytest.approx(max(answer.estimates.values()) / min(answer.estimates.values()))


def test_large_noise_hides_the_misfit():
    fit, iso = fits(law=bent, sigma=.08)
    assert not surface_misfit(fit, iso, seed_noise=.08).exceeds


def test_seed_noise_from_repeated_runs():
    N, D, L, C = sweep(sigma=.005)
    again = np.r_[np.arange(35), 2, 3, 4, 30, 31, 32, 33]
    rng = np.random.default_rng(5)
    for law, exceeds in ((TRUTH.loss, False), (bent, True)):
        L2 = (law(N, D))[again] + .005 * rng.standard_normal(len(again))
        fit = fit_law(N[again] * (1 + 2e-4 * (np.arange(len(again)) > 34)), D[again], L2)
        noise, dof = pure_error(fit)
        assert dof == 7 and .002 < noise < .012
        m = surface_misfit(fit)
        assert m.source == "repeated runs" and m.exceeds is exceeds
    copied = fit_law(*np.repeat([N, D, L], 2, 1))
    assert pure_error(copied) is None, "copies of a row are no repeats"


def test_two_pairs_alone_cannot_condemn():
    "A tiny spread of one lucky pair is no proof: the F test with one degree of freedom says so"
    N, D, L, C = sweep(sigma=.005)
    fit = fit_law(np.r_[N, N[3]], np.r_[D, D[3]], np.r_[L, L[3] + .001])
    m = surface_misfit(fit)
    assert m.residual > 2 * m.noise and not m.exceeds


def test_exact_losses_do_not_condemn_the_surface():
    fit, iso = fits(sigma=0.)
    assert compute_optimal(fit, 1e19, isoflop=iso, seed_noise=0., interval=None).method == "surface"
    assert compute_optimal(fit, 1e19, isoflop=iso, interval=None).method == "surface"


def test_a_surface_that_misfits_without_a_line_answers_with_a_warning():
    N, D, L, C = sweep()
    fit = fit_law(N, D, bent(N, D))
    method, said = choose_method(fit, None, .003)
    assert method == "surface" and "no IsoFLOP line" in said[0][1]


def test_one_budget_is_refused_with_both_reasons():
    N, D, L, C = sweep(K=1, M=9)
    with pytest.raises(ValueError, match="one budget only.*two are needed"):
        compute_optimal(fit_law(N, D, L), 1e19, isoflop=fit_isoflop(N, C, L))
    with pytest.raises(ValueError, match="one budget only"):
        fit_law(N, D, L).optimum(1e19)
    with pytest.raises(ValueError, match="No optimum"):
        fit_isoflop(N, C, L).optimum(1e19)


def test_two_budgets_have_no_interval():
    N, D, L, C = sweep(K=2, sigma=.003)
    answer = fit_isoflop(N, C, L).optimum(1e19)
    assert answer.N_interval is answer.D_interval is answer.loss_interval is answer.loss is None
    assert any("No interval" in w for w in answer.warnings) and "no interval" in str(answer) and "not known" in str(answer)


def test_three_budgets_have_no_interval_of_the_loss():
    N, D, L, C = sweep(K=3, sigma=.003)
    answer = fit_isoflop(N, C, L).optimum(1e19)
    assert answer.N_interval is not None and answer.loss is not None and answer.loss_interval is None


def test_five_runs_have_no_interval():
    N, D, L, C = (v[[0, 6, 14, 20, 34]] for v in sweep(sigma=.005))
    fit = fit_law(N, D, L)
    answer = fit.optimum(1e19)
    assert fit.status is FitStatus.TOO_FEW_RUNS and answer.N_interval is None and any("No interval" in w for w in answer.warnings)


def test_the_second_opinion_is_there_unasked():
    fit, iso = fits()
    answer = fit.optimum(1e19, interval=None)
    assert answer.estimates["isoflop"] == pytest.approx(iso.line(1e19)) and answer.method_spread > 1
    n = np.repeat(np.geomspace(1e7, 3e8, 5), 7)
    d = n * np.tile([5., 10, 20, 40, 80, 160, 320], 5)
    ladder = fit_law(n, d, TRUTH.loss(n, d)).optimum(1e21, interval=None)
    assert set(ladder.estimates) == {"surface"} and ladder.method_spread is None and "no second estimate" in str(ladder)


# ------------------------------------------------------------------ warnings
def test_far_extrapolation_must_be_said():
    fit, iso = fits()
    far, near, inside = (compute_optimal(fit, C, isoflop=iso, interval=None) for C in (1e21, 1e19, 5e17))
    assert far.extrapolation == pytest.approx(1000) and "quote no loss" in far.warnings[0]
    assert "1,000 times the largest budget" in str(far) and "1,000x extrapolation" in far.warnings[0]
    assert any("no held-out run has checked" in w for w in near.warnings) and not any("quote no loss" in w for w in near.warnings)
    assert not any("extrapolation" in w for w in inside.warnings) and "within the budgets measured" in str(inside)
    assert any("below the smallest" in w for w in compute_optimal(fit, 1e14, isoflop=iso, interval=None).warnings)


def test_budgets_left_out_and_bias_are_said():
    N, D, L, C = sweep(sigma=.002, M=9)
    keep = ~(np.isclose(C, 1e17) & (N > 1.3 * TRUTH.optimum(1e17)[0]))
    answer = fit_isoflop(N[keep], C[keep], L[keep]).optimum(1e19)
    assert any("1.0e17 (edge)" in w for w in answer.warnings)
    assert any("parabolas themselves shift" in w for w in answer.warnings)


def test_outliers_are_said():
    N, D, L, C = sweep(sigma=.003)
    L = L.copy()
    L[4] += 2
    answer = fit_law(N, D, L).optimum(1e19, interval=None)
    assert any("row 4" in w for w in answer.warnings)


def test_methods_that_differ_are_said():
    fit, iso = fits(law=lambda N, D: bent(N, D, .35))
    answer = compute_optimal(fit, 1e20, isoflop=iso, seed_noise=.5, n_boot=100)
    if answer.method_spread > 1.25:
        assert any("two methods differ" in w for w in answer.warnings)


@pytest.mark.parametrize("kw, says", [(dict(C=0.), "positive"), (dict(C=math.nan), "positive"),
                                      (dict(C=1e19, level=1.), "`level`"), (dict(C=1e19, level=90), "`level`")])
def test_bad_questions(kw, says):
    with pytest.raises(ValueError, match=says):
        compute_optimal(fits()[0], **kw)


# ------------------------------------------------------------------ the value
def test_round_trip_and_text():
    fit, iso = fits()
    for answer in (compute_optimal(fit, 1e19, isoflop=iso), compute_optimal(iso, 1e19), compute_optimal(fit, 1e19, interval=None)):
        assert Allocation.from_dict(json.loads(json.dumps(answer.to_dict(), allow_nan=False))) == answer
        text = str(answer)
        assert text.splitlines()[0] == "To spend 1.00e19 FLOPs, 10 times the largest budget measured"
        for part in ("parameters", "tokens per parameter", "nats per token", "method", *answer.warnings):
            assert part in text
        page = answer._repr_html_()
        assert page.startswith("<table") and "color:#" not in page and "background" not in page


def test_text_is_safe_in_html():
    answer = Allocation(1e19, 1e8, 1e9, 10., None, None, None, None, .9, "surface", {"surface": 1e8}, None, 10., ("<script>x</script>",), True)
    assert "<script>" not in answer._repr_html_() and "mock: losses" in str(answer)


def test_frame_agrees_with_single_answers():
    fit, iso = fits(f=general)
    frame = optimum_frame(fit, [1e17, 1e19], isoflop=iso, n_boot=100)
    for row in frame.itertuples():
        one = compute_optimal(fit, row.C, isoflop=iso, n_boot=100)
        assert (row.N, row.D, row.loss, row.method) == (one.N, one.D, one.loss, one.method)
        assert (row.N_low, row.N_high) == one.N_interval and (row.D_low, row.D_high) == one.D_interval and (row.loss_low, row.loss_high) == one.loss_interval
    assert optimum_frame(fit, [1e17], interval=None).N_low.isna().all()


def test_both_bands_and_the_slack():
    fit, iso = fits()
    answer = compute_optimal(fit, 1e19, isoflop=iso)
    for inner, outer, value in ((answer.N_interval, answer.N_outer, answer.N), (answer.D_interval, answer.D_outer, answer.D), (answer.loss_interval, answer.loss_outer, answer.loss)):
        assert inner[0] < value < inner[1] and outer[1] / outer[0] >= inner[1] / inner[0] * (1 - 1e-9)
    assert regret(fit, 1e19, np.array(answer.slack)) == pytest.approx([.01, .01], rel=1e-6)
    for words in ("if the law is slightly wrong", "loses under 1 % of the compute"):
        assert words in repr(answer) and words in answer._repr_html_()
    assert Allocation.from_dict(json.loads(json.dumps(answer.to_dict()))) == answer
    line = compute_optimal(iso, 1e19)
    assert line.N_interval and line.N_outer is None and line.slack is None


def test_regret_numbers():
    "METHODS decision 10, at the rounded constants"
    at = TRUTH.optimum(1e21)[0]
    assert 100 * regret(TRUTH, 1e21, at * np.array([1.25, 1.5, 2, 3, 5])) == pytest.approx([1.5, 4.9, 13.6, 30.2, 52.7], abs=.05)
    assert regret(TRUTH, 1e21, at) == pytest.approx(0, abs=1e-12)
    low, high = regret_band(TRUTH, 1e21, .05)
    assert low < at < high and regret(TRUTH, 1e21, np.array([low, high])) == pytest.approx([.05, .05], rel=1e-6)
    with pytest.raises(ValueError, match="There is no law"):
        regret_band(fit_law(*sweep(K=1, M=9)[:3]), 1e21)


def test_a_coupled_fit_answers_without_an_interval():
    N, D, L, C = sweep(sigma=.003)
    answer = fit_law(N, D, L, law="coupled").optimum(1e19)
    assert answer.N_interval is None and "'coupled'" in answer.warnings[0] and answer.slack[0] < answer.N < answer.slack[1]
    remedy = answer.refusals["N_interval"].remedy
    assert "law='chinchilla'" in remedy and "the same runs" in remedy and "Add runs" not in remedy and remedy in answer.warnings[0], "more runs would not give it one"
    few = fit_law(*(v[[0, 6, 14, 20, 34]] for v in (N, D, L))).optimum(1e19)
    assert few.refusals["N_interval"].remedy == "Add runs."


def test_profile_where_the_exponents_are_poorly_separated():
    n = np.geomspace(1e7, 1e9, 12)
    d = 20 * n * np.exp(.3 * np.sin(3 * np.arange(12)))
    fit = fit_law(n, d, TRUTH.loss(n, d) + .0005 * np.random.default_rng(0).standard_normal(12))
    assert fit.status is FitStatus.CONVERGED and fit.condition > 150
    by = {m: fit.intervals(1e21, method=m, levels=.9).set_index("quantity").loc["N", ["low", "high"]] for m in ("profile", "sandwich")}
    assert fit.optimum(1e21).N_interval == tuple(by["profile"]) != tuple(by["sandwich"])


# ------------------------------------------------------------------ hold-out runs, grade, refusals
def held(*factors, top=1e18, law=TRUTH, off=0., sigma=0., at=TRUTH, ratio=1.):
    "Runs at the optimum of `factors` times the top budget; their loss is `off` (a share) above the law"
    C = top * np.array(factors, float)
    N = at.optimum(C)[0] * ratio
    return pd.DataFrame(dict(N=N, D=C / (6 * N), C=C, loss=law.loss(N, C / (6 * N)) * (1 + off) + sigma * np.random.default_rng(7).standard_normal(len(C))))


@lru_cache
def sound():
    return fits()


@lru_cache
def careful():
    "All that a careful user gives"
    fit, iso = sound()
    return compute_optimal(fit, 1e20, isoflop=iso, seed_noise=.005, held_out=held(10, 30), unique_tokens=1e11, recipe_checked="lr at two horizons")


def letter(al, name):
    return {c.name: c.grade for c in al.criteria}[name]


def test_a_careful_sweep_gets_an_a_and_says_so():
    al = careful()
    assert al.grade == "A" and {c.grade for c in al.criteria} == {"A"} and len(al.criteria) == 11 and not al.refusals
    assert al.confirmed == pytest.approx(30) and [h["inside"] for h in al.held_out] == [True, True]
    assert f"A: {GRADES['A']}" in str(al) and "held out" in str(al) and "inside" in str(al)
    plain = compute_optimal(sound()[0], 1e19)
    assert plain.grade == "B" and "(reach, hold-out, recipe)" in str(plain) and "nobody checked" in str(plain) and "no run above the budgets was held out" in plain._repr_html_()


H = dict(N=1e9, D=1e10, C=1e19, factor=10., predicted=3., low=2.99, high=3.01, observed=3., inside=True, error=0.)
F = dict(used=3, top=1e17, budget=1e18, bias=.1, z=.3, light="green")
M = dict(residual=.004, noise=.005, source="given", p_value=.6, exceeds=False)
I = dict(status="CONVERGED", condition=40., at_bounds=(), share_best=1.)
LINE = dict(method="isoflop")


def runs(n=39, budgets=5, outliers=0, excluded=(), edges=()):
    return dict(n=n, budgets=budgets, outliers=outliers, excluded=excluded, edges=edges, hash="", version="")


EDGE = dict(budget=1e17, reason="edge", top=False)
LETTERS = {
    "reach": [("A", dict(extrapolation=1.)), ("A", dict(extrapolation=1., held_out=())), ("A", dict(extrapolation=100., held_out=(H,))), ("B", dict(extrapolation=10., held_out=())),
              ("B", dict(extrapolation=290., held_out=(H,))), ("B", dict(in_range={"D/N": False})), ("C", dict(extrapolation=99., held_out=())), ("C", dict(extrapolation=9000., held_out=(H,))),
              ("D", dict(extrapolation=110., held_out=())), ("D", dict(extrapolation=11000., held_out=(H,))),
              *[(g, dict(extrapolation=.01, below=v)) for g, v in zip("ABCD", (1.01, 9., 99., 110.))]],
    "hold-out": [("A", dict(held_out=(H,))), ("A", dict(held_out=(), extrapolation=1.)), ("B", dict(held_out=())), ("C", dict(held_out=(H | dict(inside=None, error=1.9),))),
                 ("D", dict(held_out=(H | dict(inside=None, error=2.1),))),
                 ("B", dict(held_out=(H | dict(inside=False, error=.4),))),
                 ("B", dict(held_out=(H, H | dict(error=-1.5)))), ("B", dict(held_out=(H | dict(inside=None, low=None, high=None, error=.4),))),
                 ("C", dict(held_out=(H | dict(inside=False, error=-.9),))), ("C", dict(held_out=(H | dict(error=4.),))), ("D", dict(held_out=(H, H | dict(inside=False, error=-1.1)))),
                 ("D", dict(held_out=(H | dict(inside=None, low=None, high=None, error=3.),))), ("B", dict(held_out=(H | dict(inside=None, predicted=None, low=None, high=None, error=None),))),
                 ("B", dict(held_out=(H | dict(factor=.3, inside=False, error=-9.),))), ("A", dict(held_out=(H, H | dict(factor=1.02, inside=False, error=-9.)))),
                 ("D", dict(held_out=(H, H | dict(factor=1.03, inside=False, error=-9.))))],
    "forecasts": [("A", dict(forecasts=(F,))), ("B", dict(forecasts=())), ("B", dict(forecasts=(F | dict(bias=None),))), ("B", dict(forecasts=(F, F | dict(bias=-.9, z=-9.)))),
                  ("B", dict(forecasts=(F | dict(bias=5., z=2.),))), ("C", dict(forecasts=(F | dict(bias=1.5, z=4.),))), ("C", dict(forecasts=(F | dict(bias=1.5, z=None),))),
                  ("D", dict(forecasts=(F, F | dict(bias=-2.5, z=-4.))))],
    "width": [("A", dict(N=100., N_outer=(85, 120))), ("B", dict(N=100., N_outer=(70, 120))), ("C", dict(N=100., N_outer=(85, 190))), ("D", dict(N=100., N_outer=(85, 300))),
              ("A", dict(N=100., N_outer=None, N_interval=(90, 110))), ("C", dict(N_outer=None, N_interval=None)),
              ("D", dict(N_outer=None, N_interval=None, refusals=dict(N_interval=Refusal("no_interval", "Too few.", "Add runs."))))],
    "identification": [("A", dict(identification=I)), ("B", dict(identification=I | dict(condition=200.))), ("B", dict(identification=I | dict(at_bounds=("E",)))),
                       ("B", dict(identification=I | dict(share_best=.1))), ("B", dict(identification={})), ("C", dict(identification=I | dict(condition=900.))),
                       ("D", dict(identification=I | dict(status="TOO_FEW_RUNS"))), ("B", dict(identification=dict(minima=5), **LINE)), ("C", dict(identification=dict(minima=3), **LINE)),
                       ("C", dict(identification=I | dict(status="NOT_IDENTIFIED", minima=5), **LINE)), ("D", dict(identification=dict(minima=2), **LINE))],
    "misfit": [("A", dict(misfit=M)), ("B", dict(misfit=None)), ("B", dict(misfit=M | dict(residual=.009, p_value=.1))),
               ("C", dict(misfit=M | dict(residual=.02, exceeds=True), **LINE, identification=dict(minima=5))),
               ("D", dict(misfit=M | dict(residual=.02, exceeds=True)))],
    "form": [("A", dict(forms={"x": dict(N=1., loss=2.), "y": dict(N=1.2, loss=2.009)})), ("B", dict(forms={"x": dict(N=1., loss=2.), "y": dict(N=1., loss=2.2)})), ("B", dict(forms={})),
             ("B", dict(forms={"x": dict(N=1., loss=None), "y": dict(N=1.4, loss=None)})), ("C", dict(forms={"x": dict(N=1.9, loss=None), "y": dict(N=1., loss=None)})),
             ("D", dict(forms={"x": dict(N=2.2, loss=None), "y": dict(N=1., loss=None)}))],
    "agreement": [("A", dict(method_spread=1.2)), ("B", dict(method_spread=1.4)),
                  ("B", dict(method_spread=None, estimates={"surface": 1.})), ("C", dict(method_spread=1.9)), ("D", dict(method_spread=2.5))],
    "runs": [("A", dict(runs=runs())), ("B", dict(runs=runs(outliers=1))), ("B", dict(runs=runs(excluded=((3, "NaN"),)))), ("B", dict(runs=runs(edges=(EDGE,)))), ("B", dict(runs={})),
             ("C", dict(runs=runs(outliers=5))), ("C", dict(runs=runs(n=14))), ("C", dict(runs=runs(edges=(EDGE | dict(top=True),)))),
             ("D", dict(runs=runs(outliers=12))), ("D", dict(runs=runs(edges=(EDGE,) * 3)))],
    "recipe": [("A", dict(recipe_checked="yes, at two horizons")), ("B", dict(recipe_checked=None, extrapolation=10.)), ("C", dict(recipe_checked=None, extrapolation=20.))],
    "data": [("A", dict(epochs=3.9)), ("B", dict(epochs=12.)), ("C", dict(epochs=39.)), ("D", dict(epochs=50.))],
}


@pytest.mark.parametrize("name, grade, kw", [(name, grade, kw) for name, rows in LETTERS.items() for grade, kw in rows])
def test_every_letter_of_every_criterion(name, grade, kw):
    base = careful()
    al = replace(base, **kw)
    found = {c.name: c for c in al.criteria}[name]
    assert found.grade == grade, found
    assert al.grade >= grade and found.says.endswith((".", "horizons"))
    text = str(al)
    assert (f"{grade}: {found.says}" in text) is (grade != "A") and f"{al.grade}: {GRADES[al.grade]}" in text


def test_the_table_of_letters_is_whole():
    assert set(LETTERS) == {c.name for c in careful().criteria}
    for name, rows in LETTERS.items():
        assert {g for g, _ in rows} == set("ABC" if name == "recipe" else "ABCD"), name
    assert replace(careful(), epochs=None).grade == "A" and "data" not in {c.name for c in replace(careful(), epochs=None).criteria}


def test_the_loss_is_refused_too_far_out_unless_a_hold_out_run_has_confirmed_it():
    fit, iso = sound()
    asked = ((9.9e19, None, False), (1.1e20, None, True), (1e21, held(5), True), (1e21, held(30), False), (4e21, held(30), True), (1e21, held(.5), True), (1e21, held(30, off=.02), True))
    for C, rungs, refused in asked:
        al = compute_optimal(fit, C, isoflop=iso, held_out=rungs)
        assert ("loss" in al.refusals) is refused and (al.loss is None) is refused
        if refused:
            assert al.loss_interval is al.loss_outer is al.loss_new_run is al.loss_range is None and al.N_interval
            assert f"withheld. {al.refusals['loss']}" in str(al) and "withheld" in al._repr_html_() and " nats per token" not in str(al)
    far = compute_optimal(fit, 1e21, isoflop=iso)
    assert far.refusals["loss"].kind == "too_far" and far.grade == "D" and "3e19 FLOPs" in far.refusals["loss"].remedy


def test_a_contradicted_law_gives_no_loss_beyond_its_runs():
    fit, iso = sound()
    bad = held(3, 10, off=.02)
    near, inside = (compute_optimal(fit, C, isoflop=iso, held_out=bad) for C in (1e19, 5e17))
    assert near.refusals["loss"].kind == "contradicted" and near.grade == "D" and letter(near, "hold-out") == "D" and "OUTSIDE" in str(near) and near.confirmed == 1
    assert "loss" not in inside.refusals and inside.loss
    small = compute_optimal(fit, 1e19, isoflop=iso, held_out=held(3, 10, off=.008, ratio=1.))
    assert "loss" not in small.refusals and letter(small, "hold-out") in "BC", "under 1 % is said, not refused"


def test_a_run_within_the_budgets_is_named_and_not_judged():
    fit, iso = sound()
    low = compute_optimal(fit, 1e19, isoflop=iso, held_out=held(.3, 10, off=np.array([.05, 0.])))
    says = next(c.says for c in low.criteria if c.name == "hold-out")
    assert letter(low, "hold-out") == "A" and says.startswith("1 of 1 inside the band") and says.endswith("within the budgets measured, and not judged: 3.0e17 (0.3x).") and len(low.held_out) == 2
    only = compute_optimal(fit, 1e19, isoflop=iso, held_out=held(.3, off=.05))
    assert "loss" not in only.refusals and letter(only, "hold-out") == "B" and "not judged: 3.0e17" in str(only)


def test_a_floor_on_its_bound_gives_no_loss_far_out():
    N, D, L, C = sweep(ChinchillaLaw(0, 406.4, 410.7, .34, .28), sigma=.01)
    fit = next(f for f in (fit_law(N, D, L * np.exp(.003 * np.random.default_rng(s).standard_normal(35))) for s in range(9)) if f.at_bounds == ("E",))
    near, far = (fit.optimum(c, interval=None) for c in (5e18, 2e19))
    assert near.loss and far.loss is None and far.refusals["loss"].kind == "no_floor" and letter(near, "identification") == "B"
    rung = held(10, law=fit.law, at=fit.law)
    assert fit.optimum(2e19, held_out=rung).loss, "a run in between confirms it"


def test_no_answer_has_a_kind():
    N, D, L, C = sweep(K=1, M=9)
    for ask, kind in ((lambda: fit_law(N, D, L).optimum(1e19), "not_identified"), (lambda: fit_isoflop(N, C, L).optimum(1e19), "no_optimum")):
        with pytest.raises(NoAnswer, match="No optimum") as e:
            ask()
        assert e.value.refusal.kind == kind and e.value.refusal.remedy and isinstance(e.value, ValueError)
        again = pickle.loads(pickle.dumps(e.value))
        assert again.refusal == e.value.refusal and str(again) == str(e.value)
    five = fit_law(*(v[[0, 6, 14, 20, 34]] for v in sweep(sigma=.005)[:3])).optimum(1e19)
    assert five.refusals["N_interval"].kind == "no_interval" and five.grade == "D" and letter(five, "width") == letter(five, "identification") == "D"
    with pytest.raises(ValueError, match="`kind` must be one of"):
        Refusal("shy", "", "")
    assert set(REFUSALS) >= {"not_identified", "no_optimum", "no_interval", "too_far", "no_floor", "contradicted", "below_floor", "no_law"}


@settings(max_examples=15, deadline=None)
@given(st.floats(15, 21), st.floats(-3, 3), st.sampled_from([.5, .9, .95]))
def test_the_band_of_a_run_is_the_outer_interval_at_an_optimum(ln_C, ln_ratio, level):
    fit, C = sound()[0], 10 ** ln_C
    N, D, loss = fit.law.optimum(C)
    low, high = (float(v[0]) for v in loss_band(fit, np.array([N]), np.array([D]), level))
    outer = fit_intervals(fit, C, method="discrepancy", levels=level).set_index("quantity").loc["loss", ["low", "high"]]
    assert (low, high) == pytest.approx(tuple(outer), rel=1e-6)
    off = np.array([N * math.exp(ln_ratio)])
    (low, high), (low2, high2) = (tuple(float(v[0]) for v in loss_band(fit, off, C / (6 * off), level, noise)) for noise in (0., .05))
    assert low2 < low < fit.law.loss(off[0], C / (6 * off[0])) < high < high2
    assert high2 - low2 < high - low + 2 * .05 * 2


def test_bands_of_hold_out_runs_cover():
    inside = [h["inside"] for seed in range(12) for h in compute_optimal(fits(seed)[0], 1e19, interval=None, held_out=held(3, 10, sigma=.005), seed_noise=.005).held_out]
    assert np.mean(inside) >= .8 and len(inside) == 24


def test_hold_out_frames_are_checked():
    fit, iso = sound()
    with pytest.raises(ValueError, match="columns N, D, C and loss, but C is missing"):
        compute_optimal(fit, 1e19, held_out=held(10).drop(columns="C"))
    with pytest.raises(ValueError, match="row 0 has loss=nan"):
        compute_optimal(fit, 1e19, held_out=held(10).assign(loss=math.nan))
    with pytest.raises(ValueError, match="it has seen row 1"):
        compute_optimal(fit, 1e19, held_out=pd.DataFrame(dict(N=[1e9, fit.N[3]], D=[1e10, fit.D[3]], C=[6e19, fit.C[3]], loss=[3., fit.L[3]])))
    assert compute_optimal(fit, 1e19, isoflop=iso, held_out=held(10)[:0]).held_out == ()
    assert [h["factor"] for h in compute_optimal(fit, 1e19, isoflop=iso, held_out=held(10, 3)).held_out] == pytest.approx([3, 10])


def test_a_line_promises_at_its_minima_only():
    fit, iso = sound()
    al = compute_optimal(iso, 1e19, held_out=pd.concat([held(10), held(10, ratio=3.)]))
    on, off = sorted(al.held_out, key=lambda h: h["N"])
    assert on["predicted"] == pytest.approx(iso.loss_law(1e19)) and on["inside"] is None and off["predicted"] is off["error"] is None
    assert "promise nothing at this size" in str(al) and al.forecasts == () and letter(al, "forecasts") == letter(al, "identification") == "B" and al.convention == "6 N D"
    assert al.exponents["a"] == (iso.a, *iso.a_interval()) and set(al.forms) == {"isoflop"}
    says = next(c.says for c in al.criteria if c.name == "hold-out")
    assert says.startswith("no band was to be had; the worst promised") and "0 of 1" not in says
    off = compute_optimal(iso, 1e19, held_out=held(10).assign(loss=lambda h: 1.03 * h.loss))
    said = [w for w in off.warnings if "extrapolation" in w]
    assert len(said) == 1 and "the run that was held out did not confirm the law" in said[0] and off.confirmed == 1
    coupled = fit_law(fit.N, fit.D, fit.L, law="coupled").optimum(1e19, held_out=held(10))
    assert coupled.held_out[0]["inside"] is None and abs(coupled.held_out[0]["error"]) < 2 and set(coupled.forms) == {"coupled", "chinchilla"}


def test_a_new_run_scatters_more_than_the_mean():
    fit, iso = sound()
    al = compute_optimal(fit, 1e19, isoflop=iso, seed_noise=.01)
    for mean, new in ((al.loss_interval, al.loss_new_run), (al.loss_outer, al.loss_new_run_outer)):
        for m, n in zip(mean, new):
            assert abs(n - al.loss) == pytest.approx(math.hypot(m - al.loss, 1.6448536 * .01), rel=1e-6)
    assert al.seed_noise == .01 and al.repeats == 0 and "seeds scatter by 0.01 nats" in str(al)
    alone = compute_optimal(fit, 1e19, isoflop=iso)
    assert alone.seed_noise is alone.loss_new_run is None and "a new run" not in str(alone)
    N, D, L, C = sweep(sigma=.005)
    again = fit_law(np.r_[N, N[:4]], np.r_[D, D[:4]], np.r_[L, L[:4] + .006]).optimum(1e19)
    assert again.repeats == 4 and again.seed_noise == pytest.approx(.006 / math.sqrt(2)) and again.loss_new_run[1] > again.loss_interval[1]


def test_exponents_are_slopes_at_the_target():
    fit = sound()[0]
    al = fit.optimum(1e19)
    rows = fit.intervals(levels=.9).set_index("quantity")
    assert al.exponents["a"] == pytest.approx((fit.law.a, rows.low["a"], rows.high["a"]), abs=1e-6) and al.exponents["b"][0] == pytest.approx(fit.law.b)
    assert al.exponents["a+b"] == pytest.approx((1, 1, 1), abs=1e-6)
    N, D, L, C = sweep(f=general, sigma=.003)
    measured = fit_law(N, D, L, C=C)
    al, (n0, d0, _), (n1, d1, _) = measured.optimum(1e17), *(measured.law.optimum(c, measured.curve) for c in (.9e17, 1.1e17))
    width = math.log(1.1 / .9)
    assert al.exponents["a"][0] == pytest.approx(math.log(n1 / n0) / width, rel=2e-3) and al.exponents["b"][0] == pytest.approx(math.log(d1 / d0) / width, rel=2e-3)
    assert al.exponents["a+b"][0] < .999 or al.exponents["a+b"][0] > 1.001, "FLOPs per parameter change with size"
    assert al.exponents["a"][1] < al.exponents["a"][0] < al.exponents["a"][2] and al.convention.startswith("measured, ")
    assert measured.optimum(1e17, interval=None).exponents["a"][1:] == (None, None)


def test_the_loss_is_a_range_over_forms():
    N, D, _, C = sweep()
    law = CoupledLaw(1.69, 406.4, 410.7, .34, .28, .93)
    fit = fit_law(N, D, law.loss(N, D) + .003 * np.random.default_rng(0).standard_normal(35))
    al = fit.optimum(1e19, seed_noise=.05)
    low, high = al.loss_range
    assert al.method == "surface" and set(al.forms) == {"chinchilla", "coupled"} and al.forms["coupled"]["loss"] == pytest.approx(law.optimum(1e19)[2], abs=.01)
    assert low == al.forms["coupled"]["loss"] < high == al.loss and "forms" in str(al) and al.to_dict()["loss_range"] == al.loss_range
    assert fit.optimum(1e19, interval=None).forms == {}
    five = fit_law(*(v[[0, 6, 14, 20, 34]] for v in sweep(sigma=.005)[:3])).optimum(1e19)
    assert set(five.forms) == {"chinchilla"} and five.loss_range is None and letter(five, "form") == "B", "a sixth parameter needs a sixth run"


def test_forecasts_are_those_of_leave_future_out():
    fit = sound()[0]
    rows = leave_future_out(fit)
    assert [(f["used"], f["bias"], f["light"]) for f in fit.optimum(1e19).forecasts] == list(zip(rows.used, rows.bias, rows.light))
    three = fit_law(*sweep(K=3, sigma=.003)[:3]).optimum(1e18)
    assert three.forecasts == () and letter(three, "forecasts") == "B"


def test_repeated_data():
    fit, iso = sound()
    free = compute_optimal(fit, 1e20, isoflop=iso)
    assert free.epochs is free.constrained is None
    some, scarce = (compute_optimal(fit, 1e20, isoflop=iso, unique_tokens=free.D / e) for e in (3.9, 10))
    assert some.epochs == pytest.approx(3.9) and some.constrained is None and "up to 4 costs little" in str(some)
    twice = compute_optimal(fit, 1e20, isoflop=iso, unique_tokens=free.D / 1.9)
    said = [[w for w in al.warnings if "tokens that are all new" in w] for al in (free, twice, some, scarce)]
    assert said[0] == said[1] == [] and "passes 3.9 times" in said[2][0] and "costs little" in said[2][0] and "not to be had" in said[3][0] and said[3][0] == scarce.warnings[0]
    c, law = scarce.constrained, DataConstrainedLaw(**fit.law.to_dict(), unique=free.D / 10)
    sizes = np.geomspace(free.N / 5, 5 * free.N, 20001)
    losses = law.loss(sizes, 1e20 / (6 * sizes))
    assert c["N"] == pytest.approx(sizes[losses.argmin()], rel=1e-3) and c["loss"] == pytest.approx(losses.min(), rel=1e-9) and c["borrowed"] == ("R_D", "R_N")
    assert c["epochs"] == pytest.approx(c["D"] / (free.D / 10)) and 6 * c["N"] * c["D"] == pytest.approx(1e20) and scarce.loss < c["loss"] and "borrowed from Muennighoff" in str(scarce)
    assert compute_optimal(fit, 1e21, unique_tokens=1e9).constrained["loss"] is None, "refused there too"
    line = compute_optimal(iso, 1e20, unique_tokens=1e9)
    assert line.constrained is None and line.refusals["constrained"].kind == "no_law" and "withheld" in str(line) and Allocation.from_dict(json.loads(json.dumps(line.to_dict()))) == line
    own = fit_law(fit.N, fit.D, fit.L, law="data_constrained", unique=1e9).optimum(2e18)
    assert own.unique_tokens == 1e9 and own.epochs > 2.1 and own.constrained is None and not any("all new" in w for w in own.warnings), "its law knows that tokens repeat"
    assert "the runs that repeat no tokens" in own.refusals["N_interval"].remedy
    with pytest.raises(ValueError, match="`unique_tokens` must be"):
        compute_optimal(fit, 1e19, unique_tokens=-1)


@pytest.mark.parametrize("said", ["", "  ", True])
def test_a_recipe_is_checked_in_words(said):
    with pytest.raises(ValueError, match="in words"):
        compute_optimal(sound()[0], 1e19, recipe_checked=said)


def test_what_the_statement_rests_on():
    N, D, L, C = sweep(sigma=.002, M=9)
    keep = ~(np.isclose(C, 1e17) & (N > 1.3 * TRUTH.optimum(1e17)[0]))
    N, D, L, C = (v[keep] for v in (N, D, L, C))
    L = L.copy()
    L[4] = math.nan
    fit = fit_law(N, D, L, C=C, nan_policy="omit")
    about = fit.optimum(1e18, interval=None).runs
    assert about["n"] == len(N) - 1 and about["excluded"] == ((4, "loss is nan"),) and [e["budget"] for e in about["edges"]] == pytest.approx([1e17]) and not about["edges"][0]["top"]
    order = np.random.default_rng(0).permutation(len(N))
    other = fit_law(*(v[order] for v in (N, D, L)), C=C[order], nan_policy="omit")
    L[5] += 1e-9
    moved = fit_law(N, D, L, C=C, nan_policy="omit")
    assert other.optimum(1e18, interval=None).runs["hash"] == about["hash"] != moved.optimum(1e18, interval=None).runs["hash"] and len(about["hash"]) == 10
    from scaling_nb import __version__
    assert about["version"] == __version__


def test_in_range():
    fit, iso = sound()
    near, far = (compute_optimal(fit, C, isoflop=iso, interval=None).in_range for C in (1e17, 1e22))
    assert all(near.values()) and not far["N"] and not far["D"] and far["D/N"]


def test_everything_survives_json():
    bad = compute_optimal(sound()[0], 1e21, held_out=held(3, off=.03), unique_tokens=1e9)
    for al in (careful(), bad):
        d = json.loads(json.dumps(al.to_dict(), allow_nan=False))
        again = Allocation.from_dict(d)
        assert again == al and str(again) == str(al) and d["grade"] == al.grade and [c["name"] for c in d["criteria"]] == [c.name for c in al.criteria]
        assert again.grade == al.grade and hash(str(again.held_out)) == hash(str(al.held_out))
    old = dict(list(careful().to_dict().items())[:13])
    assert Allocation.from_dict(old).N == careful().N, "a statement that an older version wrote"


def test_many_budgets_do_without_the_heavy_parts(monkeypatch):
    fit, iso = fits(3)
    def heavy(*args):
        raise AssertionError("too slow for a chart")
    for name in ("_other_form", "_forecasts", "_exponents_at", "regret_band"):
        monkeypatch.setattr(allocation, name, heavy)
    frame = optimum_frame(fit, [1e17, 1e20, 1.1e20, 1e21], isoflop=iso)
    assert frame.loss.isna().tolist() == [False, False, True, True] and frame.loss_outer_low.isna().tolist() == [False, False, True, True] and frame.N_low.notna().all()
    assert optimum_frame(fit, [1e21], isoflop=iso, held_out=held(30)).loss.notna().all()
    with pytest.raises(AssertionError):
        compute_optimal(fit, 1e19)


def test_a_second_target_fits_nothing_again(monkeypatch):
    fit, asked = fits(4)[0], []
    real = allocation._refitted
    monkeypatch.setattr(allocation, "_refitted", lambda *a: asked.append(a) or real(*a))
    for C in (1e18, 1e19, 1e20):
        fit.optimum(C)
    assert len(asked) == 1
