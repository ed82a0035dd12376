"""Whatever a user can get hold of shows itself: as HTML in a notebook, as a few lines elsewhere, with nobody's markup in it, and with nothing that is fetched.

Then a notebook that no browser has seen: text, pictures, no rest of a widget, and well under a megabyte."""
import inspect
import json
import re
from dataclasses import dataclass, fields, replace
from enum import Enum
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from problems import MLP, mlp_problem, xy
from torch import nn

import scaling_nb as snb
from scaling_nb.showing import Shown, html_rows, tell

ROOT = Path(__file__).parents[1]
EVIL = "<img src=x onerror=alert(1)> & \"quotes\""
ADDRESS = re.compile(r"\s*(?:https?:)?//", re.I)


class Reader(HTMLParser):
    "What a browser would fetch, run or be fooled by."
    def __init__(self, page):
        super().__init__()
        self.found, self.inside, self.text = [], "", ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.inside = tag
        for name, value in attrs:
            value = value or ""
            if name.startswith("on") or tag != "a" and name in ("src", "href", "xlink:href", "data", "srcset", "poster", "action") and not value.startswith(("#", "data:")) \
                    or name == "style" and re.search(r"url\(\s*[\"']?(?:https?:)?//", value):
                self.found.append(f"<{tag} {name}={value[:80]!r}>")

    def handle_endtag(self, tag): self.inside = ""

    def handle_data(self, data):
        if self.inside == "style": self.found += re.findall(r"@import[^;]*|url\(\s*[\"']?(?:https?:)?//[^)]*", data)
        elif self.inside == "script": self.found += fetched_by_script(data)
        else: self.text += data


def fetched_by_script(code):
    "Addresses that a script asks for; those it merely holds, as Vega's schemas, are names."
    return re.findall(r"""(?:\bfrom\s*|\bimport\s*\(?\s*|\b(?:fetch|importScripts|Worker|require|WebSocket|EventSource)\s*\(\s*|\.src\s*=\s*|\.href\s*=\s*)["'`](?:https?:|wss?:)?//[^"'`]*""", code)


# ---------------------------------------------------------------- the helper

def test_values_are_told_in_words():
    values = {None: "none", True: "yes", 7: "7", 12_345: "12,345", 4.0e20: "4e20", .1 + .2: "0.3", float("nan"): "nan", "x": "x", (.9, .95): "0.9, 0.95", len: "len", nn.Linear: "Linear",
              tuple(range(14)): "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ... (14 in all)", np.float32(.5): "0.5", np.int64(9): "9", object(): "object", "a" * 500: "a" * 97 + "..."}
    assert [tell(v) for v in values] == list(values.values())
    assert (tell({}), tell({"width": 64}), tell(np.zeros((3, 2)))) == ("none", "width: 64", "ndarray of 3 x 2")


def test_text_is_the_constructor_and_breaks_where_a_field_ends():
    recipe = snb.Recipe(lr=.02, betas=(.9, .99))
    assert max(map(len, repr(recipe).splitlines())) <= 100 and eval(repr(recipe), {"Recipe": snb.Recipe}) == recipe
    assert repr(snb.ChinchillaLaw(1.69, 406.4, 410.7, .34, .28)) == "ChinchillaLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)"

    @dataclass(frozen=True, repr=False)
    class Note(Shown):
        text: str
        data: object = None
    long = Note("one two  three-four " * 12, np.zeros((4, 4)))
    assert eval(repr(long).replace("ndarray of 4 x 4", "None"), {"Note": Note}).text == long.text and "ndarray of 4 x 4" in repr(long)


def test_the_readers_of_these_tests_see_what_they_should():
    bad = '<script src="https://x/y.js"></script><link href=//x><img src=http://x onerror=a()><style>@import "x";</style><p style="background:url(https://x)">'
    assert len(Reader(bad).found) == 6 and Reader('<a href="https://x">x</a><img src="data:x"><use href="#a"/><script>a = "https://vega.github.io/schema"</script>').found == []
    assert len(fetched_by_script('import x from "https://esm.sh/x"; fetch("//x"); await import("https://y"); s.src = "https://z"')) == 4
    assert Reader(html_rows([("a<b", EVIL)])).text == "a<b" + EVIL


# ---------------------------------------------------------------- every public object

