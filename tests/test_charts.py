"""Charts: the numbers behind them, what they say, what they survive, and that nothing in them asks for the network."""
import json
import re
import subprocess
import sys
import xml.dom.minidom
from xml.etree import ElementTree

import altair as alt
import numpy as np
import pandas as pd
import pytest
from scipy.special import fdtri

from scaling_nb import charts as ch
from scaling_nb.allocation import compute_optimal
from scaling_nb.doubts import leave_future_out
from scaling_nb.fitting import fit_law
from scaling_nb.intervals import exponent_profile, fit_intervals
from scaling_nb.isoflop import fit_isoflop
from scaling_nb.laws import ChinchillaLaw
from scaling_nb.records import MetricsLog, open_storage
from scaling_nb.sweep import RunSpec, SweepPlan
from scaling_nb.tuning import fit_lr
from scaling_nb.yardsticks import regret, regret_band

LAW = ChinchillaLaw(E=1.6, A=60.0, B=220.0, alpha=.45, beta=.40)


def make_sweep(budgets=(1e10, 2.5e10, 6.3e10, 1.6e11), sizes=7, noise=.01, seed=0):
    C = np.repeat(budgets, sizes)
    N = np.round(np.concatenate([LAW.optimum(c)[0] * np.geomspace(1 / 5, 5, sizes) for c in budgets]))
    D = np.round(C / (6 * N))
    loss = LAW.loss(N, D) + noise * np.random.default_rng(seed).standard_normal(len(N))
    return pd.DataFrame(dict(run_id=[f"run{i:02d}" for i in range(len(N))], budget=C, size=np.tile(np.arange(sizes) * 8 + 8, len(budgets)), N=N, D=D, C=6 * N * D, loss=loss, loss_std=.01,
                             state="SUCCEEDED", seed=0, wall_s=1.5, flops_measured=6 * N * D, attempt=1, reason="", mock=True, recipe="abc123"))


@pytest.fixture(scope="module")
def sweep():
    return make_sweep()


@pytest.fixture(scope="module")
def fits(sweep):
    return (fit_law(sweep.N, sweep.D, sweep.loss, C=sweep.C, mock=True), fit_isoflop(sweep.N, sweep.C, sweep.loss, D=sweep.D, budget=sweep.budget, mock=True))


@pytest.fixture(scope="module")
def plan(sweep):
    cells = tuple(RunSpec(budget=r.budget, size=r.size, N=int(r.N), D=int(r.D), flops_per_token=6. * r.N) for r in sweep.itertuples())
    twice = RunSpec(budget=1e10, size=cells[3].size, N=cells[3].N, D=cells[3].D, flops_per_token=cells[3].flops_per_token, seed=1)
    return SweepPlan((*cells, twice), (dict(budget=1e10, size=999, N=10 ** 6, D=1600, reason="D/N = .0016 is under .1"), dict(budget=1e10, size=1000, N=None, D=None, reason="no")))


def titles(chart):
    t = chart.to_dict()["title"]
    return " | ".join([t["text"], *t.get("subtitle", [])]) if isinstance(t, dict) else t


def drawn(chart):
    "The SVG, parsed; a chart that cannot be drawn fails here."
    svg = ch.chart_svg(chart.to_dict())
    xml.dom.minidom.parseString(svg)
    assert "NaN" not in re.sub(r'aria-label="[^"]*"', "", svg)
    return svg


# ---------------------------------------------------------------- ground

def test_importing_charts_is_free_of_heavy_things():
    code = "import sys; import scaling_nb.charts, scaling_nb.widgets; print([m for m in ('torch', 'ray', 'vl_convert') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_renderer_gives_way_to_a_choice():
    assert alt.renderers.active == "scaling_nb" and alt.theme.active == "scaling_nb"   # nobody had chosen
    try:
        for choice, after in (("svg", "svg"), ("jupyter", "jupyter"), ("default", "scaling_nb")):
            alt.renderers.enable(choice)
            ch.use_offline_charts()
            assert alt.renderers.active == after
        alt.renderers.enable("svg")
        ch.use_offline_charts(force=True)
        assert alt.renderers.active == "scaling_nb"
    finally:
        alt.renderers.enable("scaling_nb")


def test_colours_can_be_told_apart():
    def linear(c):
        v = np.array([int(c[i:i + 2], 16) / 255 for i in (1, 3, 5)])
        return np.where(v <= .04045, v / 12.92, ((v + .055) / 1.055) ** 2.4)

    def luminance(c):
        return float(linear(c) @ [.2126, .7152, .0722])

    def lab(rgb):
        a = np.array([[.4122214708, .5363325363, .0514459929], [.2119034982, .6806995451, .1073969566], [.0883024619, .2817188376, .6299787005]])
        b = np.array([[.2104542553, .793617785, -.0040720468], [1.9779984951, -2.428592205, .4505937099], [.0259040371, .7827717662, -.808675766]])
        return b @ np.cbrt(a @ np.clip(rgb, 0, 1))
    blind = {"none": np.eye(3),   # Machado et al. 2009, severity 1
             "deutan": np.array([[.367322, .860646, -.227968], [.280085, .672501, .047413], [-.01182, .04294, .968881]]),
             "protan": np.array([[.152286, 1.052583, -.204868], [.114503, .786281, .099216], [-.003882, -.048116, 1.051998]]),
             "tritan": np.array([[1.255528, -.076749, -.178779], [-.078411, .930809, .147602], [.004733, .691367, .3039]])}
    for n, least in ((3, .2), (4, .13), (5, .11), (6, .08), (7, .065)):
        colors = ch.budget_colors(n)
        for c in [*colors, ch._ANSWER]:
            assert 1.05 / (luminance(c) + .05) >= 3 and (luminance(c) + .05) / (luminance("#111111") + .05) >= 3
        for matrix in blind.values():
            points = [lab(matrix @ linear(c)) for c in colors]
            assert min(np.linalg.norm(a - b) for i, a in enumerate(points) for b in points[:i]) > least
    assert ch.budget_colors(1) == [ch._ANCHORS[0]] and len(set(ch.budget_colors(12))) == 12


