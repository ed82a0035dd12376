"""Many runs on Ray: nothing finished is lost or repeated, whatever dies."""
import json
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from problems import MLP, Bomb, Slow, curve, mlp_problem, until, xy

from scaling_nb.cluster import start_ray
from scaling_nb.contracts import fingerprint
from scaling_nb.decisions import End, Need
from scaling_nb.recipes import Recipe
from scaling_nb.records import StorageMismatch, open_storage, read_record, runs_frame
from scaling_nb.scheduling import Resources, Runner, _death, _left_to_do, _need, release_workers, run_sweep
from scaling_nb.sweep import plan_sweep, share_trunks
from scaling_nb.training import MockLaw, describe_run, train_run

RECIPE = Recipe(batch_size=64)
TWO = Resources(slots=2)
SAME = ["run_id", "budget", "size", "N", "D", "C", "loss", "loss_std", "state", "seed", "flops_measured", "reason", "mock", "recipe"]


@pytest.fixture(scope="module", autouse=True)
def ray_ends():
    yield
    import ray
    ray.shutdown()


def small_plan(problem, budgets=(5e7, 1e8), sizes=(8, 16, 32)): return plan_sweep(problem, budgets, sizes=sizes, speed=None)


def attempts_frame_pids(where): return [json.loads(f.read_text())["pid"] for f in where.glob("*/attempt.json")]


def test_runner_is_a_plain_class(tmp_path, one_thread):
    problem = mlp_problem()
    s = small_plan(problem).specs[0]
    prints = fingerprint(problem)
    key = describe_run(problem, s, RECIPE, None, prints)["run_id"]
    r = Runner().run(key, s, RECIPE, ("digest", [problem]), open_storage(tmp_path), None, dict(prints=prints))
    assert r["end"] is End.FINAL and read_record(open_storage(tmp_path), key).loss == train_run(problem, s, RECIPE).loss
    assert Runner().run(key, s, RECIPE, ("digest", [problem]), open_storage(tmp_path), None, dict(prints=prints))["end"] is End.FINAL        # read, not trained


def test_what_no_run_is_to_blame_for_is_still_told(tmp_path):
    "Our own mistake, or a storage of another problem: the run fails with the traceback on disk, and the sweep goes on."
    problem = mlp_problem()
    s, storage = small_plan(problem).specs[0], open_storage(tmp_path)
    r = Runner().run("some-run", s, RECIPE, ("digest", [problem]), storage, None, dict(nonsense=1))
    assert r["end"] is End.FINAL and "nonsense" in storage.read_json("some-run", "failure.json")["reason"] and "Traceback" in storage.read_json("some-run", "failure.json")["traceback"]


def test_what_a_run_may_use():
    nodes = [SimpleNamespace(cpus=8, gpus=2)]
    assert _need(Resources(), None, None, nodes) == Need(1, 1) and _need(Resources(), None, None, [SimpleNamespace(cpus=8, gpus=0)]) == Need(1, 0)
    auto = Resources(gpus="auto", accelerator="H100")
    assert _need(auto, 7e9, 80e9, nodes) == Need(1, 1/8, accelerator="H100") and _need(auto, 30e9, 80e9, nodes).gpus == .5 and _need(auto, 60e9, 80e9, nodes).gpus == 1
    assert _need(auto, 30e9, None, nodes).gpus == 1 and _need(Resources(gpus="auto", workers=2), 1e9, 80e9, nodes).gpus == 1      # unknown, or a run over several: whole GPUs
    for kw, match in ((dict(cpus=0), "`cpus` must be positive"), (dict(slots=0), "`slots` must be at least 1"), (dict(gpus="some"), "'auto' or None"), (dict(grow=True), "needs `slots`")):
        with pytest.raises(ValueError, match=match): Resources(**kw)


def test_the_failed_are_tried_again_once():
    "Of failed runs that are to be tried again, those that were tried meanwhile are not."
    f = pd.DataFrame(dict(run_id=["a", "b", "c", "d"], state=["SUCCEEDED", "FAILED", "FAILED", "STOPPED"], attempt=[1, 1, 2, 3]))
    assert _left_to_do(f, {}) == ["d"] and _left_to_do(f, {"b": 1, "c": 1}) == ["b", "d"]


