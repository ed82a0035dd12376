"""In a real JupyterLab with the network shut: charts draw, the live view moves, and a static picture stays.

Debian's Chromium is needed; without it these tests are skipped with a word, and fail where the environment says CI=true.
`pytest -m 'not browser'` leaves them out; SHOTS=folder keeps a screenshot of each notebook."""
import os
import pathlib

import nbformat
import pytest

pytestmark = pytest.mark.browser
TESTS = str(pathlib.Path(__file__).parent)
SETUP = f"import sys; sys.path.insert(0, {TESTS!r})\nimport tempfile, threading, time\nfrom test_widgets import SPECS, begin, finish, open_storage, wd, write\n" \
        "folder = tempfile.TemporaryDirectory(); storage = open_storage(folder.name)\n" \
        "def feed(*runs, pause=.03):\n" \
        "    for run in runs:\n" \
        "        begin(storage, run)\n" \
        "        for k in range(1, 61): write(storage, run, k, k); time.sleep(pause)\n" \
        "        finish(storage, run)"
CHARTS = """import sys; sys.path.insert(0, TESTS)
import test_charts as t
from scaling_nb import charts as ch
sweep = t.make_sweep(); sweep.loc[4, ["loss", "state", "reason"]] = [float("nan"), "FAILED", "no"]
done = sweep[sweep.loss.notna()]
surface = t.fit_law(done.N, done.D, done.loss, C=done.C); isoflop = t.fit_isoflop(done.N, done.C, done.loss, D=done.D, budget=done.budget)
plan = t.SweepPlan(tuple(t.RunSpec(budget=r.budget, size=r.size, N=int(r.N), D=int(r.D), flops_per_token=6. * r.N) for r in sweep.itertuples()))""".replace("TESTS", repr(TESTS))
CURVES = """import pandas as pd
curves = pd.concat([pd.DataFrame({**r._asdict(), "final": r.loss, "step": range(1, 101), "tokens": [r.D * k / 100 for k in range(1, 101)], "flops": [r.C * k / 100 for k in range(1, 101)],
                                  "loss": [5 / k ** .1 for k in range(1, 101)]}) for r in sweep.itertuples(index=False)])
ch.plot_curves(curves)"""
PLOTS = ["ch.plot_plan(plan)", "ch.plot_runs(sweep)", CURVES, "ch.plot_isoflop(isoflop, surface, sweep)", "ch.plot_optimum(surface, isoflop=isoflop)", "ch.plot_loss(surface)",
         "ch.plot_residuals(surface)", *[f"ch.plot_{name}(surface)" for name in ("isoloss", "predicted", "future", "regret", "profile")],
         "ch.stack(ch.plot_isoflop(isoflop), ch.plot_optimum(isoflop, interval=None))"]
LIVE = ".snb-run"
MOVED = "([s, n]) => +document.querySelector(s)?.dataset.rows > n"


def clean(nb):
    "Nothing was asked of the network, and the console is silent."
    assert not nb.page.blocked and not nb.page.errors, (nb.page.blocked, nb.page.errors)


def rows(nb):
    return int(nb.page.locator(LIVE).first.get_attribute("data-rows"))


def test_every_chart_is_interactive_offline(notebook):
    from playwright.sync_api import expect
    nb = notebook(CHARTS, *PLOTS, viewport=dict(width=1280, height=9000))
    nb.run_all()
    for i in range(1, len(PLOTS) + 1):
        expect(nb.outputs(i).locator(".vega-embed canvas, .vega-embed svg.marks")).to_have_count(1)
    assert nb.page.locator(".vega-embed details a", has_text="Vega Editor").count() == 0   # nothing in the menu leads out
    nb.outputs(2).locator(".vega-embed canvas").hover(position=dict(x=10, y=10))
    clean(nb)


