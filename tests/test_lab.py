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
    nb.outputs(2).locator(".vega-embed svg.marks").hover(position=dict(x=10, y=10))
    ink = "() => [...document.querySelectorAll('.vega-embed svg.marks .role-axis-label text')].map(t => getComputedStyle(t).fill).filter((c, i, all) => all.indexOf(c) == i)"
    seen = []
    for theme in ("JupyterLab Dark", "JupyterLab Light"):       # the ink of the page, which a change of theme changes
        nb.command("apputils:change-theme", dict(theme=theme))
        nb.page.wait_for_function("dark => document.body.dataset.jpThemeLight == String(!dark)", arg=theme.endswith("Dark"))
        nb.page.wait_for_timeout(500)
        seen.append(nb.page.evaluate(ink))
    assert [len(v) for v in seen] == [1, 1] and "(255, 255, 255" in seen[0][0] and "(0, 0, 0" in seen[1][0], seen
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


TRAINER = """
class Trainer:                       # stands in for a sweep that trains
    def __init__(self): self.state, self.calls = dict(alive=True, paused=False, over=False), []
    def status(self): return self.state
    def pause(self): self.state["paused"] = True
    def resume(self): self.state["paused"] = False
    def cancel(self, run): self.calls.append(run); storage.write_json(run, "failure.json", dict(reason="cancelled", attempt=1))
    def retry(self, run): raise ConnectionError("The cluster at 10.0.0.3 does not answer.")
trainer = Trainer()
for run, loss in (("run0", 3.), ("run1", 2.5), ("run2", 2.8)): begin(storage, run); write(storage, run, 1, 60, base=2 * loss); finish(storage, run, loss)
for run in ("run3", "run4", "run5"): begin(storage, run); write(storage, run, 1, 5)
storage.write_json("run5", "failure.json", dict(reason="ValueError: heads do not divide the width", attempt=1,
                                                traceback='Traceback (most recent call last):\\n  File "model.py", line 17, in forward\\nValueError: heads'))
def work():
    k = 5
    while True:
        time.sleep(.2)
        if not trainer.state["paused"] and k < 55: k += 1; write(storage, "run3", k, k)
threading.Thread(target=work, daemon=True).start()
view = wd.RunView(storage, SPECS, hz=2, control=trainer).show()"""


