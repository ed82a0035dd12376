"""What can go wrong, done for real: after each fault the final frame is that of a sweep nobody disturbed, to the bit, and the attempts tell what happened."""
import contextlib
import ctypes
import os
import signal
import threading
import time

import psutil
import pytest
from problems import MLP, Slow, mlp_problem, until

from scaling_nb.decisions import Limits
from scaling_nb.recipes import Recipe
from scaling_nb.records import runs_frame
from scaling_nb.scheduling import Resources, release_workers, run_sweep
from scaling_nb.sweep import plan_sweep

pytestmark = [pytest.mark.ray, pytest.mark.faults]
RECIPE, TWO, SIZES = Recipe(batch_size=64), Resources(slots=2), (8, 16, 32)
TOLD = ["budget", "size", "N", "D", "C", "loss", "loss_std", "state", "seed", "flops_measured", "reason"]


@pytest.fixture(scope="module", autouse=True)
def ray_ends():
    yield
    import ray
    ray.shutdown()


def the_plan(): return plan_sweep(mlp_problem(), (8e7,), sizes=SIZES, speed=None)


def sweep(problem, where, **kw):
    return run_sweep(problem, the_plan(), RECIPE, storage=where, **{**dict(resources=TWO, view=False, checkpoint_s=.2), **kw})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    "The frame that every other must come to."
    return sweep(mlp_problem(), tmp_path_factory.mktemp("undisturbed")).frame


def same(frame, undisturbed, but=()):
    "Equal in all that a reader is told of the results; `but` are sizes that may differ."
    a, b = (f[~f["size"].isin(but)][TOLD].sort_values("size", ignore_index=True) for f in (frame, undisturbed))
    assert a.equals(b), f"\n{a}\n{b}"
    return True


def faulty(tmp_path, act, width=16, step=200, times=1):
    "A perceptron whose run of one width meets a fault in a step, so many times; on disk, so that it is remembered across processes."
    class Faulty(MLP):
        def forward(self, x):
            if self.training and self.layers[0].out_features == width and len(list(tmp_path.glob("fault*"))) < times:
                self.n = getattr(self, "n", 0) + 1
                if self.n > step:
                    (tmp_path/f"fault{time.monotonic_ns()}").touch()
                    act()
            return super().forward(x)
    return mlp_problem(model=Faulty)


def ours(name):
    "Processes of this test's own Ray, by what they call themselves."
    out = []
    for p in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "".join(p.cmdline()).startswith(name): out.append(p)
    return out


def happened(tmp_path): return len(list(tmp_path.glob("fault*")))
def why(s, size): return list(s.attempts[s.attempts.run_id == s.frame.set_index("size").run_id[size]].why)
def attempts(s): return s.frame.set_index("size").attempt.to_dict()


# ---------------------------------------------------------------- processes

def killed(): os.kill(os.getpid(), signal.SIGKILL)
def leaves(): os._exit(3)
def crashes(): ctypes.string_at(0)                      # a segmentation fault


@pytest.mark.parametrize("act", [killed, leaves, crashes])
def test_a_worker_that_dies(tmp_path, undisturbed, act):
    s = sweep(faulty(tmp_path, act), tmp_path/"runs")
    assert happened(tmp_path) == 1 and same(s.frame, undisturbed)
    assert attempts(s) == {8: 1, 16: 2, 32: 1} and why(s, 16)[0].startswith("its worker died")


def test_a_worker_that_dies_in_each_of_its_attempts(tmp_path, undisturbed):
    s = sweep(faulty(tmp_path, killed, step=10, times=99), tmp_path/"runs")
    f = s.frame.set_index("size")
    assert f.state[16] == "FAILED" and f.reason[16].startswith("given up after 3 attempts: its worker died") and attempts(s) == {8: 1, 16: 3, 32: 1}
    assert same(s.frame, undisturbed, but=(16,))


@pytest.mark.long
def test_workers_killed_at_random_from_outside(tmp_path, undisturbed):
    "Five times, whichever process trains at that moment."
    import random

    rng, kills = random.Random(0), 0
    s = sweep(mlp_problem(), tmp_path/"runs", wait=False, limits=Limits(lost=99))
    while s.alive and not s.control.status()["over"]:
        time.sleep(rng.uniform(.3, 1.2))
        runners = ours("ray::Runner.run")
        if runners and kills < 5:
            rng.choice(runners).kill()
            kills += 1
    s.wait()
    s.close()
    assert kills >= 2 and same(s.frame, undisturbed) and s.frame.attempt.sum() >= 3 + 1