def test_live_while_a_cell_runs_and_static_after_it(notebook):
    from playwright.sync_api import expect
    nb = notebook(SETUP, "view = wd.RunView(storage, SPECS, hz=2).show()\nfeed('run0', 'run4')\nstorage.write_json('run1', 'failure.json', dict(reason='Diverged: nan')); feed('run3')\nview.close();")
    nb.run(0)
    nb.run(1, wait=False)
    nb.page.wait_for_function(MOVED, arg=[LIVE, 5])
    before = rows(nb)
    nb.page.wait_for_function(MOVED, arg=[LIVE, before])
    assert nb.running(1)
    if os.environ.get("SHOTS"):
        nb.page.screenshot(path=os.path.join(os.environ["SHOTS"], "live.png"))
    table = nb.page.locator(f"{LIVE} tbody tr")
    expect(table).to_have_count(6)
    expect(nb.page.locator(f"{LIVE} .bar")).to_have_attribute("role", "progressbar")
    nb.wait_idle()
    expect(nb.outputs(1).locator(".vega-embed canvas, .vega-embed svg.marks")).to_have_count(1)
    expect(nb.page.locator(LIVE)).to_have_count(0)
    expect(nb.outputs(1).first).to_contain_text("3 of 6 runs done, 1 failed, 2 waiting")
    expect(nb.outputs(1).first).to_contain_text("Diverged: nan")
    nb.save()
    saved = nbformat.read(nb.file, 4)
    data = [set(o.data) - {"image/png"} for o in saved.cells[1].outputs]   # JupyterLab adds a PNG to each Vega output that it saves
    assert data == [{"text/html", "text/plain"}, {"application/vnd.vegalite.v5+json", "image/svg+xml", "text/plain"}]
    clean(nb)


def test_live_after_the_cell_returned(notebook):
    from playwright.sync_api import expect
    nb = notebook(SETUP, "view = wd.RunView(storage, SPECS, hz=2).show()\ndef work():\n    feed('run0', 'run4'); time.sleep(1); view.close()\nthreading.Thread(target=work).start()")
    nb.run_all()
    nb.page.wait_for_function(MOVED, arg=[LIVE, 5])
    nb.wait_idle()
    before = rows(nb)
    nb.page.wait_for_function(MOVED, arg=[LIVE, before])
    expect(nb.outputs(1).locator(".vega-embed canvas, .vega-embed svg.marks")).to_have_count(1, timeout=60_000)
    expect(nb.page.locator(LIVE)).to_have_count(0, timeout=60_000)
    clean(nb)


def test_live_survives_a_reload_of_the_page(notebook):
    nb = notebook(SETUP, "view = wd.RunView(storage, SPECS, hz=2).show()\nstop = threading.Event()\ndef work():\n    feed('run0', 'run1')\n    feed('run2', 'run3', 'run4', pause=.2)\n"
                         "threading.Thread(target=work, daemon=True).start()")
    nb.run_all()
    nb.page.wait_for_function(MOVED, arg=[LIVE, 60])
    nb.save()
    nb.page.reload(wait_until="domcontentloaded")
    nb.wait_open()
    nb.page.wait_for_function(MOVED, arg=[LIVE, 60])     # what was there before is there again
    before = rows(nb)
    nb.page.wait_for_function(MOVED, arg=[LIVE, before])   # and it goes on
    assert not nb.page.blocked


def test_a_page_opens_from_a_file_with_the_network_shut(chromium, tmp_path):
    import labdriver
    import test_charts as t

    from scaling_nb import charts as ch
    sweep = t.make_sweep()
    isoflop = t.fit_isoflop(sweep.N, sweep.C, sweep.loss, D=sweep.D, budget=sweep.budget, mock=True)
    ch.html_page("A study", ["<p>words</p>", ch.plot_isoflop(isoflop), ch.plot_optimum(isoflop), sweep.head(3)], tmp_path / "page.html")
    for scheme in ("light", "dark"):
        page = labdriver.local_page(chromium, color_scheme=scheme)
        page.goto((tmp_path / "page.html").as_uri())
        page.wait_for_function("() => document.querySelectorAll('.snb-chart[data-drawn]').length == 2")
        ink = page.evaluate("() => getComputedStyle(document.querySelector('.snb-chart .role-axis-label text')).fill")
        assert ink == ("rgb(89, 99, 110)" if scheme == "light" else "rgb(163, 172, 184)")   # the page's ink, not the chart's grey
        assert not page.blocked and not page.errors
        page.context.close()