def _runs(path):
    "A study of 20 runs drawn from a law; one has failed, with markup in its reason."
    snb.find_optimal(MLP, "width", dataset=xy(), loss_fn=nn.CrossEntropyLoss(), mock=snb.MockLaw(noise=.004), compute_budgets=[1e8, 3e8, 1e9, 3e9], sizes=[16, 32, 48, 64, 96],
                     speed=None, output_dir=path)
    storage = snb.open_storage(path)
    lost = storage.runs()[0]
    storage.remove(lost, "result.json")
    storage.write_json(lost, "failure.json", dict(reason=f"ValueError: {EVIL}", attempt=1))
    return storage


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    "One of each, as a user would get it, with markup wherever a user's own words can go."
    import test_charts as t

    from scaling_nb.cluster import Node
    from scaling_nb.doubts import doubts
    storage = _runs(tmp_path_factory.mktemp("showing"))
    study = snb.load_study(storage.url)
    runs, law, problem = t.make_sweep(), t.LAW, mlp_problem()
    fit, isoflop = (snb.fit_law(runs.N, runs.D, runs.loss, C=runs.C), snb.fit_isoflop(runs.N, runs.C, runs.loss, D=runs.D, budget=runs.budget))
    plan = snb.plan_sweep(problem, budgets=[1e8, 3e8], sizes=[16, 32, 48], speed=None)
    cost, form = snb.measure_cost(problem, 64), snb.Form(lambda N, D, c: c + 0 * N, ("c",), ((0, 9),), name=EVIL)
    N, C, at = np.repeat(np.geomspace(1e6, 1e9, 8), 10), np.tile(np.geomspace(1e15, 1e20, 10), 8), (runs.N.to_numpy(), runs.D.to_numpy(), 1e13)
    rates = pd.DataFrame([dict(size=16, N=8_192, D=d, lr=lr, loss=2 + .02 * np.log(lr * d ** .2 / .1) ** 2 + .001 * np.sin(9 * lr * d), state="SUCCEEDED")
                          for d in (100_000, 400_000) for lr in .0025 * 2. ** np.arange(5)])
    widths = pd.DataFrame([dict(size=w, width=w, step=s, module=f"block.{EVIL}", rms=1., change=.1 * s) for w in (16, 32, 64) for s in (0, 1, 2)])
    row = study.frame.iloc[0].to_dict()
    return [replace(problem, model_kwargs=dict(note=EVIL)), snb.check_problem(problem), cost, cost.params, snb.Recipe(lr=snb.LrLaw(-3.)), snb.LrLaw(-3., .1, -.2, (1e4, 1e6), (1e5, 1e7)),
            snb.resolve(snb.Recipe(), plan.specs[0], 1), replace(snb.find_hardware("H100 SXM"), name=EVIL), snb.Constraints(), plan.specs[0], plan, storage,
            snb.RunRecord(**{f.name: row[f.name] for f in fields(snb.RunRecord)} | dict(reason=EVIL)), snb.MockLaw(), snb.Trainer(problem, plan.specs[0]), snb.Limits(), snb.Resources(),
            snb.attach(storage.url), snb.CoordinateCheck(widths), snb.fit_lr(rates), law, snb.CoupledLaw(1.7, 400, 400, .34, .28, .9), snb.KaplanLaw(),
            snb.DataConstrainedLaw(1.7, 400, 400, .34, .28, unique=1e9), form, snb.FormLaw(form, (2.,)), snb.PowerLaw(1., 2., -.3), isoflop.parabolas[0], fit, isoflop, fit.curve,
            snb.fit_envelope(N, C, law.loss(N, C / (6 * N)), annealed=True), snb.fit_power_law([1e15, 1e16, 1e17, 1e18], [4., 3., 2.5, 2.2]), snb.compute_optimal(fit, 1e12),
            snb.Refusal("no_law", EVIL, "do"), snb.choose(fit, C=1e11, N=2e4), snb.inference_optimal(fit, 1e11, 1e9), snb.overtrained(fit, 1e11, 200),
            snb.compare(fit, replace(fit), names=(EVIL, "b"), budgets=[1e11]), snb.Round("edge", plan.specs[:3], EVIL), study, study.card(), Node("1", EVIL, 4., 0., None, 2 ** 33),
            doubts(fit, 1e12), snb.predict_width(law, *at), snb.simulate(law, *at, n=3)]


ELSEWHERE = {"RunView", "PlanView", "FitView", "Job"}   # views are displayed and not merely shown (below, and in test_widgets and its like); a job asks a cluster (test_jobs)


def test_every_public_object_is_here(objects):
    classes = {n for n in snb.__all__ if inspect.isclass(c := getattr(snb, n)) and not issubclass(c, (Enum, Exception))}
    assert classes - ELSEWHERE <= {type(o).__name__ for o in objects}


def test_every_object_shows_itself(objects):
    for o in objects:
        name, text, page = type(o).__name__, repr(o), o._repr_html_()
        lines = text.splitlines()
        assert 1 <= len(lines) <= 25 and " at 0x" not in text and "array(" not in text and "np.float64" not in text, f"{name}:\n{text}"
        prose = [v for v in lines if len(v) > 120]                     # a sentence is broken by whoever shows it; a column is not
        assert not [v for v in prose if re.search(r"\S {2,}\S", v.split(":", 1)[-1].strip()[20:])], f"{name}:\n" + "\n".join(prose)
        read = Reader(page)
        assert len(read.text.strip()) > 3 and " at 0x" not in page and not read.found, f"{name}: {read.found}\n{page[:500]}"
        assert len(page) < 40_000, name


# ---------------------------------------------------------------- a notebook that no browser has seen

