"""Run each page once and keep what it showed: python tools/executed.py [--jobs 2] [nbs/06_laws.ipynb ...]

The executed copies lie in _site/executed/. The tests of the guides and the site read them there, so that no page is run twice; a page runs
again when its code, the package or the pins have changed. Fails where a page fails, and where an output that is stored in nbs/ is not
what the page shows now: numbers may differ by rounding, words may not, and a cell that begins with `#| varies` may show what it likes."""
import argparse
import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import zip_longest
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "_site" / "executed"
sys.path.insert(0, str(ROOT / "tools"))


def pages(folder=ROOT / "nbs"):
    "Every page, as a path, in the order of the book."
    return sorted(p for p in folder.rglob("*.ipynb") if not any(part.startswith((".", "_")) or part == "outputs" for part in p.relative_to(folder).parts))


def place(page):
    "Where the executed copy of `page` is kept."
    return KEPT / Path(page).resolve().relative_to(ROOT / "nbs")


def _hash(page):
    "What a page's outputs follow from: its code, the package, the pins."
    h = hashlib.sha256(json.dumps([(c.cell_type, c.source) for c in nbformat.read(page, 4).cells if c.cell_type == "code"]).encode())
    for f in sorted([*ROOT.glob("scaling_nb/**/*.py"), *ROOT.glob("scaling_nb/static/*"), ROOT / "constraints.txt"]):
        h.update(f.read_bytes())
    return h.hexdigest()


def kept(page):
    "`page` with the outputs of its kept copy, or None where none was run with this code, this package and these pins."
    if not place(page).exists():
        return None
    copy, nb = nbformat.read(place(page), 4), nbformat.read(page, 4)
    if copy.metadata.get("hash") != _hash(page):
        return None
    for now, then in zip(*([c for c in n.cells if c.cell_type == "code"] for n in (nb, copy))):
        now.outputs = then.outputs
    return nb


def keep(page, nb):
    "Keep `nb`, what `page` became when it was run from its first cell to its last."
    copy = nbformat.from_dict({**nb, "metadata": {**nb.metadata, "hash": _hash(page)}})
    place(page).parent.mkdir(parents=True, exist_ok=True)
    part = place(page).with_suffix(f".{os.getpid()}.part")
    nbformat.write(copy, part)
    part.replace(place(page))
    return nb


@contextlib.contextmanager
def _alone(page):
    "One process at a time runs a page; the next finds it done."
    place(page).parent.mkdir(parents=True, exist_ok=True)
    with open(place(page).with_suffix(".lock"), "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def executed(page):
    "`page` with the outputs of today: the copy that is kept, or a run in an empty folder."
    from run_nbs import execute

    with _alone(page):
        if (nb := kept(page)) is not None:
            return nb
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads of a tiny model that wait for each other on a busy machine take ten times as long
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with tempfile.TemporaryDirectory(prefix="page-") as work:
            return keep(page, execute(page, cwd=work))


_TOKEN = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|-+|\w+|[^\w\s]")


def first_difference(a, b, rounding=2e-3):
    "Where two texts differ by more than white space and last digits, as (a's words there, b's words there); None if nowhere."
    x, y = ([(m[0], m.start(), s) for m in _TOKEN.finditer(s)] for s in (a, b))
    for p, q in zip_longest(x, y, fillvalue=("", -1, "")):
        if p[0] != q[0] and not _same_number(p[0], q[0], rounding):
            return tuple(s[max(i - 40, 0):i + 60] if i >= 0 else "(the end)" for _, i, s in (p, q))


def _same_number(p, q, rounding):
    try:
        return math.isclose(float(p), float(q), rel_tol=rounding, abs_tol=1e-9)
    except ValueError:
        return set(p) <= {"-"} and set(q) <= {"-"}  # rules of tables are as long as their numbers


def _spec(v):
    "A chart as text, without the names that Altair makes from the digits of its data; data stand in the order in which they are used."
    if not isinstance(v, dict):
        return json.dumps(v)
    text = json.dumps({k: x for k, x in v.items() if k != "datasets"}, sort_keys=True)
    data = [x for _, x in sorted(v.get("datasets", {}).items(), key=lambda kx: text.find(f'"{kx[0]}"'))]
    return re.sub(r"(view_|data-)[0-9a-f]{8,}", r"\1", text) + json.dumps(data, sort_keys=True)


def _shown(cell):
    "What a reader sees of a cell's outputs, by kind; pictures are drawn from what is compared already."
    found = []
    for o in cell.outputs:
        if o.output_type == "stream":
            if found and found[-1][0] == o.name:
                found[-1] = (o.name, found[-1][1] + o.text)  # how a stream was cut is the kernel's affair
            else:
                found.append((o.name, o.text))
        found += [(k, v if isinstance(v, str) else _spec(v)) for k, v in sorted(o.get("data", {}).items()) if not k.startswith("image/")]
    return found


def differences(stored, today):
    "Sentences on stored outputs that are not those of today; none for a page that stores no outputs."
    cells = [[c for c in nb.cells if c.cell_type == "code"] for nb in (stored, today)]
    if not any(c.outputs for c in cells[0]):
        return []
    said = []
    for old, new in zip(*cells):
        if old.source.startswith("#| varies"):
            continue
        a, b = _shown(old), _shown(new)
        if [k for k, _ in a] != [k for k, _ in b]:
            said.append(f"cell {old.id} stores {[k for k, _ in a]}, but shows {[k for k, _ in b]}")
        else:
            said += [f"cell {old.id}, {k}: stored ...{d[0]!r}, shown ...{d[1]!r}" for (k, x), (_, y) in zip(a, b) if (d := first_difference(x, y))][:1]
    return said


def _job(page):
    start, fresh = time.monotonic(), kept(page) is not None
    try:
        nb = executed(page)
    except Exception as e:  # whatever a page raises is that page's result
        return page, time.monotonic() - start, fresh, [f"failed: {str(e)[-3000:]}"]
    return page, time.monotonic() - start, fresh, differences(nbformat.read(page, 4), nb)


def main(wanted, jobs):
    bad = 0
    with ProcessPoolExecutor(jobs) as pool:
        for page, seconds, fresh, said in pool.map(_job, wanted):
            print(f"{page.relative_to(ROOT)}  {'kept' if fresh else f'{seconds:.0f} s'}" + "".join(f"\n  {s}" for s in said), flush=True)
            bad += bool(said)
    renew = "Renew outputs with `make notebooks`, those of a guide with `python tools/run_nbs.py nbs/guides/<name>.ipynb`."
    print(f"{len(wanted)} pages ran; {bad} of them failed or store what they do not show. {renew}" if bad else f"{len(wanted)} pages ran and show what they store.")
    return bool(bad)


if __name__ == "__main__":
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("pages", nargs="*", type=Path, help="the library's pages and the zoo's when none is named")
    args.add_argument("--jobs", type=int, default=2)
    args = args.parse_args()
    sys.exit(main([p.resolve() for p in args.pages] or [p for p in pages() if p.parent.name != "guides"], args.jobs))
