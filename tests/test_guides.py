"""The guides run from top to bottom as a newcomer would run them. (The quickstart is the demo: tests/test_demo.py.)"""
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared" / "data" / "chinchilla_figure4.csv"


def executed(name, tmp_path, **replaced):
    "The guide after a run, with the first line of some cells replaced"
    nb = nbformat.read(ROOT / "nbs" / "guides" / f"{name}.ipynb", 4)
    for old, new in replaced.items():
        cells = [c for c in nb.cells if c.cell_type == "code" and c.source.startswith(f"{old} =")]
        assert len(cells) == 1
        cells[0].source = f"{old} = {new!r}"
    NotebookClient(nb, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    return nb


def text_of(nb):
    return "\n".join(o.get("text", "") or o.get("data", {}).get("text/plain", "") for c in nb.cells if c.cell_type == "code" for o in c.outputs)


@pytest.mark.timeout(400)
def test_fit_your_own_runs(tmp_path):
    said = text_of(executed("fit_your_own_runs", tmp_path))
    assert "242 used, 1 dropped: row 40" in said and "the outer: True" in said and "converged" in said


@pytest.mark.timeout(400)
def test_fit_your_own_runs_on_the_real_table(tmp_path):
    if not REAL.exists():
        pytest.skip("chinchilla_figure4.csv is not beside this checkout")
    said = text_of(executed("fit_your_own_runs", tmp_path, path=str(REAL)))
    assert "245 runs" in said and "the window of compute" in said
