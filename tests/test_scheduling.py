"""Many runs on Ray: nothing finished is lost or repeated, whatever dies."""
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import MLP, Bomb, mlp_problem, xy

from scaling_nb.recipes import Recipe
from scaling_nb.records import StorageMismatch, open_storage
from scaling_nb.scheduling import Resources, Runner, run_sweep, start_ray
from scaling_nb.sweep import RunSpec, plan_sweep, share_trunks
from scaling_nb.training import MockLaw, train_run

RECIPE = Recipe(batch_size=64)
TWO = Resources(slots=2)
SAME = ["run_id", "budget", "size", "N", "D", "C", "loss", "loss_std", "state", "seed", "flops_measured", "reason", "mock", "recipe"]


@pytest.fixture(scope="module", autouse=True)
def ray_ends():
    yield
    import ray
    ray.shutdown()


def small_plan(problem, budgets=(5e7, 1e8), sizes=(8, 16, 32)): return plan_sweep(problem, budgets, sizes=sizes, speed=None)


def spec(D, N=100, f=1.0): return RunSpec(budget=D*f, size=8, N=N, D=D, flops_per_token=f)


def test_longest_first_by_compute():
    todo = {"a": spec(10), "b": spec(1000), "c": spec(100, f=100.)}
    assert longest_first(todo) == ["c", "b", "a"]


def test_runner_is_a_plain_class(tmp_path):
    problem = mlp_problem()
    s = small_plan(problem).specs[0]
    from scaling_nb.contracts import fingerprint
    r = Runner(problem, open_storage(tmp_path), "s1").run(s, RECIPE, fingerprint(problem), 30)
    assert r["state"] == "SUCCEEDED" and r["loss"] == train_run(problem, s, RECIPE).loss


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6), data=st.data())
def test_branches_wait_for_their_trunk_and_every_run_gets_its_turn(sizes, data):
    "Over random histories of a pool of two: runs end in any order, trunks leave checkpoints at any time, or never."
    specs, branches = {}, {}
    for i, n in enumerate(sizes):
        ids = [f"{i}-{k}" for k in range(n)]
        specs |= {key: spec(1000 - 100*k) for k, key in enumerate(ids)}
        if n > 1: branches[ids[0]] = tuple(ids[1:])
    todo, trunk = _Todo(specs, {}, branches), {b: k for k, bs in branches.items() for b in bs}
    queue, active, ended, left = longest_first(specs), [], [], set()
    while queue or active:
        while len(active) < 2 and (key := todo.next(queue, active, left.__contains__)):
            assert trunk.get(key) in (None, *ended) or key in left
            queue.remove(key); active.append(key)
        assert active                                             # never nothing to do while something is left
        for key in active:
            for b in branches.get(key, ()):
                if data.draw(st.booleans()): left.add(b)
        ended.append(active.pop(data.draw(st.integers(0, len(active) - 1))))
    assert sorted(ended) == sorted(specs)


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

    def test_a_killed_worker_is_replaced_and_its_run_goes_on(self, tmp_path):
        problem = mlp_problem()
        plan = small_plan(problem, budgets=(3e8,))
        victim = tmp_path/"killed"

        class Killed(MLP):
            "Kills its own process, once, in the middle of the run of width 16."
            def forward(self, x):
                if self.training and self.layers[0].out_features == 16 and not victim.exists():
                    self.n = getattr(self, "n", 0) + 1
                    if self.n > 500:
                        victim.touch()
                        os.kill(os.getpid(), signal.SIGKILL)
                return super().forward(x)
        problem = mlp_problem(model=Killed)
        f = run_sweep(problem, plan, RECIPE, storage=tmp_path/"runs", resources=TWO, view=False, checkpoint_s=.2).frame
        assert victim.exists() and (f.state == "SUCCEEDED").all()
        assert f.set_index("size").attempt.to_dict() == {8: 1, 16: 2, 32: 1}
        whole = run_sweep(problem, plan, RECIPE, storage=tmp_path/"whole", resources=TWO, view=False).frame
        assert list(f.loss) == list(whole.loss)                               # resumed from its checkpoint, bitwise

    def test_a_worker_that_always_dies_ends_as_failed(self, tmp_path):
        class Dies(MLP):
            def forward(self, x):
                if self.training and self.layers[0].out_features == 16: os._exit(3)
                return super().forward(x)
        plan = small_plan(mlp_problem(), budgets=(5e7,))
        f = run_sweep(mlp_problem(model=Dies), plan, RECIPE, storage=tmp_path, resources=TWO, view=False).frame.set_index("size")
        assert f.state.to_dict() == {8: "SUCCEEDED", 16: "FAILED", 32: "SUCCEEDED"} and "worker died 3 times" in f.reason[16]

    def test_another_study_is_refused_before_anything_is_written(self, tmp_path):
        problem = mlp_problem()
        run_sweep(problem, small_plan(problem), RECIPE, storage=tmp_path, mock=True)
        before = sorted(p.name for p in tmp_path.iterdir())
        other = mlp_problem(data=xy(seed=7))
        with pytest.raises(StorageMismatch, match="differs in: data"): run_sweep(other, small_plan(other), RECIPE, storage=tmp_path, view=False)
        assert sorted(p.name for p in tmp_path.iterdir()) == before

    def test_what_fits_nowhere_is_said_at_once(self, tmp_path):
        problem = mlp_problem()
        with pytest.raises(ValueError, match="asks for 1 CPUs and 4 GPUs"): run_sweep(problem, small_plan(problem), storage=tmp_path, resources=Resources(gpus=4), view=False)

    def test_ray_stays_quiet(self, tmp_path, capfd):
        problem = mlp_problem()
        start_ray()
        capfd.readouterr()
        run_sweep(problem, small_plan(problem), RECIPE, storage=tmp_path, resources=TWO, view=False)
        out, err = capfd.readouterr()
        assert err == "" and out.count("\n") == 1 and out.startswith("6 runs in")