def test_every_picture_has_its_frame():
    "Drawn is what a frame holds: by name, but where the numbers have an older one."
    older = dict(runs=ch.run_points, optimum=ch.optimum_path, comparison=None)   # a Comparison is its own frame
    plots = [n.removeprefix("plot_") for n in vars(ch) if n.startswith("plot_")]
    assert len(plots) >= 14 and all(n in older or callable(getattr(ch, f"{n}_frame")) for n in plots)


def test_ticks_are_few_round_and_inside():
    rng = np.random.default_rng(0)
    for lo, ratio in zip(10 ** rng.uniform(-3, 24, 300), 10 ** rng.uniform(.05, 14, 300)):
        ticks = ch.log_ticks(lo, lo * ratio)
        assert 1 <= len(ticks) <= 12 and all(lo * .999 <= t <= lo * ratio * 1.001 for t in ticks) and ticks == sorted(set(ticks)), (lo, ratio, ticks)


def test_budgets_that_round_alike_keep_their_names_apart():
    assert list(ch.budget_names([1.31e10, 1.3e10, 1.31e10]).values()) == ["1.30e10", "1.31e10"]
    assert list(ch.budget_names([1e10, 4e10]).values()) == ["1.0e10", "4.0e10"]


def test_long_frames_travel_as_csv_and_come_back():
    frame = pd.DataFrame({"a": np.arange(20) / 7, "says": ['a "quoted", comma\nand line'] * 20, "ok": [True, False] * 10, "gap": [1.5, np.nan] * 10})
    data = ch._data(frame).to_dict()
    assert data["format"]["parse"] == {"a": "number", "says": "string", "ok": "boolean", "gap": "number"}
    chart = alt.Chart(ch._data(frame)).mark_point().encode(x="a:Q", y="gap:Q", tooltip=["says:N", "ok:N"]).transform_filter("datum.ok")
    svg = drawn(chart)
    assert len(re.findall(r"<path transform", svg)) == 10   # see-through, as points are: they stay apart


# ---------------------------------------------------------------- frames

def test_plan_frame(plan):
    frame = ch.plan_frame(plan)
    assert frame.runs.sum() == len(plan.specs) and frame[frame.runs == 2].shape[0] == 1
    assert (frame.state == "dropped").sum() == 2 and frame[frame.state == "dropped"].reason.tolist()[0]
    kept = frame[frame.state == "planned"]
    assert np.allclose(kept.tokens_per_param, kept.D / kept.N)


def test_isoflop_frame_holds_runs_curves_and_minima(fits, sweep):
    surface, isoflop = fits
    frame = ch.isoflop_frame(isoflop, surface)
    assert (frame.kind == "run").sum() == len(sweep)
    assert np.allclose(np.sort(frame[frame.kind == "run"].loss), np.sort(sweep.loss))
    low = frame[frame.kind == "minimum"]
    assert np.allclose(low.N, isoflop.budgets.N_opt) and (low.N_low < low.N).all() and (low.N < low.N_high).all()
    at = frame[(frame.kind == "surface")].iloc[5]
    assert at.loss == pytest.approx(surface.law.loss(at.N, at.D))


def test_the_path_is_the_allocation(fits):
    surface, isoflop = fits
    path = ch.optimum_path(surface, C=1e12, isoflop=isoflop)
    last = path.iloc[-1]
    answer = compute_optimal(surface, 1e12, isoflop=isoflop)
    assert last.C == pytest.approx(1e12) and last.N == pytest.approx(answer.N) and (last.N_low, last.N_high) == pytest.approx(answer.N_interval)
    assert path.extrapolated.tolist() == sorted(path.extrapolated) and path.C[~path.extrapolated].max() == pytest.approx(surface.C.max(), rel=1e-6)
    assert not ch.optimum_path(surface, C=1e9).extrapolated.any()   # a target below the sweep shows the sweep


def test_residuals_frame(fits):
    surface, isoflop = fits
    assert np.allclose(ch.residuals_frame(surface).residual, surface.residuals)
    by_parabola = ch.residuals_frame(isoflop)
    assert by_parabola.groupby("budget").residual.mean().abs().max() < 1e-3


def test_curves_frame_reads_a_storage_and_thins(tmp_path):
    storage = open_storage(tmp_path)
    for i, n in enumerate((100, 5000)):
        run = f"run{i}"
        storage.write_json(run, "spec.json", dict(run_id=run, budget=1e9, size=8, N=1000, D=n * 10, flops_per_token=6e3, seed=0, mock=False))
        log = MetricsLog(storage, run)
        for s in range(1, n + 1):
            log.add(dict(step=s, tokens=s * 10, loss=5 / s ** .1))
        log.close()
    frame = ch.curves_frame(storage, points=50, smooth=0)
    sizes = frame.groupby("run_id").size()
    assert sizes.max() <= 50
    for run, n in (("run0", 100), ("run1", 5000)):
        one = frame[frame.run_id == run]
        assert one.tokens.iloc[0] == 10 and one.tokens.iloc[-1] == n * 10 and (one.tokens.diff().dropna() > 0).all()
        assert one.flops.iloc[-1] == pytest.approx(6e3 * n * 10) and one.loss.iloc[0] == 5
    assert ch.curves_frame(storage, ids=["run1"]).run_id.unique().tolist() == ["run1"]
    drawn(ch.plot_curves(tmp_path))


def test_smoothing_is_a_mean_of_what_was_seen():
    rng = np.random.default_rng(0)
    tokens = np.sort(rng.uniform(1, 1e6, 400))
    loss = rng.normal(3, 1, 400)
    out = ch.smooth_curve(tokens, loss, .1)
    assert np.allclose(out, [loss[(tokens >= .9 * t) & (tokens <= t)].mean() for t in tokens])
    assert np.allclose(ch.smooth_curve(tokens, loss, 0), loss)


# ---------------------------------------------------------------- what the pictures say