@pytest.mark.parametrize("text, told", [
    ("The actor died unexpectedly. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker exits with an exit code 3.", "its worker died (exit code 3)"),
    ("The actor is dead because its node has died. Node Id: 12ab", "its node was lost"),
    ("Task was killed due to the node running low on memory.\nMemory on the node was 14.9GB", "out of memory"),
    ("The actor died because of an error raised in its creation task, ray::Runner.__init__()\nImportError: no torch here", "ImportError: no torch here")])
def test_how_a_worker_ended_is_told_in_a_few_words(text, told):
    why, oom = _death(RuntimeError(text))
    assert why.startswith(told) and "\n" not in why and oom == ("memory" in told)


@pytest.mark.ray
class TestOnRay:
    def test_trunks_save_compute_and_change_no_loss(self, tmp_path):
        problem = mlp_problem()
        plan, recipe = small_plan(problem, budgets=(5e7, 1e8, 2e8)), Recipe(batch_size=((0, 16), (8000, 32)), warmup=500)
        shared, alone = (run_sweep(problem, plan, recipe, storage=tmp_path/str(t), resources=TWO, trunks=t, view=False).frame for t in (True, False))
        told = SAME[:SAME.index("flops_measured")] + SAME[SAME.index("flops_measured") + 1:]
        assert shared[told].equals(alone[told]) and shared.group.equals(alone.group) and (shared.state == "SUCCEEDED").all() and (shared.attempt == 1).all()
        from dataclasses import replace
        planned = replace(plan, trunks=share_trunks(plan.specs, recipe, 1))
        assert shared.group.nunique() == 3 and shared.flops_measured.sum() == pytest.approx(planned.total_flops, rel=.01) and planned.total_flops < .75*alone.flops_measured.sum()

    def test_a_sweep_and_the_same_line_again(self, tmp_path, capsys):
        problem = mlp_problem()
        plan = small_plan(problem)
        a = run_sweep(problem, plan, RECIPE, storage=tmp_path, resources=TWO, view=False)
        f = a.frame
        assert (f.state == "SUCCEEDED").all() and (f.attempt == 1).all() and len(a.L) == len(plan) == 6
        written = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
        b = run_sweep(problem, plan, RECIPE, storage=tmp_path, resources=TWO, view=False)
        assert b.frame.equals(f) and written == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
        assert "nothing was trained" in capsys.readouterr().out
        assert np.allclose(f.C, f.budget, rtol=.01)

    def test_workers_give_the_losses_of_a_cell(self, tmp_path):
        "One thread, another process: bitwise."
        import torch
        problem = mlp_problem()
        plan = small_plan(problem, budgets=(5e7,))
        f = run_sweep(problem, plan, RECIPE, storage=tmp_path, resources=TWO, view=False).frame
        n = torch.get_num_threads(); torch.set_num_threads(1)
        try: assert [train_run(problem, s, RECIPE).loss for s in plan.specs] == list(f.loss)
        finally: torch.set_num_threads(n)

    def test_a_users_exception_fails_its_run_and_no_other(self, tmp_path):
        problem = mlp_problem(model=Bomb)
        f = run_sweep(problem, small_plan(problem), RECIPE, storage=tmp_path, resources=TWO, view=False).frame
        assert set(f[f.state == "FAILED"]["size"]) == {16} and (f[f["size"] != 16].state == "SUCCEEDED").all()
        assert (f[f["size"] == 16].reason == "RuntimeError: the bomb went off").all() and (f.attempt == 1).all()
        again = run_sweep(problem, small_plan(problem), RECIPE, storage=tmp_path, resources=TWO, view=False).frame
        assert again.attempt.max() == 1                                       # failed runs are not tried again by themselves
        asked = run_sweep(problem, small_plan(problem), RECIPE, storage=tmp_path, resources=TWO, view=False, retry_failed=True).frame
        assert set(asked[asked["size"] == 16].attempt) == {2}

    def test_another_study_is_refused_before_anything_is_written(self, tmp_path):
        problem = mlp_problem()
        run_sweep(problem, small_plan(problem), RECIPE, storage=tmp_path, mock=True)
        before = sorted(p.name for p in tmp_path.iterdir())
        other = mlp_problem(data=xy(seed=7))
        with pytest.raises(StorageMismatch, match="differs in: data"): run_sweep(other, small_plan(other), RECIPE, storage=tmp_path, view=False)
        assert sorted(p.name for p in tmp_path.iterdir()) == before

    def test_what_fits_nowhere_is_said_at_once(self, tmp_path):
        problem = mlp_problem()
        with pytest.raises(ValueError, match="asks for 1 CPUs and 4 GPUs, but the nodes"): run_sweep(problem, small_plan(problem), storage=tmp_path, resources=Resources(gpus=4), view=False)

    def test_ray_stays_quiet(self, tmp_path, capfd):
        problem = mlp_problem()
        start_ray()
        capfd.readouterr()
        run_sweep(problem, small_plan(problem), RECIPE, storage=tmp_path, resources=TWO, view=False)
        out, err = capfd.readouterr()
        assert err == "" and out.count("\n") == 1 and out.startswith("6 runs in")

    def test_resources_may_depend_on_the_run(self, tmp_path):
        "The largest takes both cores, and they all come to their end."
        problem = mlp_problem()
        f = run_sweep(problem, small_plan(problem), RECIPE, storage=tmp_path, resources=lambda s: Resources(cpus=2 if s.size == 32 else 1), view=False).frame
        assert (f.state == "SUCCEEDED").all()
        threads = {r["size"]: open_storage(tmp_path).read_json(r.run_id, "result.json")["threads"] for _, r in f.iterrows()}
        assert threads == {8: 1, 16: 1, 32: 2}

    def test_workers_are_kept_for_the_next_sweep_and_let_go(self, tmp_path):
        problem = mlp_problem()
        def pids(where): return set(attempts_frame_pids(where))
        run_sweep(problem, small_plan(problem, (5e7,)), RECIPE, storage=tmp_path/"a", resources=TWO, view=False)
        run_sweep(problem, small_plan(problem, (6e7,)), RECIPE, storage=tmp_path/"b", resources=TWO, view=False)
        assert pids(tmp_path/"b") <= pids(tmp_path/"a")
        release_workers()
        run_sweep(problem, small_plan(problem, (7e7,)), RECIPE, storage=tmp_path/"c", resources=TWO, view=False)
        assert not pids(tmp_path/"c") & pids(tmp_path/"a")

    def test_another_cell_may_work_meanwhile(self, tmp_path):
        problem = mlp_problem()
        s = run_sweep(problem, small_plan(problem), RECIPE, storage=tmp_path, resources=TWO, view=False, wait=False)
        assert s.alive and s.control.status()["over"] is False
        with pytest.raises(TimeoutError, match="goes on"): s.wait(timeout=.1)
        s.wait()
        s.add(small_plan(problem, (2e7,)), RECIPE)                                  # the loop is just about to end
        s.wait(60)
        assert len(s.ids) == 9 and (s.frame.state == "SUCCEEDED").all()
        low, mid, high = s.control.scheduler.eta(time.monotonic())
        assert low == mid == high == 0 and (s.frame.state == "SUCCEEDED").all() and "training" not in repr(s)
        until(lambda: not s.alive, 30)
        assert not (tmp_path/"sweep.json").exists()
        s.add(small_plan(problem, (3e7,)), RECIPE)                                  # another round
        assert len(s.ids) == 12
        s.wait(60)
        assert (s.frame.state == "SUCCEEDED").all() and (s.frame.attempt == 1).all()

    def test_ctrl_c_ends_the_waiting_and_not_the_sweep(self, tmp_path):
        problem = mlp_problem(model=Slow)
        s = run_sweep(problem, small_plan(problem, (2e8,)), RECIPE, storage=tmp_path, resources=TWO, view=False, wait=False)
        threading.Timer(.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt): s.wait()
        assert s.alive
        s.wait()
        assert (s.frame.state == "SUCCEEDED").all() and (s.frame.attempt == 1).all()

    @pytest.mark.long
    def test_ray_that_is_shut_down_under_a_sweep(self, tmp_path):
        import ray
        problem = mlp_problem(model=Slow)
        s = run_sweep(problem, small_plan(problem), RECIPE, storage=tmp_path, resources=TWO, view=False, wait=False)
        until(lambda: s.frame.state.eq("RUNNING").any())
        ray.shutdown()
        with pytest.raises(RuntimeError, match="Ray was shut down while the sweep"): s.wait(60)
        assert not ray.is_initialized()                                     # nor started again behind the user's back
        again = run_sweep(problem, small_plan(problem), RECIPE, storage=tmp_path, resources=TWO, view=False)
        assert (again.frame.state == "SUCCEEDED").all()


