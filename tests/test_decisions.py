"""The scheduler's decisions, over histories that no cluster would have the patience for."""
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaling_nb.decisions import Close, End, Fail, Kill, Limits, Need, Open, Scheduler, Speeds, Start, Stop, Task, TaskState, finish_time

SMALL, LARGE, SHARE = Need(), Need(cpus=2), Need(gpus=.5)


def node(name="a", cpus=2, gpus=0, accelerator=""): return SimpleNamespace(id=name, cpus=cpus, gpus=gpus, accelerator=accelerator)


class World:
    "A cluster in miniature: does what it is told, unless it dies first, and remembers everything."
    def __init__(self, s: Scheduler):
        self.s, self.now, self.opening, self.idle, self.busy, self.dying = s, 0., {}, {}, {}, set()
        self.log, self.started, self.ended, self.failed, self.asked = [], {}, {}, {}, set()

    def act(self):
        for a in self.s.decide(self.now):
            self.log.append((self.now, a))
            if isinstance(a, Open): self.opening[a.slot] = a.need
            elif isinstance(a, Start):
                assert a.slot in self.idle, "a run goes to an idle worker"
                assert a.key not in [k for k, _ in self.busy.values()], "two attempts of one run"
                assert a.key not in self.ended and a.key not in self.failed, "a finished run was started"
                del self.idle[a.slot]
                self.busy[a.slot] = a.key, a.ticket
                self.started[a.key] = self.started.get(a.key, 0) + 1
            elif isinstance(a, Stop):
                assert self.busy[a.slot][1] == a.ticket, "a superseded attempt was asked to stop"
                self.asked.add(a.slot)
            elif isinstance(a, Kill):
                assert a.slot in self.busy
                self.dying.add(a.slot)
            elif isinstance(a, Close):
                assert a.slot not in self.busy and a.slot not in self.opening, "a worker was let go that is at work"
                self.idle.pop(a.slot, None)
            elif isinstance(a, Fail):
                assert a.key not in self.ended and a.key not in self.failed
                self.failed[a.key] = a.why

    def up(self, slot):
        self.idle[slot] = self.opening.pop(slot)
        self.s.opened(slot, self.now)

    def end(self, slot, end=End.FINAL, **kw):
        key, ticket = self.busy.pop(slot)
        self.asked.discard(slot)
        if end is End.FINAL: self.ended[key] = self.now
        need = self.s.slots[slot].need
        self.s.ended(slot, ticket, end, self.now, **kw)
        if slot in self.s.slots: self.idle[slot] = need

    def lose(self, slot, **kw):
        for where in (self.opening, self.idle, self.busy): where.pop(slot, None)
        self.dying.discard(slot); self.asked.discard(slot)
        self.s.lost(slot, self.now, "its worker died", **kw)


