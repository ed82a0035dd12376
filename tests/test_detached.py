"""A sweep that belongs to no kernel: its driver, its loop and its workers may die."""
import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest
from problems import Slow, curve, mlp_problem, until

from scaling_nb.recipes import Recipe
from scaling_nb.records import attempts_frame, open_storage, read_lease, runs_frame
from scaling_nb.scheduling import Resources, Sweep, attach, run_sweep
from scaling_nb.sweep import plan_sweep

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.cluster]
TESTS = os.path.dirname(__file__)
SAME = ["run_id", "budget", "size", "N", "D", "C", "loss", "loss_std", "state", "seed", "flops_measured", "reason"]

STUDY = f"""
import sys, time
sys.path.insert(0, {TESTS!r})
from test_detached import go
"""


def go(where, **kw):
    problem = mlp_problem(model=Slow)
    plan = plan_sweep(problem, [6e7], sizes=[8, 12, 16, 24, 32], speed=None)
    return run_sweep(problem, plan, Recipe(batch_size=64), storage=where, view=False, **{**dict(resources=Resources(slots=2), checkpoint_s=.5), **kw})


@pytest.fixture(scope="module", autouse=True)
def own_head(tmp_path_factory):
    "A head of this module's own, in a folder with a short path; nothing of it is left afterwards."
    import tempfile
    folder, old = tempfile.mkdtemp(prefix="snb"), os.environ.get("RAY_TMPDIR")
    os.environ["RAY_TMPDIR"] = folder
    import ray
    ray.shutdown()
    yield
    from scaling_nb.cluster import stop_head
    ray.shutdown()
    stop_head()
    left = [p.pid for p in psutil.process_iter(["cmdline"]) if folder in " ".join(p.info["cmdline"] or [])]
    os.environ.pop("RAY_TMPDIR") if old is None else os.environ.update(RAY_TMPDIR=old)
    assert not left


