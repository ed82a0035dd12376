"""A sound sweep has little to confess; a sick one names its illness first; the published windows of Chinchilla's runs come out."""
import math
import time

import numpy as np
import pandas as pd
import pytest
from test_fitting import chinchilla

from scaling_nb.doubts import _future_doubts, agreement, coupling_test, doubts, exclusion_path, influence, leave_future_out, window_path
from scaling_nb.engine import refit
from scaling_nb.fitting import FitStatus, fit_law
from scaling_nb.isoflop import fit_isoflop
from scaling_nb.laws import ChinchillaLaw, CoupledLaw, Form, sci_format, si_format
from scaling_nb.yardsticks import regret_band

TRUTH = ChinchillaLaw(E=1.69, A=406.4, B=410.7, alpha=.34, beta=.28)
UNEVEN = ChinchillaLaw(E=1.69, A=406.4, B=410.7, alpha=.465, beta=.155)


def sweep(law=TRUTH, top=1e18, K=5, M=7, wide=8, sigma=.005, seed=0):
    "N, D, L, C on K half-decade budgets and M sizes"
    budgets = top * 10 ** (-np.arange(K)[::-1] / 2)
    N = (law.optimum(budgets)[0][:, None] * np.geomspace(1 / wide, wide, M)).ravel()
    C = np.repeat(budgets, M)
    D = C / (6 * N)
    return N, D, law.loss(N, D) + sigma * np.random.default_rng(seed).standard_normal(len(N)), C


def swept(**kw):
    return fit_law(*sweep(**kw)[:3])


def bad_news(fit, C=None):
    return [s for s in doubts(fit, C) if not s.startswith("Good news")]


# Chinchilla's own runs

def test_chinchilla_by_compute_window():
    frame = window_path(fit_law(*chinchilla(), delta=1e-3), cuts=(1e19, 3e19, 1e20, 3e20, 1e21)).set_index("window")
    published = {"C < 1.0e20": .602, "C < 3.0e20": .578, "C < 1.0e21": .548, "all": .514, "C > 1.0e19": .412, "C > 3.0e19": .386}
    assert frame.a[list(published)].to_numpy() == pytest.approx(list(published.values()), abs=.003)
    assert frame.n["all"] == 240 and (frame.n["C < 1.0e20"], frame.n["C > 1.0e20"]) == (136, 104)
    assert frame.z[["C < 1.0e20", "C > 3.0e19"]].abs().min() > 3 and np.sign(frame.z["C > 3.0e19"]) == -1


def test_chinchilla_by_highest_losses_dropped():
    frame = exclusion_path(fit_law(*chinchilla(0), delta=1e-3)).set_index("dropped")
    published = {0: .565, 1: .544, 3: .524, 5: .514, 10: .509, 20: .484}
    assert frame.a[list(published)].to_numpy() == pytest.approx(list(published.values()), abs=.003)
    assert frame.n[5] == 240 and frame.highest.is_monotonic_decreasing


def test_chinchilla_by_loss_and_method():
    frame = agreement(fit_law(*chinchilla(), delta=1e-3), 5.76e23).set_index("method")
    assert frame.a[["log-Huber, delta 1e-3", "log MSE", "raw MSE"]].to_numpy() == pytest.approx([.514, .530, .545], abs=.0006)
    assert frame.loss["coupled form"] != pytest.approx(frame.loss["log-Huber, delta 1e-3"], abs=.005)
    assert math.isnan(frame.a["IsoFLOP line"]) and "do not lie on budgets" in frame.reason["IsoFLOP line"]
    assert (frame.a + frame.b).dropna().to_numpy() == pytest.approx(1)


def test_chinchilla_doubts():
    fit = fit_law(*chinchilla(), delta=1e-3)
    start = time.process_time()
    said = doubts(fit, 5.76e23)
    assert time.process_time() - start < 5
    assert any("depends on the window of compute" in s for s in said[:2]) and any("promised too much loss" in s for s in said[:2])
    assert any("44x extrapolation" in s or "45x extrapolation" in s for s in said)
    assert not any("decide the answer" in s for s in said)
    everything = doubts(fit_law(*chinchilla(0), delta=1e-3))
    five = next(s for s in everything if "decide the answer" in s)
    assert "5 highest losses of 245 (rows 0, 1, 2, 3, 4), a = 0.514 instead of 0.565" in five
    assert "over 10 median deviations" in everything[0] and "rows 1, 0, 3, 2" in everything[0]


