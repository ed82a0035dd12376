"""PlanView in a real JupyterLab with the network shut: the grid follows a hand, keys do what the mouse does, and what cannot be planned is said. As `test_lab.py`, which says how."""
import math
import os
import re

import nbformat
import pytest

from scaling_nb.views import view_script

pytestmark = pytest.mark.browser
SETUP = """import torch
from scaling_nb import PlanView, Problem
from scaling_nb.zoo.gpt import GPT, next_token_loss
text = torch.randint(0, 128, (100_000, 65), generator=torch.Generator().manual_seed(0))
my_problem = Problem(GPT, "width", data=(text[:, :-1].contiguous(), text[:, 1:].contiguous()), loss_fn=next_token_loss, model_kwargs=dict(vocab=128, seq_len=64))
view = PlanView(my_problem, target=1e15, spend=.05, hardware="L4", price=.8)"""
VIEW = ".snb-plan"
READ = [   # what the field's number is, what is typed, what is meant; NaN is refused
    ("share", "1", .01), ("share", "5 %", .05), ("share", "0.5%", .005), ("share", "1/20", .05), ("hours", "1,5", 1.5), ("hours", "1.5 h", 1.5),
    ("hours", "90 min", 1.5), ("hours", "2 days", 48), ("hours", "1,500", 1500),
    ("seconds", "5 m", 300), ("seconds", "2 h", 7200), ("seconds", "2 Hours", 7200), ("seconds", "90", 90), ("seconds", "5 M", math.nan), ("seconds", "5k", math.nan),
    ("bytes", "80 GiB", 80*2**30), ("bytes", "80GB", 8e10), ("bytes", "80G", 8e10), ("FLOPs", "1e21 FLOPs", 1e21), ("FLOPs", "3.2B FLOPs", 3.2e9), ("FLOPs", "1e21", 1e21), ("FLOPs", "5 %", math.nan),
    ("dollars", "$1,250.50", 1250.5), ("dollars", "20 dollars", 20), ("D/N", "20 D/N", 20), ("", "12M", 1.2e7), ("", "1,2,3", math.nan), ("", "1.2.3", math.nan), ("", "much", math.nan)]


def shot(nb, name):
    if os.environ.get("SHOTS"): nb.page.locator(VIEW).screenshot(path=os.path.join(os.environ["SHOTS"], f"plan-{name}.png"))


