"""The site: what a cell defines is read rightly, no link leads nowhere, nothing is asked of another machine, and it looks like something.

Pages that other tests ran are not run again. To build from stored outputs alone: DOCS=stored python -m pytest tests/test_docs.py"""
import functools
import http.server
import os
import re
import sys
import threading
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import book  # noqa: E402
import drawing  # noqa: E402
import executed  # noqa: E402
import make_docs as site  # noqa: E402

CELL = '''
class FitTable: "Rows"

class Result:
    "What `fit` found, for 2 * N_max | more, as a FitTable"
    value: float       # In nats, such as $E_0$
    kind: str = "a|b"  # "surface" or "line"
    def to_dict(self, deep=False): "As a dict"
    @property
    def rows(self): return []
    def _hidden(self): pass

def fit(
    N, D,            # (R,) runs
    *,
    law: str = "x",  # Which one
    **kw,            # To the solver
) -> Result:         # Or an error
    "Fit it"

def _later(self, C, level=.9): "At `C`"
def short(a, b=2): "Nothing said of its arguments"
Result.predict, Result.best = _later, property(lambda self: 1)
'''


def entries(code=CELL): return {x.name: x for e in book.entries(code, "scaling_nb.m", "m") for x in (e, *e.inner)}


def test_what_a_cell_defines():
    found = entries()
    assert set(found) == {"FitTable", "Result", "Result.to_dict", "Result.rows", "fit", "short", "Result.predict", "Result.best"}
    assert {k: e.kind[3:] for k, e in found.items() if "." in k} == {"Result.to_dict": "method", "Result.rows": "property", "Result.predict": "method", "Result.best": "property"}
    assert found["fit"].signature == "fit(N, D, *, law='x', **kw) -> Result" and found["Result.predict"].signature == "Result.predict(C, level=0.9)"
    assert found["fit"].rows == [["N, D", "", "", "(R,) runs"], ["law", "str", "'x'", "Which one"], ["**kw", "", "", "To the solver"], ["returns", "Result", "", "Or an error"]]
    assert found["short"].rows == [] and found["Result"].rows[1] == ["kind", "str", "'a|b'", '"surface" or "line"']


def test_docstrings_are_text_but_for_backticks_and_formulas():
    page = book.Page(Path("m.ipynb"), nbformat.v4.new_notebook(), "scaling_nb.m")
    names = book.Names([])
    names.by_name = {k: [entries()[k]] for k in ("fit", "FitTable")}
    said = book.card(entries()["Result"], names, page)
    assert r"{py:obj}`fit <scaling_nb.m.fit>` found, for 2 \* N\_max \| more" in said and "as a {py:obj}`FitTable <scaling_nb.m.FitTable>`" in said and "$E_0$" in said and r"`'a\|b'`" in said


def test_every_public_name_of_the_package_has_one_entry():
    import scaling_nb
    names = book.Names([book.read_page(p.relative_to(ROOT / "nbs"), nbformat.read(p, 4)) for p in executed.pages()])
    for name in scaling_nb.__all__:
        assert len([e for e in names.all if e.name == name and e.module == f"scaling_nb.{scaling_nb._MODULE_OF[name]}"]) == 1, name
    assert len({e.target for e in names.all}) == len(names.all), "two entries of one name"


def test_a_link_to_a_page_that_is_not_there_stops_the_build():
    page = book.Page(Path("guides/x.ipynb"), nbformat.v4.new_notebook())
    assert book.prose("[a](../01_flops.ipynb#x) and `nbs/06_laws.ipynb`", book.Names([]), page) == "[a](/flops.ipynb#x) and [`nbs/06_laws.ipynb`](/laws.ipynb)"
    with pytest.raises(FileNotFoundError, match="gone.ipynb"):
        book.prose("[a](gone.ipynb)", book.Names([]), page)


def test_links_that_lead_nowhere_are_found(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#here"></a><a href="b.html#gone"></a><img src="c.png"><a href="https://x.org/y"></a><a href="#top"></a><p id="top">')
    (tmp_path / "b.html").write_text('<h1 id="here"></h1><a href="a.html"></a>')
    broken, outside, inside = site.check_links(tmp_path)
    assert [re.sub(r".*: ", "", b) for b in broken] == ["b.html#gone names no place on that page", "c.png is no file of the site"]
    assert outside == ["https://x.org/y"] and inside == 5


@pytest.mark.parametrize("a, b, same", [
    ("loss 2.3295 nats", "loss 2.3296 nats", True), ("loss 2.3295", "loss 2.4295", False), ("17 of 17 runs", "16 of 17 runs", False), ("N* 1.82B", "N* 1.82M", False),
    ("a  b\n-----", "a b\n------", True), ("one", "one more", False), ("1.2e-16", "-3.4e-17", True), ("x-1", "x-2", False), ("done", "failed", False), ("-1.5", "1.5", False)])
def test_a_stale_output_is_noticed(a, b, same):
    assert (executed.first_difference(a, b) is None) is same
    page = lambda text, source="f()": nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source, id="c1", outputs=[nbformat.v4.new_output("stream", text=text)])])
    assert bool(executed.differences(page(a), page(b))) is not same
    assert executed.differences(page(a, "#| varies\nf()"), page(b)) == []