def test_chinchilla_diverged_and_doubled():
    N, D, L = chinchilla()
    bad = L.copy()
    bad[[10, 100, 200]] = 9.5, 11.2, 7.8
    first = doubts(fit_law(N, D, bad, delta=1e-3))[0]
    assert "over 10 median deviations" in first and "rows 100, 10, 200" in first and "11.2 where the law says" in first
    assert any("240 exact duplicates among 480 rows" in s for s in doubts(fit_law(*(np.tile(v, 2) for v in (N, D, L)), delta=1e-3)))


# Leave-future-out

def test_an_exact_law_predicts_exactly():
    frame = leave_future_out(swept(sigma=0.))
    assert list(zip(frame.used, frame.n)) == [(3, 7), (3, 7), (4, 7)] and set(frame.light) == {"green"}
    assert frame.bias.abs().max() < 1e-5 and frame.rms.max() < 1e-5
    assert frame.budget.to_numpy() == pytest.approx([10 ** 17.5, 1e18, 1e18]) and frame.top.to_numpy() == pytest.approx([1e17, 1e17, 10 ** 17.5])
    assert frame.N.to_numpy() == pytest.approx(TRUTH.optimum(1e19)[0], rel=1e-5)


def test_z_is_calibrated():
    z = pd.concat([leave_future_out(swept(seed=s, sigma=.01)) for s in range(30)]).groupby(["used", "budget"]).z.std()
    assert len(z) == 3 and .75 < z.min() and z.max() < 1.4


def test_bias_is_what_it_says_and_has_a_sign():
    N, D, L, C = sweep()
    top = C > 9e17
    fit = fit_law(N, D, np.where(top, 1.02 * L, L))
    r = leave_future_out(fit).iloc[-1]
    part = fit_law(N[~top], D[~top], L[~top], delta=fit.delta).law
    off = 100 * (part.loss(N[top], D[top]) / (1.02 * L[top]) - 1)
    assert (r.bias, r.rms) == pytest.approx((off.mean(), math.sqrt((off ** 2).mean())), rel=1e-6)
    assert r.light == "red" and r.bias < -1.5 and r.z < -5
    worse = bad_news(fit)[0]
    assert "too little loss" in worse and "came out worse" in worse
    better = bad_news(fit_law(N, D, np.where(top, .98 * L, L)))[0]
    assert "too much loss" in better and "came out better" in better


def test_lights():
    N, D, L, C = sweep(sigma=1e-4)
    lights = [leave_future_out(fit_law(N, D, np.where(C > 9e17, (1 + s) * L, L))).light.iloc[-1] for s in (.003, .007, .013, -.007, -.013)]
    assert lights == ["green", "amber", "red", "amber", "red"]


def test_outliers_are_not_predicted_and_gaps_have_reasons():
    N, D, L, C = sweep()
    L[30] = 9.
    frame = leave_future_out(fit_law(N, D, L))
    assert frame.n.tolist() == [7, 6, 6] and frame.light.eq("green").all()
    three = leave_future_out(swept(K=3))
    assert len(three) == 1 and "these runs have 3" in three.reason[0] and math.isnan(three.a[0])
    assert any("No forecast could be checked" in s for s in doubts(swept(K=3)))
    N, D, _, _ = sweep()
    noise = fit_law(N, D, 3 + .05 * np.random.default_rng(1).standard_normal(35))
    assert noise.law is None
    for table in (leave_future_out, window_path, exclusion_path, agreement):
        frame = table(noise)
        assert frame.N.isna().all() and (frame.reason != "").all()
    for question in (influence, coupling_test):
        with pytest.raises(ValueError, match="no scaling signal"):
            question(noise)


def test_a_part_that_cannot_be_fitted_is_a_row_with_its_reason():
    N, D, L, C = sweep(K=6)
    N = np.where(C < 2e17, 1e8, N)
    D = C / (6 * N)
    fit = fit_law(N, D, TRUTH.loss(N, D) * np.exp(.001 * np.random.default_rng(0).standard_normal(len(N))), budget=C)
    frame = leave_future_out(fit).set_index("used")
    assert fit.status is FitStatus.CONVERGED
    assert "alpha not identified" in frame.reason[3] and math.isnan(frame.N[3]) and frame.n[3] == 0
    assert frame.reason[5] == "" and frame.n[5] == 7
    tiny = window_path(fit, cuts=(4e15,)).set_index("window")
    assert math.isnan(tiny.a["C < 4.0e15"]) and tiny.reason["C < 4.0e15"] and tiny.a["all"] == fit.law.a


