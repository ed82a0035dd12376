"""FitView without a browser: every knob, what it says, what it refuses, and the call as code. And the base of all views."""
import json
import time

import numpy as np
import pandas as pd
import pytest

from scaling_nb import fit_view as fv
from scaling_nb import views
from scaling_nb.allocation import NoAnswer, compute_optimal
from scaling_nb.fitting import fit_law
from scaling_nb.isoflop import fit_isoflop
from scaling_nb.laws import ChinchillaLaw, Form, si_format

TRUTH = ChinchillaLaw(E=1.69, A=406.4, B=410.7, alpha=.34, beta=.28)


def sweep(wrong=17, noise=.002, budgets=6, seed=0):
    rng = np.random.default_rng(seed)
    C = np.repeat(np.geomspace(1e17, 1e19, budgets), 7)
    N = np.concatenate([TRUTH.optimum(c)[0] * np.geomspace(1 / 6, 6, 7) for c in C[::7]]).round()
    loss = TRUTH.loss(N, C / (6 * N)) * np.exp(noise * rng.standard_normal(len(N)))
    if wrong is not None:
        loss[wrong] *= 1.03
    return pd.DataFrame(dict(run_id=[f"run{i:02d}" for i in range(len(N))], N=N, D=(C / (6 * N)).round(), C=C, loss=loss, budget=C))


RUNS = sweep()


def rerun(view, **names):
    "The answer that the view's code gives in a fresh namespace."
    head, _, last = view.code().rpartition("\n")
    exec(f"{head}\nanswer = {last}", space := dict(names))
    return space["answer"]


class Page(fv.FitView):
    "A view that believes it has a page, with a list in its place."
    def __init__(self, *a, **kw):
        super().__init__(*a, **kw)
        self.sent, self.rests, self.settles = [], 0, 0
        self.widget = type("Widget", (), dict(said={}))()

    def push(self):
        self.sent.append(json.loads(json.dumps(self.parts(), allow_nan=False)))

    def wait(self):
        for _ in range(600):
            if self._timer is None or not self._timer.is_alive():
                return self.sent[-1]
            time.sleep(.02)
        raise TimeoutError


def test_a_setting_is_what_the_plain_calls_give():
    view = fv.FitView(RUNS, C=1e21)
    assert view.answer.N == compute_optimal(fit_law(RUNS), 1e21).N and view.state == fv.FitState(C=1e21)
    said = view.exclude("run17", 3)
    kept = RUNS.drop(index=[3, 17])
    assert view.fit.n == 40 and view.answer.N == compute_optimal(fit_law(kept), 1e21).N and said.startswith("Without 2 runs: N* ") and "→" in said
    view.set(skip=2, loss="mse", delta="auto")
    kept = kept[kept.budget > 4e17]
    assert view.answer.N == compute_optimal(fit_law(kept, loss="mse"), 1e21).N
    view.set(estimator="isoflop")
    assert view.answer.N == compute_optimal(fit_isoflop(kept), 1e21).N and view.doubts and len(view.doubts) == len(view.doubts.severity)
    view.set(estimator="surface", law="coupled", loss="huber")
    assert view.fit.form == "coupled" and "Add runs" not in str(view.answer.refusals["N_interval"]) and "chinchilla" in view.answer.refusals["N_interval"].remedy
    assert len(view.frame()) == 42 and view.frame().why.value_counts().to_dict() == {"": 27, "outside the window": 13, "excluded": 2}


def test_undo_include_and_reset_go_back_and_the_budget_is_no_step():
    view = fv.FitView(RUNS, C=1e21)
    first = view.answer.N
    view.exclude(17)
    view.set(C=1e20)
    view.toggle(4)
    assert view.state.excluded == (4, 17)
    view.toggle("run04")
    view.undo()
    assert view.state.excluded == (4, 17) and view.state.C == 1e20
    view.undo()
    assert view.state.excluded == (17,)
    assert "run17" in view.include("run17") and view.state.excluded == ()
    view.set(C=1e21, loss="log_mse")
    assert view.reset().startswith("As at first: N* ") and view.answer.N == first
    view.undo()
    assert view.state.loss == "log_mse"
    fresh = fv.FitView(RUNS)
    assert fresh.state.C == pytest.approx(1e20) and fresh.exclude() == "" and not fresh._past
    with pytest.raises(ValueError, match="nothing to undo"):
        fresh.undo()


