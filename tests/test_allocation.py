"""The answer: right where it can be, refused where it cannot, and honest about the rest."""
import json
import math

import numpy as np
import pytest
from test_fitting import SMALL, TRUTH, sweep

from scaling_nb.allocation import Allocation, choose_method, compute_optimal, optimum_frame
from scaling_nb.fitting import FitStatus, fit_law
from scaling_nb.isoflop import fit_isoflop
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
    assert any("no held-out run has checked" in w for w in near.warnings) and not any("quote no loss" in w for w in near.warnings)
    assert not any("extrapolation" in w for w in inside.warnings) and "within the budgets measured" in str(inside)
    assert any("below all" in w for w in compute_optimal(fit, 1e14, isoflop=iso, interval=None).warnings)


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


def test_profile_where_the_exponents_are_poorly_separated():
    n = np.geomspace(1e7, 1e9, 12)
    d = 20 * n * np.exp(.3 * np.sin(3 * np.arange(12)))
    fit = fit_law(n, d, TRUTH.loss(n, d) + .0005 * np.random.default_rng(0).standard_normal(12))
    assert fit.status is FitStatus.CONVERGED and fit.condition > 150
    by = {m: fit.intervals(1e21, method=m, levels=.9).set_index("quantity").loc["N", ["low", "high"]] for m in ("profile", "sandwich")}
    assert fit.optimum(1e21).N_interval == tuple(by["profile"]) != tuple(by["sandwich"])