def test_the_desk_is_killed(tmp_path, undisturbed):
    "It holds nothing that matters: it is started again, and a request to stop reaches the runs all the same."
    s = sweep(mlp_problem(), tmp_path/"runs", wait=False)
    until(lambda: ours("ray::Desk"))
    for p in ours("ray::Desk"): p.kill()
    s.pause()
    s.wait()
    assert not s.frame.state.isin(["RUNNING"]).any()
    s.resume()
    s.wait()
    s.close()
    assert same(s.frame, undisturbed)


# ---------------------------------------------------------------- hangs

def sleeps(): time.sleep(600)
def spins():
    while True: pass
def holds_the_gil(): ctypes.PyDLL(None).sleep(600)       # native code that never lets Python run, nor our thread that talks


@pytest.mark.parametrize("act", [sleeps, pytest.param(spins, marks=pytest.mark.long), holds_the_gil])
def test_a_hang(tmp_path, undisturbed, act):
    start = time.monotonic()
    s = sweep(faulty(tmp_path, act), tmp_path/"runs", limits=Limits(hang_s=6))
    assert happened(tmp_path) == 1 and same(s.frame, undisturbed)
    assert attempts(s) == {8: 1, 16: 2, 32: 1} and why(s, 16)[0] == "no step for 6 s" and time.monotonic() - start < 120


@pytest.mark.long
def test_slow_to_its_first_step_is_no_hang(tmp_path, undisturbed):
    s = sweep(faulty(tmp_path, lambda: time.sleep(12), step=0), tmp_path/"runs", limits=Limits(hang_s=5))
    assert happened(tmp_path) == 1 and same(s.frame, undisturbed) and attempts(s) == {8: 1, 16: 1, 32: 1}


# ---------------------------------------------------------------- the user's own

def raises(): raise KeyError("the user's own mistake\nin two lines")


def test_an_exception_ends_its_run_and_no_other(tmp_path, undisturbed, capfd):
    s = sweep(faulty(tmp_path, raises), tmp_path/"runs")
    f = s.frame.set_index("size")
    assert f.state[16] == "FAILED" and "the user's own mistake" in f.reason[16] and "\n" not in f.reason[16] and attempts(s) == {8: 1, 16: 1, 32: 1}
    assert same(s.frame, undisturbed, but=(16,))
    failure = s.storage.read_json(f.run_id[16], "failure.json")
    assert "in raises" in failure["traceback"] and "Traceback" in failure["traceback"]        # whole on disk
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err and repr(s).count("the user's own mistake") == 1      # once, short, where the user looks


def test_a_loss_that_is_no_number(tmp_path, undisturbed):
    class Nan(MLP):
        def forward(self, x): return super().forward(x)*(float("nan") if self.training and self.layers[0].out_features == 16 else 1.)
    s = sweep(mlp_problem(model=Nan), tmp_path/"runs")
    f = s.frame.set_index("size")
    assert f.state[16] == "FAILED" and "became nan" in f.reason[16] and same(s.frame, undisturbed, but=(16,))


# ---------------------------------------------------------------- memory

def test_memory_that_cannot_be_had_halves_the_micro_batch(tmp_path, undisturbed):
    "A lack of memory in a step is met in the step: half the samples at a time, and no attempt is lost."
    class Hungry(MLP):
        def forward(self, x):
            if self.training and self.layers[0].out_features == 16 and len(x) > 16: raise MemoryError
            return super().forward(x)
    s = sweep(mlp_problem(model=Hungry), tmp_path/"runs")
    assert attempts(s) == {8: 1, 16: 1, 32: 1} and (s.frame.state == "SUCCEEDED").all() and same(s.frame, undisturbed, but=(16,))
    r = s.storage.read_json(s.frame.set_index("size").run_id[16], "result.json")
    assert r["micro_batch"] == 16 and r["loss"] == pytest.approx(undisturbed.set_index("size").loss[16], rel=1e-3)


def test_memory_that_is_never_enough_fails_the_run(tmp_path, undisturbed):
    def never(): raise MemoryError
    s = sweep(faulty(tmp_path, never, step=0, times=999), tmp_path/"runs")
    f = s.frame.set_index("size")
    assert f.state[16] == "FAILED" and f.reason[16].startswith("out of memory with 1 samples") and attempts(s)[16] == 1 and same(s.frame, undisturbed, but=(16,))


# ---------------------------------------------------------------- the storage