def test_the_view_answers_while_a_cell_runs(notebook):
    "Buttons, table, chart: by mouse and by keyboard, while the kernel is busy; then the kernel is gone."
    from playwright.sync_api import expect
    nb = notebook(SETUP, TRAINER, "while True: time.sleep(.1)", viewport=dict(width=1280, height=1300))
    page, find = nb.page, lambda s, **kw: nb.page.locator(f"{LIVE} {s}", **kw)
    nb.run(0, 1)
    page.wait_for_function(MOVED, arg=[LIVE, 5])
    nb.run(2, wait=False)
    page.wait_for_function("i => window.jupyterapp.shell.currentWidget.content.widgets[i].model.executionState == 'running'", arg=2)
    column = lambda name: [s.strip() for s in page.locator(f"{LIVE} tr.run:not([hidden]) .c-{name}").all_inner_texts()]

    # pause and resume reach whoever trains, though a cell runs
    expect(find(".count")).to_have_text("3 of 6 runs done")
    find(".pause").click()
    expect(find(".pause")).to_have_text("Resume")
    expect(find(".head .left")).to_contain_text("paus")
    find(".pause").focus()
    page.keyboard.press("Enter")
    expect(find(".pause")).to_have_text("Pause")
    before = rows(nb)
    page.wait_for_function(MOVED, arg=[LIVE, before])

    # the failed run is read in place; an error of a button is told
    reason = find("button.reason")
    expect(reason).to_have_text("ValueError: heads do not divide the width")
    expect(find("tr.detail pre")).to_be_hidden()
    reason.click()
    expect(find("tr.detail pre")).to_contain_text('File "model.py", line 17')
    find("tr.FAILED .c-act button").click()
    expect(find(".note")).to_have_text("retry of size 24 at 4.0e9 failed: ConnectionError: The cluster at 10.0.0.3 does not answer.")
    if os.environ.get("SHOTS"):
        page.locator(LIVE).screenshot(path=os.path.join(os.environ["SHOTS"], "failed.png"))

    # sort: by click, and again for the other way, and by key
    find("th button", has_text="N").first.click()
    assert column("N") == ["1.00k", "2.00k", "3.00k", "4.00k", "5.00k", "6.00k"] and find("th[aria-sort]").get_attribute("aria-sort") == "ascending"
    find("th button", has_text="held-out").focus()
    page.keyboard.press("Enter")
    assert column("final")[:3] == ["2.5000", "2.8000", "3.0000"]
    page.keyboard.press("Space")
    assert column("final")[:4] == ["3.0000", "2.8000", "2.5000", "-"]           # what has none stays last

    # filter: states, budgets, words; the chart follows
    find(".chip.SUCCEEDED").click()
    assert column("state") == ["✓done"] * 3 and find(".found").inner_text() == "3 of 6 shown"
    find(".chip.SUCCEEDED").click()
    find(".legend .chip").nth(1).click()
    assert set(column("budget")) == {"4.0e9"}
    find(".legend .chip").nth(1).click()
    find(".field").fill("heads failed")
    assert column("state") == ["✕failed"]
    find(".field").fill("")
    assert len(column("state")) == 6

    # cancel asks once more; Escape keeps
    cancel = find("tr[data-run=run4] .c-act button")
    cancel.click()
    expect(find("button.sure")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(find("button.sure")).to_have_count(0)
    cancel.click()
    find("button.sure").click()
    expect(find("tr[data-run=run4] .c-state")).to_contain_text("failed")
    expect(find("tr[data-run=run4] + tr.detail")).to_contain_text("cancelled")

    # a row that is picked by key stands out in the chart; the curve under the pointer is told; zoom and back
    find("tr[data-run=run0]").click()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator(LIVE)).to_have_attribute("data-hot", "2")
    expect(find("tr[aria-selected=true]")).to_have_count(2)
    d = page.evaluate("""s => { const p = document.querySelector(s + ' path.hot'), m = p.getPointAtLength(p.getTotalLength() / 2), c = p.getScreenCTM();
                                return [c.e + m.x, c.f + m.y, p.dataset.run] }""", LIVE)
    page.mouse.move(d[0] + 3, d[1])
    page.mouse.move(d[0], d[1])
    expect(page.locator(LIVE)).to_have_attribute("data-hover", f"run{d[2]}")
    expect(find(".tip")).to_contain_text("training loss")
    find(".by button", has_text="size").click()
    expect(find(".legend .chip")).to_have_count(3)
    page.mouse.move(d[0] - 60, d[1])
    page.mouse.down()
    page.mouse.move(d[0] + 40, d[1] + 5, steps=4)
    page.mouse.up()
    expect(find(".reset")).to_be_visible()
    page.mouse.dblclick(d[0], d[1])
    expect(find(".reset")).to_be_hidden()
    assert find(".curves .plot").get_attribute("aria-label").startswith("Training loss against tokens of 6 runs") and "2.500 at N = 2.00k" in find(".profile .plot").get_attribute("aria-label")
    expect(find(".profile canvas")).to_have_count(1)
    assert nb.running(2)

    # a front end without subshells: the view says that nobody hears, and what to do
    page.evaluate("() => { window.jupyterapp.serviceManager.kernels.commsOverSubshells = 'disabled' }")
    find(".pause").click()
    expect(find(".note")).to_contain_text("Interrupt the kernel")
    expect(find(".pause")).to_be_disabled()
    clean(nb)

    # the kernel is gone: the last state stays, grey, and says so
    page.evaluate("() => window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel.restart()")
    expect(page.locator(f"{LIVE}.gone .note")).to_contain_text("run the cell again")
    expect(find("tr.run")).to_have_count(6)


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
        assert ink == ("rgb(31, 35, 40)" if scheme == "light" else "rgb(230, 233, 237)")   # the page's ink
        assert not page.blocked and not page.errors
        page.context.close()