def script(tmp_path, code):
    file = tmp_path/f"driver{time.monotonic_ns()}.py"
    file.write_text(STUDY + textwrap.dedent(code))
    return subprocess.Popen([sys.executable, str(file)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    s = go(tmp_path_factory.mktemp("undisturbed")/"runs", detached=True).wait(120)
    s.close()
    return s.storage.root


def alike(where, undisturbed):
    "Frame and curves are those of a sweep nobody disturbed."
    a, b = runs_frame(open_storage(where)), runs_frame(open_storage(undisturbed))
    assert a[SAME].equals(b[SAME]) and (a.state == "SUCCEEDED").all(), f"\n{a[SAME].compare(b[SAME]).to_string()}\n{attempts_frame(where).to_string()}"
    return all(curve(where, k) == curve(undisturbed, k) for k in a.run_id)


def head_family():
    "Processes of this module's own head."
    from scaling_nb.cluster import _head
    return {p.pid for p in psutil.Process(_head()["pid"]).children(recursive=True)}


def finished(where): return {p.parent.name: p.read_bytes() for p in where.glob("*/result.json")}


def test_the_driver_is_killed_and_nothing_stops(tmp_path, undisturbed):
    where = tmp_path/"runs"
    p = script(tmp_path, f"go({str(where)!r}, detached=True); print('begun', flush=True); time.sleep(600)")
    until(lambda: any(where.glob("*/attempt.json")))
    p.kill()
    assert "whatever becomes of this process" in p.communicate()[0]
    before = finished(where)
    assert len(before) < 5
    start = time.monotonic()
    s = attach(where)
    took = time.monotonic() - start
    assert s.alive and took < 5 and len(s.ids) == 5 and "training" in repr(s)
    s.wait(120)
    assert alike(where, undisturbed) and (s.frame.attempt == 1).all()
    s.close()
    until(lambda: read_lease(open_storage(where)) is None)
    from ray.util import list_named_actors
    until(lambda: not list_named_actors(all_namespaces=True))                 # neither the loop nor the desk is left, nor a worker
    until(lambda: not [p for p in psutil.process_iter(["cmdline"]) if "".join(p.info["cmdline"] or []).startswith("ray::Runner") and p.pid in head_family()])


@pytest.mark.long
def test_the_loop_is_killed_and_begins_again_by_itself(tmp_path, undisturbed):
    where = tmp_path/"runs"
    s = go(where, detached=True)
    until(lambda: len(finished(where)) >= 1)
    pid = s.control.status()["pid"]
    assert pid == read_lease(s.storage)["pid"] and pid != os.getpid()
    os.kill(pid, signal.SIGKILL)
    before = finished(where)
    s.wait(180)                                                                # it outlives the loop that it waits for
    assert s.control.status()["pid"] != pid
    assert alike(where, undisturbed)
    assert all(finished(where)[k] == v for k, v in before.items()) and (s.frame.set_index("run_id").attempt[list(before)] == 1).all()      # nothing that had finished was repeated
    assert s.frame.attempt.max() == 2
    s.close()


def test_a_pause_outlives_the_loop_and_the_same_line_finds_the_sweep(tmp_path, undisturbed):
    where = tmp_path/"runs"
    s = go(where, detached=True)
    until(lambda: any(where.glob("*/attempt.json")))
    s.pause()
    s.wait(60)
    state = s.frame.state
    pid = s.control.status()["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: s.alive and s.control.status()["pid"] != pid)
    time.sleep(1)
    assert s.control.status()["paused"] and s.frame.state.equals(state)
    last = s.frame.run_id[s.frame.state != "SUCCEEDED"].iloc[-1]
    s.cancel(last)
    until(lambda: (s.frame.set_index("run_id").state[last], s.frame.set_index("run_id").reason[last]) == ("FAILED", "cancelled"))
    with pytest.raises(ValueError, match="one of the 5 runs"): s.retry("nobody")
    s.retry(last)                                                                       # asked of a loop in another process
    p = script(tmp_path, f"s = go({str(where)!r}, detached=True); s.resume(); s.wait(); print(s)")      # another process, the same line
    out, _ = p.communicate(timeout=180)
    assert p.returncode == 0 and "being trained already" in out and "5 SUCCEEDED" in out, out
    assert alike(where, undisturbed)
    s.close()


@pytest.mark.long
def test_two_drivers_do_not_train_in_one_storage(tmp_path, undisturbed):
    "The second is refused while the first lives, paused as it may be; when that is dead, the same line goes on at once."
    where = tmp_path/"runs"
    first = script(tmp_path, f"s = go({str(where)!r}, wait=False); s.pause(); s.wait(); print('held', flush=True); time.sleep(600)")
    try:
        while "held" not in (line := first.stdout.readline()): assert line, "the first driver has died"
        second = script(tmp_path, f"go({str(where)!r})")
        out, _ = second.communicate(timeout=120)
        assert second.returncode != 0 and f"process {first.pid}" in out and "StorageBusy" in out, out
    finally:
        first.kill()
        first.wait()
    third = script(tmp_path, f"print(go({str(where)!r}))")
    out, _ = third.communicate(timeout=180)
    assert third.returncode == 0 and "5 SUCCEEDED" in out, out
    assert alike(where, undisturbed)


def test_nobody_is_there(tmp_path, undisturbed):
    with pytest.raises(FileNotFoundError, match="no sweep in"): attach(tmp_path/"nothing")
    s = attach(undisturbed)
    assert isinstance(s, Sweep) and not s.alive and len(s.L) == 5 and s.eta is None
    with pytest.raises(RuntimeError, match="Nobody trains the sweep"): s.pause()


def test_what_cannot_begin_says_why(tmp_path):
    problem = mlp_problem()
    plan = plan_sweep(problem, [1e8], sizes=[8, 16], speed=None)
    with pytest.raises(ValueError, match="asks for 99 CPUs"):
        run_sweep(problem, plan, Recipe(batch_size=64), storage=tmp_path, resources=Resources(cpus=99), view=False, detached=True)
    assert read_lease(open_storage(tmp_path)) is None


@pytest.mark.long
def test_a_kernel_is_killed_and_another_attaches(tmp_path, undisturbed):
    "Real Jupyter kernels: the first is killed in mid-sweep, the second sees all that was, within five seconds, and no step is missing."
    from jupyter_client.manager import start_new_kernel
    where = tmp_path/"runs"

    def cell(client, code, timeout=120):
        said = []
        reply = client.execute_interactive(code, timeout=timeout, output_hook=lambda m: said.append(m["content"].get("text") or m["content"].get("data", {}).get("text/plain", "")))
        assert reply["content"]["status"] == "ok", reply["content"]
        return "".join(said)
    first, client = start_new_kernel()
    try:
        cell(client, STUDY)
        cell(client, f"sweep = go({str(where)!r}, detached=True)")
        until(lambda: any(where.glob("*/metrics.jsonl")))
        os.kill(first.provisioner.pid, signal.SIGKILL)
    finally:
        client.stop_channels()
        first.shutdown_kernel(now=True)
    seen = {k: list(curve(where, k)) for k in open_storage(where).runs()}
    second, client = start_new_kernel()
    try:
        out = cell(client, f"""
import time; start = time.monotonic()
from scaling_nb.scheduling import attach
s = attach({str(where)!r}); alive = s.alive; text = repr(s)
print(f"{{time.monotonic() - start:.2f}} {{alive}}"); print(text)""")
        took, alive = out.split()[:2]
        assert float(took) < 5 and alive == "True", out
        out = cell(client, "s.wait(); s", 180)
        assert "5 SUCCEEDED" in out
        cell(client, "s.close()")
    finally:
        client.stop_channels()
        second.shutdown_kernel(now=True)
    assert alike(where, undisturbed) and (runs_frame(open_storage(where)).attempt == 1).all()
    assert all(set(v) <= set(curve(where, k)) for k, v in seen.items())
