"""`python -m scaling_nb`: the functions of the package from a shell, and the Hydra example as its README says."""
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from scaling_nb.cli import load_object, main, parser

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("plan", "run", "status", "fit", "report", "submit")

STUDY = """
    import torch
    from torch import nn
    from scaling_nb import Problem, Recipe

    class MLP(nn.Module):
        def __init__(self, width, n_in=8, n_out=4):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(n_in, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, n_out))
        def forward(self, x): return self.layers(x)

    def problem():
        torch.manual_seed(0)
        X = torch.randn(20_000, 8); Y = (X @ torch.randn(8, 4)).argmax(-1)
        return Problem(MLP, "width", data=(X, Y), loss_fn=nn.CrossEntropyLoss())

    recipe = Recipe(batch_size=64)
    """


@pytest.fixture
def project(tmp_path):
    (tmp_path/"my_study.py").write_text(textwrap.dedent(STUDY))
    return tmp_path


def cli(folder, *args, **kw): return subprocess.run([sys.executable, "-m", "scaling_nb", *args], cwd=folder, capture_output=True, text=True, check=False, timeout=300, **kw)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_an_example_that_parses(command, capsys):
    with pytest.raises(SystemExit) as e: main([command, "--help"])
    said = capsys.readouterr().out
    example = re.search(r"example:\n  (python -m scaling_nb .*)", said)[1]
    assert e.value.code == 0 and parser().parse_args(shlex.split(example)[3:]).run
    assert example.split()[3] == command


def test_the_commands_are_these():
    assert re.findall(r"^    (\w+) ", parser().format_help(), re.M) == list(COMMANDS)


def test_from_plan_to_report(project):
    budgets = "--budgets 1e8 3e8 1e9 --sizes 8 16 32 64 128 256 --recipe my_study.py:recipe".split()
    plan = cli(project, "plan", "my_study.py:problem", *budgets)
    n = int(re.search(r"^(\d+) runs, .* FLOPs, about", plan.stdout, re.M)[1])
    assert plan.returncode == 0 and plan.stdout.startswith("SweepPlan of MLP(width)") and n > 12 and not (project/"runs").exists()
    done = cli(project, "run", "my_study.py:problem", *budgets, "--storage", "runs/first", "--mock")
    assert done.returncode == 0 and f"{n} SUCCEEDED" in done.stdout and done.stderr == ""
    light = """
        import sys
        from scaling_nb.cli import main
        for line in ("status runs/first", "status runs/first --watch", "fit runs/first", "fit runs/first --at 1e10 1e11", "report runs/first report.html --at 1e10"): assert main(line.split()) == 0
        print([m for m in ("torch", "ray") if m in sys.modules])
        """
    said = subprocess.run([sys.executable, "-c", textwrap.dedent(light)], cwd=project, capture_output=True, text=True, check=True).stdout
    assert said.count(f"{n} of {n} runs done") == 2 and "To spend 1.00e10 FLOPs" in said and "To spend 1.00e11 FLOPs" in said and "tokens_per_param" in said
    assert said.strip().endswith("report.html\n[]") and "<h2>The answer</h2>" in (project/"report.html").read_text()
    again = cli(project, "run", "my_study.py:problem", *budgets, "--storage", "runs/first", "--mock")
    assert "nothing was trained" in again.stdout


def arguments(line): return parser().parse_args(line.split())


def test_hours_and_dollars_from_a_shell(project, monkeypatch):
    from scaling_nb import cli
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "path", list(sys.path))
    line = "plan my_study.py:problem --target 1e13 --recipe my_study.py:recipe --hardware T4"
    try: _, by_hours = cli._planned(arguments(f"{line} --hours 3e-6 --slots 4")); _, by_dollars = cli._planned(arguments(f"{line} --dollars 2.4e-5 --price 2"))
    finally: sys.modules.pop("my_study", None)
    assert by_hours.spend_flops == pytest.approx(4*3e-6*3600*26e12) == by_dollars.spend_flops and by_hours.slots == 4
    assert by_dollars.hardware.dollars_per_hour == 2 and by_dollars.dollars <= 2.4e-5


@pytest.mark.parametrize("more", ["--target 1e13 --spend .2 --hardware measure", "--budgets 1e8 3e8 --hardware measure"])
def test_a_storage_is_planned_by_one_speed(more, project, monkeypatch):
    "A speed is noisy: were it measured by each process, the second `run` would plan, and train, other runs."
    import numpy as np

    from scaling_nb import cli, sweep
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "path", list(sys.path))
    speeds = iter(np.geomspace(3e9, 1e9, 20))
    monkeypatch.setattr(sweep, "measure_speed", lambda *a, **kw: float(next(speeds)))
    plans = []
    try:
        for storage in ("runs", "runs", "others"):
            monkeypatch.setattr(sweep, "_speeds", {})      # another process
            plans.append(cli._planned(arguments(f"run my_study.py:problem --recipe my_study.py:recipe {more} --storage {storage}"))[1])
    finally: sys.modules.pop("my_study", None)
    assert plans[0] == plans[1] and plans[0].hardware.flops > plans[2].hardware.flops


