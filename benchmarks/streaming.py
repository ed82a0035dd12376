"""What it costs to follow 200 runs that train: python benchmarks/streaming.py

A process of its own writes a line to each of 200 metrics files twice a second; the driver's share of a core is its CPU time over the wall time.
The view (text, and the widget's half that runs in the kernel) and the desk are measured apart."""
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from scaling_nb.records import open_storage
from scaling_nb.widgets import RunView, RunWidget

WRITER = """
import json, sys, time
files = [open(f"{sys.argv[1]}/run{i:03}/metrics.jsonl", "a") for i in range(int(sys.argv[2]))]
step = 500
while True:
    start = time.time(); step += 1
    for f in files: f.write(json.dumps(dict(step=step, tokens=step * 1000, loss=5 / step ** .1, lr=.01, t=time.time(), attempt=1)) + "\\n"); f.flush()
    time.sleep(max(0, .5 - (time.time() - start)))
"""


def share(seconds, work=lambda: time.sleep(.01)):
    "CPU time of this process over the wall time."
    wall, cpu = time.monotonic(), time.process_time()
    while time.monotonic() - wall < seconds:
        work()
    return (time.process_time() - cpu) / (time.monotonic() - wall)


def views(runs=200, seconds=20):
    with tempfile.TemporaryDirectory() as folder:
        storage = open_storage(folder)
        for i in range(runs):
            storage.write_json(f"run{i:03}", "spec.json", dict(budget=1e12 * 2 ** (i % 5), size=2 ** (i % 8 + 3), N=10**5 * (i % 8 + 1), D=10**6, flops_per_token=6e5, seed=0))
            storage.write_json(f"run{i:03}", "attempt.json", dict(attempt=1, started=time.time()))
            rows = [json.dumps(dict(step=s, tokens=s * 1000, loss=5 / s**0.1, t=time.time(), attempt=1)) for s in range(1, 500)]
            Path(storage.path(f"run{i:03}", "metrics.jsonl")).write_text("\n".join(rows) + "\n")
        writer = subprocess.Popen([sys.executable, "-c", WRITER, folder, str(runs)])
        try:
            idle = share(3)
            for mode in ("text", "widget"):
                view = RunView(storage, mode="text", hz=1, text_every=1e9)
                if mode == "widget":
                    view.mode, view.widget = "widget", RunWidget()
                view.tick()
                stop = threading.Event()

                def follow(view=view, stop=stop):
                    while not stop.wait(1):
                        view.tick()
                thread = threading.Thread(target=follow)
                thread.start()
                used = share(seconds) - idle
                stop.set(); thread.join()
                points = max(len(r.steps) for r in view.tail.runs.values())
                print(f"{mode}: {used:.1%} of a core to follow {runs} runs at 1 Hz; a curve keeps at most {points} points")
        finally:
            writer.kill()


def desk(runs=200, seconds=20):
    "The news of 200 runs, at the rate at which so many report."
    import ray

    from scaling_nb.cluster import start_ray
    from scaling_nb.scheduling import Desk
    start_ray(say=lambda *_: None)
    desk = ray.remote(num_cpus=0)(Desk).remote()

    @ray.remote(num_cpus=0)
    class Runs:
        def report(self, desk, first, n, every, seconds):
            until, moves, slowest = time.monotonic() + seconds, 0, 0.0
            while time.monotonic() < until:
                start, moves = time.monotonic(), moves + 1
                ray.get([desk.tell.remote(first + i, first + i, moves, 0.5, ()) for i in range(n)])
                slowest = max(slowest, time.monotonic() - start)
                time.sleep(max(0, every - (time.monotonic() - start)))
            return slowest
    every = max(.25, runs / 100)
    senders = [Runs.remote().report.remote(desk, i * runs // 4, runs // 4, every, seconds) for i in range(4)]
    time.sleep(3)
    cpu, wall, news = time.process_time(), time.monotonic(), 0
    while time.monotonic() - wall < seconds - 5:
        news += len(ray.get(desk.read.remote([]))[0])
        time.sleep(.25)
    used = (time.process_time() - cpu) / (time.monotonic() - wall)
    print(f"desk: {used:.1%} of a core in the driver for the news of {runs} runs, every {every:g} s ({news / (time.monotonic() - wall):.0f} a second); slowest of 50 {max(ray.get(senders)):.2f} s")
    ray.shutdown()


if __name__ == "__main__":
    views()
    desk()
