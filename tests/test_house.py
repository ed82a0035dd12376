"""The house: one source of versions, who may import whom, a light import, a whole wheel."""
import ast
import configparser
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT/"scaling_nb"
RUNNING = {"contracts", "flops", "recipes", "hardware", "sweep", "records", "training", "parallel", "cluster", "decisions", "scheduling"}
LAW = {"laws", "engine", "fitting", "isoflop", "intervals", "yardsticks", "doubts", "allocation", "choices", "comparison"}
ORDER = {  # module -> what it may import of the package
    "showing": set(),
    "contracts": {"showing"}, "flops": {"contracts", "showing"}, "recipes": {"contracts", "showing"}, "hardware": {"showing"}, "sweep": {"contracts", "flops", "recipes", "hardware", "showing"},
    "records": {"contracts", "flops", "sweep", "showing"},
    "training": {"contracts", "flops", "recipes", "sweep", "records", "showing"}, "parallel": {"contracts", "records", "training"},
    "cluster": {"showing"}, "decisions": {"showing"}, "scheduling": {"contracts", "cluster", "decisions", "recipes", "sweep", "records", "showing"},
    "laws": {"showing"}, "engine": set(), "fitting": {"laws", "engine", "showing"}, "isoflop": {"laws", "fitting", "showing"}, "intervals": {"laws", "engine", "fitting", "isoflop"},
    "tuning": {"contracts", "flops", "recipes", "sweep", "records", "isoflop", "showing"},   # it trains and fits: above both halves, as a study is
    "yardsticks": {"isoflop", "showing"}, "doubts": {"laws", "engine", "fitting", "isoflop", "intervals", "yardsticks"},
    "allocation": {"laws", "fitting", "isoflop", "intervals", "yardsticks", "doubts", "showing"}, "choices": {"laws", "fitting", "intervals", "yardsticks", "allocation", "showing"},
    "design": {*LAW},   # above both halves: plans ask it, and it fits
    "comparison": {"laws", "fitting", "intervals", "yardsticks", "allocation", "showing"},
    "card": {"laws", "intervals", "recipes", "records"},   # it reads what both halves left, as a study does
    "charts": {"sweep", "records", *LAW}, "views": set(), "widgets": {"views", "charts", "decisions", "sweep", "records", *LAW},
    "fit_view": {"charts", "views", *LAW}, "plan_view": {"charts", "views", "sweep", "hardware", *LAW},
    "study": {"charts", "widgets", "sweep", "records", "contracts", "flops", "recipes", "hardware", "rounds", *LAW, "showing"},
    "rounds": {"contracts", "recipes", "sweep", "records", "laws", "design", "showing"},
    "jobs": {"contracts", "recipes", "records", "study", "sweep"}, "cli": set(),
    "zoo.gpt": {"flops"}, "zoo.data": set(), "zoo.stateless": {"zoo.data"}, "zoo.images": {"zoo.stateless"}, "zoo.vit": {"zoo.gpt"},
    "zoo.teacher": {"zoo.gpt", "zoo.stateless"}, "zoo.hub": {"zoo.data"},
}


def settings():
    c = configparser.ConfigParser(delimiters=["="], interpolation=None)
    c.read(ROOT/"settings.ini")
    return c["DEFAULT"]


def modules(): return {str(p.relative_to(PACKAGE).with_suffix("")).replace(os.sep, "."): p for p in PACKAGE.rglob("*.py") if not p.name.startswith("_")}


def top_level_imports(path):
    "(names of package modules, names of outside packages) imported when the module is."
    own, outside = set(), set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level:   # two dots: from the folder above
            folder = path.relative_to(PACKAGE).parts[:-1]
            own.add(".".join([*folder[:len(folder) + 1 - node.level], node.module]))
        elif isinstance(node, ast.ImportFrom): outside.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import): outside |= {a.name.split(".")[0] for a in node.names}
    return own, outside


def test_who_may_import_whom():
    assert set(modules()) == set(ORDER), "a new module needs its place in this table"
    for name, path in modules().items():
        own, outside = top_level_imports(path)
        assert own <= ORDER[name], f"{name} must not import {own - ORDER[name]}"
        if name not in ("training", "parallel") and not name.startswith("zoo"): assert not outside & {"torch", "ray"}, f"{name} must not import torch or ray at module level"
        assert not outside & {"nbdev", "fastcore", "datasets", "torchvision"}, name
        if name in LAW: assert outside <= {"numpy", "scipy", "pandas", *sys.stdlib_module_names}, f"{name} imports {outside}"