def test_a_plan_follows_the_hand(notebook):
    from playwright.sync_api import expect
    nb = notebook(SETUP, "view.show();", "print(view.code())", viewport=dict(width=1280, height=1700))
    page, find = nb.page, lambda s, **kw: nb.page.locator(f"{VIEW} {s}", **kw)
    nb.run(0, 1)
    page.wait_for_function("s => document.querySelector(s)?.dataset.stale == 'false'", arg=VIEW)      # the width has come
    row = lambda label: find(".control", has=page.get_by_text(label, exact=True))
    ids = lambda: page.evaluate("s => [...document.querySelectorAll(s + ' .pt')].map(e => e.dataset.id + e.getAttribute('transform')).join()", VIEW)
    shot(nb, "light")

    # what is typed is read as it is meant
    script = re.sub("export default.*", "", view_script("parts.js", "plan.js"))
    values = page.evaluate("cases => { " + script + "\n return cases.map(([what, text]) => String(read({ what, open: '', whole: false }, text))) }", [r[:2] for r in READ])
    assert [(*r[:2], float(v)) for r, v in zip(READ, values) if repr(float(v)) != repr(float(r[2]))] == []

    # a drag of the mouse: the grid is another one before the button is let go
    slider, first = row("May spend").locator(".slide"), ids()
    box = slider.bounding_box()
    at = page.evaluate("s => [...document.querySelectorAll(s + ' .control')].find(e => e.querySelector('label').textContent == 'May spend').querySelector('.slide').value", VIEW)
    x = lambda s: box["x"] + 7 + (box["width"] - 14) * s
    page.mouse.move(x(float(at)), box["y"] + 9)
    page.mouse.down()
    for k in range(1, 9):
        page.mouse.move(x(float(at) + .02 * k), box["y"] + 9)
        page.wait_for_timeout(60)
    page.wait_for_function("([s, was]) => [...document.querySelectorAll(s + ' .pt')].map(e => e.dataset.id + e.getAttribute('transform')).join() != was", arg=[VIEW, first])
    shot(nb, "dragging")
    page.mouse.up()
    page.wait_for_function("s => document.querySelector(s).dataset.stale == 'false'", arg=VIEW)
    expect(row("Highest budget").locator(".says")).to_have_text("from the target")

    # keys: a control of whole numbers goes up by one; what was moved can be put back
    slider = row("Sizes a budget").locator(".slide")
    slider.focus()
    page.keyboard.press("ArrowRight")
    expect(row("Sizes a budget").locator(".field")).to_have_value("6")
    expect(row("Sizes a budget").locator(".back")).to_be_visible()
    took = []
    for key in ["ArrowRight", "ArrowLeft"] * 4:
        before = page.locator(VIEW).get_attribute("data-answered")
        page.keyboard.press(key)
        page.wait_for_function("([s, was]) => +document.querySelector(s).dataset.answered > +was", arg=[VIEW, before])
        took.append(int(page.locator(VIEW).get_attribute("data-ms")))
    assert min(took) < 400, took                                    # from the key to the kernel and back; under 100 ms on a machine of its own
    if os.environ.get("SHOTS"): print("ms from key to plan:", took)

    # a number that is typed, with a unit; a limit that drops cells, with the reason
    find("summary", has_text="Limits").click()
    row("Most epochs").locator(".field").fill(".3")
    page.keyboard.press("Enter")
    expect(find(".lost")).to_contain_text("epochs over 0.3")
    expect(find(".pt.out").first).to_be_visible()
    find(".pt.out").first.hover()
    expect(find(".tip")).to_contain_text("left out")
    shot(nb, "dropped")

    # the points by keys
    find(".pt[tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    expect(find(".tip")).to_contain_text("D/N")

    # what cannot be planned is said, with the way out; the last plan stays, grey
    row("May spend").locator(".field").fill("0.0001%")
    page.keyboard.press("Enter")
    expect(find(".note.bad")).to_contain_text("The least that does is spend=")
    expect(page.locator(f"{VIEW}.old")).to_have_count(1)
    shot(nb, "error")
    row("May spend").locator(".field").fill("much")
    page.keyboard.press("Enter")
    expect(find(".note.bad")).to_contain_text("“much” is no number for may spend")
    find(".acts button", has_text="Reset").click()
    expect(find(".note")).to_be_hidden()

    # the call, by the names of this notebook
    find(".acts button", has_text="Code").click()
    expect(find(".code pre")).to_contain_text("plan_sweep(my_problem, target=1e15, spend=0.05, hardware='L4', price=0.8)")
    row("Further seeds").locator(".slide").press("ArrowRight")      # open, it follows
    expect(find(".code pre")).to_contain_text("replicates=2")
    find(".acts button", has_text="Reset").click()
    expect(find(".code pre")).not_to_contain_text("replicates")
    nb.run(2)
    expect(nb.outputs(2).first).to_contain_text("plan_sweep(my_problem, target=1e15")
    page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    page.wait_for_function("() => document.body.dataset.jpThemeLight == 'false'")
    shot(nb, "dark")
    assert not nb.page.blocked and not nb.page.errors, (nb.page.blocked, nb.page.errors)

    # what is saved: a table and a picture, and little of them
    page.wait_for_function("""() => window.jupyterapp.shell.currentWidget.content.widgets[1].model.outputs.toJSON().some(o => o.data['text/html']?.includes('<svg'))""")
    nb.save()
    outputs = nbformat.read(nb.file, 4).cells[1].outputs
    assert any("<svg" in o.data.get("text/html", "") for o in outputs) and len(str(outputs)) < 100_000

    # the kernel is gone: the last plan stays, and says so
    page.evaluate("() => window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel.restart()")
    expect(page.locator(f"{VIEW}.gone .note")).to_contain_text("run the cell again")
