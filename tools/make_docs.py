"""Build the site from the notebooks, with nothing from elsewhere: python tools/make_docs.py [--stored] [--jobs 2] [--only PAGE ...]

Every page is run (tools/executed.py keeps what ran already); with --stored, pages that were not run show the outputs that are stored in them.
Sphinx's warnings are errors, and so is a link of the finished site that leads nowhere. The site is _site/html/index.html."""
import argparse
import ast
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "_site"
sys.path.insert(0, str(ROOT / "tools"))
from book import Names, adapt, docname, markdown_cell, plain, prose, read_page  # noqa: E402
from executed import executed, kept, pages  # noqa: E402

PARTS = [("Guides", lambda p: p.parts[0] == "guides"), ("The book: runs", lambda p: p.name[:2] <= "05"), ("The book: laws", lambda p: "06" <= p.name[:2] <= "08"),
         ("The book: a study", lambda p: p.name[:1].isdigit()), ("Models and data", lambda p: p.parts[0] == "zoo")]


def chapters(found):
    "(caption, pages) in the order of the sidebar; guides in the order in which the first page says to read them."
    first = (ROOT / "nbs" / "index.ipynb").read_text().partition("## Read it")[2]
    named = lambda p: (first.find(str(p)) if str(p) in first else len(first), p.name)
    left = [p for p in found if str(p) != "index.ipynb"]
    for caption, belongs in PARTS:
        mine = [p for p in left if belongs(p)]
        left = [p for p in left if p not in mine]
        yield caption, sorted(mine, key=named) if caption == "Guides" else mine
    assert not left, f"{left} belong to no part of the book"


def contents(found):
    "The tables of contents of the first page, which are the sidebar."
    reference = ["api", "architecture", "why", "contributing", "changelog", "licences"]
    parts = [(caption, [docname(p) for p in mine]) for caption, mine in chapters(found)] + [("Reference", reference)]
    return "\n\n".join("```{toctree}\n:hidden:\n:caption: " + caption + "\n\n" + "\n".join(names) + "\n```" for caption, names in parts if names)


def api(names):
    "The index of names: what `from scaling_nb import` offers, then what stands in the modules."
    tree = ast.parse((ROOT / "scaling_nb" / "__init__.py").read_text())
    top = {n for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "_NAMES" for v in ast.literal_eval(node.value).values() for n in v.split()}
    row = lambda e, page: f"| {{py:obj}}`{e.name} <{e.target}>` | {plain(e.summary, names, None)} |"
    lines = ["# Every name", "> What `from scaling_nb import ...` offers, by module; below it, what else the modules hold.", "## From `scaling_nb`"]
    for wanted, more in ((True, ""), (False, "## From the modules\n\nBuilding blocks: imported as `from scaling_nb.laws import ...`.")):
        lines.append(more)
        for module, page in names.modules.items():
            mine = [e for found in page.entries.values() for e in found if "." not in e.name and (e.name in top) is wanted]
            if mine:
                lines += [f"### `{module.removeprefix('scaling_nb.')}`", f"[{page.title}](/{page.docname}.ipynb)\n\n| | |\n|---|---|\n" + "\n".join(row(e, page) for e in mine)]
    return "\n\n".join(filter(None, lines)) + "\n\nAlphabetically: {ref}`genindex`.\n"


def vega(path):
    "The one script that draws the charts, from an installed package."
    import vl_convert

    path.write_text(f"(()=>{{{vl_convert.javascript_bundle(vl_version='6.4')}}})();", encoding="utf-8")