def test_no_cluster_answers():
    import ray
    if ray.is_initialized(): ray.shutdown()
    start = time.monotonic()
    with pytest.raises(ConnectionError, match="No Ray cluster answers at '127.0.0.1:1'"): start_ray("127.0.0.1:1")
    assert time.monotonic() - start < 10


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


# A driver of its own, to be killed. Runs are slowed down so that the kill lands in the middle of them.
DRIVER = textwrap.dedent("""
    import sys, time
    sys.path.insert(0, {tests!r})
    from problems import MLP, mlp_problem
    from scaling_nb.sweep import plan_sweep
    from scaling_nb.scheduling import Resources, run_sweep
    from scaling_nb.recipes import Recipe
    class Slow(MLP):
        def forward(self, x):
            if self.training: time.sleep(.002)
            return super().forward(x)
    if __name__ == "__main__":
        problem = mlp_problem(model=Slow)
        plan = plan_sweep(problem, [5e7, 1e8], sizes=[8, 12, 16, 24], speed=None)
        print(run_sweep(problem, plan, Recipe(batch_size=32), storage=sys.argv[1], resources=Resources(slots=2), view=False, checkpoint_s=.5))
""")


def _driver(tmp_path, where):
    script = tmp_path/"driver.py"
    script.write_text(DRIVER.format(tests=os.path.dirname(__file__)))
    return subprocess.Popen([sys.executable, str(script), str(where)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def _finished(where): return {p.parent.name: p.read_bytes() for p in where.glob("*/result.json")} if where.exists() else {}


def _wait_for(where, n, process, timeout=180):
    deadline = time.monotonic() + timeout
    while len(_finished(where)) < n:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "the sweep did not get on"
        time.sleep(.05)


@pytest.mark.ray
def test_killed_half_way_and_started_again_ends_as_one_left_alone(tmp_path):
    alone, cut = tmp_path/"alone", tmp_path/"cut"
    p = _driver(tmp_path, alone); out, _ = p.communicate(timeout=300); assert p.returncode == 0, out
    p = _driver(tmp_path, cut)
    _wait_for(cut, 3, p)
    os.killpg(p.pid, signal.SIGKILL); p.wait()
    time.sleep(4)                                                     # Ray's workers notice that their driver is gone
    before = _finished(cut)
    assert 3 <= len(before) < 8
    p = _driver(tmp_path, cut); out, _ = p.communicate(timeout=300); assert p.returncode == 0, out
    a, b = (open_storage(d) for d in (alone, cut))
    from scaling_nb.records import runs_frame
    fa, fb = runs_frame(a), runs_frame(b)
    assert fa[SAME].equals(fb[SAME]) and (fa.state == "SUCCEEDED").all() and len(fa) == 8
    after = _finished(cut)
    assert all(after[k] == v for k, v in before.items())              # finished runs were not touched
    assert all(fb.set_index("run_id").attempt[k] == 1 for k in before)
    steps = lambda s, k: [(m["step"], m["tokens"]) for m in s.metrics(k)]
    assert all(steps(a, k)[-1] == steps(b, k)[-1] for k in fa.run_id)


@pytest.mark.ray
def test_ctrl_c_pauses_and_the_same_line_resumes(tmp_path):
    where = tmp_path/"runs"
    p = _driver(tmp_path, where)
    _wait_for(where, 2, p)
    p.send_signal(signal.SIGINT)
    out, _ = p.communicate(timeout=120)
    assert p.returncode != 0 and "The same line resumes" in out and "KeyboardInterrupt" in out
    stopped = [json.loads(f.read_text()) for f in where.glob("*/attempt.json") if not (f.parent/"result.json").exists()]
    assert stopped and all("stopped" in s for s in stopped) and not (where/"stop.json").exists()
    before = _finished(where)
    p = _driver(tmp_path, where); out, _ = p.communicate(timeout=300)
    assert p.returncode == 0 and f"{len(before)} of 8 runs are finished" in out, out
    after = _finished(where)
    assert len(after) == 8 and all(after[k] == v for k, v in before.items())


def test_the_lazy_module_loads_the_real_one(tmp_path):
    "Ray's processes find our stand-in for rfc3987_syntax first; whoever asks it for something gets the real one."
    from scaling_nb.scheduling import _LAZY
    (tmp_path/"stub").mkdir(); (tmp_path/"real").mkdir()
    (tmp_path/"stub"/"rfc3987_syntax.py").write_text(_LAZY)
    (tmp_path/"real"/"rfc3987_syntax.py").write_text("def is_valid_syntax(kind, text): return (kind, text, 'real')\nOTHER = 7\n")
    code = "import sys, rfc3987_syntax as r; assert 'stub' in r.__file__; print(r.is_valid_syntax('iri', 'x'), r.OTHER); from rfc3987_syntax import is_valid_syntax as v; print(v('a', 'b'))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path/"stub"), str(tmp_path/"real")])}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert out.split("\n")[:2] == ["('iri', 'x', 'real') 7", "('a', 'b', 'real')"]


def test_a_request_to_stop_names_its_session(tmp_path):
    "A request to stop names its session: one left over from a dead driver stops nobody."
    storage = open_storage(tmp_path)
    asked = StopRequest(storage, "mine")
    storage.write_json("", "stop.json", dict(session="other"))
    assert not asked()
    asked.asked = 0.0
    storage.write_json("", "stop.json", dict(session="mine"))
    assert asked()


@pytest.mark.ray
def test_what_cannot_reach_a_worker_is_said_once(tmp_path):
    import threading
    class Locked(MLP):
        lock = threading.Lock()
    problem = mlp_problem(model=Locked)
    with pytest.raises(TypeError, match="must be picklable"): run_sweep(problem, small_plan(problem), storage=tmp_path, view=False)