def test_a_full_disk_is_waited_for(tmp_path, undisturbed):
    "/dev/full answers each write as a full disk does. Space is made while the sweep waits."
    where = tmp_path/"runs"
    s = sweep(mlp_problem(), where, mock=True)                 # writes what is planned, under ids of its own
    from scaling_nb.contracts import fingerprint
    from scaling_nb.training import describe_run
    problem = mlp_problem()
    key = describe_run(problem, the_plan().specs[1], RECIPE, None, fingerprint(problem))["run_id"]
    (where/key).mkdir()
    (where/key/"metrics.jsonl").symlink_to("/dev/full")
    s = sweep(problem, where, wait=False, limits=Limits(backoff_s=2))
    until(lambda: len(s.attempts[s.attempts.run_id == key]))
    until(lambda: not s.control.status()["running"])           # the other runs ended; this one waits
    assert runs_frame(s.storage, [key]).state[0] == "STOPPED"
    (where/key/"metrics.jsonl").unlink()
    s.wait()
    s.close()
    assert same(s.frame, undisturbed) and any("No space left" in w for w in why(s, 16))


def test_a_disk_that_stays_full_leaves_the_run_and_says_so(tmp_path, undisturbed, capsys):
    where, problem = tmp_path/"runs", mlp_problem()
    from scaling_nb.contracts import fingerprint
    from scaling_nb.training import describe_run
    key = describe_run(problem, the_plan().specs[1], RECIPE, None, fingerprint(problem))["run_id"]
    (where/key).mkdir(parents=True)
    (where/key/"metrics.jsonl").symlink_to("/dev/full")
    s = sweep(mlp_problem(), where, mock=True)
    s = sweep(problem, where, limits=Limits(backoff_s=.1, storage=2))
    out = capsys.readouterr().out
    assert "1 run had to be left unfinished" in out and "No space left" in out and "The same line goes on with" in out
    f = s.frame.set_index("size")
    assert f.state[16] == "STOPPED" and same(s.frame, undisturbed, but=(16,))
    (where/key/"metrics.jsonl").unlink()
    assert same(sweep(problem, where).frame, undisturbed)


def test_a_torn_last_line(tmp_path, undisturbed):
    "A power cut tears the last line of the metrics; the run goes on from its checkpoint and no step is missing or doubled."
    where = tmp_path/"runs"
    s = sweep(faulty(tmp_path, killed, step=300), where, limits=Limits(lost=0))
    key = s.frame.set_index("size").run_id[16]
    assert happened(tmp_path) == 1 and s.frame.set_index("size").state[16] == "FAILED"
    with open(where/key/"metrics.jsonl", "ab") as f: f.write(b'{"step": 99999, "tokens": 1, "lo\xe2')
    s = sweep(faulty(tmp_path, killed, step=300), where, retry_failed=True)
    assert same(s.frame, undisturbed)
    from problems import curve
    whole = sweep(mlp_problem(), tmp_path/"whole")
    assert curve(where, key) == curve(tmp_path/"whole", whole.frame.set_index("size").run_id[16])


# ---------------------------------------------------------------- clocks

def test_clocks_that_disagree(tmp_path, undisturbed):
    "One run's machine is two hours ahead until it dies, the next is right: nothing that is told depends on it."
    class Ahead(MLP):
        def __init__(self, *a, **kw):
            super().__init__(*a, **kw)
            if a[0] if a else kw["width"] == 16:
                import time as t
                if not (tmp_path/"fault").exists() and not hasattr(t, "_real"):
                    t._real = t.time
                    t.time = lambda: t._real() + 7200

        def forward(self, x):
            import time as t
            if self.training and self.layers[0].out_features == 16 and hasattr(t, "_real") and not (tmp_path/"fault").exists():
                self.n = getattr(self, "n", 0) + 1
                if self.n > 300: (tmp_path/"fault").touch(); os.kill(os.getpid(), signal.SIGKILL)
            return super().forward(x)
    release_workers()
    s = sweep(mlp_problem(model=Ahead), tmp_path/"runs")
    release_workers()
    assert (tmp_path/"fault").exists() and same(s.frame, undisturbed) and attempts(s)[16] == 2
    assert s.frame.wall_s.between(0, 600).all()
    a = s.attempts
    times = a[a.run_id == s.frame.set_index("size").run_id[16]].started
    assert (times.max() - times.min()).total_seconds() > 3600               # the clocks did disagree


# ---------------------------------------------------------------- the user's hand

def test_pause_and_resume(tmp_path, undisturbed):
    s = sweep(mlp_problem(), tmp_path/"runs", wait=False)
    until(lambda: s.frame.state.eq("RUNNING").any())
    s.pause()
    s.wait(60)
    f = s.frame
    assert not f.state.eq("RUNNING").any() and f.state.eq("STOPPED").any() and "paused" in repr(s)
    time.sleep(1)
    assert s.frame.equals(f)
    s.resume()
    s.wait(120)
    s.close()
    assert same(s.frame, undisturbed) and s.frame.attempt.max() == 2