def test_runs_off_budgets_are_cut_into_bins():
    rng = np.random.default_rng(1)
    N, D = np.exp(rng.uniform(math.log(1e7), math.log(1e9), 60)), np.exp(rng.uniform(math.log(3e8), math.log(3e10), 60))
    frame = leave_future_out(fit_law(N, D, TRUTH.loss(N, D) + .005 * rng.standard_normal(60)))
    assert frame.used.unique().tolist() == [3, 4, 5] and frame.groupby("used").n.sum().tolist() == [30, 20, 10]


@pytest.mark.parametrize("planned", [True, False])
def test_single_runs_between_budgets_are_fitted_and_no_budgets(planned):
    N, D, L, C = sweep(K=4, M=7, sigma=.003)
    more = C[0] * np.array([1.6, 2.0, 2.0, 2.5, 5.1, 17., 20., 40., 40 * 10 ** -1.6])  # one of them below all budgets
    n = TRUTH.optimum(more)[0] * np.geomspace(.5, 2, 9)
    d = more / (6 * n)
    N2, D2, C2 = np.r_[N, n], np.r_[D, d], np.r_[C, more]
    L2 = np.r_[L, TRUTH.loss(n, d) * np.exp(.001 * np.random.default_rng(5).standard_normal(9))]
    kw = [dict(budget=np.r_[C, more]) if planned else {}, dict(budget=C) if planned else {}]
    fit, grid = fit_law(N2, D2, L2, C=C2, **kw[0]), fit_law(N, D, L, C=C, **kw[1])
    one, other = leave_future_out(fit), leave_future_out(grid)
    assert one[["used", "n"]].equals(other[["used", "n"]]) and np.allclose(one[["top", "budget"]], other[["top", "budget"]]) and list(one.light) == list(other.light)
    part = fit_law(*(v[C2 <= C.max() / 3] for v in (N2, D2, L2)), delta=fit.delta).law  # all that lies up to the third budget, and nothing beyond
    assert one.bias[0] == pytest.approx(100 * np.expm1(np.log(part.loss(N[21:], D[21:])) - np.log(L[21:])).mean(), abs=1e-4)
    line, alone = (agreement(f, 1e19, forms=False).set_index("method").loc["IsoFLOP line"] for f in (fit, grid))
    assert line.N == pytest.approx(alone.N, rel=1e-2) and line.reason == alone.reason
    letters = [{c.name: c.grade for c in f.optimum(1e19, interval=None).criteria} for f in (fit, grid)]
    assert [v["forecasts"] for v in letters] == ["A"] * 2 and letters[0]["agreement"] == letters[1]["agreement"]


def test_budgets_planned_a_hair_apart_are_one():
    N, D, L, C = sweep(K=4, M=8, sigma=.003)
    fit = fit_law(N, D, L, C=C, budget=C * np.where(np.arange(len(C)) % 2, 1.0005, 1.))
    assert leave_future_out(fit).n.tolist() == [8] and agreement(fit, 1e19, forms=False).set_index("method").reason["IsoFLOP line"] == ""


def test_order_does_not_matter():
    N, D, L, _ = sweep(seed=3)
    order = np.random.default_rng(0).permutation(len(N))
    a, b = fit_law(N, D, L), fit_law(N[order], D[order], L[order])
    for path in (leave_future_out, window_path, exclusion_path):
        one, other = (path(f).select_dtypes("number").to_numpy(float) for f in (a, b))
        assert np.allclose(one, other, rtol=1e-5, atol=1e-4, equal_nan=True)
    assert influence(a).row.iloc[0] == order[influence(b).row.iloc[0]]


# Paths and influence against fits of the parts

def test_paths_are_fits_of_the_parts():
    N, D, L, C = sweep(seed=2)
    fit = fit_law(N, D, L)
    for r in window_path(fit).itertuples():
        keep = (C > r.low) & (C < r.high)
        assert r.n == keep.sum() and r.a == pytest.approx(fit_law(N[keep], D[keep], L[keep], delta=fit.delta).law.a, abs=1e-6)
    for r in exclusion_path(fit, (2, 5)).itertuples():
        keep = np.argsort(-L)[r.dropped:]
        assert r.a == pytest.approx(fit_law(N[keep], D[keep], L[keep], delta=fit.delta).law.a, abs=1e-6) and r.highest == L[keep].max()
    assert "5 different runs" in exclusion_path(fit, (32,)).reason[0]