def started(actions): return [a.key for a in actions if isinstance(a, Start)]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_random_histories(data):
    "Whatever happens in whatever order, no run has two attempts alive, no finished run is started, and every run comes to an end."
    draw = data.draw
    s = Scheduler(Limits(hang_s=50, start_s=80, stop_s=10, backoff_s=3, keep_s=15, runs=draw(st.sampled_from([2, 50])), bad_starts=100), slots=draw(st.sampled_from([None, 1, 3])))
    w, keys = World(s), []
    machines = [node("a", draw(st.integers(1, 4)), draw(st.integers(0, 2)))]
    s.nodes(machines)
    needs = [n for n in (SMALL, LARGE, SHARE, Need(workers=2)) if s.fits(n)] or [SMALL]

    def more(n):
        tasks = []
        for _ in range(n):
            key = f"r{len(keys)}"
            trunk = draw(st.sampled_from(keys)) if keys and draw(st.booleans()) else ""
            tasks.append(Task(key, draw(st.integers(1, 5))*10., draw(st.integers(1, 3)), draw(st.sampled_from(needs)), trunk))
            keys.append(key)
        s.add(tasks)
    more(draw(st.integers(1, 6)))
    late = []                                            # news of attempts that were superseded
    for _ in range(draw(st.integers(5, 60))):
        w.now += draw(st.sampled_from([0, 0, 1, 5, 30]))
        w.act()
        assert len(w.busy) + len(w.idle) + len(w.opening) <= s.most
        what = draw(st.sampled_from(["up", "up", "end", "end", "end", "lose", "progress", "left", "cancel", "pause", "resume", "add", "stale", "nodes", "nothing"]))
        live = [k for k in w.busy if k not in w.dying]
        if what == "up" and w.opening: w.up(draw(st.sampled_from(sorted(w.opening))))
        elif what == "end" and live:
            slot = draw(st.sampled_from(sorted(live)))
            late.append((slot, w.busy[slot][1]))
            w.end(slot, draw(st.sampled_from(list(End)[:2] + [End.FINAL, End.STORAGE])), flops=10., seconds=draw(st.integers(1, 9)), dirty=draw(st.booleans()))
        elif what == "lose" and (everyone := sorted({*w.opening, *w.idle, *w.busy})):
            slot = draw(st.sampled_from(everyone))
            if slot in w.busy: late.append((slot, w.busy[slot][1]))
            w.lose(slot, oom=draw(st.booleans()), began=draw(st.booleans()), blame=draw(st.booleans()))
        elif what == "progress" and live: s.progress(slot := draw(st.sampled_from(sorted(live))), w.busy[slot][1], draw(st.integers(1, 100)), .5, w.now)
        elif what == "left": s.left(draw(st.sampled_from(keys)))
        elif what == "cancel" and draw(st.booleans()): s.cancel(draw(st.sampled_from(keys)))
        elif what == "pause": s.pause()
        elif what == "resume": s.resume()
        elif what == "add": more(1)
        elif what == "nodes": s.nodes([*machines, *([node("b", 2)] if draw(st.booleans()) else [])])
        elif what == "stale" and late:
            slot, ticket = draw(st.sampled_from(late))
            before = dict(s.state)
            s.ended(slot, ticket, End.FINAL, w.now)
            s.progress(slot, ticket, 10**6, 1., w.now)
            assert s.state == before, "news of a superseded attempt changed something"
        for slot in sorted(w.dying): w.lose(slot)
    s.resume()
    s.nodes(machines)
    for _ in range(2000):                                # from here on all goes well
        if s.over: break
        w.now += 1
        w.act()
        for slot in sorted(w.opening): w.up(slot)
        for slot in sorted(w.dying): w.lose(slot)
        for slot in sorted(w.busy): w.end(slot, End.STOPPED if slot in w.asked else End.FINAL)
    assert s.over and not s.aborted, {k: v for k, v in s.state.items() if not v.final}
    w.act()
    assert all(s.state[k].final for k in keys) and not w.busy
    assert {k for k in keys if s.state[k] is TaskState.DONE} == set(w.ended)
    assert {k for k in keys if s.state[k] in (TaskState.FAILED, TaskState.CANCELLED)} == set(w.failed)
    free = {k: (m.cpus, m.gpus) for k, m in s.machines.items()}
    for slot in list(s.slots): s.lost(slot, w.now)
    assert all(m.cpus == pytest.approx(m.all[0]) and m.gpus == pytest.approx(m.all[1]) for m in s.machines.values()), free   # nothing of the nodes leaked


def ready(tasks, limits=None, nodes=None, **kw):
    "A scheduler whose workers are up and have been given their first runs."
    s = Scheduler(limits or Limits(), **kw)
    s.nodes(nodes or [node()])
    s.add(tasks)
    w = World(s)
    w.act()
    for slot in sorted(w.opening): w.up(slot)
    w.act()
    return s, w


