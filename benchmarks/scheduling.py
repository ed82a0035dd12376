"""What scheduling costs: python benchmarks/scheduling.py [decisions] [overhead]

decisions: the decision loop alone on a simulated cluster of 1,000 slots, up to 100,000 runs, with failures; cost per decision by size.
overhead:  forty runs of 1 to 5 s on two workers: wall over (sum of work / workers), after the workers are up; the same runs as one actor a run, and one after the other.
Runs sleep for a known time inside their steps, so that other load cannot stretch the work."""
import heapq
import random
import sys
import time
from types import SimpleNamespace

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


if __name__ == "__main__":
    which = sys.argv[1:] or ["decisions", "overhead"]
    if "decisions" in which: decisions()