def test_every_chart_draws_and_says_its_finding(fits, sweep, plan):
    surface, isoflop = fits
    says = [(ch.plot_plan(plan), "29 runs on 4 budgets"), (ch.plot_runs(sweep), "28 runs, all with a loss"), (ch.plot_isoflop(isoflop, surface), "All 4 budgets have a minimum"),
            (ch.plot_optimum(surface, isoflop=isoflop), "N* grows as C^0.4"), (ch.plot_loss(surface), "The lowest loss falls as C^-0.2"),
            (ch.plot_residuals(surface), "The surface misses the loss by"), (ch.plot_residuals(isoflop), "The parabolas miss"), (ch.plot_optimum(isoflop), "line: IsoFLOP line"),
            (ch.plot_loss(isoflop), "The lowest loss falls")]
    for i, (chart, words) in enumerate(says):
        drawn(chart)
        assert words in titles(chart)
        assert ("mock: losses drawn from a known law" in titles(chart)) == (i > 0)
        text = ch.chart_text(chart.to_dict())
        assert text.startswith(titles(chart).split(" | ")[0]) and len(text) < 1500
        assert "NaN" not in json.dumps(chart.to_dict())


def test_extrapolation_is_marked(fits):
    surface, isoflop = fits
    assert "extrapolated, up to 10 times" in drawn(ch.plot_optimum(surface, isoflop=isoflop))
    assert "extrapolated" not in drawn(ch.plot_optimum(surface, C=float(surface.C.max()), isoflop=isoflop))


def test_a_budget_without_a_minimum_is_named(sweep):
    right = sweep[(sweep.budget > 3e10) | (sweep.N > 7000)]
    fit = fit_isoflop(right.N, right.C, right.loss, D=right.D, budget=right.budget)
    chart = ch.plot_isoflop(fit)
    said = titles(chart)
    assert said.startswith("2 of 4 budgets have a minimum") and "not 1.0e10:" in said and "not 2.5e10:" in said
    drawn(chart)
    assert "no interval" in titles(ch.plot_optimum(fit))
    assert "No optimum" in titles(ch.plot_loss(fit))


def test_no_law_is_said_not_drawn(sweep):
    one = sweep[sweep.budget == 1e10]
    surface = fit_law(one.N, one.D, one.loss, C=one.C)
    assert surface.law is None
    for chart in (ch.plot_optimum(surface), ch.plot_loss(surface)):
        assert "No optimum can be read off these runs" in titles(chart)
        drawn(chart)
    drawn(ch.plot_residuals(surface))


def test_failed_runs_stay_in_the_picture(sweep, fits):
    frame = sweep.copy()
    frame.loc[[3, 9], ["loss", "state", "reason"]] = [np.nan, "FAILED", 'Boom: "quotes", </script> & more\nline']
    svg = drawn(ch.plot_runs(frame))
    assert svg.count(">×<") == 2 and "26 of 28 runs ended with a loss" in svg and "× 2 failed" in svg
    assert "× 2 failed" in titles(ch.plot_isoflop(fits[1], runs=frame))


@pytest.mark.parametrize("change", ["all failed", "one run", "one budget", "twelve budgets", "no budget", "bare", "nan budget", "same N", "seeds"])
def test_odd_sweeps_still_draw(sweep, change):
    frame = sweep.copy()
    if change == "all failed":
        frame = frame.assign(loss=np.nan, state="FAILED", reason="no")
    if change == "one run":
        frame = frame.iloc[[4]]
    if change == "one budget":
        frame = frame[frame.budget == 1e10]
    if change == "twelve budgets":
        frame = make_sweep(np.geomspace(1e9, 1e12, 12), 5)
    if change == "no budget":
        frame = frame.drop(columns="budget")
    if change == "bare":
        frame = frame[["N", "loss"]]
    if change == "nan budget":
        frame.loc[3, "budget"] = np.nan
    if change == "same N":
        frame["N"] = 1000.
    if change == "seeds":
        frame = pd.concat([frame, frame.assign(seed=1, loss=frame.loss + .01)])
    drawn(ch.plot_runs(frame))


def test_a_frame_without_losses_is_refused_in_words(sweep):
    with pytest.raises(ValueError, match="must have the columns N and loss.*Rename"):
        ch.plot_runs(sweep.rename(columns={"loss": "val_loss"}))
    with pytest.raises(ValueError, match="'tokens' or 'flops'"):
        ch.plot_curves(sweep, x="steps")


def test_no_curves_yet(tmp_path):
    assert "No training curve yet" in titles(ch.plot_curves(tmp_path))
    drawn(ch.plot_curves(tmp_path))


def test_charts_can_be_stacked_and_put_side_by_side(fits, recwarn):
    surface, isoflop = fits
    both = ch.stack(ch.plot_isoflop(isoflop, surface), ch.plot_optimum(surface, isoflop=isoflop), ch.plot_loss(surface))
    drawn(both)
    drawn(ch.plot_isoflop(isoflop) | ch.plot_residuals(surface))
    text = ch.chart_text(both.to_dict())
    assert "All 4 budgets" in text and "The lowest loss falls" in text
    assert not [w for w in recwarn if "dedup" in str(w.message)]


def test_the_sizes_stay_small(fits):
    surface, isoflop = fits
    for chart in (ch.plot_isoflop(isoflop, surface), ch.plot_optimum(surface, isoflop=isoflop), ch.plot_loss(surface), ch.plot_residuals(surface)):
        assert len(json.dumps(chart.to_dict())) < 60_000


# ---------------------------------------------------------------- what a law looks like

TRUTH = ChinchillaLaw(E=1.69, A=406.4, B=410.7, alpha=.34, beta=.28)


def costly(N):
    "A cost per token that is not proportional to N."
    return 6 * N + 4e6 * N ** .4