def test_cancel_and_add(tmp_path, undisturbed):
    problem = mlp_problem(model=Slow)
    s = run_sweep(problem, plan_sweep(problem, (8e7,), sizes=(8, 16), speed=None), RECIPE, storage=tmp_path/"runs", resources=Resources(slots=1), view=False, wait=False)
    s.add(plan_sweep(problem, (8e7,), sizes=(8, 32), speed=None), RECIPE)    # 8 is known
    assert len(s.ids) == 3
    until(lambda: s.frame.state.eq("RUNNING").any())
    f = s.frame
    running, queued = f[f.state == "RUNNING"], f[f.state == "PENDING"].iloc[-1]
    s.cancel(queued.run_id)
    until(lambda: s.frame.set_index("run_id").reason[queued.run_id] == "cancelled", 5)        # at once
    start = time.monotonic()
    s.cancel(running.run_id.iloc[0])
    until(lambda: s.frame.set_index("run_id").state[running.run_id.iloc[0]] != "RUNNING")
    assert time.monotonic() - start < 10
    s.wait(120)
    s.close()
    f = s.frame
    assert sorted(f.state) == ["FAILED", "FAILED", "SUCCEEDED"] and same(f, undisturbed, but=set(f["size"][f.state == "FAILED"]) | (set(SIZES) - set(f["size"])))
    with pytest.raises(ValueError, match="must be one of the 3 runs"): s.retry("nobody")
    s.retry(running.run_id.iloc[0])                                                # its loop has come to an end: another begins
    s.wait(120)
    s.close()
    assert sorted(s.frame.state) == ["FAILED", "SUCCEEDED", "SUCCEEDED"]
    again = run_sweep(problem, the_plan(), RECIPE, storage=tmp_path/"runs", resources=TWO, view=False, retry_failed=True)
    assert same(again.frame, undisturbed)                                          # a change of mind costs nothing


def test_a_pause_from_the_view_is_no_end_of_the_cell_that_waits(tmp_path, undisturbed, monkeypatch):
    from scaling_nb import widgets
    seen = []

    class View(widgets.RunView):
        def show(self):
            threading.Thread(target=press, args=(self,)).start()
            return self
    def press(view):
        until(lambda: view.control.frame.state.eq("RUNNING").any())
        view.press("pause")
        until(lambda: view.control.control.rests(.1))
        f = view.control.frame
        time.sleep(1.5)
        seen.extend([view.can, f.state.isin(["STOPPED", "PENDING", "SUCCEEDED"]).all(), view.control.frame.equals(f), view.press("resume")["ok"]])
    monkeypatch.setattr(widgets, "RunView", View)
    s = sweep(mlp_problem(), tmp_path/"runs", view=True)
    assert seen == [dict(alive=True, paused=True, over=False), True, True, True]
    assert same(s.frame, undisturbed) and s.status() == dict(alive=False, paused=False, over=False)


# ---------------------------------------------------------------- all at once, quietly

ALL_AT_ONCE = """
import json, os, signal, sys, time
from pathlib import Path
import psutil
sys.path.insert(0, {tests!r})
m = psutil.virtual_memory()
room = min(3e9, m.available/2)
os.environ.update(RAY_memory_usage_threshold=str(1 - (m.available - room)/m.total), RAY_memory_monitor_refresh_ms="100")
from problems import MLP, mlp_problem
from scaling_nb.decisions import Limits
from scaling_nb.recipes import Recipe
from scaling_nb.scheduling import Resources, run_sweep
from scaling_nb.sweep import plan_sweep
where = Path(sys.argv[1])

class Unlucky(MLP):
    def forward(self, x):
        width = self.layers[0].out_features
        if self.training:
            self.n = getattr(self, "n", 0) + 1
            flag = where/f"fault{{width}}"
            if width == 16 and len(x) > 16 and self.n > 20:      # until Ray ends it; a quarter of the batch fits
                kept = []
                while True: kept.append(bytearray(os.urandom(1)*100_000_000)); time.sleep(.03)
            if width == 24 and self.n > 20: print("not in the notebook"); raise ValueError("the user's own mistake")
            if self.n > 200 and width in (8, 12) and not flag.exists():
                flag.touch()
                os.kill(os.getpid(), signal.SIGKILL) if width == 8 else time.sleep(600)
        return super().forward(x)

if __name__ == "__main__":
    problem = mlp_problem(model=Unlucky)
    s = run_sweep(problem, plan_sweep(problem, (1e8,), sizes=(8, 12, 16, 24, 32), speed=None), Recipe(batch_size=64), storage=where/"runs", resources=Resources(slots=2), view=False,
                  checkpoint_s=.2, limits=Limits(hang_s=10))
    f = s.frame.set_index("size")
    told = s.attempts.set_index("run_id").why
    print(json.dumps({{str(n): [f.state[n], int(f.attempt[n]), f.loss[n] if f.loss[n] == f.loss[n] else None, f.reason[n], [w for w in told[[f.run_id[n]]] if w]] for n in f.index}}))
"""


