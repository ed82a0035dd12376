"""Start JupyterLab on loopback and drive it with Debian's Chromium: no network, no CDN, no browser download.

    with lab_server(folder) as url, browser() as chromium:
        nb = Notebook(chromium, url, "demo.ipynb")
        nb.run_all()

Commands go through `window.jupyterapp`, never through clicks on cells; waits are for states, never for seconds."""
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--disable-dev-shm-usage"]
SETTINGS = {  # what makes a headless run repeatable
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none", "autoStartDefaultKernel": True},
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
}
LOCAL = re.compile(r"(https?|wss?)://(127\.0\.0\.1|localhost)[:/]|data:|blob:|file:|about:")


def find_chromium():
    "Path of a Chromium on this machine, or None; the environment variable CHROMIUM wins."
    names = [os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome"]
    return next((path for n in names if n and (path := shutil.which(n))), None)


def _free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def lab_server(root, timeout=120, dark=False):
    "Run JupyterLab over the folder `root`; yields its URL; ends the whole process group, whatever happens."
    with tempfile.TemporaryDirectory(prefix="lab-") as tmp:
        tmp = pathlib.Path(tmp)
        settings = {**SETTINGS, "@jupyterlab/apputils-extension/themes": {"adaptive-theme": False, "theme": "JupyterLab Dark" if dark else "JupyterLab Light"}}
        for name, value in settings.items():
            f = tmp / "settings" / (name + ".jupyterlab-settings")
            f.parent.mkdir(parents=True, exist_ok=True)
            f.write_text(json.dumps(value))
        repo = str(pathlib.Path(__file__).parents[1])
        env = dict(os.environ, JUPYTER_CONFIG_DIR=str(tmp / "config"), JUPYTER_RUNTIME_DIR=str(tmp / "runtime"), JUPYTER_DATA_DIR=str(tmp / "data"),
                   JUPYTERLAB_SETTINGS_DIR=str(tmp / "settings"), JUPYTERLAB_WORKSPACES_DIR=str(tmp / "workspaces"), IPYTHONDIR=str(tmp / "ipython"),
                   PYTHONPATH=os.pathsep.join(p for p in (repo, os.environ.get("PYTHONPATH")) if p))
        port = _free_port()
        with open(tmp / "lab.log", "w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root", "--ServerApp.port_retries=0",
                 "--IdentityProvider.token=", f"--ServerApp.root_dir={root}", "--LabApp.expose_app_in_browser=True",
                 "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.news_url=None", "--LabApp.extension_manager=readonly"],
                stdout=log, stderr=subprocess.STDOUT, env=env, start_new_session=True)
            try:
                _wait_for(f"http://127.0.0.1:{port}/api/status", process, tmp / "lab.log", timeout)
                yield f"http://127.0.0.1:{port}"
            finally:
                for sig in (signal.SIGTERM, signal.SIGKILL):
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, sig)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(8)
                        break


def _wait_for(url, process, log, timeout):
    start = time.monotonic()
    while True:
        try:
            urllib.request.urlopen(url, timeout=2).read()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() - start > timeout:
                raise RuntimeError("JupyterLab did not start:\n" + log.read_text()[-4000:]) from None
            time.sleep(.1)


@contextlib.contextmanager
def browser():
    "A headless Chromium with a fresh profile."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find_chromium(), headless=True, args=FLAGS)
        try:
            yield chromium
        finally:
            chromium.close()


def local_page(chromium, **options):
    "A page that may talk to this machine only: `page.blocked` lists what it asked for elsewhere, `page.errors` what its console complained of."
    options.setdefault("viewport", dict(width=1280, height=1000))
    context = chromium.new_context(**options)
    page = context.new_page()
    page.blocked, page.errors = [], []

    def route(r):
        if LOCAL.match(r.request.url):
            r.continue_()
        else:
            page.blocked.append(r.request.url)
            r.abort()
    context.route("**/*", route)
    page.on("console", lambda m: page.errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: page.errors.append(str(e)))
    return page


CONTEXT = "window.jupyterapp.shell.currentWidget.context.sessionContext"


class Notebook:
    "One notebook open in JupyterLab."
    def __init__(self, chromium, url, name, **options):
        self.name, self.page = name, local_page(chromium, **options)
        self.page.set_default_timeout(60_000)
        self.page.goto(f"{url}/doc/tree/{name}?reset", wait_until="domcontentloaded")
        self.wait_open()

    def wait_open(self):
        "Until the notebook is shown and its kernel idle."
        self.page.wait_for_function("() => window.jupyterapp && window.jupyterapp.shell.currentWidget?.context?.isReady")
        self.page.wait_for_function(f"() => {{ const s = {CONTEXT}; return s.isReady && s.session?.kernel?.status == 'idle' }}")

    def command(self, name, args=None, wait=True):
        "A JupyterLab command; the promise of a run command resolves when its cells have finished."
        return self.page.evaluate("([n, a, w]) => { const p = window.jupyterapp.commands.execute(n, a).then(() => null); return w ? p : null }", [name, args or {}, wait])

    def run(self, *cells, wait=True):
        "Run cells by number (a click inside an output moves the active cell, so nothing may rest on that)."
        for i in cells:
            self.page.evaluate("i => { window.jupyterapp.shell.currentWidget.content.activeCellIndex = i }", i)
            self.command("notebook:run-cell", wait=wait)

    def run_all(self):
        self.command("notebook:run-all-cells")
        self.wait_idle()

    def wait_idle(self, timeout=120):
        "Until no cell is queued or running and the kernel is idle."
        self.page.wait_for_function(f"""() => {CONTEXT}.session.kernel.status == 'idle' &&
            !window.jupyterapp.shell.currentWidget.content.widgets.some(c => c.model.type == 'code' && c.model.executionState == 'running')""", timeout=timeout * 1000)

    def running(self, cell):
        "Is the code cell still running? (The kernel's status is no witness: a message from another thread sets it to idle.)"
        return self.page.evaluate("i => window.jupyterapp.shell.currentWidget.content.widgets[i].model.executionState == 'running'", cell)

    def outputs(self, cell):
        return self.page.locator(".jp-Cell.jp-CodeCell").nth(cell).locator(".jp-OutputArea-output")

    def save(self):
        self.command("docmanager:save")

    def close(self):
        with contextlib.suppress(Exception):   # the kernel may be gone already, and that is what we want
            self.page.evaluate(f"() => {CONTEXT}.shutdown()")
        self.page.context.close()