def test_what_moved_is_told_at_the_budget_that_is_asked():
    view = fv.FitView(RUNS, C=1e21)
    view.set(loss="mse")
    before, said = view.answer.N, view.exclude("run17")
    after = view.answer.N
    assert f"({100 * (after / before - 1):+.1f} %)" in said and said.startswith("Without run17 (N = ")
    view.set(C=1e20)
    assert view.moved and view.moved != said and view.moved.startswith("Without run17")


def test_where_the_line_answers_no_number_of_the_surface_is_shown_meanwhile():
    view = Page(sweep(noise=.004), C=1e21, seed_noise=1e-4)
    view.changed()
    view.wait()
    assert view.answer.method == "isoflop"
    view.set(C=3e20)          # a hand that moves: the answer there is not known yet
    view.exclude("run20")
    shown = view.sent[-1]["state"]
    assert shown["stale"] and "N*" not in view.moved
    view.wait()
    assert view.answer.method == "isoflop" and f"→ {si_format(view.answer.N)} (" in view.moved
    other = Page(RUNS, C=1e21)
    other.changed()
    other.wait()
    other.set(estimator="isoflop")
    other.wait()
    assert other.moved.endswith("; the IsoFLOP line answers now, the surface did before")


@pytest.mark.parametrize("wrong, message", [
    (dict(C=0), "positive, finite"), (dict(C="1e21"), "positive, finite"), (dict(C=True), "positive, finite"),
    (dict(law="kaplan"), "`law` must be one of 'chinchilla', 'coupled'"), (dict(loss="l1"), "`loss` must be one of"),
    (dict(delta=0), "`delta` must be"), (dict(skip=6), "between 0 and 5"), (dict(skip=-1), "between 0 and 5"), (dict(excluded=[99]), "row from 0 to 41"), (dict(size=3), "can be set to C, estimator"),
    (dict(estimator="line"), "'surface', 'isoflop'")])
def test_what_cannot_be_set_is_refused_and_changes_nothing(wrong, message):
    view = fv.FitView(RUNS, C=1e21)
    with pytest.raises(ValueError, match=message):
        view.set(**wrong)
    assert view.state == fv.FitState(C=1e21) and view.press("set", **wrong)["text"] and not view.said["ok"]


def test_no_answer_is_a_state_with_a_reason():
    view = Page(RUNS, C=1e21)
    view.set(excluded=range(3, 42))
    shown = view.wait()
    assert shown["state"]["stale"] and "at least 5 different runs" in shown["state"]["error"] and shown["curves"]["path"]["N"] and "no answer" in view.moved
    for ask in (lambda: view.answer, lambda: view.fit, lambda: view.doubts):
        with pytest.raises(ValueError, match="at least 5"):
            ask()
    assert "No answer." in repr(view) and "at least 5" in view.still()
    view.undo()
    assert not view.wait()["state"]["stale"] and view.answer.N and not view.error
    flat = fv.FitView(RUNS.assign(N=1e8), C=1e21)
    assert "constant" in flat.error and "No answer" in repr(flat)
    with pytest.raises(NoAnswer):
        print(flat.answer)


