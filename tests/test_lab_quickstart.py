"""The quickstart as a newcomer meets it: opened in JupyterLab, run from top to bottom, watched, paused, asked, reloaded. (The whole of it, headless, is tests/test_demo.py.)"""
import os
import re
from pathlib import Path

import labdriver
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
SMALLER = {"target = 5e12": "target = 1e12", "plan.simulate(n=100)": "plan.simulate(n=20)"}   # a third of the training
LIVE, FIT = ".snb-run", ".snb-fit"


@pytest.fixture
def quickstart(lab, chromium):
    url, folder = lab
    nb = nbformat.read(ROOT/"nbs"/"guides"/"quickstart.ipynb", 4)
    for cell in nb.cells:
        for old, new in SMALLER.items():
            if cell.source.startswith(old): cell.source = cell.source.replace(old, new)
    assert all(any(c.source.startswith(new) for c in nb.cells) for new in SMALLER.values())
    nbformat.write(nb, folder/"quickstart.ipynb")
    opened = labdriver.Notebook(chromium, url, "quickstart.ipynb", viewport=dict(width=1280, height=1400))
    opened.file = folder/"quickstart.ipynb"
    yield opened
    try: shot(opened.page, "last")
    finally: opened.close()


def shot(page, name):
    if os.environ.get("SHOTS"): page.screenshot(path=os.path.join(os.environ["SHOTS"], f"quickstart-{name}.png"))


@pytest.mark.browser
@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_the_quickstart_in_jupyterlab(quickstart):
    from playwright.sync_api import expect
    page, live, fit = quickstart.page, quickstart.page.locator(LIVE), quickstart.page.locator(FIT)
    rows = lambda: int(live.get_attribute("data-rows") or 0)
    moved = lambda than: page.wait_for_function("([s, n]) => +document.querySelector(s)?.dataset.rows > n", arg=[LIVE, than], timeout=120_000)
    quickstart.command("notebook:run-all-cells", wait=False)

    # the sweep trains, and is seen to; a pause holds it, and resume lets it go
    live.wait_for(state="attached", timeout=300_000)
    live.scroll_into_view_if_needed()                                                # what is out of sight is not painted
    moved(0)
    moved(rows())
    expect(live.locator(".count")).to_have_text(re.compile(r"\d+ of \d+ runs done"))
    live.locator(".pause").click()
    expect(live.locator(".pause")).to_have_text("Resume", timeout=60_000)
    expect(live.locator(".head .left")).to_have_text("paused", timeout=60_000)        # every run has written its checkpoint
    page.wait_for_timeout(1500)
    held = rows()
    page.wait_for_timeout(3000)
    assert rows() == held > 0
    shot(page, "paused")
    live.locator(".pause").click()
    expect(live.locator(".pause")).to_have_text("Pause", timeout=60_000)
    moved(held)
    quickstart.wait_idle(600)
    expect(live).to_have_count(0)                                                    # a picture stays in its place
    for cell in quickstart.page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error'], .jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").all():
        raise AssertionError(cell.inner_text())

    # the answer follows the hand, and a run that is left out moves it
    fit.scroll_into_view_if_needed()
    number = fit.locator(".tile.N .big")
    first = number.inner_text()
    drag(page, fit.locator("input.slide"), .6)
    expect(number).not_to_have_text(first)
    shot(page, "dragged")
    mark = fit.locator("figure.profile [role=button]").first
    mark.click()
    expect(fit.locator(".moved")).not_to_be_empty()
    shot(page, "excluded")

    # a page that is loaded again shows the same, and still answers
    quickstart.save()
    dragged = fit.locator("input.c").input_value()
    page.reload(wait_until="domcontentloaded")
    quickstart.wait_open()
    expect(fit.locator("input.c")).to_have_value(dragged)
    again = number.inner_text()
    drag(page, fit.locator("input.slide"), .9)
    expect(number).not_to_have_text(again)
    shot(page, "reloaded")
    assert not page.blocked and not page.errors, (page.blocked, page.errors)


def drag(page, slider, to):
    "With the mouse, from where the knob is to a share of the way."
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    lo, hi, now = (float(slider.get_attribute(k) if k != "value" else slider.input_value()) for k in ("min", "max", "value"))
    y = box["y"] + box["height"]/2
    page.mouse.move(box["x"] + 8 + (box["width"] - 16)*(now - lo)/(hi - lo), y)
    page.mouse.down()
    page.mouse.move(box["x"] + 8 + (box["width"] - 16)*to, y, steps=8)
    page.mouse.up()
