"""A run on two gloo workers: the losses of one worker, and what a lost process costs."""
import os
import signal
import sys
import threading

import pytest
import torch
from problems import MLP, Slow, mlp_problem, until, xy
from torch.utils.data import DataLoader, TensorDataset

from scaling_nb.recipes import Recipe
from scaling_nb.records import open_storage
from scaling_nb.scheduling import Resources, run_sweep
from scaling_nb.sweep import RunSpec, SweepPlan
from scaling_nb.training import Trainer, train_run

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def ray_ends():
    yield
    import ray
    ray.shutdown()


def spec(D=10_001, size=16): return RunSpec(budget=3000.*D, size=size, N=500, D=D, flops_per_token=3000.)


def test_two_workers_give_the_losses_of_one(tmp_path):
    "The whole curve, with batches that two cannot share evenly, one sample among them, and the two ends of a trunk."
    recipe = Recipe(batch_size=((0, 1), (100, 7), (1000, 64)), warmup=100)
    one = train_run(mlp_problem(), spec(), recipe, storage=tmp_path/"one")
    two = train_run(mlp_problem(), spec(), recipe, storage=tmp_path/"two", workers=2, branches=(spec(5000),))
    assert (two.state, two.D, two.run_id) == ("SUCCEEDED", one.D, one.run_id) and two.loss == pytest.approx(one.loss, abs=1e-5)
    a, b = (open_storage(tmp_path/d).metrics(one.run_id) for d in ("one", "two"))
    assert [m["step"] for m in a] == [m["step"] for m in b] and max(abs(x["loss"] - y["loss"]) for x, y in zip(a, b)) < 1e-4
    assert open_storage(tmp_path/"two").read_json(two.run_id, "result.json")["workers"] == 2
    branch = train_run(mlp_problem(), spec(5000), recipe, storage=tmp_path/"two")
    assert branch.flops_measured < .25*branch.C and branch.loss == pytest.approx(train_run(mlp_problem(), spec(5000), recipe).loss, abs=1e-5)


@pytest.mark.long
def test_a_lost_process_costs_a_checkpoint(tmp_path):
    once = tmp_path/"killed"

    class Mortal(MLP):
        "One of the two dies, once, in the middle."
        def forward(self, x):
            if self.training:
                self.n = getattr(self, "n", 0) + 1
                import torch.distributed as dist
                if self.n == 120 and dist.is_initialized() and dist.get_rank() == 1 and not once.exists():
                    once.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            return super().forward(x)
    recipe = Recipe(batch_size=50)
    r = train_run(mlp_problem(model=Mortal), spec(), recipe, storage=tmp_path/"runs", workers=2, checkpoint_steps=50)
    assert once.exists() and r.state == "SUCCEEDED" and r.attempt == 2
    assert r.loss == pytest.approx(train_run(mlp_problem(), spec(), recipe).loss, abs=1e-5)


class OnFile:
    "Asks to stop once a file is there."
    def __init__(self, path): self.path = path
    def __call__(self): return self.path.exists()


@pytest.mark.long
def test_weights_that_get_no_gradient_and_a_request_to_stop(tmp_path):
    "Two things that wait for the other worker if they are not agreed upon."
    go = tmp_path/"stop"

    class Idle(MLP):
        def __init__(self, width):
            super().__init__(width)
            self.unused = torch.nn.Linear(3, 3)
        def forward(self, x):
            self.n = getattr(self, "n", 0) + self.training
            if self.n == 60: go.touch()
            return super().forward(x)
    recipe, problem = Recipe(batch_size=50), mlp_problem(model=Idle)
    r = train_run(problem, spec(), recipe, storage=tmp_path/"runs", workers=2, should_stop=OnFile(go))
    assert r.state == "STOPPED" and open_storage(tmp_path/"runs").exists(r.run_id, "checkpoint")
    go.unlink()
    r = train_run(problem, spec(), recipe, storage=tmp_path/"runs", workers=1)
    assert r.state == "SUCCEEDED" and r.loss == pytest.approx(train_run(problem, spec(), recipe).loss, abs=1e-5)