@pytest.mark.parametrize("given", ["frame", "no ids", "no budgets", "surface", "line", "held out", "with gaps", "study", "adaptive"])
def test_the_code_gives_the_answer_of_the_view(given):
    frame, names = RUNS, {}
    if given == "no ids":
        frame = RUNS.drop(columns="run_id")
    elif given == "no budgets":
        frame = RUNS[["N", "D", "loss"]]
    elif given == "held out":
        far = pd.DataFrame(dict(run_id=["far"], N=[4e8], D=[1e20 / 24e8], C=[1e20], loss=[TRUTH.loss(4e8, 1e20 / 24e8)], budget=[1e20], role=["hold-out"]))
        frame = pd.concat([RUNS.assign(role="grid"), far], ignore_index=True)
    elif given == "with gaps":
        frame = RUNS.assign(loss=RUNS.loss.where(RUNS.index != 5))
    elif given == "adaptive":     # close enough to two budgets to be taken for theirs by their compute alone
        C = 1.1 * RUNS.budget.unique()[[3, 4]].repeat(5)
        N = np.tile(np.geomspace(5e7, 5e8, 5), 2)
        added = pd.DataFrame(dict(run_id=[f"add{i}" for i in range(10)], N=N, D=C / (6 * N), C=C, loss=TRUTH.loss(N, C / (6 * N)) * 1.004, budget=C, role="adaptive"))
        frame = pd.concat([RUNS.assign(role="grid"), added], ignore_index=True)
    source = dict(surface=lambda: fit_law(frame, loss="huber", delta=1e-3), line=lambda: fit_isoflop(frame)).get(given, lambda: frame)()
    if given == "study":
        source = type("Study", (), dict(runs=frame, target=1e21, evidence=dict(held_out=None, recipe_checked="by hand")))()
    names = {dict(surface="fit", line="fit", study="study").get(given, "runs"): source}
    view = fv.FitView(source, C=1e21)
    if given == "surface":
        assert view.answer.N == pytest.approx(source.optimum(1e21).N, rel=1e-9) and view.state.delta == 1e-3
    if given == "held out":
        assert view.answer.held_out and view.frame().why.iloc[-1] == "held out"
    if given == "adaptive":       # as `Study.predict` does it
        line = view.answer.estimates["isoflop"]
        assert line == pytest.approx(fit_isoflop(RUNS).optimum(1e21).N, rel=1e-9) and line != pytest.approx(compute_optimal(fit_law(frame), 1e21).estimates["isoflop"], rel=1e-3)
    if given == "study":
        assert view.answer.recipe_checked == "by hand"
    for act in (lambda: None, lambda: view.set(excluded=[17], skip=2, estimator="surface", loss="log_mse"), lambda: view.set(estimator="isoflop")):
        act()
        again = rerun(view, **names)
        assert (again.N, again.loss, again.N_interval, again.grade) == (view.answer.N, view.answer.loss, view.answer.N_interval, view.answer.grade), view.code()
    assert frame is RUNS or given in ("no ids", "no budgets", "held out", "with gaps", "adaptive")
    pd.testing.assert_frame_equal(RUNS, sweep())   # what was given is as it was


def test_a_form_of_ones_own_can_be_chosen():
    form = Form(lambda N, D, A, B, a, b: A / N ** a + B / D ** b, ("A", "B", "a", "b"), [(1, 1e5), (1, 1e5), (.01, 2), (.01, 2)], name="floorless")
    fit = fit_law(sweep(wrong=None, budgets=3), law=form)
    view = fv.FitView(fit, C=1e20)
    assert view.laws == ("chinchilla", "coupled", "floorless") and view.state.law == "floorless" and "law=fit.law.form" in view.code()
    exec(view.code().rpartition("\n")[0], space := dict(fit=fit))     # the answer itself takes a dozen fits of such a form
    assert space["refitted"].law.values == view.fit.law.values and space["fit"] is fit


def test_what_is_no_set_of_runs_is_refused():
    with pytest.raises(TypeError, match="frame of runs, a fit, or a study"):
        fv.FitView(3)
    with pytest.raises(ValueError, match="N, D and loss, but D is missing"):
        fv.FitView(RUNS.drop(columns="D"))
    with pytest.raises(ValueError, match="At least one run"):
        fv.FitView(RUNS.assign(loss=np.nan))


def test_a_click_is_quick_and_the_whole_fit_follows():
    view = Page(RUNS, C=1e21)
    view.set(C=1.01e21)
    view.wait()
    view.toggle(run=3)
    quick = view.sent[-1]
    assert quick["state"]["busy"] and quick["answer"] == {} and not quick["curves"]["bands"] and quick["state"]["ms"] < 400   # 15 ms where nothing else runs
    near = view._good["fit"].law
    last = view.wait()
    assert last["answer"]["N"] == pytest.approx(view.answer.N, rel=1e-4) and last["answer"]["doubts"] and not last["state"]["busy"] and "now" in last["state"]["moved"]
    assert near.alpha == pytest.approx(view.fit.law.alpha, rel=1e-3)
    sizes = {k: len(json.dumps(v)) for k, v in last.items()}
    assert sizes["fixed"] < 8000 and sizes["curves"] < 20_000 and sizes["answer"] < 6000 and sizes["state"] < 2000, sizes