def test_the_halves_meet_in_storage_only():
    for name, path in modules().items():
        text = path.read_text()
        other = LAW if name in RUNNING else RUNNING if name in LAW else set()
        for module in other: assert not re.search(rf"from \.{module} import|scaling_nb\.{module}\b", text), f"{name} reaches into {module}"


def run(code, **kw): return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, **kw).stdout


def test_import_is_light():
    loaded = run("import sys, scaling_nb; scaling_nb.__version__; print([m for m in ('torch', 'ray', 'altair', 'pandas', 'numpy', 'scipy', 'IPython') if m in sys.modules])")
    assert loaded.strip() == "[]"


def test_every_public_name_is_there():
    assert run("import scaling_nb\nfor n in scaling_nb.__all__: getattr(scaling_nb, n)\nprint('ok')").strip() == "ok"
    assert run("import scaling_nb\ntry: scaling_nb.nonsense\nexcept AttributeError as e: print(e)").strip() == "module 'scaling_nb' has no attribute 'nonsense'"


def test_a_fit_needs_neither_torch_nor_ray():
    code = """
import sys
for m in ('torch', 'ray'): sys.modules[m] = None          # an import of them would raise
import numpy as np
from scaling_nb import ChinchillaLaw, fit_law
law = ChinchillaLaw(1.69, 406.4, 410.7, .34, .28)
C = np.repeat([1e18, 1e19, 1e20], 7); N = np.concatenate([law.optimum(c)[0]*np.geomspace(1/8, 4, 7) for c in C[::7]])
print(round(fit_law(N, C/(6*N), law.loss(N, C/(6*N))).law.alpha, 6))
import scaling_nb.study, scaling_nb.charts, scaling_nb.widgets
"""
    assert run(code).strip() == "0.34"


def test_environment_agrees_with_settings():
    lines = [x.strip().removeprefix("- ") for x in (ROOT/"environment.yml").read_text().splitlines()]
    assert set(settings()["requirements"].split()) <= set(lines)
    assert f"python>={settings()['min_python']}" in lines
    assert len([x for x in lines if re.match(r"[a-z]", x) and ":" not in x]) == len(settings()["requirements"].split()) + 3   # and conda-forge, python, pip


def test_constraints_satisfy_settings():
    from packaging.requirements import Requirement
    pins = {}
    for line in (ROOT/"constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            r = Requirement(line)
            if r.marker is None or r.marker.evaluate(): pins[r.name.lower().replace("_", "-")] = next(iter(r.specifier)).version
    for q in settings()["requirements"].split() + settings()["dev_requirements"].split():
        r = Requirement(q)
        assert r.name.lower() in pins, f"{r.name} is not pinned in constraints.txt"
        assert r.specifier.contains(pins[r.name.lower()]), f"{q} but constraints.txt pins {pins[r.name.lower()]}"


def test_version_is_that_of_settings():
    assert run("import scaling_nb; print(scaling_nb.__version__)").strip() == settings()["version"]


def test_exported_modules_are_in_step_with_their_notebooks(tmp_path):
    "`make test` runs tools/check_tree.py before; here we see that it notices."
    src = tmp_path/"repo"
    subprocess.run(["cp", "-r", *[str(ROOT/n) for n in ("settings.ini", "setup.py", "pyproject.toml", "nbs", "scaling_nb", "tools", "README.md")], "."], cwd=_made(src), check=True)
    check = lambda: subprocess.run([sys.executable, "tools/check_tree.py"], cwd=src, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(src)})
    first = check()
    assert first.returncode == 0, first.stdout + first.stderr
    module = src/"scaling_nb"/"laws.py"
    module.write_text(module.read_text() + "\n# edited by hand\n")
    again = check()
    assert again.returncode == 1 and "scaling_nb/laws.py" in again.stdout


def _made(p): p.mkdir(parents=True); return p


def _parent(p): p.parent.mkdir(parents=True, exist_ok=True); return p