def test_how_a_stream_was_cut_is_no_difference():
    out = lambda *texts: nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("f()", outputs=[nbformat.v4.new_output("stream", text=t) for t in texts])])
    assert executed.differences(out("a\nb\n"), out("a\n", "b\n")) == [] and executed.differences(out("a\nb\n"), out("a\n")) != []


def test_charts_differ_by_what_they_show_and_not_by_their_names():
    def page(first, second, digits):
        names = [f"data-{digits}{i}" for i in "ba"]   # names that sort the other way round
        spec = dict(layer=[dict(data=dict(name=n), name=f"view_{digits}") for n in names], datasets={n: [dict(x=x)] for n, x in sorted(zip(names, (first, second)))})
        return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("f()", outputs=[nbformat.v4.new_output("display_data", {"application/vnd.vegalite.v5+json": spec, "image/svg+xml": digits})])])
    stored = page(1., 2., "0123456789")
    assert executed.differences(stored, page(1.0000001, 2., "abcdef0123")) == []
    assert executed.differences(stored, page(2., 1., "0123456789")) and executed.differences(stored, page(1., 2.5, "0123456789"))


def test_a_page_is_run_again_when_its_code_changes(tmp_path, monkeypatch):
    (tmp_path / "nbs").mkdir()
    (tmp_path / "constraints.txt").write_text("")
    monkeypatch.setattr(executed, "ROOT", tmp_path)
    monkeypatch.setattr(executed, "KEPT", tmp_path / "_site")
    page, v4 = tmp_path / "nbs" / "a.ipynb", nbformat.v4
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell("print(1)")]), page)
    assert executed.kept(page) is None
    executed.keep(page, v4.new_notebook(cells=[v4.new_code_cell("print(1)", outputs=[v4.new_output("stream", text="1")])]))
    nbformat.write(v4.new_notebook(cells=[v4.new_markdown_cell("prose"), v4.new_code_cell("print(1)")]), page)
    assert executed.kept(page).cells[0].source == "prose" and executed.kept(page).cells[1].outputs[0].text == "1"
    (tmp_path / "constraints.txt").write_text("numpy==1")
    assert executed.kept(page) is None
    (tmp_path / "constraints.txt").write_text("")
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell("print(2)")]), page)
    assert executed.kept(page) is None


def test_the_map_of_imports_is_that_of_the_house():
    order, _, _ = drawing.table()
    drawn = drawing.import_map({})
    lines = re.findall(r'data-from="([\w.]+)" data-to="([\w.]+)"', drawn)
    assert set(re.findall(r'data-module="([\w.]+)"', drawn)) == set(order) and all(b in order[a] for a, b in lines)
    reach = {n: {n} for n in order}
    for _ in order:
        for a, b in lines: reach[a] |= reach[b]
    assert all(order[n] <= reach[n] for n in order), "what is left out follows from what is drawn"


def test_quarto_still_finds_what_it_reads():
    config = yaml.safe_load((ROOT / "nbs" / "_quarto.yml").read_text())
    assert config["project"]["type"] == "website" and all((ROOT / "nbs" / f).exists() for f in config["metadata-files"])
    assert yaml.safe_load((ROOT / "nbs" / "nbdev.yml").read_text())["project"]["output-dir"]


# The whole site

@pytest.fixture(scope="module")
def built(tmp_path_factory):
    where = tmp_path_factory.mktemp("site")
    return where / "html", *site.build(where, stored=os.environ.get("DOCS") == "stored", jobs=1)


@pytest.fixture(scope="module")
def address(built):
    "The site, served from this machine."
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *a): pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(built[0])))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.docs
@pytest.mark.timeout(1800)
def test_no_link_of_the_site_leads_nowhere(built):
    html, broken, outside, inside = built
    assert broken == [] and inside > 3000
    assert all(u.startswith("https://") for u in outside), outside