@pytest.mark.long
def test_all_at_once_and_nothing_is_printed_but_what_we_say(tmp_path):
    "A killed worker, a hang, one that Ray ends for its memory, a mistake of the user's: two lines on stdout, none on stderr."
    import json
    import subprocess
    import sys
    script = tmp_path/"driver.py"
    script.write_text(ALL_AT_ONCE.format(tests=os.path.dirname(__file__)))
    p = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=300, check=False)
    assert p.returncode == 0 and p.stderr == "", p.stdout + p.stderr
    first, second, last = p.stdout.splitlines()
    assert first.startswith("Ray started on this machine in ") and second.startswith("5 runs in ")
    told = json.loads(last)
    assert {k: v[0] for k, v in told.items()} == {"8": "SUCCEEDED", "12": "SUCCEEDED", "16": "SUCCEEDED", "24": "FAILED", "32": "SUCCEEDED"}
    assert {k: v[1] for k, v in told.items() if k != "16"} == {"8": 2, "12": 2, "24": 1, "32": 1} and told["16"][1] in (2, 3)      # a machine that is full meanwhile may end it once more
    assert told["8"][4][0].startswith("its worker died") and told["12"][4] == ["no step for 10 s"] and told["24"][3] == "ValueError: the user's own mistake"
    assert any(w.startswith("out of memory") for w in told["16"][4])
    plain = run_sweep(mlp_problem(), plan_sweep(mlp_problem(), (1e8,), sizes=(8, 12, 16, 24, 32), speed=None), RECIPE, storage=tmp_path/"plain", resources=TWO, view=False).frame.set_index("size")
    assert all(told[str(n)][2] == plain.loss[n] for n in (8, 12, 32)) and told["16"][2] == pytest.approx(plain.loss[16], rel=1e-3)


ON_S3 = """
import json, os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from s3server import s3_server
from problems import MLP, mlp_problem
from scaling_nb.recipes import Recipe
from scaling_nb.scheduling import Resources, run_sweep
from scaling_nb.sweep import plan_sweep
flag = Path(sys.argv[1])/"fault"

class Killed(MLP):
    def forward(self, x):
        if self.training and self.layers[0].out_features == 16 and not flag.exists():
            self.n = getattr(self, "n", 0) + 1
            if self.n > 300: flag.touch(); os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)

if __name__ == "__main__":
    with s3_server():
        problem = mlp_problem(model=Killed)
        plan = plan_sweep(problem, (8e7,), sizes=(8, 16, 32), speed=None)
        go = lambda: run_sweep(problem, plan, Recipe(batch_size=64), storage="s3://bucket/study", resources=Resources(slots=2), view=False, checkpoint_s=.5)
        s, again = go(), go()
        f = s.frame.set_index("size")
        steps = {{k: [m["step"] for m in s.storage.metrics(k)] for k in s.ids}}
        print(json.dumps(dict(loss=list(f.loss), attempt=list(f.attempt), same=again.frame.equals(s.frame), lease=s.storage.read_json("", "sweep.json"), index=s.storage.exists("", "finished.json"),
                              whole=all(x == sorted(set(x)) and x[-1] == s.storage.read_json(k, "result.json")["steps"] for k, x in steps.items()))))
"""


@pytest.mark.long
def test_a_sweep_on_an_object_store(tmp_path, undisturbed):
    "Workers, loop and reader meet in an S3 server; one worker is killed."
    import json
    import subprocess
    import sys
    pytest.importorskip("s3fs"); pytest.importorskip("moto.server")
    script = tmp_path/"driver.py"
    script.write_text(ON_S3.format(tests=os.path.dirname(__file__)))
    p = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=300, check=False)
    assert p.returncode == 0, p.stdout + p.stderr
    told = json.loads(p.stdout.splitlines()[-1])
    assert told == dict(loss=list(undisturbed.sort_values("size").loss), attempt=[1, 2, 1], same=True, lease=None, index=True, whole=True)
