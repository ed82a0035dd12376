"""Run notebooks in place so that what they store is small and stable: python tools/run_nbs.py nbs/06_laws.ipynb ...

Widget state that no stored output shows is dropped, ids become counters, and `nbdev_clean` has the last word,
so that a second run with the same results leaves the same file."""
import json
import pathlib
import re
import subprocess
import sys

import nbformat
from nbclient import NotebookClient
from nbdev.clean import clean_nb

STATE = "application/vnd.jupyter.widget-state+json"
VIEW = "application/vnd.jupyter.widget-view+json"


def prune(nb):
    "Keep only the widget models that a stored output shows, under stable names."
    state = nb.metadata.pop("widgets", {}).get(STATE)
    if not state:
        return nb
    todo = [o["data"][VIEW]["model_id"] for c in nb.cells for o in c.get("outputs", []) if VIEW in o.get("data", {})]
    keep = []
    while todo:
        m = todo.pop(0)
        if m in keep or m not in state["state"]:
            continue
        keep.append(m)
        todo += re.findall(r"IPY_MODEL_(\w+)", json.dumps(state["state"][m]))
    if not keep:
        return nb
    nb.metadata["widgets"] = {STATE: {**state, "state": {m: state["state"][m] for m in keep}}}
    text = nbformat.writes(nb)
    for i, m in enumerate(keep):
        text = text.replace(m, f"{i:032x}")
    return nbformat.reads(text, 4)


def execute(path, cwd=None, timeout=1200, log=None):
    "Run the notebook at `path` and return it; nothing is written but what its kernel says, to the file `log`."
    path = pathlib.Path(path)
    nb = nbformat.read(path, 4)
    for c in nb.cells:
        c.metadata.pop("execution", None)
    client = NotebookClient(nb, timeout=timeout, kernel_name="python3", record_timing=False,
                            resources={"metadata": {"path": str(cwd or path.parent)}})
    client.execute(stderr=log or subprocess.DEVNULL)  # what a kernel says of itself; errors of cells are in the notebook
    return prune(nb)


def run(path, **kw):
    "Run the notebook at `path` and write its outputs back, cleaned."
    path = pathlib.Path(path)
    d = json.loads(nbformat.writes(execute(path, **kw)))
    clean_nb(d)
    path.write_text(json.dumps(d, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    for p in sys.argv[1:]:
        run(p)