def big_sweep(budgets=(1e17, 10 ** 17.5, 1e18, 10 ** 18.5, 1e19), noise=.004, drift=0., seed=1, f=lambda N: 6 * N, **kw):
    "A fit of five budgets of seven sizes, with noise and perhaps a recipe that loses `drift` nats a squared decade."
    C = np.repeat(budgets, 7)
    N = (TRUTH.optimum(np.asarray(budgets))[0][:, None] * np.geomspace(1 / 8, 8, 7)).ravel()
    D = C / f(N)
    L = TRUTH.loss(N, D) + drift * np.log10(C / min(budgets)) ** 2 + noise * np.random.default_rng(seed).standard_normal(len(N))
    return fit_law(N, D, L, C=C, **kw)


@pytest.fixture(scope="module")
def sound():
    return big_sweep()


@pytest.fixture(scope="module")
def lawless():
    return big_sweep(budgets=[1e18])


def test_both_bands_are_those_of_the_intervals(sound):
    path = ch.optimum_path(sound, C=1e21)
    for method, columns in (("sandwich", "{}_{}"), ("discrepancy", "{}_outer_{}")):
        known = fit_intervals(sound, path.C.to_numpy(), method=method, levels=(.9,))
        for q in ("N", "D", "loss"):
            rows = known[known.quantity == q]
            for end in ("low", "high"):
                assert np.allclose(path[columns.format(q, end)], rows[end], rtol=1e-6), (method, q, end)
    assert (path.N_outer_low < path.N_low).all() and (path.N_outer_high > path.N_high).all()
    chart = ch.plot_optimum(sound, C=1e21)
    areas = [m for m in re.findall(r'"mark": \{[^}]*"area"', json.dumps(chart.to_dict()))]
    assert len(areas) == 4 and "pale band" in titles(chart) and ch.si_format(path.N_outer_high.iloc[-1]) in titles(chart)
    drawn(chart)
    far, near = (ch.plot_loss(sound, C=C) for C in (1e22, 1e21))
    assert "withheld beyond 1.0e21 FLOPs" in titles(far) and "withheld" not in titles(near), "what `compute_optimal` refuses is not drawn"
    drawn(far)
    assert far.to_dict()["description"].splitlines()[-1].startswith("1.00e21") and ch.plot_optimum(sound, C=1e22).to_dict()["description"].splitlines()[-1].endswith("-")
    bare = ch.optimum_path(sound, interval=None)
    assert bare.N_low.isna().all() and bare.N_outer_low.isna().all() and np.allclose(bare.N, sound.law.optimum(bare.C.to_numpy())[0])
    none = ch.plot_optimum(sound, n_boot=0)
    assert "no interval" in titles(none) and '"area"' not in json.dumps(none.to_dict())


@pytest.mark.parametrize("law", ["chinchilla", "coupled"])
@pytest.mark.parametrize("cost", [lambda N: 6 * N, costly])
def test_contours_lie_on_the_law_and_touch_its_frontier(law, cost):
    fit = big_sweep(f=cost, law=law)
    frame = ch.isoloss_frame(fit, C=1e21, points=41)
    line, frontier, runs = (frame[frame.kind == k] for k in ("contour", "frontier", "run"))
    assert line.loss.nunique() == 6 and np.allclose(fit.law.loss(line.N.to_numpy(), line.D.to_numpy()), line.loss, rtol=1e-9)
    assert np.allclose(line.C, fit.curve(line.N.to_numpy()) * line.D) and len(runs) == 35
    for level, one in line.groupby("loss"):
        assert (np.diff(one.N) > 0).all() and (np.diff(one.D) < 0).all()
        least = fit.law.compute(level, fit.curve)
        assert least <= one.C.min() * (1 + 1e-9) < 1.01 * least
    N, D, loss = fit.law.optimum(frontier.C.to_numpy(), fit.curve)
    assert np.allclose(frontier.N, N) and np.allclose(frontier.loss, loss) and frontier.C.max() == pytest.approx(1e21)
    assert frontier[~frontier.extrapolated].C.max() == pytest.approx(fit.C.max())
    if law == "chinchilla" and cost is costly:
        svg = drawn(ch.plot_isoloss(fit, C=1e21, x="D"))
        assert all(f">{v:g}" in svg or f">{v:.1f}" in svg or f">{v:.2f}" in svg for v in line.loss.unique()[1:-1])


def test_levels_can_be_chosen_and_one_that_is_nowhere_draws_nothing(sound):
    frame = ch.isoloss_frame(sound, levels=[3., 1., 99.])
    assert frame[frame.kind == "contour"].loss.unique().tolist() == [3.]
    drawn(ch.plot_isoloss(sound, levels=[3., 1., 99.]))
    drawn(ch.plot_isoloss(sound, levels=[1.]))
    with pytest.raises(ValueError, match="'C' or 'D'"):
        ch.plot_isoloss(sound, x="N")
    with pytest.raises(ValueError, match="`C` must be positive"):
        ch.isoloss_frame(sound, C=-1)


def test_residual_trends_find_what_is_there_and_not_what_is_not(sound):
    rng = np.random.default_rng(0)
    frame = ch.residuals_frame(sound)
    wave = frame.assign(residual=.002 * np.sin(.8 * np.log(frame.D)) + .001 * rng.standard_normal(len(frame)), outlier=False)
    curves, trends = ch.residual_trends(wave)
    best = trends.loc[trends.p.idxmin()]
    assert best.against == "D" and best.p < 1e-3 and best["share"] > .5 and set(curves) == {"N", "D", "D/N", "C"}
    by_hand = np.polyval(np.polyfit(np.log(wave.D), wave.residual, 4), np.log(curves["D"].x))
    assert np.allclose(curves["D"]["at"], by_hand, atol=1e-9)
    p = [ch.residual_trends(frame.assign(residual=rng.standard_normal(len(frame)), outlier=False))[1].p for _ in range(300)]
    assert .02 < np.mean(np.stack(p) < .05) < .09   # noise is called a trend as often as promised
    few = ch.residual_trends(frame.head(5))
    assert few[0] == {} and len(few[1]) == 0


