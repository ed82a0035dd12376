"""Install the lowest versions that settings.ini admits and see the package work with them: python tools/lowest.py [--python python3.11] [--torch 2.4.0]

Fits, plans and stores are tested with their own tests, then a tiny sweep trains under Ray. PyTorch is the one of constraints.txt unless
another is named: old ones come with 3 GB of CUDA. Takes a few minutes and an environment of its own in --venv."""
import argparse
import configparser
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = [f"tests/test_{n}.py" for n in ("laws", "engine", "fitting", "isoflop", "intervals", "allocation", "doubts", "contracts", "recipes", "sweep", "records", "charts", "study")]
TOOLS = ["pytest<9.2", "pytest-timeout", "pytest-xdist", "hypothesis", "nbclient", "ipykernel", "pyarrow<18"]  # a pyarrow that knows the old NumPy
SWEEP = '''
from scaling_nb import Problem, plan_sweep, run_sweep
import torch

class MLP(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(8, width), torch.nn.ReLU(), torch.nn.Linear(width, 2))
    def forward(self, x): return self.layers(x)

if __name__ == "__main__":
    g = torch.Generator().manual_seed(0)
    X = torch.randn(4000, 8, generator=g)
    data = torch.utils.data.TensorDataset(X, (X[:, 0] * X[:, 1] > 0).long())
    problem = Problem(MLP, "width", data=data, val_data=torch.utils.data.TensorDataset(*(t[:500] for t in data.tensors)), loss_fn=torch.nn.functional.cross_entropy)
    plan = plan_sweep(problem, budgets=[3e7], sizes=[8, 16, 32])
    runs = run_sweep(problem, plan, storage="runs")
    frame = runs.frame
    assert len(frame) == len(plan.specs) >= 3 and frame.loss.notna().all(), frame
    print(len(frame), "runs trained, the lowest loss", round(float(frame.loss.min()), 3))
'''


def lowest(torch=None):
    "Requirements at their lower bounds, as pip takes them."
    config = configparser.ConfigParser(delimiters=["="], interpolation=None)
    config.read(ROOT / "settings.ini")
    pins = [re.sub(r">=([\d.]+).*", r"==\1", r) for r in config["DEFAULT"]["requirements"].split()]
    pinned = re.search(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(), re.M)[1]
    return [f"torch=={torch or pinned}" if p.startswith("torch==") else p for p in pins]


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--python", default=sys.executable, help="an interpreter; 3.10 is the lowest")
    args.add_argument("--torch", help="a version of PyTorch, such as 2.4.0")
    args.add_argument("--venv", type=Path, help="where the environment is made, and kept; a folder that goes away when not given")
    args = args.parse_args()
    with tempfile.TemporaryDirectory(prefix="lowest-") as tmp:
        venv = args.venv or Path(tmp) / "venv"
        say = lambda *a: print("::", *a, flush=True)
        run = lambda *a, **kw: subprocess.run([str(x) for x in a], check=True, **kw)
        if not (venv / "bin" / "python").exists():
            run(args.python, "-m", "venv", venv)
        python = venv / "bin" / "python"
        env = {**os.environ, "PYTHONPATH": "", "PATH": os.pathsep.join([str(venv / "bin"), os.environ["PATH"]])}
        say(*lowest(args.torch))
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *lowest(args.torch), *TOOLS, env=env)
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", ROOT, env=env)
        say("the tests of fits, plans and stores")
        run(python, "-m", "pytest", "-q", "-m", "not ray and not browser and not long and not slow", *TESTS, cwd=ROOT, env=env)
        say("a tiny sweep")
        (Path(tmp) / "sweep.py").write_text(SWEEP)
        run(python, "sweep.py", cwd=tmp, env=env)
        say("works with the lowest versions")


if __name__ == "__main__":
    main()