def test_poorly_conditioned_parts_get_all_starts():
    N, D, L = chinchilla()
    fit, keep = fit_law(N, D, L, delta=1e-3), 6 * N * D < 1e19
    found = window_path(fit, cuts=(1e19,)).set_index("window").a["C < 1.0e19"]
    assert found == pytest.approx(fit_law(N[keep], D[keep], L[keep], delta=1e-3).law.a, abs=1e-6)


def test_influence_is_exact():
    N, D, L, _ = sweep(K=4, M=5, sigma=.01)
    fit = fit_law(N, D, L)
    frame = influence(fit, 1e19).set_index("row")
    assert len(frame) == 20 and frame.d_ln_N.abs().is_monotonic_decreasing and frame.share.sum() == pytest.approx(1)
    for i in (0, 7, 19):
        keep = np.arange(20) != i
        part = fit_law(N[keep], D[keep], L[keep], delta=fit.delta).law
        assert frame.d_ln_N[i] == pytest.approx(math.log(part.optimum(1e19)[0] / fit.law.optimum(1e19)[0]), abs=1e-6)
        assert frame.d_a[i] == pytest.approx(part.a - fit.law.a, abs=1e-6)
    double = influence(fit_law(*(np.tile(v, 2) for v in (N, D, L)), delta=fit.delta), 1e19).set_index("row")
    assert len(double) == 20 and double.d_ln_N[7] == pytest.approx(frame.d_ln_N[7], abs=1e-6)


def test_rows_are_the_callers():
    N, D, L, _ = sweep()
    L[3], L[17] = np.nan, 9.5
    fit = fit_law(N, D, L, nan_policy="omit")
    assert set(influence(fit).row) == set(range(35)) - {3}
    said = doubts(fit)
    assert "row 17 (loss 9.5" in said[0] and any("34 used, 1 dropped: row 3 (loss is nan)" in s for s in said)


def test_one_run_that_carries_the_answer():
    N, D, L, C = sweep(K=3, M=5, wide=3, sigma=.002)
    N, D = np.append(N, N.max()), np.append(D, 100 * D.max())
    fit = fit_law(N, D, np.append(L, TRUTH.loss(N[-1], D[-1]) * 1.02), loss="log_mse")
    top = influence(fit).iloc[0]
    assert top.row == 15 and top.share > .5
    assert any("leans on one run: without row 15" in s for s in doubts(fit))


# The form

def test_coupling_test_holds_its_level_and_sees_a_coupling():
    p = np.array([coupling_test(swept(seed=s))[1] for s in range(30)])
    assert (p < .05).mean() < .15 and (p < .5).mean() == pytest.approx(.5, abs=.2)
    N, D, _, _ = sweep()
    noise = .005 * np.random.default_rng(5).standard_normal(35)
    assert coupling_test(fit_law(N, D, CoupledLaw(1.69, 406.4, 410.7, .34, .28, .9).loss(N, D) + noise))[1] < 1e-6
    plain, free = (fit_law(N, D, CoupledLaw(1.69, 406.4, 410.7, .34, .28, .95).loss(N, D) + noise, loss="log_mse", law=v) for v in ("chinchilla", "coupled"))
    assert coupling_test(plain)[0] == pytest.approx((plain.objective / free.objective - 1) * 29, rel=.2)
    assert math.isnan(coupling_test(swept(sigma=0.))[1])


def test_agreement_rows():
    fit = swept()
    frame = agreement(fit, 1e20).set_index("method")
    assert (frame.reason == "").all() and frame.loc["log-Huber, delta auto", ["a", "N", "loss"]].tolist() == pytest.approx([fit.law.a, *np.array(fit.law.optimum(1e20))[[0, 2]]], rel=1e-5)
    assert frame.N["IsoFLOP line, bias removed"] < frame.N["IsoFLOP line"]
    assert frame.loss.to_numpy() == pytest.approx(TRUTH.optimum(1e20)[2], rel=.01)
    N, D, L, _ = sweep()
    L[4] = 9.
    bad = agreement(fit_law(N, D, L)).set_index("method")
    assert bad.reason["log MSE"] and bad.reason["log-Huber, delta auto"] == ""