def test_residual_panels_and_their_choice(sound):
    four, one = ch.plot_residuals(sound), ch.plot_residuals(sound, against="D/N")
    assert len(four.to_dict()["concat"]) == 4 and "layer" in one.to_dict()
    svg = drawn(four)
    for title in ("N, parameters", "D, tokens", "D/N, tokens per parameter", "C, FLOPs"):
        assert title in svg
    assert "no trend beyond chance" in titles(four) and "D/N" in titles(one)
    for wrong in ((), "size", ("N", "x")):
        with pytest.raises(ValueError, match="`against` must hold"):
            ch.plot_residuals(sound, against=wrong)


def test_an_outlier_stands_at_the_edge_and_leaves_the_others_their_room(sound):
    L = sound.L.copy()
    L[[4, 17]] *= 2
    fit = fit_law(sound.N, sound.D, L, C=sound.C)
    assert fit.outliers.sum() == 2
    chart = ch.plot_residuals(fit)
    assert "over 33 runs, and 2 by far more" in titles(chart) and "rings: 2 beyond" in titles(chart)
    y = chart.to_dict()["concat"][0]["layer"][2]["encoding"]["y"]["scale"]["domain"]
    assert y[1] < .03 and np.abs(ch.residuals_frame(fit).residual).max() > .5   # the axis is made for the other 33
    drawn(chart)


def test_predicted_is_the_law_and_the_hold_out_is_marked(sound):
    held = pd.DataFrame({"N": [1e9, 2e9, 3e9], "D": [2e10, 2e10, 2e10], "loss": [np.nan, 2.6, 2.5]})
    frame = ch.predicted_frame(sound, held)
    assert np.allclose(frame.predicted, sound.law.loss(frame.N.to_numpy(), frame.D.to_numpy()))
    assert np.allclose(frame.residual[~frame.held_out], sound.residuals) and frame.held_out.sum() == 2
    own = frame[frame.held_out]
    assert np.allclose(own.residual, np.log(own.loss / own.predicted)) and np.allclose(own.C, 6 * own.N * own.D)
    off = float((100 * (own.loss - own.predicted) / own.loss).mean())
    chart = ch.plot_predicted(sound, held)
    assert titles(chart).startswith(f"2 runs it never saw have {abs(off):.2g} % {'more' if off > 0 else 'less'} loss than the law says")
    drawn(chart)
    assert titles(ch.plot_predicted(sound)).startswith("The law meets its 35 runs to")
    assert "run it never saw" in titles(ch.plot_predicted(sound, held.tail(1)))
    assert titles(ch.plot_predicted(sound, held.head(1))).startswith("The law meets")   # a hold-out without a loss is none
    with pytest.raises(ValueError, match=r"`holdout` must have .* \['loss'\] are missing"):
        ch.plot_predicted(sound, held.rename(columns={"loss": "val"}))


def test_the_path_of_the_future_ends_at_the_whole_fit(sound):
    frame = ch.future_frame(sound, C=1e21)
    known = leave_future_out(sound, 1e21)
    pd.testing.assert_frame_equal(frame.iloc[:-1][known.columns.tolist()], known, check_dtype=False)
    last = frame.iloc[-1]
    assert last.used == 5 and last.n == 0 and last.N == pytest.approx(sound.law.optimum(1e21)[0]) and (frame.C == 1e21).all()
    row = known[known.used == 4].iloc[0]
    chart = ch.plot_future(sound, C=1e21)
    said = titles(chart)
    assert f"predicts {abs(row.bias):.2g} % too {'much' if row.bias > 0 else 'little'} loss at 1.0e19 ({row.light})" in said
    assert f"went from {ch.si_format(known.N.iloc[0])} to {ch.si_format(last.N)}" in said
    drawn(chart)
    assert titles(ch.plot_future(frame)) == said   # a frame that was kept draws the same
    drifting = titles(ch.plot_future(big_sweep(drift=.02)))
    assert "too little loss" in drifting and ("(red)" in drifting or "(amber)" in drifting)


def test_a_future_that_cannot_be_asked_says_why():
    three = big_sweep(budgets=[1e17, 1e18, 1e19])
    frame = ch.future_frame(three)
    assert len(frame) == 1 and frame.N[0] == pytest.approx(three.law.optimum(1e20)[0]) and "make four" in frame.reason[0]
    chart = ch.plot_future(three)
    assert titles(chart) == "No budget could be held out" and "make four" in drawn(chart)


@pytest.mark.parametrize("cost", [lambda N: 6 * N, costly])
def test_regret_is_the_compute_that_was_not_needed(cost):
    fit = big_sweep(f=cost)
    frame = ch.regret_frame(fit, 1e20, points=4)
    curve, spans = frame[frame.kind == "curve"], frame.set_index("kind")
    by_hand = [1 - fit.law.compute(fit.law.loss(n, 1e20 / fit.curve(n)), fit.curve) / 1e20 for n in curve.N]
    assert np.allclose(curve.regret, by_hand, atol=1e-7) and curve.regret.max() == pytest.approx(.12) and (np.diff(curve.N) > 0).all()
    assert np.allclose(curve.D, 1e20 / fit.curve(curve.N.to_numpy()))
    assert spans.N["optimum"] == pytest.approx(fit.law.optimum(1e20, fit.curve)[0]) and spans.regret["optimum"] == 0
    assert (spans.N_low["band"], spans.N_high["band"]) == pytest.approx(regret_band(fit, 1e20))
    answer = compute_optimal(fit, 1e20)
    assert (spans.N_low["interval"], spans.N_high["interval"]) == pytest.approx(answer.N_interval)
    assert spans.regret["isoflop"] == pytest.approx(regret(fit, 1e20, float(spans.N["isoflop"])), abs=1e-12)
    chart = ch.plot_regret(fit, 1e20)
    low, high = (ch.si_format(v) for v in regret_band(fit, 1e20))
    assert titles(chart).startswith(f"Any N from {low} to {high} loses under 1 % of 1.0e20 FLOPs")
    drawn(chart)


def test_regret_refuses_a_share_that_is_no_share(sound):
    for share in (0, 1., -1, float("nan")):
        with pytest.raises(ValueError, match="`share` must lie between"):
            ch.plot_regret(sound, 1e20, share=share)