FORTY = ["import sys; sys.path.insert(0, TESTS)\nimport time\nimport scaling_nb as snb\nfrom problems import mlp_problem\nproblem = mlp_problem()",
         "plan = snb.plan_sweep(problem, budgets=[1e8, 3e8, 1e9, 3e9, 1e10, 3e10], sizes=[16, 24, 32, 48, 64, 96, 128, 192], speed=None)\nplan",
         "sweep = snb.run_sweep(problem, plan, storage='runs', mock=snb.MockLaw(noise=.004))\nsweep",
         "view = snb.RunView('runs', hz=2).show()\nfor _ in range(400):\n    if live := view.widget is not None and view.widget.tick > 2: break\n    time.sleep(.05)\n"
         "view.close()\nassert live",
         "study = snb.load_study('runs')\nstudy", "study.predict(1e11)", "study.plot()", "snb.plot_residuals(study.surface)", "snb.plot_runs(sweep)", "study.card()"]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    "A finished sweep of 40 runs and all that is shown of it, run as papermill and nbconvert would."
    client = pytest.importorskip("nbclient")
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c.replace("TESTS", repr(str(ROOT / "tests")))) for c in FORTY])
    client.NotebookClient(nb, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path_factory.mktemp("forty"))}}).execute()
    nbformat.validate(nb)
    return nb


def test_forty_runs_are_saved_in_half_a_megabyte(executed):
    size = len(nbformat.writes(executed))
    assert len(json.loads(json.dumps(executed))["cells"]) == len(FORTY) and size < 600_000, f"{size:,} bytes"
    assert len(json.dumps(executed.metadata.get("widgets", {}))) < 60_000      # what is left of the live view: its words, not its megabyte of JavaScript


def test_without_a_front_end_there_is_text_and_a_picture(executed):
    outputs = [o for c in executed.cells for o in c.outputs]
    kinds = {o.output_type for o in outputs}
    assert kinds <= {"display_data", "execute_result"}, [o for o in outputs if o.output_type not in ("display_data", "execute_result")]   # no error, no warning, no stray print
    assert not [o for o in outputs if "application/vnd.jupyter.widget-view+json" in o.data and len(o.data) < 3]
    assert all("text/plain" in o.data and set(o.data) - {"text/plain"} for o in outputs)
    view = executed.cells[3].outputs
    runs = int(re.search(r"(\d+) SUCCEEDED", executed.cells[2].outputs[-1].data["text/plain"])[1])
    assert runs >= 40 and view[0].data["text/plain"].startswith(f"{runs} of {runs} runs done") and "image/svg+xml" in view[1].data and "widget" not in json.dumps(view)
    for c, words in ((4, f"{runs} of {runs} runs finished"), (5, "To spend 1.00e11 FLOPs"), (7, "The surface misses")):
        assert words in executed.cells[c].outputs[-1].data["text/plain"], c


def test_nbconvert_shows_it_with_no_network(executed):
    exporter = pytest.importorskip("nbconvert").HTMLExporter()
    page, _ = exporter.from_notebook_node(executed)
    own = page[page.index("<body"):]
    assert own.count("data:image/svg+xml") == sum("image/svg+xml" in o.data for c in executed.cells for o in c.outputs) > 4
    assert "jp-OutputArea-output jp-RenderedText\" data-mime-type=\"application/vnd.jupyter.stderr" not in own
    for c in executed.cells:
        for o in c.outputs: assert not Reader(o.data.get("text/html", "") + o.data.get("image/svg+xml", "")).found


# ---------------------------------------------------------------- nothing from anywhere else

def test_no_stored_output_fetches_anything():
    notebooks = sorted((ROOT / "nbs").rglob("*.ipynb"))
    assert len(notebooks) > 30
    for path in notebooks:
        for cell in json.loads(path.read_text())["cells"]:
            for o in cell.get("outputs", []):
                for kind, data in o.get("data", {}).items():
                    if kind in ("text/html", "image/svg+xml"): assert not Reader("".join(data)).found, path.name
                    assert kind not in ("application/javascript", "application/vnd.vegalite.v6.json"), (path.name, kind)
                    assert kind != "image/png" or len(o["data"]) < 3, (path.name, "a chart is kept as a PNG too")


def test_no_code_fetches_anything():
    for path in (ROOT / "scaling_nb").rglob("*.*"):
        if path.suffix == ".js": assert not fetched_by_script(path.read_text()), path.name
        if path.suffix == ".css": assert not re.search(r"@import|url\(\s*[\"']?(?:https?:)?//", path.read_text()), path.name
        if path.suffix == ".py": assert not re.search(r"cdn\.|unpkg|jsdelivr|esm\.sh|<script[^>]*\ssrc|<link[^>]*\shref|@import\s", path.read_text()), path.name


def test_a_report_fetches_nothing(tmp_path):
    storage = _runs(tmp_path / "runs")
    snb.load_study(storage.url).report(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not Reader(re.sub(r"<script>.*?</script>", "", page, flags=re.S)).found and EVIL not in page
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.S)
    assert scripts and not [f for s in scripts for f in fetched_by_script(s)]