# Sentences

@pytest.mark.parametrize("kw", [dict(), dict(seed=1), dict(law=UNEVEN, wide=16), dict(K=4, M=6, wide=4), dict(sigma=.02), dict(sigma=0.)])
def test_a_sound_sweep_has_nothing_to_confess(kw):
    fit = swept(**kw)
    C = 10 * fit.C.max()
    low, high = (si_format(v) for v in regret_band(fit, C))
    assert fit.doubts() == (f"Good news: any N in [{low}, {high}] loses under 1 % of the compute of {sci_format(C)} FLOPs.",)


def test_sick_sweeps_name_their_illness_first():
    N, D, L, C = sweep()
    noise = .005 * np.random.default_rng(0).standard_normal(35)
    one = C > 9e17
    first = lambda *runs, **kw: doubts(fit_law(*runs, **kw))[0]
    assert "one budget only" in first(N[one], D[one], L[one])
    assert "alpha not identified" in first(np.full(35, 1e8), D, TRUTH.loss(1e8, D) + noise)
    assert "only D/N = 20 observed: a not identified" in first(N, 20 * N, TRUTH.loss(N, 20 * N) + noise)
    assert "no scaling signal" in first(N, D, 3 + 10 * noise)
    bad = L.copy()
    bad[[3, 20, 30]] = 9.5, 11.2, 7.8
    assert "3 runs lie over 10 median deviations off the law: rows 20, 30, 3" in first(N, D, bad)
    assert "35 exact duplicates among 70 rows" in first(*(np.tile(v, 2) for v in (N, D, L)))
    assert "too little loss" in first(N, D, L + .02 * np.log10(C / C.min()) ** 2)
    assert "drawn from a known law" in first(N, D, L, mock=True)
    assert "outliers" in first(N, D, np.where(np.arange(35) == 3, 9.5, L), loss="mse")
    assert any("rests on its bound" in s for s in doubts(fit_law(N, D, L - 1.85))[:3])


def test_a_copied_warmup_shows_in_the_windows():
    N, D, _, C = sweep(K=6, wide=4)
    fit = fit_law(N, D, TRUTH.loss(N, D / (1 + 2e7 / D)) + .005 * np.random.default_rng(0).standard_normal(42))
    said = " ".join(bad_news(fit)[:2])
    assert "depends on the window of compute" in said or "misses the runs" in said
    above = window_path(fit).iloc[-1]
    assert abs(above.a - TRUTH.a) < abs(fit.law.a - TRUTH.a) / 2


def test_poorly_separated_and_few():
    rng = np.random.default_rng(0)
    N = np.geomspace(1e7, 1e9, 24)
    D = 20 * N * np.exp(.18 * rng.standard_normal(24))
    fit = fit_law(N, D, TRUTH.loss(N, D) * np.exp(3e-4 * rng.standard_normal(24)))
    assert fit.condition > 300 and fit.status.ok, fit.message
    assert any("poorly separated" in s and "D/N spans only" in s for s in bad_news(fit)[:3])
    few = bad_news(swept(K=3, M=4, sigma=.01))
    assert any("12 runs are few" in s for s in few)
    rough = fit_law(*sweep(sigma=.1, K=3, wide=3)[:3])
    assert rough.law and any("is known to a factor of" in s for s in doubts(rough))


def test_the_target_decides_what_is_said_about_reach():
    fit = swept()
    near, mid, far = ("".join(bad_news(fit, C)) for C in (1e19, 5e19, 1e21))
    assert near == "" and mid.startswith("50x extrapolation: held-out budgets have tested this law over 10x")
    assert far.startswith("1,000x extrapolation") and "Run one model at 3e19 FLOPs first, and quote no loss" in far


def test_clusters_are_said():
    N, D, L, _ = sweep()
    assert any("35 runs share 7 clusters" in s for s in doubts(fit_law(N, D, L, groups=np.repeat(np.arange(7), 5))))


def test_other_forms_are_asked_too():
    N, D, L, _ = sweep()
    own = Form(lambda N, D, E, A, B, a, b: E + A * N ** -a + B * D ** -b, ("E", "A", "B", "a", "b"), ((0, 3), (1, 1e5), (1, 1e5), (.05, 1), (.05, 1)), starts=[[1.7, 400, 400, .34, .28]])
    fit = fit_law(N, D, L, law=own)
    assert leave_future_out(fit).light.eq("green").all() and window_path(fit).N.to_numpy() == pytest.approx(TRUTH.optimum(1e19)[0], rel=.1)
    assert doubts(fit)[-1].startswith("Good news")
    with pytest.raises(ValueError, match="Chinchilla"):
        coupling_test(fit)
    with pytest.raises(ValueError):
        influence(fit)