def test_regions_of_the_exponents_hold_what_their_statistic_says(sound):
    frame = ch.profile_frame(sound, levels=(.5, .95))
    table = exponent_profile(sound, n=25)
    limit = {v: 2 * fdtri(2, sound.n - 5, v) for v in (.5, .95)}
    step = table.beta.diff().abs().max() / 5 + table.beta.diff()[table.beta.diff() > 0].min() / 4
    for level, one in frame.groupby("level"):
        assert ((one.beta_low <= sound.law.beta) & (sound.law.beta <= one.beta_high)).any() and (one.beta_low <= one.beta_high).all()
        for a, rows in table.groupby("alpha"):   # every point of the grid is inside the region just where its statistic is small
            if not one.alpha.min() < a < one.alpha.max():
                continue
            low, high = np.interp(a, one.alpha, one.beta_low), np.interp(a, one.alpha, one.beta_high)
            clear = rows[(np.abs(rows.beta - low) > step) & (np.abs(rows.beta - high) > step)]
            assert (((clear.beta > low) & (clear.beta < high)) == (clear.statistic <= limit[level])).all(), (level, a)
    inner, outer = frame[frame.level == .5], frame[frame.level == .95]
    assert outer.alpha.min() < inner.alpha.min() < sound.law.alpha < inner.alpha.max() < outer.alpha.max() and not frame.open.any()
    chart = ch.plot_profile(sound)
    assert f"alpha from {outer.alpha.min():.3f} to {outer.alpha.max():.3f}" in titles(chart)
    drawn(chart)


def test_profiles_can_be_drawn_from_the_surface_alone(sound):
    chart = ch.plot_isoflop(sound)
    assert "dotted: the surface fit" in titles(chart) and titles(chart).startswith("All 5 budgets")
    drawn(chart)
    N = np.repeat([1e7, 3e7, 1e8, 3e8, 1e9], 4)
    D = N * np.tile([5, 20, 80, 320], 5)
    ladder = fit_law(N, D, TRUTH.loss(N, D) * np.exp(.003 * np.random.default_rng(0).standard_normal(20)))
    assert titles(ch.plot_isoflop(ladder)) == "These runs have no IsoFLOP profiles"
    for plot in (ch.plot_isoflop, ch.plot_optimum, ch.plot_loss, ch.plot_isoloss, ch.plot_residuals, ch.plot_predicted, ch.plot_future, ch.plot_regret, ch.plot_profile):
        drawn(plot(ladder))
    assert ch.isoloss_frame(ladder).query("kind == 'run'").budget.nunique() <= 12   # a cloud of runs is coloured in bins


LAW_PLOTS = {"isoloss": ch.plot_isoloss, "predicted": ch.plot_predicted, "future": ch.plot_future, "regret": ch.plot_regret, "profile": ch.plot_profile}
LAW_FRAMES = {"isoloss": ch.isoloss_frame, "predicted": ch.predicted_frame, "future": ch.future_frame, "regret": ch.regret_frame, "profile": ch.profile_frame}


@pytest.mark.parametrize("name", LAW_PLOTS)
def test_without_a_law_the_frame_refuses_and_the_picture_says_why(name, lawless, sound):
    assert lawless.law is None
    with pytest.raises(ValueError, match="no law to draw.*one budget only"):
        LAW_FRAMES[name](lawless)
    chart = LAW_PLOTS[name](lawless)
    assert "one budget only" in drawn(chart) and titles(chart).split()[0] in ("There", "No")
    iso = fit_isoflop(sound.N, sound.C, sound.L, D=sound.D)
    for function in (LAW_FRAMES[name], LAW_PLOTS[name]):   # a mistake, not a poor sweep
        with pytest.raises(TypeError, match="Pass the FitResult"):
            function(iso)


def test_fits_that_have_no_interval_still_draw(sound):
    i = [0, 6, 14, 20, 34]
    five = fit_law(sound.N[i], sound.D[i], sound.L[i], C=sound.C[i])
    assert five.law is not None
    assert "no interval" in titles(ch.plot_optimum(five)) and "no interval" in titles(ch.plot_regret(five))
    with pytest.raises(ValueError, match="five runs leave none"):
        ch.profile_frame(five)
    exact = big_sweep(noise=0.)
    with pytest.raises(ValueError, match="to rounding"):
        ch.profile_frame(exact)
    coupled = big_sweep(law="coupled")
    assert "Chinchilla" in drawn(ch.plot_profile(coupled)) and "no interval" in titles(ch.plot_regret(coupled))
    for plot in (ch.plot_loss, ch.plot_isoloss, ch.plot_residuals, ch.plot_predicted, ch.plot_future):
        drawn(plot(five))
    drawn(ch.plot_residuals(exact))


# ---------------------------------------------------------------- half the bytes, the same picture

def test_a_lean_spec_draws_the_same_picture(sound, fits, plan, sweep):
    import vl_convert
    charts = [ch.plot_isoflop(fits[1], fits[0]), ch.plot_optimum(sound), ch.plot_residuals(sound), ch.plot_future(sound), ch.plot_plan(plan), ch.stack(ch.plot_runs(sweep), ch.plot_isoloss(sound))]

    def paint(spec, version):   # ids and words aside, which carry no ink
        return re.sub(r"clip\d+|view_\w+|concat_\w+", "", re.sub(r' aria-\w+="[^"]*"', "", vl_convert.vegalite_to_svg(spec, vl_version=version)))
    for chart in charts:
        spec = chart.to_dict()
        lean = ch._short_names(ch._lean_spec(spec))
        painted = paint(spec, ch._vl_version())
        assert painted == paint(lean, ch._vl_version()) and len(json.dumps(lean)) < len(json.dumps(spec))
        assert painted == paint({**lean, "$schema": "https://vega.github.io/schema/vega-lite/v5.json"}, "5.8")   # what JupyterLab draws
    assert spec == charts[-1].to_dict()   # the chart itself is left as it was


