"""Charts: the numbers behind them, what they say, what they survive, and that nothing in them asks for the network."""
import json
import re
import subprocess
import sys
import xml.dom.minidom

import altair as alt
import numpy as np
import pandas as pd
import pytest

from scaling_nb import charts as ch
from scaling_nb.allocation import compute_optimal
from scaling_nb.fitting import fit_isoflop, fit_law
from scaling_nb.laws import ChinchillaLaw
from scaling_nb.records import MetricsLog, open_storage
from scaling_nb.sweep import RunSpec, SweepPlan

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
    colors = ch.budget_colors(5)
    for c in [*colors, ch._ANSWER]:
        assert 1.05 / (luminance(c) + .05) >= 2.4 and (luminance(c) + .05) / (luminance("#111111") + .05) >= 3.5
    for matrix in blind.values():
        points = [lab(matrix @ linear(c)) for c in colors]
        assert min(np.linalg.norm(a - b) for i, a in enumerate(points) for b in points[:i]) > .06
    assert ch.budget_colors(1) == [ch._ANCHORS[0]] and len(set(ch.budget_colors(12))) == 12


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
    assert svg.count('aria-roledescription="point"') == 10


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
    said = titles(ch.plot_isoflop(fit))
    assert said.startswith("2 of 4 budgets have a minimum") and "not 1.0e10:" in said and "not 2.5e10:" in said
    drawn(ch.plot_isoflop(fit))
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
    assert svg.count(">✕<") == 2 and "26 of 28 runs ended with a loss" in svg and "✕ 2 failed" in svg
    assert "✕ 2 failed" in titles(ch.plot_isoflop(fits[1], runs=frame))


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