@pytest.mark.parametrize("how, sign", [(dict(groups=np.repeat(np.arange(5), 7)), 1), (dict(law="coupled"), -1)])
def test_a_forecast_without_a_z_is_not_called_sure(how, sign):
    N, D, L, C = sweep()
    fit = fit_law(N, D, L + sign * .02 * np.log10(C / C.min()) ** 2, **how)
    frame = leave_future_out(fit)
    assert (frame.light == "red").any() and frame.z.isna().all()
    (severity, said), = _future_doubts(fit, 1e19, frame)
    assert severity == 7 and "not known" in said and "nan" not in said and "compare law=" not in said


def test_the_corrected_line_keeps_the_planned_budgets():
    N, D, _, C = sweep(wide=4)
    C = C * np.exp(.25 * np.random.default_rng(1).uniform(-1, 1, len(C)))  # budgets that were missed by up to a quarter
    D, planned = C / (6 * N), np.repeat(1e18 * 10 ** (-np.arange(5)[::-1] / 2), 7)
    L = TRUTH.loss(N, D) * np.exp(.0005 * np.random.default_rng(2).standard_normal(len(N)))
    fit = fit_law(N, D, L, C=C, budget=planned, mock=True)
    row = agreement(fit, 1e19, forms=False).set_index("method").loc["IsoFLOP line, bias removed"]
    asked, unplanned = (fit_isoflop(N, C, L, D=D, correct_bias=fit.law, budget=b) for b in (planned, None))
    assert row.a == pytest.approx(asked.a, rel=1e-9) and abs(unplanned.a - asked.a) > .003


def astray(monkeypatch, **marks):
    "Replicates that stopped short, and say so"
    def stopped(fit, W, *args):
        return refit(fit, W, *args).assign(alpha=lambda v: v.alpha + .05, **marks)
    monkeypatch.setattr("scaling_nb.doubts.refit", stopped)


@pytest.mark.parametrize("marks", [dict(decrement=1e-3), dict(at_bound=True)])
def test_replicates_that_did_not_converge_are_fitted_again(monkeypatch, marks):
    fit = fit_law(*sweep(K=4, M=5)[:3])
    window, one = window_path(fit), influence(fit, 1e19)
    astray(monkeypatch, **marks)
    assert window_path(fit).a.to_numpy() == pytest.approx(window.a.to_numpy(), abs=1e-5)
    assert influence(fit, 1e19).set_index("row").d_ln_N.sort_index().to_numpy() == pytest.approx(one.set_index("row").d_ln_N.sort_index().to_numpy(), abs=1e-5)


def test_influence_on_a_fit_without_a_floor_is_exact():
    N, D, L, _ = sweep(ChinchillaLaw(0, 406.4, 410.7, .34, .28), sigma=.01, K=4, M=5)
    fit = next(f for f in (fit_law(N, D, L * np.exp(.003 * np.random.default_rng(s).standard_normal(20))) for s in range(9)) if f.at_bounds == ("E",))
    frame = influence(fit, 1e19).set_index("row")
    for i in (0, 7, 13, 19):
        part = fit_law(*(np.delete(v, i) for v in (N, D, fit.L)), delta=fit.delta).law
        assert frame.d_ln_N[i] == pytest.approx(math.log(part.optimum(1e19)[0] / fit.law.optimum(1e19)[0]), abs=1e-5)


def test_thousands_of_runs_are_not_left_out_one_by_one(monkeypatch):
    sizes = []
    monkeypatch.setattr("scaling_nb.doubts.refit", lambda fit, W, *a: sizes.append(len(W)) or refit(fit, W, *a))
    fit = fit_law(*sweep(K=5, M=121)[:3])
    assert len(influence(fit)) == 605 and sum(sizes) == 605 and max(sizes) <= 500
    asked = []
    monkeypatch.setattr("scaling_nb.doubts.influence", lambda fit, C: asked.append(fit.n) or influence(fit, C))
    doubts(swept())
    doubts(fit_law(*sweep(K=4, M=376)[:3], loss="log_mse"))
    assert asked == [35]