def test_a_lean_svg_loses_bytes_and_no_mark(fits, sound):
    import vl_convert
    for chart in (ch.plot_isoflop(fits[1], fits[0]), ch.plot_residuals(sound, against=("N", "C")), ch.plot_regret(sound)):
        raw = vl_convert.vegalite_to_svg(chart.to_dict(), vl_version=ch._vl_version())
        lean = ch.chart_svg(chart.to_dict())
        assert len(lean) < .4 * len(raw) and "ns0:" not in lean and lean.startswith("<svg ")
        root = ElementTree.fromstring(lean)
        inked = [e for e in ElementTree.fromstring(raw).iter() if e.get("opacity") != "0" and (not e.tag.endswith("path") or e.get("d") and (e.get("fill") or e.get("stroke")))]
        parts = lambda elements: sum(e.get("d").count("M") if e.tag.endswith("}path") else e.tag.endswith("}line") for e in elements)   # several marks may have become one path
        assert parts(e for e in root.iter() if e.tag.endswith(("}path", "}line"))) == parts(e for e in inked if e.tag.endswith(("}path", "}line")))
        assert [e.text for e in root.iter() if e.tag.endswith("}text")] == [e.text for e in inked if e.tag.endswith("}text")]
        assert all(len(n.split(".")[1]) == 1 for e in root.iter() for n in re.findall(r"\d+\.\d+", e.get("d", "") + e.get("transform", "")))



def test_joined_marks_lie_where_they_lay():
    group = ElementTree.fromstring(f'<g xmlns="{ch._SVG}"><path transform="translate(10,20)" d="M3,0A3,3,0,1,1,-3,0A3,3,0,1,1,3,0" fill="red"/>'
                                   '<path transform="translate(5,6.5)" d="M-2,-2h4v4h-4Z" fill="red"/>'
                                   '<path transform="translate(7,8)" d="M0,-4L-3,4L3,4Z" fill="red" opacity="0.5"/><path transform="translate(1,2) rotate(3)" d="M0,0L1,1" fill="red"/>'
                                   '<line transform="translate(4,0)" y2="9" stroke="blue"/><line transform="translate(8,0)" y2="9" stroke="blue"/></g>')
    ch._join_marks(group)
    assert [e.get("d") for e in group] == ["M10,20m3,0a3,3,0,1,1,-6,0a3,3,0,1,1,6,0M5,6.5m-2,-2h4v4h-4z", "M0,-4L-3,4L3,4Z", "M0,0L1,1", "M4,0l0,9M8,0l0,9"]


def test_numbers_of_a_law_are_seen_small():
    chart = alt.Chart(ch._data(pd.DataFrame({"x": [.05, 500.], "y": [1., 2.]}))).mark_point().encode(ch._log(alt.X, "x", "x", [.05, 2000.]), alt.Y("y:Q"))
    svg = drawn(chart)
    assert ">0.1<" in svg and "100m" not in svg and ">1k<" in svg   # never a thousandth that reads like a million


def contrast(ink, opacity, paper):
    rgb = [[int(c[i:i + 2], 16) / 255 for i in (1, 3, 5)] for c in (ink, paper)]
    mixed = [opacity * a + (1 - opacity) * b for a, b in zip(*rgb)]
    low, high = sorted(sum(w * (v / 12.92 if v <= .04045 else ((v + .055) / 1.055) ** 2.4) for w, v in zip((.2126, .7152, .0722), c)) + .05 for c in (mixed, rgb[1]))
    return high / low


def test_text_has_the_ink_of_the_page_and_can_be_read_on_any(fits, sweep):
    "No ink of its own in a page; as an image, which cannot see the page, ink and paper come together."
    config = ch.chart_theme()["config"]
    weakest = min(v["fillOpacity"] for v in (*config["style"].values(), config["text"]))
    papers = [*ch._PAPERS.values(), ("#212121", "#ffffff"), ("#ffffff", "#111111")]   # and JupyterLab's, light and dark
    assert min(contrast(ink, weakest, paper) for ink, paper in papers) > 7
    for chart in (ch.plot_isoflop(fits[1], fits[0], sweep), ch.plot_optimum(fits[0], isoflop=fits[1])):
        svg = drawn(chart)
        root = ElementTree.fromstring(svg)
        inherited = {}
        for parent in root.iter():
            for child in parent:
                inherited[child] = child.get("fill") or parent.get("fill") or inherited.get(parent)
        texts = [e for e in root.iter() if e.tag.endswith("}text")]
        assert texts and {inherited[e] for e in texts if e.text != "×"} == {"currentColor"}   # a failed run has the colour of its budget
        assert root.get("aria-label") == titles(chart).split(" | ")[0] and root.get("role") == "img"
        assert re.search(r"svg:root\{color:#1f2328;background:#ffffff\}@media\(prefers-color-scheme:dark\)", svg)
        assert ch.offline_renderer(chart.to_dict(), svg=False)["application/vnd.vegalite.v5+json"]["usermeta"]["embedOptions"]["renderer"] == "svg"   # a canvas would keep the ink it was drawn with


def test_clipping_frames_of_two_pictures_do_not_mix(fits, sound):
    frames = {}
    for chart in (ch.plot_isoflop(fits[1], fits[0]), ch.plot_residuals(sound), ch.plot_optimum(sound)):
        root = ElementTree.fromstring(drawn(chart))
        clips = {e.get("id"): [dict(c.attrib) for c in e] for e in root.iter() if e.tag.endswith("}clipPath")}
        used = {e.get("clip-path")[5:-1] for e in root.iter() if e.get("clip-path")}
        assert used and used <= set(clips) and len(clips) <= 4
        for name, shape in clips.items():
            assert frames.setdefault(name, shape) == shape


# ---------------------------------------------------------------- shown with no internet