def test_mock_needs_no_ray_and_no_time(tmp_path):
    problem = mlp_problem()
    runs = run_sweep(problem, small_plan(problem), storage=tmp_path, mock=MockLaw(noise=.01))
    assert runs.frame.mock.all() and (runs.frame.state == "SUCCEEDED").all() and "mock" in repr(runs)


def test_storage_in_memory_is_refused_before_ray_starts():
    problem = mlp_problem()
    with pytest.raises(ValueError, match="memory of one process"): run_sweep(problem, small_plan(problem), storage="memory://lost", view=False)


def test_empty_plan(tmp_path):
    from scaling_nb.sweep import SweepPlan
    with pytest.raises(ValueError, match="empty"): run_sweep(mlp_problem(), SweepPlan(()), storage=tmp_path)


def slow_sweep(where):
    "Slowed down, so that what happens lands in the middle of it."
    problem = mlp_problem(model=Slow)
    return run_sweep(problem, small_plan(problem, (4e7, 8e7), (8, 12, 16, 24)), Recipe(batch_size=32), storage=where, resources=TWO, view=False, checkpoint_s=.5)


def _finished(where): return {p.parent.name: p.read_bytes() for p in where.glob("*/result.json")} if where.exists() else {}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    where = tmp_path_factory.mktemp("alone")
    slow_sweep(where)
    return where


