"""FitView in a real JupyterLab with the network shut: drag, click, key, undo, code, an error, a saved notebook. See test_lab.py for how."""
import os
import pathlib

import nbformat
import pytest

pytestmark = pytest.mark.browser
SETUP = f"import sys; sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})\nfrom test_fit_view import RUNS, fv"
FIT = ".snb-fit"
READY = "s => { const d = document.querySelector(s)?.dataset; return d && d.busy == 'false' && d.exact == 'true' }"
PAINTED = """s => { const slide = document.querySelector(s + ' .slide'); window.paints = []
    slide.addEventListener('input', () => {
        const a = performance.now(), c = new MessageChannel()
        c.port1.onmessage = () => window.paints.push(performance.now() - a)
        requestAnimationFrame(() => c.port2.postMessage(0)) }, true) }"""


def shot(nb, name):
    if os.environ.get("SHOTS"):
        os.makedirs(os.environ["SHOTS"], exist_ok=True)
        nb.page.locator(FIT).first.screenshot(path=os.path.join(os.environ["SHOTS"], f"fit-{name}.png"))


def test_a_fit_is_turned_by_hand(notebook):
    from playwright.sync_api import expect
    expect.set_options(timeout=60_000)     # another form is fitted in half a second here, and in many where all else runs beside
    nb = notebook(SETUP, "view = fv.FitView(RUNS, C=1e21)\nview", "1 + view.answer.C", viewport=dict(width=1280, height=1300))
    page, find = nb.page, lambda s, **kw: nb.page.locator(f"{FIT} {s}", **kw)
    nb.run(0, 1)
    page.wait_for_function(READY, arg=FIT)
    shot(nb, "first")
    expect(find(".tile.N .big")).to_have_text("1.80B")
    expect(find(".doubts li").first).to_be_visible()
    expect(page.locator(".snb-still")).to_be_hidden()

    # drag: the numbers follow at once, the kernel answers when the hand rests
    page.evaluate(PAINTED, FIT)
    box = find(".slide").bounding_box()
    there = box["x"] + box["width"] * float(page.evaluate("s => { const e = document.querySelector(s + ' .slide'); return (e.value - e.min) / (e.max - e.min) }", FIT))
    page.mouse.move(there, box["y"] + box["height"] / 2)
    page.mouse.down()
    for i in range(1, 21):
        page.mouse.move(there - 4 * i, box["y"] + box["height"] / 2)
    expect(find(".tile.N .big")).not_to_have_text("1.80B")
    shot(nb, "drag")
    page.mouse.up()
    paints = sorted(page.evaluate("window.paints"))
    assert len(paints) > 5 and paints[len(paints) // 2] < 100, paints      # ms from the input to the paint; 12 where nothing else runs
    page.wait_for_function(READY, arg=FIT)
    dragged = float(page.locator(FIT).get_attribute("data-c"))
    nb.run(2)
    assert 1e19 < dragged < 9e20 and nb.outputs(2).inner_text().strip() == str(1 + dragged)
    find(".field.c").fill("4e15")
    page.keyboard.press("Enter")
    expect(find(".reach-says")).to_have_text("25× below the smallest budget measured")
    page.wait_for_function(READY, arg=FIT)
    expect(find(".letter")).to_have_text("C")
    shot(nb, "below")
    find(".field.c").fill("1e21")
    page.keyboard.press("Enter")
    expect(find(".tile.N .big")).to_have_text("1.80B")
    find(".slide").focus()
    page.keyboard.press("ArrowRight")
    expect(find(".field.c")).to_have_value("1.02e21")

    # leave a run out by mouse, another by key; what moved is told; undo
    run = lambda k: find(f"figure.profile .pt[data-id=r{k}]")
    run(17).locator(".reach").hover()
    expect(find("figure.profile .tip")).to_contain_text("run17")
    run(17).locator(".reach").click()
    expect(find(".moved")).to_contain_text("Without run17 (N = ")
    expect(run(17)).to_have_attribute("aria-pressed", "true")
    page.wait_for_function(READY, arg=FIT)
    expect(find(".moved")).to_contain_text("90 % now")
    run(17).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(find(".moved")).to_contain_text("Without run18")
    expect(page.locator(FIT)).to_have_attribute("data-excluded", "2")
    find(".acts button", has_text="Undo").click()
    expect(page.locator(FIT)).to_have_attribute("data-excluded", "1")

    # the call as code; one budget stands out in every chart
    find(".acts button", has_text="Code").click()
    expect(find(".code pre")).to_contain_text("isin(['run17'])")
    find(".legend .chip").nth(2).click()
    expect(run(3)).to_have_class("pt dim")
    assert find("figure.loss .pt.dim").count() > 20 and find("figure.optimum .pt.dim").count() == 5
    shot(nb, "excluded")
    find(".legend .chip").nth(2).click()

    # another form: no interval, and the right words; then no answer at all, and the last one stays
    find(".choices button", has_text="coupled").click()
    page.wait_for_function(READY, arg=FIT)
    expect(find(".note")).to_contain_text("N* has no interval")
    expect(find(".note")).to_contain_text("Fit law='chinchilla' to the same runs")
    shot(nb, "coupled")
    page.evaluate("() => window.jupyterapp.shell.currentWidget.content.widgets[2].model.sharedModel.setSource('view.set(law=\"chinchilla\", excluded=range(3, 42))')")
    nb.run(2)
    expect(find(".note.bad")).to_contain_text("at least 5 different runs")
    assert page.locator(f"{FIT}.stale").count() == 1 and find(".tile.N .big").inner_text() != "-"
    shot(nb, "no-answer")
    find(".acts button", has_text="Reset").click()
    page.wait_for_function(READY, arg=FIT)
    expect(find(".note")).to_be_hidden()
    find(".field.c").fill("nonsense")
    page.keyboard.press("Enter")
    expect(find(".field.c")).to_have_attribute("aria-invalid", "true")
    assert not nb.page.blocked and not nb.page.errors, (nb.page.blocked, nb.page.errors)

    # saved, and opened again when the kernel is gone: the last state is there, and no debris
    page.wait_for_timeout(4500)
    nb.save()
    saved = nbformat.read(nb.file, 4)
    assert 'class="snb-still"' in saved.cells[1].outputs[1].data["text/html"] and len(str(saved.cells[1])) < 150_000
    page.evaluate("() => window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel.shutdown()")
    page.reload(wait_until="domcontentloaded")
    expect(page.locator(".snb-still")).to_be_visible(timeout=60_000)
    expect(page.locator(".snb-still img")).to_be_visible()
    expect(page.locator(".snb-still")).to_contain_text("42 of 42 runs")
    page.wait_for_timeout(1500)
    said = page.locator(".jp-Notebook").inner_text()
    assert "model not found" not in said and "Loading widget" not in said
    if os.environ.get("SHOTS"):
        page.screenshot(path=os.path.join(os.environ["SHOTS"], "fit-reopened.png"))