def test_longest_first_and_the_same_history_gives_the_same_actions():
    tasks = [Task(str(i), float(f)) for i, f in enumerate([3, 9, 1, 7, 5])]
    logs = []
    for _ in range(2):
        s, w = ready(tasks)
        while not s.over:
            w.now += 1
            for slot in sorted(w.busy): w.end(slot)
            w.act()
        logs.append(w.log)
    assert logs[0] == logs[1] and [a.key for _, a in logs[0] if isinstance(a, Start)] == ["1", "3", "4", "0", "2"]


def test_measured_speed_reorders():
    "A small model is slow: its run of fewer FLOPs takes longer, and goes first once that is known."
    s, w = ready([Task("first small", 100., 8), Task("first large", 100., 64), Task("small", 10., 8), Task("large", 30., 64)])
    w.now = 10
    slots = {k: slot for slot, (k, _) in w.busy.items()}
    w.end(slots["first small"], flops=100., seconds=1000.)
    w.end(slots["first large"], flops=100., seconds=10.)
    assert started(s.decide(10)) == ["small", "large"]


@pytest.mark.parametrize("end, retries", [(End.LOST, 2), (End.OOM, 2), (End.HUNG, 2)])
def test_what_the_machine_did_is_tried_again_a_bounded_number_of_times(end, retries):
    s, w = ready([Task("r", 1.)], Limits(hang_s=10, start_s=10, bad_starts=100))
    for n in range(retries + 1):
        (slot,) = w.busy
        assert s.slots[slot].key == "r"
        w.now += 20
        if end is End.HUNG: w.act(); assert isinstance(w.log[-1][1], Kill); w.lose(slot)
        else: w.lose(slot, oom=end is End.OOM)
        w.act()
        for i in sorted(w.opening): w.up(i)
        w.act()
        if n < retries: assert w.log[-1][1].shrink == (end is End.OOM)
    assert s.state["r"] is TaskState.FAILED and w.started["r"] == retries + 1
    assert w.failed["r"] == f"given up after {retries + 1} attempts: " + ("no step within 10 s of its start" if end is End.HUNG else "its worker died")


def test_a_storage_that_fails_is_waited_for_and_the_run_left_as_it_is():
    s, w = ready([Task("r", 1.)], Limits(storage=3, backoff_s=4))
    waits = []
    while not s.over:
        (slot,) = w.busy
        w.end(slot, End.STORAGE, why="no space left")
        at = w.now
        while not w.busy and not s.over: w.now += 1; w.act()
        waits.append(w.now - at)
    assert s.state["r"] is TaskState.LEFT and waits == [4, 8, 16, 0] and not w.failed and s.told["r"] == "no space left"
    s.add([Task("r", 1.)])                                             # the same line again
    w.now += 1
    w.act()
    assert s.state["r"] is TaskState.RUNNING


def test_a_slow_start_is_no_hang_and_slow_steps_are_none():
    s, w = ready([Task("r", 1.)], Limits(start_s=100, hang_s=10, hang_steps=20))
    (slot,) = w.busy
    ticket = w.busy[slot][1]
    w.now = 90; w.act()                                                # still importing
    s.progress(slot, ticket, 1, .01, w.now)
    w.now = 90 + 170; w.act()                                          # the second step may take as long as all before it, and as long again
    s.progress(slot, ticket, 3, .03, w.now)                            # 85 s a step
    w.now += 1600; w.act()
    assert not any(isinstance(a, Kill) for _, a in w.log)
    w.now += 200; w.act()
    assert isinstance(w.log[-1][1], Kill) and "no step for" in w.log[-1][1].why


@pytest.mark.parametrize("begun", [True, False])
def test_a_hang_is_found_within_a_second_of_its_limit(begun):
    s, w = ready([Task("r", 1.)], Limits(start_s=300, hang_s=10))
    (slot,) = w.busy
    if begun:
        for w.now, moves in (40., 90), (40.5, 100): s.progress(slot, w.busy[slot][1], moves, .1, w.now)
    while not any(isinstance(a, Kill) for _, a in w.log): w.now += .25; w.act()
    assert w.now - (40.5 + 10 if begun else 300) < 1 and s.slots[slot].end is End.HUNG