def ends_as_alone(where, alone, before):
    "As one left alone; what had finished was not touched."
    fa, fb, after = runs_frame(alone), runs_frame(where), _finished(where)
    assert fa[SAME].equals(fb[SAME]) and (fa.state == "SUCCEEDED").all() and len(fa) == 8
    assert all(after[k] == v for k, v in before.items()) and all(fb.set_index("run_id").attempt[k] == 1 for k in before)
    return all(curve(alone, k) == curve(where, k) for k in fa.run_id)


@pytest.mark.ray
def test_a_driver_is_killed_and_the_same_line_goes_on(tmp_path, alone):
    cut, script = tmp_path/"cut", tmp_path/"driver.py"
    script.write_text(f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\nfrom test_scheduling import slow_sweep\nif __name__ == '__main__': slow_sweep({str(cut)!r})")
    p = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try: until(lambda: len(_finished(cut)) >= 3)
    finally: os.killpg(p.pid, signal.SIGKILL)
    p.wait()
    time.sleep(4)                                                     # Ray's workers notice that their driver is gone
    before = _finished(cut)
    assert 3 <= len(before) < 8
    slow_sweep(cut)
    assert ends_as_alone(cut, alone, before)


@pytest.mark.ray
def test_ctrl_c_pauses_and_the_same_line_resumes(tmp_path, alone, capsys):
    where = tmp_path/"runs"
    def press():
        until(lambda: len(_finished(where)) >= 2)
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=press).start()
    with pytest.raises(KeyboardInterrupt): slow_sweep(where)
    assert "The same line resumes" in capsys.readouterr().out
    stopped = [json.loads(f.read_text()) for f in where.glob("*/attempt.json") if not (f.parent/"result.json").exists()]
    assert stopped and all("stopped" in s for s in stopped) and not (where/"sweep.json").exists()
    before = _finished(where)
    slow_sweep(where)
    assert f"{len(before)} of 8 runs are finished" in capsys.readouterr().out and ends_as_alone(where, alone, before)


@pytest.mark.ray
def test_what_cannot_reach_a_worker_is_said_once(tmp_path):
    class Locked(MLP):
        lock = threading.Lock()
    problem = mlp_problem(model=Locked)
    with pytest.raises(TypeError, match="must be picklable"): run_sweep(problem, small_plan(problem), storage=tmp_path, view=False)
