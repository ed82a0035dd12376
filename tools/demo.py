"""Run the quickstart headless and read the answer: python tools/demo.py

Writes demo/quickstart.html and demo/report.html. Runs are kept beside the notebook, so a second call trains nothing."""
import argparse
import sys
import threading
import time
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
TARGET = 5e12  # as in the notebook


def watch(storage, done):
    "A line of progress now and then, read from the storage."
    from scaling_nb.records import runs_frame

    said = None
    while not done.wait(5):
        states = runs_frame(storage).state.value_counts() if Path(storage).exists() else {}
        line = ", ".join(f"{n} {s.lower()}" for s, n in states.items())
        if line and line != said:
            print(f"  {time.strftime('%H:%M:%S')}  {line}", flush=True)
            said = line


def main(out, work):
    from executed import keep
    from run_nbs import execute
    from to_html import to_html

    from scaling_nb import load_study

    guide = ROOT / "nbs" / "guides" / "quickstart.ipynb"
    storage = work / "outputs" / "quickstart"  # where the notebook puts it
    new = not storage.exists()
    out.mkdir(parents=True, exist_ok=True)
    print(f"Running {guide.relative_to(ROOT)} ...", flush=True)
    start, done = time.monotonic(), threading.Event()
    watcher = threading.Thread(target=watch, args=(storage, done), daemon=True)
    watcher.start()
    try:
        with open(out / "kernel.log", "w") as log:
            nb = execute(guide, cwd=work, log=log)
    finally:
        done.set()
        watcher.join()
    nbformat.write(nb, out / "quickstart.ipynb")
    if new:
        keep(guide, nb)  # the site shows the runs as they are trained, not as they are found
    (out / "quickstart.html").write_text(to_html(nb), encoding="utf-8")
    study = load_study(storage)
    study.report(out / "report.html", C=TARGET)
    print(f"\n{study.predict(TARGET)}\n")
    interior = study.isoflop.budgets if study.isoflop is not None else None
    if interior is not None:
        print(f"{int(sum(study.isoflop.interior))} of {len(interior)} budgets have a minimum inside their sizes.")
    for doubt in study.doubts:
        print(f"distrust: {doubt}")
    print(f"\nWrote {_rel(out / 'quickstart.html')} and {_rel(out / 'report.html')} in {time.monotonic() - start:.0f} s.")


def _rel(path):
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


if __name__ == "__main__":
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--out", type=Path, default=ROOT / "demo", help="where the pages go")
    args.add_argument("--work", type=Path, default=ROOT / "nbs" / "guides", help="where the notebook runs and keeps its runs")
    args = args.parse_args()
    main(args.out.resolve(), args.work.resolve())