@pytest.mark.docs
def test_no_page_names_a_script_a_style_or_a_picture_elsewhere(built):
    for page in built[0].rglob("*.html"):
        assert not re.findall(r'<(?:script|img|iframe|source)[^>]*\ssrc="(?:https?:)?//[^"]*"|<link[^>]*\shref="(?:https?:)?//[^"]*"[^>]*>', page.read_text()), page.name
    for sheet in built[0].rglob("*.css"):
        assert not re.findall(r"@import|url\(\s*['\"]?(?:https?:)?//", sheet.read_text()), sheet.name


@pytest.mark.docs
def test_code_leads_to_definitions(built):
    fitting, architecture = ((built[0] / f"{n}.html").read_text() for n in ("fitting", "architecture"))
    assert re.search(r'<a class="code-link" href="laws.html#scaling_nb.laws.ChinchillaLaw"', fitting) and 'id="scaling_nb.fitting.fit_law"' in fitting
    assert "<math" in fitting and "MathJax" not in fitting
    assert 'href="fitting.html#scaling_nb.fitting.fit_law"' in architecture and 'data-module="engine"' in architecture


@pytest.mark.docs
def test_every_file_that_is_not_a_page_is_ours_or_has_its_licence(built):
    named = set(re.findall(r"`([\w.-]+)`", (ROOT / "docs" / "licences.md").read_text())) | {p.name for p in (ROOT / "docs" / "_static").iterdir()}
    found = {re.sub(r"\.[0-9a-f]{32,}(?=\.css$)", "", p.name) for p in (built[0] / "_static").rglob("*") if p.is_file() and not p.name.endswith((".map", ".LICENSE.txt"))}
    assert found - named == set(), "say in docs/licences.md where it comes from"


LOOKS = [("index", "light", 1440), ("guides/fit_your_own_runs", "light", 1440), ("charts", "dark", 1440), ("fitting", "dark", 390), ("index", "light", 390), ("architecture", "light", 1440)]


@pytest.mark.docs
@pytest.mark.browser
@pytest.mark.parametrize("name, scheme, width", LOOKS)
def test_six_pages_in_a_browser(address, chromium, name, scheme, width):
    "Screenshots go to the folder named in SHOTS, or to _site/shots."
    import labdriver
    page = labdriver.local_page(chromium, viewport=dict(width=width, height=1000), color_scheme=scheme)
    asked = []
    page.on("request", lambda r: asked.append(r.url))
    page.goto(f"{address}/{name}.html")
    for i in range(page.locator("figure.chart").count()):  # each is drawn when it comes near the window
        page.locator("figure.chart").nth(i).scroll_into_view_if_needed()
        page.wait_for_function("i => document.querySelectorAll('figure.chart')[i].dataset.drawn", arg=i, timeout=30_000)
    if page.locator("figure.chart").count():
        page.locator("figure.chart").first.scroll_into_view_if_needed()
    shots = Path(os.environ.get("SHOTS") or ROOT / "_site" / "shots")
    shots.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(shots / f"{name.replace('/', '_')}_{scheme}_{width}.png"))
    assert page.errors == [] and page.blocked == [] and all(u.startswith((address, "data:", "blob:")) for u in asked)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page is wider than the window"
    assert all(box["height"] > 4 for m in page.locator("math").all()[:5] if (box := m.bounding_box()))
    page.context.close()


@pytest.mark.docs
@pytest.mark.browser
def test_search_finds_a_definition_first_and_the_choice_of_light_is_kept(address, chromium):
    import labdriver
    page = labdriver.local_page(chromium, color_scheme="light")
    page.goto(f"{address}/index.html")
    page.locator(".sidebar-search").fill("fit_law")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li a")
    assert "fitting.html" in page.locator("#search-results li a").first.get_attribute("href")
    page.locator("#search-results li a").first.click()
    page.wait_for_selector("h1")
    paper = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")
    seen = {paper()}
    for _ in range(3):
        page.locator(".theme-toggle:visible").first.click()
        seen.add(paper())
    assert len(seen) == 2
    button = page.locator("button.fold-all")
    assert page.locator(".tag_exported details[open]").count() == 0
    button.click()
    assert page.locator(".tag_exported details:not([open])").count() == 0
    assert page.errors == [] and page.blocked == []
    page.context.close()


@pytest.mark.docs
@pytest.mark.skipif(os.environ.get("DOCS") == "stored", reason="nothing was run")
def test_guides_show_what_they_store(built):
    "Those of the library are compared by tools/executed.py itself, before the tests."
    for page in (ROOT / "nbs" / "guides").glob("*.ipynb"):
        assert executed.differences(nbformat.read(page, 4), executed.kept(page)) == [], f"renew what is stored: python tools/run_nbs.py nbs/guides/{page.name}"
