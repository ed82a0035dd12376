"""A newcomer: an empty folder, the wheel in an environment of its own, the README's code pasted, the answer read. Nothing of the repository is in reach."""
import ast
import builtins
import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
from executed import first_difference  # noqa: E402

from scaling_nb.laws import sci_format  # noqa: E402

ALONE = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
THEIRS = {"GPT", "train", "val", "loss_fn"}  # what the README leaves to the reader: a model, data, a loss


def wheel(where):
    "The wheel, built from a copy of the sources."
    (where / "src").mkdir()
    subprocess.run(["cp", "-r", *[str(ROOT / n) for n in ("settings.ini", "setup.py", "pyproject.toml", "scaling_nb", "README.md", "LICENSE")], "."], cwd=where / "src", check=True)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(where), str(where / "src")], check=True, capture_output=True)
    return next(where.glob("*.whl"))


def blocks():
    "(code, what is printed below it, or None) of the README."
    found = re.findall(r"```python\n(.*?)\n```(?:\n\n```\n(.*?)\n```)?", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    return [(code, printed or None) for code, printed in found]


def strangers(code, known):
    "(names that `code` takes from nowhere, names that it makes)"
    nodes = list(ast.walk(ast.parse(code)))
    made = {n.id for n in nodes if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
    made |= {a.asname or a.name.split(".")[0] for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names}
    made |= {n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef))} | {n.arg for n in nodes if isinstance(n, ast.arg)}
    return {n.id for n in nodes if isinstance(n, ast.Name)} - made - known - set(dir(builtins)), made


def test_the_readme_leaves_nothing_to_the_reader_but_their_own():
    known, whole = set(), 0
    for code, _ in blocks():
        missing, made = strangers(code, known)
        assert missing <= THEIRS, f"{missing - THEIRS} come from nowhere in:\n{code}"
        known |= set() if missing else made
        whole += not missing
    assert whole >= 2


def table():
    "A table of runs such as a newcomer has, as CSV: three budgets, seven sizes each."
    rows = [(x * (C / 30) ** .5, 5 / x * (C / 30) ** .5) for C in (1e18, 1e19, 1e20) for x in (.3, .5, .8, 1.2, 2, 3, 5)]
    return "params,tokens,loss\n" + "\n".join(f"{N},{D},{1.69 + 406.4 / N ** .34 + 410.7 / D ** .28}" for N, D in rows)


def newcomer(where, python):
    "Paste what can be pasted into one session, as a notebook would run it: (where the package came from, [(code, what the README shows, what was shown)])"
    (where / "runs.csv").write_text(table())
    known, pasted = set(), []
    for code, printed in blocks():
        missing, made = strangers(code, known)
        if not missing:
            known |= made
            pasted.append((code, printed))
    session = f"""
import ast, contextlib, io, json
names, shown = {{}}, []
for code in {[c for c, _ in pasted]!r}:
    out, tree = io.StringIO(), ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(out):
        exec(compile(tree, "README", "exec"), names)
        value = eval(compile(ast.Expression(last.value), "README", "eval"), names) if last is not None else None
    shown.append(out.getvalue() + ("" if value is None else repr(value)))
import scaling_nb
print(json.dumps([scaling_nb.__file__, shown]))
"""
    p = subprocess.run([str(python), "-c", session], cwd=where, env=ALONE, capture_output=True, text=True, check=False)
    assert p.returncode == 0, p.stderr[-3000:]
    home, shown = json.loads(p.stdout.splitlines()[-1])
    return Path(home), [(code, printed, said) for (code, printed), said in zip(pasted, shown)]


def judge(place, home, found):
    assert home.is_relative_to(place), f"the package came from {home}"
    assert any(printed for _, printed, _ in found), "the README shows no answer below code that can be pasted"
    for code, printed, said in found:
        assert printed is None or first_difference(printed, said) is None, f"{code}\n\nREADME: {printed}\n\nshown: {said}"


def test_from_an_empty_folder_to_the_answer(tmp_path):
    "The package from its wheel; what it needs, from the environment of the tests."
    place, work = tmp_path / "venv", tmp_path / "empty"
    work.mkdir()
    venv.create(place, with_pip=False, symlinks=True)
    python = place / "bin" / "python"
    inside = Path(subprocess.run([str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], capture_output=True, text=True, check=True).stdout.strip())
    needs = dict.fromkeys([sysconfig.get_paths()["purelib"], *(p for p in sys.path if p.endswith("site-packages"))])
    (inside / "needs.pth").write_text("\n".join(needs))  # folders named so are searched; what is editable in them is not
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", str(inside), str(wheel(tmp_path))], check=True, capture_output=True)
    judge(place, *newcomer(work, python))
    said = subprocess.run([str(python), "-m", "scaling_nb", "--help"], cwd=work, capture_output=True, text=True, check=False, env=ALONE)
    assert said.returncode == 0 and "usage" in said.stdout.lower()


@pytest.mark.parametrize("ink", ["light", "dark"])
def test_the_picture_shows_the_example_and_nothing_from_elsewhere(ink):
    import picture

    readme, drawn = (ROOT / "README.md").read_text(encoding="utf-8"), (ROOT / "docs" / "_static" / f"welcome-{ink}.svg").read_text(encoding="utf-8")
    size, interval = re.search(r"N\*\s+(\S+) parameters\s+\(90 %: (.*?);", readme).groups()
    title, about, *_ = picture.says(*picture.runs())
    assert f"{size} parameters (90 %: {interval})" in title and title in drawn and about in drawn, "draw it again: python tools/picture.py"
    assert f"docs/_static/welcome-{ink}.svg" in readme and len(drawn) < 80_000
    assert set(re.findall(r"https?://[^\"<>\s]+", drawn)) == {"http://www.w3.org/2000/svg"} and not re.search(r"<(script|image|style|foreignObject)", drawn)


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(2400)
def test_the_wheel_and_all_it_asks_for_then_the_quickstart(tmp_path):
    "As `pip install` of the wheel does it, with the versions that CI ran; the quickstart's cells, pasted into a file."
    place, work = tmp_path / "venv", tmp_path / "empty"
    work.mkdir()
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), str(wheel(tmp_path))], cwd=work, env=ALONE, check=True)
    judge(place, *newcomer(work, python))
    cells = [c.source for c in nbformat.read(ROOT / "nbs" / "guides" / "quickstart.ipynb", 4).cells if c.cell_type == "code"]
    (work / "quickstart.py").write_text("\n\n".join(cells) + "\n\nprint(answer)\n")
    p = subprocess.run([str(python), "quickstart.py"], cwd=work, env=ALONE, capture_output=True, text=True, check=False)
    assert p.returncode == 0, p.stdout[-2000:] + p.stderr[-3000:]
    target = float(re.search(r"^target = (\S+)$", "\n".join(cells), re.M)[1])
    assert f"To spend {sci_format(target)} FLOPs" in p.stdout and re.search(r"N\*\s+[\d.]+k parameters", p.stdout)