@pytest.mark.long
def test_ctrl_c_interrupts_and_is_the_callers_again(tmp_path):
    "Train has a handler of its own, and leaves it behind."
    def later():
        until(lambda: any(tmp_path.rglob("metrics.jsonl")), 60)
        os.kill(os.getpid(), signal.SIGINT)
    before, problem, recipe = signal.getsignal(signal.SIGINT), mlp_problem(model=Slow), Recipe(batch_size=50)
    threading.Thread(target=later, daemon=True).start()
    with pytest.raises(KeyboardInterrupt): train_run(problem, spec(60_001), recipe, storage=tmp_path, workers=2)
    assert signal.getsignal(signal.SIGINT) is before
    r = train_run(problem, spec(60_001), recipe, storage=tmp_path, workers=2)
    assert signal.getsignal(signal.SIGINT) is before and r.state == "SUCCEEDED" and r.attempt == 2


@pytest.mark.long
def test_a_run_that_diverges_is_tried_again_by_all(tmp_path):
    class Fragile(MLP):
        def forward(self, x): return super().forward(x)/(self.layers[4].bias.abs().max() < .53)
    wild = Recipe(batch_size=64, optimizer=lambda p: torch.optim.SGD(p, lr=1.), retry_diverged=True, clip=None)
    r = train_run(mlp_problem(model=Fragile), spec(20_000), wild, storage=tmp_path, workers=2)
    assert r.state == "SUCCEEDED" and r.attempt == 2 and r.reason.startswith("at half the learning rate")


def test_workers_need_a_place_that_all_can_write_to():
    with pytest.raises(ValueError, match="memory of one process"): train_run(mlp_problem(), spec(), Recipe(batch_size=70), workers=2)


def test_an_exception_on_one_worker_ends_the_run_with_its_reason(tmp_path):
    class Half(MLP):
        def forward(self, x):
            import torch.distributed as dist
            if self.training and dist.is_initialized() and dist.get_rank() == 1: raise RuntimeError("only here")
            return super().forward(x)
    r = train_run(mlp_problem(model=Half), spec(), Recipe(batch_size=50), storage=tmp_path, workers=2)
    assert (r.state, r.reason, r.attempt) == ("FAILED", "RuntimeError: only here", 1)


def test_a_sweep_of_runs_on_two_workers_each(tmp_path):
    plan = SweepPlan((spec(3000),))
    runs = run_sweep(mlp_problem(), plan, Recipe(batch_size=50), storage=tmp_path, resources=Resources(cpus=1, workers=2), view=False)
    assert (runs.frame.state == "SUCCEEDED").all() and len(runs.L) == 1
    assert {open_storage(tmp_path).read_json(i, "result.json")["workers"] for i in runs.ids} == {2}
    with pytest.raises(ValueError, match="asks for 2000 CPUs"): run_sweep(mlp_problem(), plan, Recipe(batch_size=60), storage=tmp_path, resources=Resources(cpus=1000, workers=2), view=False)


class Augmented(torch.utils.data.Dataset):
    def __len__(self): return 100
    def __getitem__(self, i): return torch.full((8,), float(i)) + torch.rand(8), torch.tensor(i % 4)


def test_what_draws_as_it_reads_is_drawn_as_by_one():
    "Without processes: each rank's part of a batch, and all parts together."
    problem = mlp_problem(data=Augmented(), val_data=xy(8))
    whole, *parts = [Trainer(problem, spec(100), Recipe(batch_size=16), device="cpu", rank=r, world=w)._next_batch()[0] for r, w in ((0, 1), (0, 3), (1, 3), (2, 3))]
    assert torch.equal(torch.cat(parts), whole)


def test_a_loader_is_shared_out(tmp_path):
    "Without processes: each rank's part of a loader's batch, and all parts together."
    problem = mlp_problem(data=DataLoader(TensorDataset(*xy(300)), batch_size=16), val_data=xy(8))
    parts = [Trainer(problem, spec(100), device="cpu", rank=r, world=3)._next_batch()[0] for r in range(3)]
    assert [len(p) for p in parts] == [5, 5, 6] and torch.equal(torch.cat(parts), xy(300)[0][:16])


if sys.platform != "linux": pytest.skip("kills processes by signal", allow_module_level=True)