def test_a_run_that_never_began_loses_no_attempt():
    "Eight idle workers on a node that is gone: each is found dead with the run in hand, and the run is not to blame."
    s, w = ready([Task(str(i), 1.) for i in range(8)], nodes=[node(cpus=8)])
    for slot in sorted(w.busy): w.end(slot)
    s.add([Task("last", 1.)])
    for _ in range(8):
        w.act()
        (slot,) = w.busy
        w.lose(slot, began=False)
    w.act()
    for slot in sorted(w.opening): w.up(slot)
    w.act()
    assert s.state["last"] is TaskState.RUNNING and not s.ends["last"] and not w.failed


def test_one_who_counts_anew_is_not_hung():
    "A group of workers that lost one begins its count again, under the same ticket."
    s, w = ready([Task("r", 1.)], Limits(hang_s=10))
    (slot,) = w.busy
    for w.now, moves in (1, 1000), (2, 2000): s.progress(slot, w.busy[slot][1], moves, .5, w.now)
    for t in range(3, 60):
        w.now = t
        s.progress(slot, w.busy[slot][1], t, .5, w.now)
        w.act()
    assert not any(isinstance(a, Kill) for _, a in w.log)


def test_coming_further_gives_all_attempts_again_and_standing_still_does_not():
    s, w = ready([Task("r", 1.)], Limits(lost=2), nodes=[node(cpus=1)])
    def die_at(share):
        (slot,) = w.busy
        for moves in (1, 2): s.progress(slot, w.busy[slot][1], moves, share, w.now)
        w.lose(slot); w.act()
        for i in sorted(w.opening): w.up(i)
        w.act()
    for i in range(1, 9): die_at(i/10)                                 # preempted again and again, and always further
    assert s.state["r"] is TaskState.RUNNING
    die_at(.8); die_at(.8)
    assert s.state["r"] is TaskState.FAILED and w.started["r"] == 10


@pytest.mark.parametrize("paused", [True, False])
def test_an_idle_worker_is_let_go_later_too(paused):
    s, w = ready([Task("a", 2.), Task("b", 1., need=LARGE), Task("c", .5, need=LARGE)], Limits(keep_s=10), nodes=[node(cpus=3)])
    s.pause()
    for slot in sorted(w.busy): w.end(slot, End.STOPPED)
    for w.now in range(1, 40): w.act()
    assert not s.slots and not w.idle                                  # a paused sweep holds nothing


def test_pause_asks_once_then_ends_and_costs_no_attempt():
    s, w = ready([Task("a", 2.), Task("b", 1.), Task("c", .5)], Limits(stop_s=5))
    s.pause()
    w.now = 1; w.act(); w.act()
    assert sum(isinstance(a, Stop) for _, a in w.log) == 2
    first, second = sorted(w.busy)
    w.end(first, End.STOPPED)
    w.now = 7; w.act()
    assert isinstance(w.log[-1][1], Kill) and w.log[-1][1].slot == second
    w.lose(second)
    w.act()
    assert not w.busy and s.waiting_runs == 3 and not s.ends["b"]
    s.resume()
    w.act()
    assert set(started(a for _, a in w.log)) >= {"a", "b"} and w.busy


def test_cancel():
    s, w = ready([Task("long", 2.), Task("middle", 1.), Task("short", .5)])
    s.cancel("short")
    w.act()
    assert w.failed == {"short": "cancelled"} and s.state["short"] is TaskState.CANCELLED
    slot = next(i for i, (k, _) in w.busy.items() if k == "long")
    s.cancel("long")
    w.act(); w.act()
    assert [a.slot for _, a in w.log if isinstance(a, Stop)] == [slot]
    w.end(slot, End.STOPPED)
    w.act()
    assert w.failed["long"] == "cancelled" and s.busy == 1
    with pytest.raises(KeyError, match="no run 'nonsense'"): s.cancel("nonsense")