def write_sources(src, notebooks):
    "Everything that Sphinx reads, into the folder `src`."
    found = [read_page(p.relative_to(ROOT / "nbs"), nb) for p, nb in notebooks]
    names = Names(found)
    used = {}
    for page in found:
        nb = adapt(page, names)
        if str(page.path) == "index.ipynb":
            nb.cells.append(markdown_cell(contents([p.path for p in found])))
        out = src / f"{page.docname}.ipynb"
        out.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, out)
        used[page.docname] = {k: e.target for k, v in page.names.items() if (e := names.find(v, page))}
    (src / "names.py").write_text(repr(used))
    (src / "api.md").write_text(api(names))
    for f in [*(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        (src / f"{f.stem.lower()}.md").write_text(prose(f.read_text(), names, None, folder=f.parent.relative_to(ROOT)))
    from drawing import import_map, import_rows

    (src / "imports.svg").write_text(import_map({m.removeprefix("scaling_nb."): f"{p.docname}.html" for m, p in names.modules.items()}))
    (src / "imports.md.txt").write_text(import_rows(names))


class _Links(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links, self.ids, self.deep = [], set(), 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a[k] for k in ("id", "name") if a.get(k)}
        self.links += [a[k] for k in ("href", "src") if a.get(k) and tag != "svg"]


def check_links(folder):
    "(links inside that lead nowhere, as sentences; addresses outside, in order; how many links inside there are)"
    read = {p: _Links(p.read_text(encoding="utf-8")) for p in sorted(folder.rglob("*.html"))}
    broken, outside, inside = [], set(), 0
    for page, found in read.items():
        for link in found.links:
            url = urlsplit(link)
            if url.scheme in ("http", "https", "mailto") or link.startswith("//"):
                outside.add(link)
                continue
            if url.scheme:
                continue  # data:
            inside += 1
            target = (page.parent / unquote(url.path)).resolve() if url.path else page
            if not target.is_file():
                broken.append(f"{page.relative_to(folder)}: {link} is no file of the site")
            elif url.fragment and target in read and unquote(url.fragment) not in read[target].ids:
                broken.append(f"{page.relative_to(folder)}: {link} names no place on that page")
    return broken, sorted(outside), inside


def run_pages(wanted, jobs):
    "Every page with the outputs of today: the book's `jobs` at a time, then the guides, which want the whole machine."
    book, guides = [p for p in wanted if p.parent.name != "guides"], [p for p in wanted if p.parent.name == "guides"]
    with ProcessPoolExecutor(jobs) as pool:
        done = dict(zip(book, pool.map(executed, book)))
    for p in guides:
        print(f"  {p.name}{'' if kept(p) else ' runs'}", flush=True)
        done[p] = executed(p)
    return [(p, done[p]) for p in wanted]


def build(site=SITE, *, stored=False, jobs=2, only=()):
    "Write the site to `site`/html; returns the links that lead nowhere and the addresses outside. Raises where Sphinx warns."
    start = time.monotonic()
    wanted = [p for p in pages() if not only or p.name == "index.ipynb" or p.stem in only]
    notebooks = [(p, kept(p) or nbformat.read(p, 4)) for p in wanted] if stored else run_pages(wanted, jobs)
    print(f"{len(wanted)} pages {'read' if stored else 'ran'} in {time.monotonic() - start:.0f} s", flush=True)
    src, html = site / "src", site / "html"
    shutil.rmtree(src, ignore_errors=True)
    shutil.rmtree(html, ignore_errors=True)
    src.mkdir(parents=True)
    write_sources(src, notebooks)
    start = time.monotonic()
    quiet = [] if only else ["-W", "--keep-going"]
    subprocess.run([sys.executable, "-m", "sphinx", "-q", "-E", *quiet, "-b", "html", "-c", str(ROOT / "docs"), "-d", str(site / "doctrees"), str(src), str(html)], check=True)
    vega(html / "_static" / "vega.js")
    print(f"Sphinx took {time.monotonic() - start:.0f} s", flush=True)
    return check_links(html)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--stored", action="store_true", help="show stored outputs where a page was not run")
    args.add_argument("--jobs", type=int, default=2, help="pages of the book that run at a time")
    args.add_argument("--only", nargs="*", default=(), help="a draft of these pages, such as 07_fitting")
    args = args.parse_args()
    broken, outside, inside = build(stored=args.stored, jobs=args.jobs, only=args.only)
    print(f"{inside} links inside the site, {len(broken)} of them lead nowhere; {len(outside)} addresses outside are named and not asked for:", *outside, sep="\n  ")
    print(*broken, sep="\n")
    print(f"Open {SITE.relative_to(ROOT)}/html/index.html")
    return bool(broken) and not args.only


if __name__ == "__main__":
    sys.exit(main())