def test_the_bundle_serves_every_reader(fits):
    bundle = ch.offline_renderer(ch.plot_isoflop(fits[1]).to_dict())
    assert set(bundle) == {"application/vnd.vegalite.v5+json", "image/svg+xml", "text/plain"}
    spec = bundle["application/vnd.vegalite.v5+json"]
    assert spec["$schema"].endswith("v5.json") and spec["usermeta"]["embedOptions"]["actions"]["editor"] is False
    assert bundle["text/plain"].startswith("All 4 budgets") and "N* grows" in bundle["text/plain"] and "<" not in bundle["text/plain"]
    assert "image/svg+xml" not in ch.offline_renderer(spec, svg=False)
    assert ch.chart_text({"title": ["two", "lines"]}) == "two lines" and ch.chart_text({}) == "Altair chart"


def remote(page):
    "Everything in a page's own markup that would be fetched (Vega's source and the specs hold addresses as text)."
    own = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    return re.findall(r'(?:src|href)\s*=\s*["\']?\s*(?:https?:)?//[^"\'> ]+|url\(\s*["\']?(?:https?:)?//[^)]*|@import[^;]*', own)


def test_a_page_is_one_file(tmp_path, fits, sweep):
    evil = sweep.assign(reason='</script><script>alert(1)</script>')
    evil.loc[3, ["loss", "state"]] = [np.nan, "FAILED"]
    page = ch.html_page("A <study>", ["<p>words</p>", ch.plot_runs(evil), fits[1], fits[0], sweep.head(2), ["<p>nested</p>", 3]], tmp_path / "deep" / "page.html")
    assert (tmp_path / "deep" / "page.html").read_text(encoding="utf-8") == page
    assert page.count("<h1>") == 1 and "A &lt;study&gt;" in page and page.count("alert(1)") == page.count("\\u003cscript>alert(1)") + page.count("&lt;script&gt;alert(1)")
    assert remote(page) == [] and page.count("vegaEmbed(live") == 1 and len(page) < 2_000_000
    assert "<script src" not in page and "prefers-color-scheme:dark" in page
    plain = ch.html_page("No charts", ["<p>words</p>"])
    assert len(plain) < 10_000 and "<script" not in plain


def test_the_bundle_is_cached_and_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    import vl_convert
    calls = []
    monkeypatch.setattr(vl_convert, "javascript_bundle", lambda script=None, vl_version=None: calls.append(script) or "bundle of " + str(script))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ch.vega_js.cache_clear()
    assert ch.vega_js("a") == "bundle of a"
    ch.vega_js.cache_clear()
    assert ch.vega_js("a") == "bundle of a" and calls == ["a"]        # read from the disk
    assert ch.vega_js("b") == "bundle of b" and calls == ["a", "b"]   # another script, another key
    ch.vega_js.cache_clear()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))      # a place where no folder can be made
    assert ch.vega_js("a") == "bundle of a" and len(calls) == 3
    ch.vega_js.cache_clear()


def test_a_notebook_becomes_one_page(fits):
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbconvert")
    sys.path.insert(0, str(__import__("pathlib").Path(__file__).parents[1] / "tools"))
    from to_html import to_html
    v4 = nbformat.v4
    bundle = ch.offline_renderer(ch.plot_isoflop(fits[1]).to_dict())
    nb = v4.new_notebook(cells=[
        v4.new_markdown_cell("# The title\n\n> what it gives\n\nSome *text* with [a link](other.ipynb)."),
        v4.new_code_cell("#| hide\nsecret = 1", outputs=[v4.new_output("stream", text="unseen")]),
        v4.new_code_cell("#| echo: false\nquiet = 2", outputs=[v4.new_output("stream", text="loud\x1b[31m red\x1b[0m <tag>")]),
        v4.new_code_cell("x = 1 < 2", outputs=[v4.new_output("display_data", bundle), v4.new_output("execute_result", {"text/plain": "True <b>"}, execution_count=1)])])
    page = to_html(nb)
    assert "<title>The title</title>" in page and page.count("<h1") == 1 and remote(page) == []
    own = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S)
    assert "secret" not in own and "unseen" not in own and "quiet" not in own and "loud red &lt;tag&gt;" in own
    assert 'class="snb-chart"' in page and "True &lt;b&gt;" in page and "vega-lite/v6.json" in page


class TestLearningRate:
    @pytest.fixture(scope="class")
    def tuning(self):
        rows = [dict(size=s, N=n, D=d, lr=lr, loss=2 + .02 * np.log(lr * d ** .2 / .1) ** 2 + .001 * np.sin(9 * lr * d), state="SUCCEEDED")
                for s, n in ((16, 8_192), (32, 24_576)) for d in (100_000, 400_000) for lr in .0025 * 2. ** np.arange(5)]
        return fit_lr(pd.DataFrame(rows))

    def test_frame_and_title(self, tuning):
        frame = ch.lr_frame(tuning)
        assert frame.kind.value_counts().to_dict() == dict(parabola=100, run=20, minimum=4)
        low = frame[frame.kind == "minimum"]
        assert np.allclose(low.lr, tuning.cells.lr) and (low.cost == 0).all() and np.allclose(frame[frame.kind == "parabola"].groupby("cell").cost.min(), 0, atol=1e-3)
        assert "it falls as D^-0." in titles(ch.plot_lr(tuning)) and "a rate off by a factor of 2 costs" in titles(tuning.plot())
        drawn(ch.plot_lr(tuning))

    def test_refused_cells_and_failures_are_said(self, tuning):
        rows = tuning.frame.copy()
        first = (rows["size"] == 16) & (rows.D == 100_000)
        rows.loc[first, "loss"] = np.arange(5.)
        rows.loc[~first & (rows.lr > .03), ["loss", "state"]] = np.nan, "FAILED"
        chart = ch.plot_lr(fit_lr(rows))
        assert "no minimum at 8.19k, 100k: the lowest loss is at 0.0025" in titles(chart) and "× 3 failed" in titles(chart)
        drawn(chart)
        rows["loss"] = rows["loss"].where(rows["loss"].isna(), -rows.lr + 3)
        nothing = ch.plot_lr(fit_lr(rows))
        assert "No size and horizon has its best rate inside" in titles(nothing)
        drawn(nothing)
        rows["loss"], rows["state"] = np.nan, "FAILED"
        drawn(ch.plot_lr(fit_lr(rows)))