def test_a_newer_wish_ends_the_work_for_the_old_one():
    view = Page(RUNS, C=1e21)
    for k in (1, 2, 3):
        view.set(skip=k)
    last = view.wait()
    time.sleep(.3)
    assert view.sent[-1]["state"]["skip"] == 3 and last["answer"]["N"] == pytest.approx(view.answer.N, rel=1e-4)


def test_an_error_in_the_slow_part_is_told(monkeypatch):
    view = Page(RUNS, C=1e21)
    monkeypatch.setattr(fv, "doubts", lambda *a: 1 / 0)
    view.set(C=2e20)
    view.wait()
    assert view.said == dict(ok=False, text="ZeroDivisionError: division by zero", what="", n=1) == view.widget.said
    assert not view.sent[-1]["state"]["busy"] and not view.sent[-1]["state"]["stale"] and view.sent[-1]["answer"]["N"]   # the answer is there, and nothing is on its way
    monkeypatch.setattr(fv, "compute_optimal", lambda *a, **kw: 1 / 0)
    view.set(skip=1)
    last = view.wait()["state"]
    assert not last["busy"] and last["stale"] and last["error"].startswith("ZeroDivisionError")


def test_an_error_on_the_way_leaves_everything_as_it_was(monkeypatch):
    view = fv.FitView(RUNS, C=1e21)
    view.exclude(3)
    before, good = (view.state, view._past, view.moved), view._good
    with monkeypatch.context() as m:
        m.setattr(fv, "fit_law", lambda *a, **kw: 1 / 0)
        for act in (lambda: view.set(loss="mse"), lambda: view.set(skip=1)):
            with pytest.raises(ZeroDivisionError):
                act()
            assert (view.state, view._past, view.moved) == before and view._good is good and not view.error
    view._known = {}
    with monkeypatch.context() as m:
        m.setattr(fv, "fit_law", lambda *a, **kw: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            view.undo()
    assert (view.state, view._past, view.moved) == before
    view.undo()
    assert view.state.excluded == () and view._past == []
    for wrong in (dict(bogus=3), dict(fit=3)):
        with pytest.raises(TypeError, match="takes what `compute_optimal` takes.*held_out"):
            fv.FitView(RUNS, **wrong)


def test_runs_without_a_size_are_left_out_and_said_why():
    gaps = RUNS.drop(columns="budget").assign(C=RUNS.C.where(RUNS.index != 5), loss=RUNS.loss.where(RUNS.index != 7))
    view = fv.FitView(gaps, C=1e21)
    assert view.frame().why.value_counts().to_dict() == {"": 40, "no C": 1, "no loss": 1} and view.answer.N == compute_optimal(fit_law(gaps.drop(index=[5, 7])), 1e21).N
    assert rerun(view, runs=gaps).N == view.answer.N and "(runs.C > 0)" in view.code() and view.parts()["fixed"]["missing"] == ["1 has no C", "1 has no loss"]
    with pytest.raises(ValueError, match="run05 is not: no C"):
        view.exclude("run05")
    view.set(estimator="isoflop", skip=1)
    assert rerun(view, runs=gaps).N == view.answer.N
    empty = RUNS.drop(columns="budget").assign(C=np.nan)     # as where no C was recorded at all
    view = fv.FitView(empty, C=1e21)
    view.set(skip=2)
    assert "6 * runs.N * runs.D > " in view.code() and rerun(view, runs=empty).N == view.answer.N
    with pytest.raises(ValueError, match="Column 'N' must hold numbers, but row 0 has '12M'"):
        fv.FitView(RUNS.assign(N="12M"))
    frame = RUNS.copy()
    view = fv.FitView(frame, C=1e21)
    N, frame["loss"] = view.answer.N, 9.
    view.exclude(3)
    view.undo()
    view._known = {}
    assert view.answer.N == N


def test_a_run_is_called_by_its_name_first():
    numbered = RUNS.assign(run_id=range(100, 142))
    view = fv.FitView(numbered, C=1e21)
    assert view.exclude(117) and view.state.excluded == (17,) and rerun(view, runs=numbered).N == view.answer.N
    assert view.include(117) and view.toggle(row=3) and view.state.excluded == (3,)
    view.set(excluded=view.state.excluded)
    for wrong in (17, True, 1.5):
        with pytest.raises(ValueError, match="one of the numbers that name the runs, such as 100, 101, 102"):
            view.exclude(wrong)
    twice = fv.FitView(RUNS.assign(run_id=RUNS.run_id.replace("run09", "run04")), C=1e21)
    with pytest.raises(ValueError, match="'run04' is the run_id of rows 4, 9. Name one of them 'row 4'"):
        twice.exclude("run04")
    assert "row 9" in twice.exclude("row 9") and twice.exclude(2) and twice.state.excluded == (2, 9)
    assert fv._said("excluded", (3,)) == "1 run excluded"
    fit = fit_law(RUNS.assign(loss=RUNS.loss.where(RUNS.index != 5)), nan_policy="omit")
    view = fv.FitView(fit, C=1e21)
    assert "row 17 " in view.exclude(17) and view.fit.L[16] != fit.L[16] and rerun(view, fit=fit).N == view.answer.N
    with pytest.raises(ValueError, match="numbers that name the runs"):
        view.exclude(5)


def test_a_view_opens_with_the_fit_that_it_was_given():
    line = fit_isoflop(RUNS, correct_bias=True)
    view = fv.FitView(line, C=1e21)
    assert view.answer.N == compute_optimal(line, 1e21).N != compute_optimal(fit_isoflop(RUNS), 1e21).N and "correct_bias=True" in view.code() and rerun(view, fit=line).N == view.answer.N
    with pytest.raises(ValueError, match="its own exponents"):
        fv.FitView(fit_isoflop(RUNS, correct_bias=ChinchillaLaw(E=1.5, A=300., B=300., alpha=.5, beta=.2)))
    for law, delta in (("coupled", 1e-3), ("coupled", "auto"), ("chinchilla", .00123456), ("chinchilla", "auto")):
        fit = fit_law(RUNS, law=law, delta=delta)
        view = fv.FitView(fit, C=1e21)
        assert view.state.delta == delta and view.fit.law == fit.law


def test_further_keywords_reach_answer_path_picture_and_code(monkeypatch):
    given = type("Study", (), dict(runs=RUNS, target=1e21, evidence=dict(held_out=None, recipe_checked="by hand", seed_noise=.01)))()
    view = fv.FitView(given, seed_noise=.004, unique_tokens=1e10, interval=None)
    code = view.code()
    assert "**study.evidence | dict(seed_noise=0.004), unique_tokens=10000000000.0, interval=None)" in code
    again = rerun(view, study=given)
    assert again.seed_noise == view.answer.seed_noise == .004 and again.recipe_checked == "by hand" and again.epochs == view.answer.epochs and again.N_interval is None
    for _ in view.steps():
        pass
    assert not view.parts()["curves"]["bands"] and "data_constrained" in view.laws
    asked = []
    real = fv.plot_optimum
    monkeypatch.setattr(fv, "plot_optimum", lambda fit, C, **kw: asked.append(kw) or real(fit, C, **kw))
    view.still()
    assert asked == [dict(interval=None, seed_noise=.004, level=.9)]


def test_a_budget_below_the_runs_is_no_budget_within_them():
    view = fv.FitView(RUNS, C=4e15)
    for _ in view.steps():
        pass
    curves, answer = view.parts()["curves"], view.parts()["answer"]
    assert curves["ends"][0] < 4e15 < curves["low"] and curves["path"]["C"][0] < 4e15 and np.all(np.diff(curves["path"]["C"]) > 0)
    assert dict((k, (g, w)) for k, g, w in answer["criteria"])["reach"] == ("C", "25x below the smallest budget measured.")
    assert "25 times below the smallest budget measured" in repr(view) and any("25x below the smallest that was measured" in w for w in view.answer.warnings)
    view.set(C=1e18)
    assert view.answer.below == 1 and "within the budgets measured" in repr(view)


def test_words_and_pictures_for_readers_without_a_page(capsys):
    view = fv.FitView(RUNS.assign(mock=True), C=1e21)
    view.exclude("run17")
    text = repr(view)
    assert text.startswith("FitView: 41 of 42 runs (1 excluded by hand), chinchilla surface, Huber loss") and "grade" in text and "mock" in text and "worst first" in text
    still = view._repr_html_()
    assert 'src="data:image/svg+xml;base64,' in still and 'alt="' in still and len(still) < 120_000 and "<script" not in still
    assert view.show() is view and capsys.readouterr().out.startswith("FitView: 41 of 42")


class Toy(views.View):
    actions = ("add",)

    def __init__(self):
        super().__init__()
        self.n = 0

    def add(self, k=1):
        self.n += k
        self.changed()

    def parts(self): return dict(n=self.n)
    def text(self): return f"n < {self.n + 1}"


def test_the_base_calls_what_it_may_and_tells_what_was_raised():
    toy = Toy()
    assert toy.press("add", k=2) == dict(ok=True, text="", what="add", n=1) and toy.n == 2
    assert toy.press("close")["text"] == "There is no button 'close'." and toy.press("add", m=1)["text"].startswith("TypeError: ") and toy.press("__init__")["ok"] is False
    assert toy.said["n"] == 4 and repr(toy) == "n < 3" and toy._repr_html_() == "<pre>n &lt; 3</pre>"
    sent = []
    toy._heard(type("W", (), dict(send=lambda self, m: sent.append(m)))(), {"ping": 7})
    toy._heard(None, {"press": "add", "args": {"k": 3}})
    assert sent == [{"pong": 7}] and toy.n == 5


def test_the_widget_of_a_view_has_a_trait_for_each_part_and_needs_no_network():
    w = views._new_widget(views.view_script("parts.js", "plot.js", "fit.js"), a=1, b=[2])
    assert {"a", "b", "said"} <= set(w.keys) and w.get_state()["b"] == [2] and len(w._esm) + len(w._css) < 90_000
    w.close()


NOTEBOOK = f"""
import sys; sys.path.insert(0, {str(__import__('pathlib').Path(__file__).parent)!r})
from test_fit_view import RUNS, fv
view = fv.FitView(RUNS, C=1e21)
view"""


BROKEN = """view = Toy(); view.show(); view.still = lambda: 1 / 0
try:
    view.close()
except ZeroDivisionError as e:
    print(type(e).__name__, view.widget is None)"""


def test_nbclient_keeps_words_and_a_picture_and_little_else():
    "Of a view that lives on, and of one that was closed."
    import nbclient
    import nbformat
    toy = "from test_fit_view import Toy; toy = Toy(); toy.show()"
    closes = "other = fv.FitView(RUNS, C=1e21); other.exclude(17); other.show(); other.close();"
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(t) for t in (NOTEBOOK, closes, toy, "toy", "toy.close()", "toy", BROKEN)])
    nbclient.NotebookClient(nb, timeout=240, kernel_name="python3").execute()
    (first, still), (closed, nothing) = (c.outputs for c in nb.cells[:2])
    assert [len(c.outputs) for c in nb.cells[2:6]] == [2, 2, 0, 1]     # once a cell, and again in a later one
    assert nb.cells[6].outputs[-1].text == "ZeroDivisionError True\n" and "Nothing is left of this view: ZeroDivisionError" in nb.cells[6].outputs[0].data["text/html"]
    assert first.data["text/plain"].startswith("FitView: 42 of 42 runs") and "application/vnd.jupyter.widget-view+json" in first.data
    assert 'class="snb-still"' in still.data["text/html"] and "data:image/svg+xml" in still.data["text/html"]
    assert set(closed.data) == {"text/html", "text/plain"} and "41 of 42" in closed.data["text/html"] and "data:image/svg+xml" in closed.data["text/html"]
    assert nothing.data["text/html"] == "<span></span>"
    assert len(json.dumps(nb.cells[0])) < 100_000 and len(json.dumps(nb)) < 300_000