def test_wheel_and_source_archive_hold_everything(tmp_path):
    "The archive, made as `python -m build` makes it; then the wheel, out of the archive."
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split("\0")
    for f in filter(None, files) if len(files) > 1 else [str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if p.is_file() and ".venv" not in p.parts]:
        if (ROOT/f).exists(): (_parent(tmp_path/"src"/f)).write_bytes((ROOT/f).read_bytes())
    build = "import sys, setuptools.build_meta as b; print(b.build_sdist(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=tmp_path/"src", check=True, capture_output=True)
    archive = next(tmp_path.glob("*.tar.gz"))
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(archive)], check=True, capture_output=True)
    with tarfile.open(archive) as t: shipped = {n.partition("/")[2] for n in t.getnames()}
    wheel = next(tmp_path.glob("*.whl"))
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {str(p.relative_to(ROOT)) for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in str(p)}
    assert wanted <= names, wanted - names
    assert wanted | {"LICENSE", "README.md", "settings.ini", "setup.py", "pyproject.toml", "CHANGELOG.md", "nbs/index.ipynb", "tests/test_laws.py"} <= shipped
    named = {"Makefile", "environment.yml", "constraints.txt", "CONTRIBUTING.md",
             "tools/demo.py", "tools/browser.sh", "docs/conf.py", "docs/_static/logo.svg", "examples/hydra/study.py", "benchmarks/fit.py"}
    assert named <= shipped, named - shipped
    assert "scaling_nb/py.typed" in names and any(n.endswith("/LICENSE") for n in names) and not [n for n in names if not n.startswith("scaling_nb")]
    meta = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith("METADATA"))).decode()
    assert f"Version: {settings()['version']}" in meta and "Requires-Dist: nbdev" in meta and 'extra == "dev"' in meta and "Requires-Python: >=3.10" in meta
    relative = [x for x in re.findall(r'\]\(([^)\s]+)|(?:src|srcset)="([^"]+)', meta) if not "".join(x).startswith("https://")]
    assert "/blob/main/CONTRIBUTING.md)" in meta and "/raw/main/docs/_static/" in meta and "Project-URL: Changelog" in meta and not relative, relative


def test_the_version_is_semantic_and_in_the_changelog():
    version = settings()["version"]
    assert re.fullmatch(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)", version)
    assert re.findall(r"^## (\S+?),? ", (ROOT/"CHANGELOG.md").read_text(), re.M)[0].rstrip(",") == version


def test_what_the_package_ships_has_a_licence():
    "All that is not a module was written here; a script of others would need its own licence beside it."
    others = sorted(str(p.relative_to(PACKAGE)) for p in PACKAGE.rglob("*") if p.is_file() and p.suffix != ".py" and "__pycache__" not in str(p))
    assert others == ["py.typed", "static/fit.js", "static/live.js", "static/look.css", "static/parts.js", "static/plan.js", "static/plot.js"], "say in docs/licences.md where it comes from"
    assert "static/*.js" in (ROOT/"docs"/"licences.md").read_text()


def test_no_stored_output_has_an_error_a_path_or_a_url_to_a_cdn():
    for nb in (ROOT/"nbs").rglob("*.ipynb"):
        if "checkpoint" in str(nb) or "outputs" in nb.parts: continue
        text = json.dumps([c.get("outputs", []) for c in json.loads(nb.read_text())["cells"]])
        for bad in ("cdn.jsdelivr", "unpkg.com", "/work/", "/home/", "/tmp/", '"output_type": "error"'): assert bad not in text, f"{nb.name} stores {bad}"


@pytest.mark.parametrize("target", ["demo", "test", "lab"])   # and those of CONTRIBUTING.md
def test_readme_commands_are_make_targets(target):
    assert f"make {target}" in (ROOT/"README.md").read_text() and re.search(rf"^{target}:", (ROOT/"Makefile").read_text(), re.M)


def test_contributing_names_make_targets_and_files_that_are_there():
    text = (ROOT/"CONTRIBUTING.md").read_text()
    for target in re.findall(r"make ([a-z-]+)", text): assert re.search(rf"^{target}:", (ROOT/"Makefile").read_text(), re.M), target
    for name in re.findall(r"`((?:nbs|tests|tools|benchmarks|docs|examples|scaling_nb)/[\w/.]*)(?:::\w+)?`", text): assert (ROOT/name).exists(), name
    tests = re.findall(r"`(tests/\w+\.py)::(\w+)`", text)
    for file, name in tests: assert re.search(rf"^ *(def|class) {name}\b", (ROOT/file).read_text(), re.M), f"{file} has no {name}"
    recipes = re.split(r"^### (A \w+.*)$", text, flags=re.M)[1:]
    for title, body in zip(recipes[::2], recipes[1::2]): assert title == "A page" or "::" in body, f"{title}: name the test that holds its contract"
