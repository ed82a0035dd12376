"""The README's promise: one command trains on real text and prints the answer. Then as a newcomer would go on: in JupyterLab, where half of the training is lost and found again."""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import labdriver
import pytest

ROOT = Path(__file__).resolve().parents[1]
LIVE, FIT = ".snb-run", ".snb-fit"
pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(3000)]


def demo(folder):
    p = subprocess.run([sys.executable, str(ROOT/"tools"/"demo.py"), "--out", str(folder/"demo"), "--work", str(folder)], capture_output=True, text=True, check=False, timeout=1500)
    assert p.returncode == 0, p.stdout[-3000:] + p.stderr[-3000:]
    return p.stdout


def answer(text): return text[text.index("To spend 5.00e12 FLOPs"):text.index("Wrote ")]


def results(storage): return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in storage.glob("*/*.json") if p.name in ("result.json", "attempt.json")}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return SimpleNamespace(folder=folder, storage=folder/"outputs"/"quickstart", text=demo(folder))


def test_the_demo_answers(first):
    said = answer(first.text)
    assert re.search(r"N\*\s+[\d.]+k parameters  \(90 %: [\d.]+k to [\d.]+[kM][;)]", said) and re.search(r"D\*\s+[\d.]+M tokens", said) and "extrapolation" in said
    assert re.search(r"grade +[A-D]: ", said) and re.search(r"held out +\d\.\de11 FLOPs", said)
    inside, budgets = map(int, re.search(r"(\d) of (\d) budgets have a minimum inside", said).groups())
    assert budgets == 4 and (inside == 4 or "has no interior minimum" in said)
    for name in ("quickstart", "report"):
        page = (first.folder/"demo"/f"{name}.html").read_text()
        assert "vegaEmbed" in page and not re.search(r'(?:src|href)="(?:https?:)?//', page), name
    assert "Traceback (most recent call last)" not in (first.folder/"demo"/"quickstart.html").read_text()
    done, rounds = results(first.storage), (first.storage/"rounds.json").read_bytes()
    assert len(done) >= 60 and b'"adaptive"' in rounds and b'"hold-out"' in rounds and b'"attempt": 1' in b"".join(b for _, b in done.values())


@pytest.mark.long
def test_a_second_demo_trains_nothing(first):
    done, rounds = results(first.storage), (first.storage/"rounds.json").read_bytes()
    assert answer(demo(first.folder)) == answer(first.text)
    assert results(first.storage) == done and (first.storage/"rounds.json").read_bytes() == rounds
    assert "nothing was trained" in (first.folder/"demo"/"quickstart.html").read_text()


@pytest.fixture
def quickstart(first, lab, chromium):
    "The quickstart opened in JupyterLab, beside its runs; six of them, the longest, have still to be trained."
    from scaling_nb import runs_frame
    url, root = lab
    folder = root/"quickstart"
    shutil.copytree(first.storage, folder/"outputs"/"quickstart")
    shutil.copy(ROOT/"nbs"/"guides"/"quickstart.ipynb", folder)
    storage = folder/"outputs"/"quickstart"
    lost = runs_frame(storage).nlargest(6, "C").run_id.tolist()
    for run in lost: shutil.rmtree(storage/run)
    opened = labdriver.Notebook(chromium, url, "quickstart/quickstart.ipynb", viewport=dict(width=1280, height=1300))
    opened.storage, opened.lost = storage, lost
    yield opened
    try: shot(opened.page, "last")
    finally: opened.close()


def shot(page, name):
    if os.environ.get("SHOTS"):
        os.makedirs(os.environ["SHOTS"], exist_ok=True)
        page.screenshot(path=os.path.join(os.environ["SHOTS"], f"quickstart-{name}.png"))


