"""What scheduling costs: python benchmarks/scheduling.py [decisions] [overhead]

decisions: the decision loop alone on a simulated cluster of 1,000 slots, up to 100,000 runs, with failures; cost per decision by size.
overhead:  forty runs of 1 to 5 s on two workers: wall over (sum of work / workers), after the workers are up; the same runs as one actor a run, and one after the other.
Runs sleep for a known time inside their steps, so that other load cannot stretch the work."""
import contextlib
import heapq
import io
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from scaling_nb import Problem, Recipe, Resources, RunSpec, SweepPlan, run_sweep
from scaling_nb.decisions import End, Limits, Open, Scheduler, Start, Task


def simulate(runs, slots=1000, seed=0):
    "A cluster whose runs take as long as their work, now and then lose their worker, and move once in between; returns (seconds of decisions, decisions, simulated makespan over the ideal)."
    rng, s = random.Random(seed), Scheduler(Limits(hang_s=3600))
    s.nodes([SimpleNamespace(id=str(i), cpus=8, gpus=0, accelerator="") for i in range(slots // 8)])
    sizes = [2 ** (i % 10 + 3) for i in range(runs)]
    work = {str(i): rng.uniform(60, 600) for i in range(runs)}
    spent, calls, now, events, n = 0.0, 0, 0.0, [], 0
    start = time.perf_counter()
    s.add([Task(k, w * sizes[int(k)] ** 1.5, sizes[int(k)]) for k, w in work.items()])
    spent += time.perf_counter() - start
    total = 0.0
    while True:
        start = time.perf_counter()
        actions = s.decide(now)
        spent, calls = spent + time.perf_counter() - start, calls + 1
        for a in actions:
            n += 1
            if isinstance(a, Open): heapq.heappush(events, (now + 3, n, "up", a.slot, 0, 0.0))
            elif isinstance(a, Start):
                took = work[a.key] * rng.lognormvariate(0, 0.1)
                lost = rng.random() < 0.01
                took *= rng.random() if lost else 1
                total += took
                heapq.heappush(events, (now + took / 2, n, "moved", a.slot, a.ticket, took))
                heapq.heappush(events, (now + took, n + 10**9, "lost" if lost else "end", a.slot, a.ticket, took))
        if s.over or not events: break
        now, _, what, slot, ticket, took = heapq.heappop(events)
        start = time.perf_counter()
        if what == "up": s.opened(slot, now)
        elif what == "moved": s.progress(slot, ticket, 100, 0.5, now)
        elif what == "lost": s.lost(slot, now, "its worker died")
        elif slot in s.slots and s.slots[slot].ticket == ticket:
            key = s.slots[slot].key
            s.ended(slot, ticket, End.FINAL, now, flops=s.tasks[key].flops, seconds=took)
        spent += time.perf_counter() - start
    assert s.over, "the simulated sweep did not come to its end"
    return spent, calls, now / (total / (slots // 8 * 8))


def decisions():
    base = None
    for runs in (1_000, 10_000, 100_000):
        spent, calls, makespan = simulate(runs)
        each = spent / calls * 1e6
        base = base or each
        print(f"{runs:>7,} runs on 1,000 slots: {calls:,} decisions in {spent:.1f} s, {each:.0f} us each ({each / base:.2f} times that of 1,000 runs), makespan {makespan:.3f} of the ideal")
    _, _, ten = simulate(10_000, slots=8)
    print(f" 10,000 runs on 8 slots: makespan {ten:.3f} of the ideal")


class Sleeper(nn.Module):
    "Each step takes `width` milliseconds."

    def __init__(self, width):
        super().__init__()
        self.width, self.layer = width, nn.Linear(4, width)

    def forward(self, x):
        if self.training: time.sleep(self.width / 1000)
        return self.layer(x)[:, :4]


def problem_and_runs(runs):
    "Runs of ten steps, 1 to 5 s each, and the seconds of each."
    problem = Problem(Sleeper, "width", data=(torch.randn(400, 4), torch.zeros(400, dtype=torch.long)), loss_fn=nn.CrossEntropyLoss())
    ms = [round(100 * 5 ** (i / (runs - 1))) for i in range(runs)]
    return problem, Recipe(batch_size=10, base_width=None), [RunSpec(1.0 * w, w, 4 * w, 100, float(w), seed=i) for i, w in enumerate(ms)], [w / 100 for w in ms]


def lpt(seconds, workers):
    "The makespan of these runs, the longest first, without any cost."
    load = [0.0] * workers
    for s in sorted(seconds, reverse=True): load[load.index(min(load))] += s
    return max(load)


def pool(problem, recipe, specs, workers):
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        start, called = time.monotonic(), time.time()
        sweep = run_sweep(problem, SweepPlan(tuple(specs)), recipe, storage=folder, resources=Resources(slots=workers), view=False, wait=False)
        while sweep.alive: time.sleep(.02)
        end, begun = time.monotonic(), sweep.control.begun
        attempts = [json.loads(p.read_text()) for p in Path(folder).glob("*/attempt.json")]
        inside, first = sweep.frame.wall_s, min(a["started"] for a in attempts) - called
    return end - begun, end - start, first, len({a["pid"] for a in attempts}), list(inside)


def actor_a_run(problem, recipe, specs, workers):
    "The usual way: each run is an actor of its own, so many at a time."
    import ray

    from scaling_nb.scheduling import release_workers
    from scaling_nb.training import train_run
    release_workers()

    class One:
        def run(self, problem, spec, recipe, folder):
            torch.set_num_threads(1)
            return train_run(problem, spec, recipe, storage=folder).loss
    with tempfile.TemporaryDirectory() as folder:
        ref, start = ray.put(problem), time.monotonic()
        todo, live = sorted(specs, key=lambda s: -s.size), {}
        while todo or live:
            while todo and len(live) < workers:
                actor = ray.remote(num_cpus=1)(One).remote()
                live[actor.run.remote(ref, todo.pop(0), recipe, folder)] = actor
            (done,), _ = ray.wait(list(live), num_returns=1)
            ray.get(done)
            ray.kill(live.pop(done))
        return time.monotonic() - start


def sequential(problem, recipe, specs):
    from scaling_nb.training import train_run
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        for s in specs: train_run(problem, s, recipe, storage=folder)
        return time.monotonic() - start


def overhead(runs=40, workers=2):
    from scaling_nb.cluster import start_ray
    start_ray()
    problem, recipe, specs, work = problem_and_runs(runs)
    ideal = sum(work) / workers
    for what in ("cold workers", "spare workers"):
        wall, whole, first, processes, inside = pool(problem, recipe, specs, workers)
        print(f"pool, {what}: first run {first:.1f} s after the call; {wall:.1f} s after the first worker was up, {wall / ideal:.3f} of (sum of work / workers), {whole / ideal:.3f} from the call on; "
              f"{(wall - ideal) * workers / runs:.2f} s a run in all, {statistics.median(i - w for i, w in zip(inside, work)):.2f} s of it inside the runs; "
              f"{wall / lpt(inside, workers):.3f} of longest-first with the times measured; {processes} processes", flush=True)
    wall = actor_a_run(problem, recipe, specs, workers)
    print(f"an actor a run: {wall:.1f} s, {wall / ideal:.3f}", flush=True)
    wall = sequential(problem, recipe, specs)
    print(f"one after the other in this process: {wall:.1f} s, {wall / sum(work):.3f} of the sum of work, {wall / ideal:.3f}")


if __name__ == "__main__":
    which = sys.argv[1:] or ["decisions", "overhead"]
    if "decisions" in which: decisions()
    if "overhead" in which: overhead()