def test_a_run_that_finished_before_it_heard_of_the_cancel_is_done():
    s, w = ready([Task("r", 1.)])
    s.cancel("r")
    w.act()
    w.end(next(iter(w.busy)))
    w.act()
    assert s.state["r"] is TaskState.DONE and not w.failed


def test_branches_wait_for_their_trunk_or_its_end():
    tasks = [Task("trunk", 3.), Task("b1", 2., trunk="trunk"), Task("b2", 1., trunk="trunk"), Task("other", .1)]
    s, w = ready(tasks)
    assert sorted(k for k, _ in w.busy.values()) == ["other", "trunk"]
    w.end(next(i for i, (k, _) in w.busy.items() if k == "other"))
    w.act()
    assert [k for k, _ in w.busy.values()] == ["trunk"]                # b1 may not start yet
    s.left("b1")
    w.act()
    assert sorted(k for k, _ in w.busy.values()) == ["b1", "trunk"]
    s.cancel("trunk"); w.act()
    w.end(next(i for i, (k, _) in w.busy.items() if k == "trunk"), End.STOPPED)
    w.act()
    assert sorted(k for k, _ in w.busy.values()) == ["b1", "b2"]       # without a trunk it trains by itself


def test_a_large_run_is_not_kept_waiting_by_small_ones():
    s, w = ready([Task("large", 5., need=Need(cpus=2)), *[Task(f"s{i}", 10. if i < 2 else 1.) for i in range(6)]])
    assert sorted(k for k, _ in w.busy.values()) == ["s0", "s1"]
    w.end(min(w.busy)); w.act()
    assert len(w.busy) == 1                                            # held back for the large one
    w.end(min(w.busy)); w.act()
    for slot in sorted(w.opening): w.up(slot)
    w.act()
    assert [k for k, _ in w.busy.values()] == ["large"]


def test_what_fits_no_node_of_today_holds_nobody_back():
    s, w = ready([Task("huge", 5., need=Need(gpus=8)), Task("small", 1.)])
    assert [k for k, _ in w.busy.values()] == ["small"] and not s.fits(Need(gpus=8))
    s.nodes([node(), node("gpus", 8, 8)])
    w.act()
    for slot in sorted(w.opening): w.up(slot)
    w.act()
    assert "huge" in [k for k, _ in w.busy.values()]


def test_nodes_accelerators_and_fractions():
    s = Scheduler()
    s.nodes([node("a", 8, 2, "A100"), node("h", 8, 1, "H100")])
    assert s.fits(Need(gpus=1, accelerator="H100")) and not s.fits(Need(gpus=2, accelerator="H100")) and not s.fits(Need(cpus=9)) and s.fits(Need(cpus=8, workers=2))
    s.add([Task(str(i), 1., need=Need(gpus=.4)) for i in range(20)])
    assert sum(isinstance(a, Open) for a in s.decide(0)) == 6          # two to a GPU, not 7.5
    s, w = ready([Task(str(i), 1.) for i in range(9)], nodes=[node("a", 1.5), node("b", 1.5)])
    assert len(w.busy) == 2                                            # half a core of each is no core


def test_workers_that_ray_puts_the_other_way_round_make_no_room():
    s = Scheduler()
    s.nodes([node("a", 1), node("b", 1)])
    s.add([Task(str(i), 1.) for i in range(6)])
    first, second = s.decide(0)
    s.opened(first.slot, 1, "b")
    assert not any(isinstance(a, Open) for a in s.decide(1))
    s.opened(second.slot, 2, "a")
    assert not any(isinstance(a, Open) for a in s.decide(2)) and len(s.slots) == 2


def test_growing_asks_for_more_than_there_is():
    s, w = ready([Task(str(i), 1.) for i in range(9)], slots=5, grow=True)
    assert len(w.busy) == 5
    with pytest.raises(ValueError, match="needs `slots`"): Scheduler(grow=True)


