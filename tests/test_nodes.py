"""A cluster of several nodes on one machine: nodes are lost, freeze and come back, and come late."""
import os
import signal
import time

import psutil
import pytest
from flaky import FlakyStorage
from problems import MLP, curve, mlp_problem, until

from scaling_nb.cluster import _own_token, _ray, start_ray
from scaling_nb.decisions import Limits
from scaling_nb.recipes import Recipe
from scaling_nb.records import runs_frame
from scaling_nb.scheduling import Resources, run_sweep
from scaling_nb.sweep import plan_sweep

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.cluster]
RECIPE = Recipe(batch_size=64)
TOLD = ["budget", "size", "N", "D", "C", "loss", "loss_std", "state", "seed", "flops_measured", "reason"]


class Slow(MLP):
    def forward(self, x):
        if self.training: time.sleep(.004)
        return super().forward(x)


def the_plan(): return plan_sweep(mlp_problem(model=Slow), [6e7], sizes=[8, 12, 16, 24], speed=None)


def sweep(where, cluster, **kw):
    return run_sweep(mlp_problem(model=Slow), the_plan(), RECIPE, storage=where, resources=Resources(address=cluster.address), view=False, wait=False, checkpoint_s=.3, **kw)


@pytest.fixture(scope="module")
def cluster():
    "A head without cores; each test adds the nodes it needs."
    os.environ["RAY_AUTH_MODE"] = "token"
    with _ray() as ray:
        from ray.cluster_utils import Cluster
        ray.shutdown()
        _own_token()
        c = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0, include_dashboard=False, object_store_memory=100*2**20))
    start_ray(c.address)
    yield c
    ray.shutdown()
    c.shutdown()
    os.environ.pop("RAY_AUTH_MODE")


@pytest.fixture
def node(cluster):
    "`node()` adds one of a single core; all are removed afterwards."
    mine = []
    def add():
        mine.append(cluster.add_node(num_cpus=1, object_store_memory=100*2**20))
        cluster.wait_for_nodes()
        return mine[-1]
    yield add
    for n in mine:
        if n in cluster.worker_nodes: cluster.remove_node(n, allow_graceful=False)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, cluster):
    n = [cluster.add_node(num_cpus=1, object_store_memory=100*2**20) for _ in range(2)]
    cluster.wait_for_nodes()
    where = tmp_path_factory.mktemp("undisturbed")/"runs"
    s = sweep(where, cluster).wait()
    s.close()
    for x in n: cluster.remove_node(x, allow_graceful=False)
    return where


def alike(where, undisturbed):
    a, b = runs_frame(where), runs_frame(undisturbed)
    assert a[TOLD].equals(b[TOLD]) and (a.state == "SUCCEEDED").all(), a[TOLD].compare(b[TOLD]).to_string()
    return all(curve(where, k) == curve(undisturbed, k) for k in a.run_id)


def slots(s): return s.control.status()["running"]


def test_a_lost_node(tmp_path, cluster, node, undisturbed):
    "Its runs go on elsewhere from their checkpoints."
    lost, _ = node(), node()
    s = sweep(tmp_path/"runs", cluster)
    until(lambda: slots(s) == 2 and len(list((tmp_path/"runs").glob("*/checkpoint"))) == 2)
    cluster.remove_node(lost, allow_graceful=False)
    s.wait(180)
    s.close()
    assert alike(tmp_path/"runs", undisturbed) and sorted(s.frame.attempt) == [1, 1, 1, 2]
    assert [w for w in s.attempts.why if w] in (["its node was lost"], ["its worker could not be reached"], ["its worker died"])


@pytest.mark.long
def test_a_lost_node_with_the_storage_on_it(tmp_path, cluster, node, undisturbed, capsys):
    "Then nothing can be written: the runs are left as they are, and when the storage is back the same line goes on."
    lost, _ = node(), node()
    storage = FlakyStorage(f"flaky://{tmp_path}/runs")
    s = sweep(storage, cluster, limits=Limits(storage=1, backoff_s=.5))
    until(lambda: slots(s) == 2 and len(list((tmp_path/"runs").glob("*/checkpoint"))) >= 1)
    (tmp_path/"away").touch()
    cluster.remove_node(lost, allow_graceful=False)
    s.wait(180)
    assert "runs had to be left unfinished" in capsys.readouterr().out
    (tmp_path/"away").unlink()
    s.close()
    assert not (s.frame.state == "FAILED").any()
    again = sweep(storage, cluster).wait(180)
    again.close()
    assert alike(tmp_path/"runs", undisturbed)


@pytest.mark.long
def test_a_node_that_freezes_and_comes_back(tmp_path, cluster, node, undisturbed):
    "Cut off, it computes nothing we hear of: its run begins again elsewhere, and what the thawed one still writes is refused."
    frozen = node()
    s = sweep(tmp_path/"runs", cluster, limits=Limits(hang_s=5))
    until(lambda: slots(s) == 1 and len(list((tmp_path/"runs").glob("*/checkpoint"))) == 1)
    key = next((tmp_path/"runs").glob("*/checkpoint")).parent.name
    node()
    pids = {p.process.pid for ps in frozen.all_processes.values() for p in ps}
    for p in list(pids): pids |= {c.pid for c in psutil.Process(p).children(recursive=True)}
    for p in pids: os.kill(p, signal.SIGSTOP)
    try: until(lambda: (a := s.attempts)[a.run_id == key].attempt.max() == 2)
    finally:
        for p in pids: os.kill(p, signal.SIGCONT)
    s.wait(180)
    s.close()
    assert alike(tmp_path/"runs", undisturbed)
    rows = [r for r in (tmp_path/"runs"/key/"metrics.jsonl").read_text().split("\n") if r]
    import json
    order = [json.loads(r)["attempt"] for r in rows]
    assert order == sorted(order), "a row of the superseded attempt came after those of the next"
@pytest.mark.long
def test_a_node_that_comes_later_is_used(tmp_path, cluster, node, undisturbed):
    node()
    s = sweep(tmp_path/"runs", cluster)
    until(lambda: slots(s) == 1)
    node()
    until(lambda: slots(s) == 2)
    s.wait(180)
    s.close()
    assert alike(tmp_path/"runs", undisturbed) and (s.frame.attempt == 1).all()
