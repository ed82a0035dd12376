"""What the live view costs the browser: python benchmarks/widgets.py [seconds]

200 runs of 500 points that all move, shown at 1 Hz in a real JupyterLab: by RunView, and the obvious way,
a JupyterChart whose `.chart` is assigned anew: with all points, and with as few as RunView sends.
Main thread: CDP's TaskDuration over the wall time. Gap: the longest time between two frames of the page. Bytes: what came through the kernel's websocket, over the updates."""
import base64
import os
import pathlib
import sys
import tempfile
import time

import nbformat

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))
import labdriver

SETUP = f"""
import json, subprocess, sys, threading, time
sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
import altair as alt, pandas as pd
from pathlib import Path
from streaming import WRITER
from scaling_nb.records import open_storage
from scaling_nb.widgets import RunTail, RunView, RunWidget
storage = open_storage("runs")
for i in range(200):
    storage.write_json(f"run{{i:03}}", "spec.json", dict(budget=1e12 * 2 ** (i % 5), size=2 ** (i // 5 % 8 + 3), N=10**5 * 2 ** (i // 5 % 8), D=600_000, flops_per_token=6e5, seed=0))
    storage.write_json(f"run{{i:03}}", "attempt.json", dict(attempt=1, started=time.time()))
    rows = [json.dumps(dict(step=s, tokens=s * 1000, loss=(5 + i / 200) / s**.1, t=time.time(), attempt=1)) for s in range(1, 500)]
    Path(storage.path(f"run{{i:03}}", "metrics.jsonl")).write_text("\\n".join(rows) + "\\n")
writer = subprocess.Popen([sys.executable, "-c", WRITER, "runs", "200"])
"""
OURS = "view = RunView(storage, hz=1).show()"
OBVIOUS = """
alt.JupyterChart.enable_offline()
alt.data_transformers.disable_max_rows()
tail = RunTail(storage, keep=500)
def chart():
    tail.poll()
    f = tail.curves()
    if POINTS: f = f[f.groupby("run_id").cumcount() % max(1, len(f) // 200 // POINTS) == 0]
    x, y = alt.X("tokens", scale=alt.Scale(type="log")), alt.Y("loss", scale=alt.Scale(type="log", zero=False))
    return alt.Chart(f[["run_id", "budget", "tokens", "loss"]]).mark_line().encode(x, y, color="budget:N", detail="run_id")
live = alt.JupyterChart(chart())
def follow():
    while True:
        start = time.monotonic()
        live.chart = chart()
        time.sleep(max(0, 1 - (time.monotonic() - start)))
threading.Thread(target=follow, daemon=True).start()
live
"""
GAPS = "() => { window.gap = 0; let last = performance.now(); const f = t => { window.gap = Math.max(window.gap, t - last); last = t; requestAnimationFrame(f) }; requestAnimationFrame(f) }"


def measure(chromium, url, folder, name, code, ready, seconds):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in (SETUP, code)], metadata=dict(kernelspec=dict(display_name="python3", language="python", name="python3")))
    nbformat.write(nb, folder / "b.ipynb")
    notebook = labdriver.Notebook(chromium, url, "b.ipynb")
    page = notebook.page
    try:
        notebook.run(0, 1)
        page.wait_for_function(ready)
        page.evaluate("() => document.querySelectorAll('.jp-Cell')[1].scrollIntoView()")   # what is out of sight is not painted
        page.wait_for_timeout(6000)                                                        # the first embedding is over
        cdp, frames = page.context.new_cdp_session(page), []
        cdp.send("Performance.enable")
        cdp.send("Network.enable")
        size = lambda r: len(r["payloadData"]) if r["opcode"] == 1 else len(base64.b64decode(r["payloadData"]))
        cdp.on("Network.webSocketFrameReceived", lambda m: frames.append(size(m["response"])))
        task = lambda: next(m["value"] for m in cdp.send("Performance.getMetrics")["metrics"] if m["name"] == "TaskDuration")
        page.evaluate(GAPS)
        before, start = task(), time.monotonic()
        frames.clear()
        page.wait_for_timeout(1000 * seconds)
        wall, used, n = time.monotonic() - start, task() - before, sum(f > 10_000 for f in frames)
        print(f"{name}: {used / wall:.0%} of the main thread, {sum(frames) / max(n, 1) / 1000:.1f} kB an update, longest gap {page.evaluate('() => window.gap'):.0f} ms, "
              f"{n} updates came in {wall:.0f} s", flush=True)
    finally:
        notebook.close()


def main(seconds=20.0):
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    drawn = "() => document.querySelector('.jp-OutputArea-output canvas, .jp-OutputArea-output svg.marks')"
    with labdriver.browser() as chromium:
        for name, code, ready in (("RunView", OURS, "() => +document.querySelector('.snb-run')?.dataset.rows > 4000"),
                                  ("JupyterChart, thinned", "POINTS = 35" + OBVIOUS, drawn), ("JupyterChart, all points", "POINTS = 0" + OBVIOUS, drawn)):
            with tempfile.TemporaryDirectory() as folder, labdriver.lab_server(folder) as url:
                measure(chromium, url, pathlib.Path(folder), name, code, ready, seconds)


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