def test_workers_that_cannot_start_end_the_sweep():
    s = Scheduler()
    s.nodes([node(cpus=1)])
    s.add([Task("r", 1.)])
    for _ in range(3):
        (a,) = s.decide(0)
        s.lost(a.slot, 0, "ImportError: no module named x")
    assert s.aborted == "3 workers in a row could not start: ImportError: no module named x" and s.decide(1) == []


def test_a_worker_is_renewed_and_an_idle_one_let_go():
    s, w = ready([Task(str(i), 1.) for i in range(5)], Limits(runs=2, keep_s=10), nodes=[node(cpus=1)])
    for _ in range(2): w.now += 1; w.end(next(iter(w.busy))); w.act()
    assert any(isinstance(a, Close) for _, a in w.log) and len(w.opening) == 1
    s, w = ready([Task("a", 2.), Task("b", 1.)], Limits(keep_s=10))
    w.end(max(w.busy)); w.now = 5; w.act()
    assert not any(isinstance(a, Close) for _, a in w.log)
    w.now = 11; w.act()
    assert isinstance(w.log[-1][1], Close) and len(s.slots) == 1


def test_speeds_between_and_beyond():
    v = Speeds()
    assert v.of(8) is None and v.spread == .5
    assert v.add(10, 1e6, 1) and not v.add(10, 1e6, 1) and v.add(1000, 1e10, 100)
    assert v.of(10) == pytest.approx(1e6) and v.of(100) == pytest.approx(1e7) and v.of(10**6) == pytest.approx(1e8) and v.of(1) == pytest.approx(1e6)
    assert not v.add(5, 0, 0)


def test_spread_is_that_of_the_measurements():
    rng, v = np.random.default_rng(0), Speeds()
    for e in rng.normal(0, .3, 400): v.add(8, 1e6, math.exp(e))
    assert v.spread == pytest.approx(.3, rel=.15)


class TestFinishTime:
    def test_without_spread_it_is_the_schedule(self):
        assert finish_time([4, 1], [3, 2, 2], 2, 0.) == pytest.approx((6, 6, 6))
        assert finish_time([], [], 2, .2) == (0, 0, 0)

    @pytest.mark.parametrize("spread", [.1, .5])
    def test_the_interval_holds_what_comes(self, spread):
        "Runs of which each takes its estimate times a lognormal error: nine in ten finishes fall inside."
        rng, hits = np.random.default_rng(1), 0
        waiting = [float(x) for x in rng.uniform(5, 50, 20)]
        low, mid, high = finish_time([20., 30., 10., 5.], waiting, 4, spread)
        for _ in range(300):
            common = rng.standard_normal()*spread/math.sqrt(2)
            one = lambda x, common=common: x*math.exp(common + rng.standard_normal()*spread/math.sqrt(2))
            load = [one(x) for x in (20., 30., 10., 5.)]
            for x in sorted(waiting, reverse=True): load[int(np.argmin(load))] += one(x)
            hits += low <= max(load) <= high
        assert .84 < hits/300 < .96 and low < mid < high

    def test_many_runs_at_once(self):
        low, mid, high = finish_time([1.]*100, [2.]*50_000, 1000, .2)
        assert low < 100.1 < high


def test_eta():
    s, w = ready([Task("a", 100., 8), Task("b", 100., 8), Task("c", 100., 8)])
    assert s.eta(0) is None
    for slot in w.busy: s.progress(slot, w.busy[slot][1], 1, .1, 0.)
    for slot in w.busy: s.progress(slot, w.busy[slot][1], 10, .5, 40.)
    assert s.eta(40) is None                                           # nothing is known of c yet
    w.now = 90
    w.end(min(w.busy), flops=100., seconds=90.)
    low, mid, high = s.eta(90)
    assert low < 90 < high
