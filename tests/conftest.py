"""Shared fixtures. Those of the browser start nothing until a test asks for them."""
import os
import signal
import sys
import threading

import nbformat
import pytest

sys.path.insert(0, os.path.dirname(__file__))
os.environ.setdefault("OMP_NUM_THREADS", "1")   # before torch is imported: threads of tiny models that wait for each other on busy cores cost several times the work
os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])   # commands of this Python, such as `ray`, whether or not its environment is activated


def pytest_configure(config):
    if threading.current_thread() is threading.main_thread():   # a time limit sends SIGTERM: leave through `finally`, so that no server or browser stays behind
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


@pytest.hookimpl(tryfirst=True)   # before xdist looks for the groups
def pytest_collection_modifyitems(items):
    """For two processes (`pytest -n 2 --dist loadgroup`).

    What starts Ray, a browser or a whole demo stays in one and begins first; what starts clusters of its own stays in one, too, and comes last; all else is shared out."""
    if items and not hasattr(items[0], "_nodeid"): raise pytest.UsageError("pytest-xdist 3.8 groups tests by an attribute that this pytest does not have; pytest<9.2 has it")
    heavy = [i for i in items if any(i.get_closest_marker(m) for m in ("ray", "browser", "slow"))]
    clusters = [i for i in heavy if i.get_closest_marker("cluster")]
    for item in heavy: item.add_marker(pytest.mark.xdist_group("cluster" if item in set(clusters) else "machine"))
    items[:] = [i for i in heavy if i not in set(clusters)] + [i for i in items if i not in set(heavy)] + clusters


@pytest.fixture
def one_thread():
    "Tiny models are slower on two threads than on one, by far when the other core is busy; and on one their losses are the same to the bit."
    import torch
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


@pytest.fixture(scope="session")
def chromium():
    "One browser for the whole run."
    import labdriver
    if labdriver.find_chromium() is None:
        why = "no Chromium on this machine: `apt-get install chromium` (or name one in the environment variable CHROMIUM)"
        pytest.fail(why) if os.environ.get("CI", "").lower() == "true" else pytest.skip(why)
    pytest.importorskip("playwright")
    with labdriver.browser() as b:
        yield b


@pytest.fixture(scope="session")
def lab(chromium, tmp_path_factory):
    "One JupyterLab for the whole run: (url, folder)."
    import labdriver
    folder = tmp_path_factory.mktemp("lab")
    with labdriver.lab_server(folder) as url:
        yield url, folder


@pytest.fixture
def notebook(lab, chromium, request):
    "`notebook(cell, cell, ...)` writes a notebook and opens it; its kernel is shut down afterwards. Screenshots go to the folder named in SHOTS."
    import labdriver
    url, folder = lab
    opened = []

    def make(*cells, **options):
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells],
                                      metadata=dict(kernelspec=dict(display_name="python3", language="python", name="python3")))
        name = f"{request.node.name}-{len(opened)}.ipynb"
        nbformat.write(nb, folder / name)
        opened.append(labdriver.Notebook(chromium, url, name, **options))
        opened[-1].file = folder / name
        return opened[-1]
    yield make
    for nb in opened:
        try:
            if os.environ.get("SHOTS"):
                os.makedirs(os.environ["SHOTS"], exist_ok=True)
                nb.page.screenshot(path=os.path.join(os.environ["SHOTS"], nb.name + ".png"))
        finally:
            nb.close()