@pytest.mark.browser
def test_the_quickstart_in_jupyterlab(first, quickstart):
    "Run all; the live view moves, is paused and resumed; the answer is that of the demo; the fit is turned by hand; the page is loaded again; and nothing is trained twice."
    from playwright.sync_api import expect
    page, live, fit = quickstart.page, quickstart.page.locator(LIVE), quickstart.page.locator(FIT)
    rows = lambda: int(live.get_attribute("data-rows") or 0)
    moved = lambda than: page.wait_for_function("([s, n]) => +document.querySelector(s)?.dataset.rows > n", arg=[LIVE, than], timeout=120_000)
    kept = {p: v for p, v in results(quickstart.storage).items() if p.parent.name not in quickstart.lost}
    quickstart.command("notebook:run-all-cells", wait=False)

    # the sweep trains, and is seen to; a pause holds it, and resume lets it go
    live.wait_for(state="attached", timeout=300_000)
    live.scroll_into_view_if_needed()                                                # what is out of sight is not painted
    expect(live.locator(".count")).to_have_text(re.compile(r"\d+ of \d+ runs done"))
    moved(0)
    moved(rows())
    live.locator(".pause").click()
    expect(live.locator(".pause")).to_have_text("Resume", timeout=60_000)
    expect(live.locator(".head .left")).to_have_text("paused", timeout=60_000)       # every run has written its checkpoint
    page.wait_for_timeout(1500)
    held = rows()
    page.wait_for_timeout(2500)
    assert rows() == held > 0
    shot(page, "paused")
    live.locator(".pause").click()
    expect(live.locator(".pause")).to_have_text("Pause", timeout=60_000)
    moved(held)
    quickstart.wait_idle(600)
    expect(live).to_have_count(0)                                                    # a picture stays in its place
    bad = page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error'], .jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']")
    assert bad.all_inner_texts() == []
    now = results(quickstart.storage)
    assert {p: now[p] for p in kept} == kept and {p.parent.name for p in now} - {p.parent.name for p in kept} >= set(quickstart.lost)
    n = re.search(r"N\*\s+([\d.]+k)", answer(first.text))[1]

    # the answer follows the hand, and a run that is left out moves it
    fit.scroll_into_view_if_needed()
    number = fit.locator(".tile.N .big")
    expect(number).to_have_text(n)                                                   # that of the demo, though half of it was trained in two pieces
    drag(page, fit.locator("input.slide"), .6)
    expect(number).not_to_have_text(n)
    shot(page, "dragged")
    fit.locator("figure.profile [data-id^=r]").first.focus()                        # by mouse it is done in test_lab_views.py, where no two runs lie on each other
    page.keyboard.press("Enter")
    expect(fit.locator(".moved")).to_contain_text("→", timeout=60_000)
    shot(page, "excluded")

    # a page that is loaded again shows the same, and still answers
    quickstart.save()
    dragged = fit.locator("input.c").input_value()
    page.reload(wait_until="domcontentloaded")
    quickstart.wait_open()
    expect(fit.locator("input.c")).to_have_value(dragged)
    again = number.inner_text()
    fit.scroll_into_view_if_needed()
    drag(page, fit.locator("input.slide"), .9)
    expect(number).not_to_have_text(again)
    shot(page, "reloaded")

    # the cell that trains, once more
    train = next(i for i, c in enumerate(page.evaluate("() => window.jupyterapp.shell.currentWidget.content.widgets.map(c => c.model.sharedModel.source)")) if "rounds=2" in c)
    quickstart.run(train)
    quickstart.wait_idle(120)
    assert results(quickstart.storage) == now
    expect(page.locator(".jp-Cell").nth(train)).to_contain_text("nothing was trained")
    assert not page.blocked and not page.errors, (page.blocked, page.errors)


def drag(page, slider, to):
    "With the mouse, from where the knob is to a share of the way."
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    lo, hi, now = (float(slider.input_value() if k == "value" else slider.get_attribute(k)) for k in ("min", "max", "value"))
    y = box["y"] + box["height"]/2
    page.mouse.move(box["x"] + 8 + (box["width"] - 16)*(now - lo)/(hi - lo), y)
    page.mouse.down()
    page.mouse.move(box["x"] + 8 + (box["width"] - 16)*to, y, steps=8)
    page.mouse.up()