def test_submit_passes_what_it_is_asked(project, monkeypatch):
    from scaling_nb import jobs
    seen = []
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(jobs, "submit_study", lambda problem, plan, **kw: seen.append((plan, kw)))
    line = "submit my_study.py:problem --budgets 1e8 --sizes 8 16 --target 1e10 --storage runs --slots 3"
    try: assert [main(x.split()) for x in (f"{line} --rounds 5", line, f"{line} --hardware T4 --price 2")] == [0, 0, 0]
    finally: sys.modules.pop("my_study", None)
    assert [kw["rounds"] for _, kw in seen] == [5, 2, 2] and all(kw["resources"].slots == plan.slots == 3 for plan, kw in seen) and seen[2][0].dollars > 0


def test_errors_are_one_line(project):
    (project/"sub").mkdir()
    (project/"sub"/"json.py").write_text("problem = 1\n")
    some = " --budgets 1e8 --sizes 8 16 --storage s"
    for line, said in {
        "status nowhere": "There are no runs in nowhere", "fit nowhere": "A study must hold",
        "plan my_study:problem: --budgets 1": "must be named as file.py:name", "plan no.py:problem --budgets 1": "There is no file no.py",
        "plan no_module:problem --budgets 1": "There is no module no_module",
        "plan my_study.py:recipes --budgets 1": "It has MLP, Problem, Recipe, nn, problem, recipe, torch.", "plan sub/json.py:problem --budgets 1": "Give the file another name",
        "plan my_study:problem --budgets -1": "`budgets` must be positive", "run my_study:problem --slots 0" + some: "`slots` must be at least 1",
        "submit my_study:problem --address http://127.0.0.1:9" + some: "No Ray job server answers",
    }.items():
        p = cli(project, *line.split())
        assert p.returncode == 2 and p.stderr.startswith("error: ") and said in p.stderr and p.stderr.count("\n") == 1 and p.stdout == "", (line, p.stderr)
    assert cli(project, "guess").returncode == 2


def test_an_exception_in_the_users_file_keeps_its_traceback(project):
    (project/"broken.py").write_text("import torch\ndef shape(): return torch.zeros(3).reshape(2)\nproblem = shape()\n")
    p = cli(project, "plan", "broken.py:problem", "--budgets", "1e8")
    assert p.returncode == 1 and "broken.py\", line 2, in shape" in p.stderr and "broken.py could not be imported: RuntimeError" in p.stderr


def test_a_problem_or_a_function_that_makes_one(project, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "path", list(sys.path))
    try: assert load_object("my_study.py:problem").name == "MLP(width)" and load_object(f"{project}/my_study.py:recipe").batch_size == 64 and load_object("my_study:MLP").__name__ == "MLP"
    finally: sys.modules.pop("my_study", None)


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.cluster
@pytest.mark.timeout(400)
def test_run_is_paused_by_ctrl_c_and_goes_on(project):
    args = [sys.executable, "-m", "scaling_nb", *"run my_study.py:problem --budgets 1e9 --sizes 8 16 32 --recipe my_study.py:recipe --storage runs --slots 2".split()]
    p = subprocess.Popen(args, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        deadline = time.monotonic() + 120
        while not [f for f in project.glob("runs/*/metrics.jsonl") if f.stat().st_size]:
            assert p.poll() is None and time.monotonic() < deadline
            time.sleep(.1)
        p.send_signal(signal.SIGINT)
        said = p.communicate(timeout=60)[0]
    finally: p.kill()
    assert p.returncode == 130 and "Paused" in said and "Traceback" not in said, said
    again = cli(project, *args[3:])
    assert again.returncode == 0 and "3 SUCCEEDED" in again.stdout, again.stdout + again.stderr


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.cluster
@pytest.mark.timeout(400)
def test_the_hydra_example_runs_as_its_readme_says(tmp_path):
    pytest.importorskip("hydra")
    folder = tmp_path/"hydra"
    shutil.copytree(ROOT/"examples"/"hydra", folder, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    commands = re.findall(r"```sh\n(.*?)\n```", (folder/"README.md").read_text(), re.S)
    assert len(commands) == 3
    said = []
    for command in [*commands, commands[1]]:
        p = subprocess.run([sys.executable, *shlex.split(command)[1:]], cwd=folder, capture_output=True, text=True, check=False, timeout=300)
        assert p.returncode == 0, p.stdout + p.stderr
        said.append(p.stdout)
    assert all("To spend 1.00e11 FLOPs" in s for s in said) and [("mock:" in s) for s in said] == [True, False, True, False]
    assert "runs/other" in said[2] and "nothing was trained" in said[3] and said[3][said[3].index("Study of"):] == said[1][said[1].index("Study of"):]
    assert sorted(p.name for p in folder.iterdir() if p.name != "__pycache__") == ["README.md", "config.yaml", "runs", "study.py"]     # nor an `outputs` of Hydra's own


def test_the_hydra_example_rehearses(tmp_path):
    pytest.importorskip("hydra")
    folder = tmp_path/"hydra"
    shutil.copytree(ROOT/"examples"/"hydra", folder, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    command = re.findall(r"```sh\n(.*?)\n```", (folder/"README.md").read_text(), re.S)[0]
    p = subprocess.run([sys.executable, *shlex.split(command)[1:]], cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert p.returncode == 0 and "To spend 1.00e11 FLOPs" in p.stdout and "mock:" in p.stdout, p.stdout + p.stderr
