"""One run: exactly D tokens, bitwise repeatable and resumable, and honest about its end."""
import math
import random

import numpy as np
import pytest
import torch
from problems import MLP, Bomb, Killed, Noisy, TinyLM, curve, killed_at, lm_problem, mlp_problem, xy
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from scaling_nb.flops import measure_cost
from scaling_nb.recipes import Recipe
from scaling_nb.records import StorageMismatch, open_storage
from scaling_nb.sweep import RunSpec, plan_sweep
from scaling_nb.training import DivergenceWatch, MockLaw, Trainer, _Indexed, fetch, micro_batch_for, train_run, width_scales
from scaling_nb.zoo.gpt import GPT

pytestmark = pytest.mark.usefixtures("one_thread")


def spec(D=20_000, size=16, f=3000., **kw): return RunSpec(budget=f*D, size=size, N=500, D=D, flops_per_token=f, **kw)


@pytest.mark.parametrize("D", [1_000, 100_000, 1_000_000])
def test_a_run_sees_the_tokens_that_were_planned(D):
    "Counted where the tokens arrive, in the model's forward."
    problem = lm_problem(val_samples=64)
    plan = plan_sweep(problem, [D*9000.], sizes=[16], speed=None)
    s = plan.specs[0]
    s = RunSpec(s.budget, s.size, s.N, D, s.flops_per_token)
    TinyLM.seen = 0
    record = train_run(problem, s, Recipe(batch_size=32))
    batch = 32*16
    assert abs(TinyLM.seen - D) < batch and 0 <= TinyLM.seen - D < 16       # in truth to one sample
    assert record.D == TinyLM.seen
    assert record.flops_measured == s.measured_flops_per_token*TinyLM.seen and record.C == s.flops_per_token*TinyLM.seen


def test_recorded_flops_are_those_done():
    "Against FlopCounterMode around the whole run, which knows nothing of plans."
    from torch.utils.flop_counter import FlopCounterMode
    problem = mlp_problem(val_samples=4)
    s = plan_sweep(problem, [3e6], sizes=[16], speed=None).specs[0]
    t = Trainer(problem, s, Recipe(batch_size=7), device="cpu")
    with FlopCounterMode(display=False) as counter:
        while not t.done: t.step()
    assert counter.get_total_flops() == s.measured_flops_per_token*t.tokens


@pytest.mark.parametrize("batch_size", [1, 7, "auto", ((0, 4), (500, 16))])
def test_any_batch_ends_on_the_token(batch_size):
    t = Trainer(mlp_problem(), spec(D=1001), Recipe(batch_size=batch_size), device="cpu")
    while not t.done: t.step()
    assert t.tokens == 1001


class Counting(IterableDataset):
    def __init__(self, n=100): self.n = n
    def __iter__(self): return iter([(torch.full((8,), float(i)), torch.tensor(i % 4)) for i in range(self.n)])


@pytest.mark.parametrize("data", [Counting(), DataLoader(Counting(), batch_size=16)], ids=["iterable", "loader"])
def test_streams_are_read_in_order_and_again(data):
    seen = []
    class Spy(MLP):
        def forward(self, x):
            if self.training: seen.extend(x[:, 0].tolist())
            return super().forward(x)
    t = Trainer(mlp_problem(model=Spy, data=data, val_data=xy(8)), spec(D=250), Recipe(batch_size=16, lr=1e-4), device="cpu")
    while not t.done: t.step()
    assert t.tokens == 250 and seen == [float(i % 100) for i in range(250)]


def test_a_stream_resumes_where_it_stopped():
    problem = mlp_problem(data=Counting(), val_data=xy(8))
    whole = Trainer(problem, spec(D=400), Recipe(batch_size=16), device="cpu")
    losses = [whole.step().item() for _ in range(20)]
    half = Trainer(problem, spec(D=400), Recipe(batch_size=16), device="cpu")
    for _ in range(9): half.step()
    rest = Trainer(problem, spec(D=400), Recipe(batch_size=16), device="cpu"); rest.load(half.save())
    assert [rest.step().item() for _ in range(11)] == losses[9:]


def test_a_generator_that_is_used_up_says_so():
    class Once(IterableDataset):
        def __init__(self): self.g = iter([(torch.ones(8), torch.tensor(1))]*50)
        def __iter__(self): return self.g
    r = train_run(mlp_problem(data=Once(), val_data=xy(8)), spec(D=1000), Recipe(batch_size=16))
    assert r.state == "FAILED" and "gave nothing when it was read again" in r.reason


def test_epochs_visit_every_sample_once():
    t = Trainer(mlp_problem(data=xy(50), val_data=xy(8)), spec(D=200), Recipe(batch_size=8), device="cpu")
    index = t.data.index(0, 100).tolist()
    assert sorted(index[:50]) == sorted(index[50:]) == list(range(50)) and index[:50] != index[50:]
    a, _ = t.data.take(44, 12)
    assert torch.equal(a, xy(50)[0][index[44:56]])


@pytest.mark.parametrize("optimizer", ["adamw", lambda p: torch.optim.SGD(p, lr=0.01, momentum=.9)], ids=["adamw", "sgd"])
def test_killed_and_resumed_is_bitwise_the_same(optimizer, tmp_path):
    problem, recipe = mlp_problem(model=Noisy), Recipe(batch_size=32, optimizer=optimizer)
    whole = train_run(problem, spec(), recipe, storage=tmp_path/"whole")
    calls = iter(range(10**9))
    assert train_run(problem, spec(), recipe, storage=tmp_path/"cut", should_stop=lambda: next(calls) == 100).state == "STOPPED"
    calls = iter(range(10**9))
    assert train_run(problem, spec(), recipe, storage=tmp_path/"cut", should_stop=lambda: next(calls) == 300).state == "STOPPED"
    done = train_run(problem, spec(), recipe, storage=tmp_path/"cut")
    assert (done.state, done.attempt, done.loss, done.D) == ("SUCCEEDED", 3, whole.loss, whole.D)
    assert curve(tmp_path/"whole", done.run_id) == curve(tmp_path/"cut", done.run_id)
    assert not (tmp_path/"cut"/done.run_id/"checkpoint").exists()


def test_training_leaves_the_notebooks_random_numbers_alone():
    torch.manual_seed(5); np.random.seed(5); random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    train_run(mlp_problem(model=Noisy), spec(D=500), Recipe(batch_size=50))
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all() and before[2] == random.getstate()


def test_sgd_at_a_hundredth_trains():
    r = train_run(mlp_problem(), spec(D=50_000), Recipe(optimizer=lambda p: torch.optim.SGD(p, lr=0.01), batch_size=16))
    assert r.state == "SUCCEEDED" and r.loss < 1.0


def test_nan_fails_the_run_and_keeps_its_metrics(tmp_path):
    class Nan(MLP):
        steps = 0
        def forward(self, x):
            self.steps += self.training
            return super().forward(x)*(float("nan") if self.steps > 50 else 1.)
    r = train_run(mlp_problem(model=Nan), spec(), Recipe(batch_size=32), storage=tmp_path)
    assert r.state == "FAILED" and "nan at step 51" in r.reason and math.isnan(r.loss)
    assert open_storage(tmp_path).metrics(r.run_id) and (tmp_path/r.run_id/"failure.json").exists()


def test_an_exception_is_a_reason_with_its_traceback_on_disk(tmp_path):
    r = train_run(mlp_problem(model=Bomb), spec(), Recipe(batch_size=32), storage=tmp_path)
    assert r.state == "FAILED" and r.reason == "RuntimeError: the bomb went off"
    assert "in forward" in open_storage(tmp_path).read_json(r.run_id, "failure.json")["traceback"]


def test_finished_runs_are_only_read(tmp_path):
    a = train_run(mlp_problem(), spec(), storage=tmp_path)
    b = train_run(mlp_problem(), spec(), storage=tmp_path)
    assert a == b and b.attempt == 1


def test_a_changed_recipe_is_another_run(tmp_path):
    a, b = (train_run(mlp_problem(), spec(D=1000), Recipe(lr=lr), storage=tmp_path) for lr in (.01, .02))
    assert a.run_id != b.run_id and a.recipe != b.recipe


def test_another_problem_is_refused(tmp_path):
    train_run(mlp_problem(), spec(D=1000), storage=tmp_path)
    with pytest.raises(StorageMismatch, match="data"): train_run(mlp_problem(data=xy(seed=9)), spec(D=1000), storage=tmp_path)


def test_a_broken_checkpoint_fails_with_the_remedy(tmp_path):
    calls = iter(range(10**9))
    r = train_run(mlp_problem(), spec(), storage=tmp_path, should_stop=lambda: next(calls) == 5)
    (tmp_path/r.run_id/"checkpoint").write_bytes(b"not a checkpoint")
    r = train_run(mlp_problem(), spec(), storage=tmp_path)
    assert r.state == "FAILED" and "to start the run anew" in r.reason


def test_a_checkpoint_cannot_run_code(tmp_path):
    import pickle
    class Evil:
        def __reduce__(self): return (open, (str(tmp_path/"owned"), "w"))
    t = Trainer(mlp_problem(), spec(), device="cpu")
    with pytest.raises(pickle.UnpicklingError): t.load(_torch_bytes(Evil()))
    assert not (tmp_path/"owned").exists()


def _torch_bytes(obj):
    import io
    b = io.BytesIO()
    torch.save(obj, b)
    return b.getvalue()


def test_held_out_data_is_never_trained_on():
    problem = mlp_problem(data=(torch.arange(800.).reshape(100, 8), torch.zeros(100, dtype=torch.long)))
    t = Trainer(problem, spec(D=1000), Recipe(batch_size=10), device="cpu")
    held = {float(t.val[i][0][0]) for i in range(len(t.val))}
    seen = {float(v) for i in range(0, 1000, 10) for v in t.data.take(i, 10)[0][:, 0]}
    assert len(held) == 5 and len(seen) == 95 and not held & seen


def test_evaluation_is_the_mean_over_the_same_samples():
    problem = mlp_problem(val_data=xy(1000, seed=0), val_samples=700)
    t = Trainer(problem, spec(), device="cpu")
    x, y = xy(1000, seed=0)
    with torch.no_grad(): expected = nn.functional.cross_entropy(t.model(x[(i := np.linspace(0, 999, 700).round())]), y[i]).item()
    assert t.evaluate()[0] == pytest.approx(expected, rel=1e-6)


def test_no_step_has_a_rate_of_zero():
    t = Trainer(mlp_problem(), spec(D=100), Recipe(batch_size=10), device="cpu")
    rates = []
    while not t.done: t.step(); rates.append(t.optimizer.param_groups[0]["lr"])
    assert len(rates) == 10 and min(rates) > 0


def test_width_scales_find_what_grows():
    x = torch.zeros(8, 65, dtype=torch.long)
    from scaling_nb.contracts import Problem
    from scaling_nb.zoo.gpt import next_token_loss
    problem = Problem(GPT, "width", data=(x[:, :-1], x[:, 1:]), loss_fn=next_token_loss, model_kwargs=dict(vocab=128, seq_len=64))
    s = width_scales(problem, 128, 32)
    matrices = {n for n, p in problem.build(128).named_parameters() if p.ndim > 1 and "embed" not in n}
    assert {n for n, v in s.items() if v == .25} == matrices and {v for n, v in s.items() if n not in matrices} == {1.0}


def test_depth_alone_scales_nothing():
    class Deep(nn.Module):
        def __init__(self, depth): super().__init__(); self.l = nn.Sequential(*[nn.Linear(8, 8) for _ in range(depth)], nn.Linear(8, 4))
        def forward(self, x): return self.l(x)
    problem = mlp_problem(model=Deep, size_param="depth")
    with pytest.warns(UserWarning, match="seen to get wider"): assert width_scales(problem, 3, 32) == {}


def test_mock_is_the_law_and_says_so(tmp_path):
    law = MockLaw(noise=.01)
    a = train_run(mlp_problem(), spec(), storage=tmp_path, mock=law)
    exact = train_run(mlp_problem(), spec(), storage=tmp_path, mock=MockLaw())
    assert a.mock and exact.mock and exact.loss == law.loss(500, 20_000) and 0 < abs(a.loss - exact.loss) < .05
    assert a.run_id != exact.run_id != train_run(mlp_problem(), spec(), storage=tmp_path).run_id
    assert train_run(mlp_problem(), spec(), mock=law).loss == a.loss


def test_memory_is_released():
    import gc
    import weakref
    alive = []
    class Watched(MLP):
        def __init__(self, width): super().__init__(width); alive.append(weakref.ref(self))
    train_run(mlp_problem(model=Watched), spec(D=1000))
    gc.collect()
    assert not [r for r in alive if r() is not None]


def test_a_loader_that_shuffles_resumes_in_its_order_and_keeps_its_name():
    from torch.utils.data import TensorDataset

    from scaling_nb.contracts import data_fingerprint
    loader = DataLoader(TensorDataset(*xy(300)), batch_size=16, shuffle=True)
    problem = mlp_problem(data=loader, val_data=xy(8))
    assert data_fingerprint(loader) == data_fingerprint(loader) != data_fingerprint(DataLoader(TensorDataset(*xy(300, seed=2)), batch_size=16, shuffle=True))
    torch.manual_seed(1)
    whole = Trainer(problem, spec(D=900), device="cpu")
    losses = [whole.step().item() for _ in range(50)]
    torch.manual_seed(2)
    half = Trainer(problem, spec(D=900), device="cpu")
    for _ in range(25): half.step()
    rest = Trainer(problem, spec(D=900), device="cpu"); rest.load(half.save())
    assert [rest.step().item() for _ in range(25)] == losses[25:]


def test_a_checkpoint_is_read_on_the_cpu_wherever_the_model_lives():
    "On a GPU the states of the generators must not follow the model there."
    a = Trainer(mlp_problem(), spec(D=500), Recipe(batch_size=50), device="cpu")
    a.step()
    b = Trainer(mlp_problem(), spec(D=500), Recipe(batch_size=50), device="cpu")
    b.device = "meta"          # stands for a device whose tensors numpy cannot read
    b.load(a.save())
    assert b.steps == 1


def test_a_loader_with_its_own_generator_repeats():
    from torch.utils.data import TensorDataset
    loader = DataLoader(TensorDataset(*xy(300)), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(0))
    problem = mlp_problem(data=loader, val_data=xy(8))
    losses = [[t.step().item() for _ in range(30)] for t in (Trainer(problem, spec(D=900), device="cpu") for _ in range(2))]
    assert losses[0] == losses[1]


def test_batches_of_mappings_train():
    from torch.utils.data import Dataset
    class Named(Dataset):
        x, y = xy(200)
        def __len__(self): return 200
        def __getitem__(self, i): return dict(input_ids=dict(x=self.x[i], mask=torch.ones(8)), labels=self.y[i])
    class Takes(MLP):
        def forward(self, b): return super().forward(b["x"]*b["mask"])
    problem = mlp_problem(model=Takes, data=Named())
    plan = plan_sweep(problem, [1e6], sizes=[8, 16], speed="measure")
    r = train_run(problem, plan.specs[0], Recipe(batch_size=7))
    assert r.state == "SUCCEEDED" and r.D == plan.specs[0].D


def test_width_scales_at_the_top_of_a_ladder():
    widths = [4, 8, 16, 32, 64, 128]
    def ladder(i): return dict(width=widths[i])
    problem = mlp_problem(size_param=ladder)
    for i in (3, 4, 5): assert width_scales(problem, i, 32)["layers.2.weight"] == 32/widths[i]
    plan = plan_sweep(problem, [1e9], sizes=[3, 4, 5, 6], speed=None)
    assert sorted(set(plan.frame["size"])) == [3, 4, 5] and "IndexError" in plan.skipped_sizes[6]


def test_numpy_integers_are_integers():
    assert Recipe(batch_size=np.int64(8)) == Recipe(batch_size=8) and Recipe(batch_size=np.int64(8)).plain() == Recipe(batch_size=8).plain()


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_ten_random_points_gives_the_same_curve(seed, tmp_path):
    "Bitwise, every line of it: model, optimizer, data, random numbers, the watch and the half-written line all come back."
    places, recipe = random.Random(seed), Recipe(batch_size=((0, 8), (4000, 32)), eval_last=3)
    whole = train_run(mlp_problem(model=Noisy), spec(), recipe, storage=tmp_path/"whole")
    kills = 0
    for _ in range(10):
        with killed_at(places.randrange(1, 150)):
            try: train_run(mlp_problem(model=Noisy), spec(), recipe, storage=tmp_path/"cut", checkpoint_steps=places.choice([3, 10, 50]))
            except Killed: kills += 1
    cut = train_run(mlp_problem(model=Noisy), spec(), recipe, storage=tmp_path/"cut")
    assert kills == 10 and cut.attempt == 11 and (cut.loss, cut.loss_std, cut.D) == (whole.loss, whole.loss_std, whole.D)
    assert curve(tmp_path/"whole", whole.run_id) == curve(tmp_path/"cut", whole.run_id)
    assert len(curve(tmp_path/"cut", whole.run_id)) > 150


class TestTrunks:
    HORIZONS = [1000, 2000, 4000, 8000, 16_000]
    RECIPE = Recipe(batch_size=((0, 8), (3000, 16)), warmup=200)

    def spread(self, tmp_path, recipe=RECIPE, model=Noisy):
        runs = [spec(D=D) for D in self.HORIZONS]
        trunk = train_run(mlp_problem(model=model), runs[-1], recipe, storage=tmp_path, branches=tuple(runs[:-1]))
        return [train_run(mlp_problem(model=model), r, recipe, storage=tmp_path) for r in runs[:-1]] + [trunk]

    def test_losses_are_those_of_separate_runs_at_61_percent_of_the_flops(self, tmp_path):
        branches = self.spread(tmp_path)
        alone = [train_run(mlp_problem(model=Noisy), spec(D=D), self.RECIPE) for D in self.HORIZONS]
        assert [(r.loss, r.loss_std, r.D) for r in branches] == [(r.loss, r.loss_std, r.D) for r in alone]     # bitwise
        assert sum(r.flops_measured for r in branches)/sum(r.flops_measured for r in alone) < .62
        assert len({r.group for r in branches + alone}) == 1 and all(r.attempt == 1 for r in branches)

    def test_the_curve_of_a_branch_is_whole(self, tmp_path):
        first = self.spread(tmp_path)[0]
        rows = open_storage(tmp_path).metrics(first.run_id)
        assert rows[0]["tokens"] < 250 and rows[-1]["tokens"] == 1000 and [r["step"] for r in rows] == sorted({r["step"] for r in rows})

    def test_a_trunk_that_was_killed_leaves_the_same_branches(self, tmp_path):
        runs = [spec(D=D) for D in self.HORIZONS]
        for place in (60, 400, 500):
            with killed_at(place):
                try: train_run(mlp_problem(model=Noisy), runs[-1], self.RECIPE, storage=tmp_path/"cut", branches=tuple(runs[:-1]), checkpoint_steps=40)
                except Killed: pass
        cut, whole = self.spread(tmp_path/"cut"), self.spread(tmp_path/"whole")
        assert [r.loss for r in cut] == [r.loss for r in whole]

    def test_a_branch_that_has_begun_or_ended_is_left_alone(self, tmp_path):
        short = train_run(mlp_problem(model=Noisy), spec(D=2000), self.RECIPE, storage=tmp_path)
        files = {p: p.read_bytes() for p in (tmp_path/short.run_id).iterdir()}
        self.spread(tmp_path)
        assert files == {p: p.read_bytes() for p in (tmp_path/short.run_id).iterdir()}

    @pytest.mark.parametrize("recipe", [Recipe(decay_shape="1-sqrt", batch_size=16, warmup=0), Recipe(batch_size=16, warmup=0, decay=0.), Recipe(lr="auto", warmup=300)],
                             ids=["1-sqrt", "no decay", "auto"])
    def test_any_recipe_that_shares_is_exact(self, recipe, tmp_path):
        branches = self.spread(tmp_path, recipe)
        assert [r.loss for r in branches] == [train_run(mlp_problem(model=Noisy), spec(D=D), recipe).loss for D in self.HORIZONS]

    @pytest.mark.parametrize("batches", [dict(batch_size=17), dict(batch_sampler=[list(range(i, i + n)) for i, n in ((0, 5), (5, 90), (95, 1), (96, 54))])], ids=["loader", "odd batches"])
    def test_a_loader_has_batches_of_its_own(self, batches, tmp_path):
        "They may part early, never late."
        from torch.utils.data import TensorDataset
        problem = mlp_problem(model=Noisy, data=DataLoader(TensorDataset(*xy(150)), **batches), val_data=xy(64))
        trunk = train_run(problem, spec(D=2000), Recipe(warmup=100), storage=tmp_path, branches=(spec(D=1000), spec(D=1500)))
        for D in (1000, 1500):
            branch = train_run(problem, spec(D=D), Recipe(warmup=100), storage=tmp_path)
            assert branch.loss == train_run(problem, spec(D=D), Recipe(warmup=100)).loss and branch.group == trunk.group

    @pytest.mark.parametrize("stopped_at", [30, 290, 400])
    def test_a_trunk_that_stopped_beyond_a_parting_leaves_nothing_wrong(self, stopped_at, tmp_path):
        "Such as a sweep that was begun without sharing. 4000 tokens part at 3200: before, between, and beyond."
        recipe, calls = Recipe(batch_size=12, warmup=200), iter(range(10**9))
        train_run(mlp_problem(model=Noisy), spec(D=16_000), recipe, storage=tmp_path, should_stop=lambda: next(calls) == stopped_at)
        train_run(mlp_problem(model=Noisy), spec(D=16_000), recipe, storage=tmp_path, branches=(spec(D=4000),))
        branch, alone = (train_run(mlp_problem(model=Noisy), spec(D=4000), recipe, storage=d) for d in (tmp_path, None))
        assert (branch.D, branch.loss) == (alone.D, alone.loss) and (branch.flops_measured < branch.C) == (stopped_at == 30)

    @pytest.mark.parametrize("kw", [dict(decay=.02, eval_last=5), dict(decay=0., eval_last=3), dict(eval_last=2)])
    def test_averages_of_a_branch_are_its_own(self, kw, tmp_path):
        branches = self.spread(tmp_path, Recipe(batch_size=16, warmup=200, **kw))
        assert [r.loss for r in branches] == [train_run(mlp_problem(model=Noisy), spec(D=D), Recipe(batch_size=16, warmup=200, **kw)).loss for D in self.HORIZONS]

    def test_a_retry_that_was_cut_leaves_nothing_when_it_goes_on(self, tmp_path):
        class FragileAndKilled(Noisy): pass
        FragileAndKilled.forward = lambda self, x: MLP.forward(self, self.counted(x))/(self.layers[4].bias.abs().max() < .53)
        problem = mlp_problem(model=FragileAndKilled)
        with killed_at(250), pytest.raises(Killed): train_run(problem, spec(), WILD, storage=tmp_path, checkpoint_steps=20)
        whole = train_run(problem, spec(), WILD, storage=tmp_path, branches=(spec(D=19_000),))
        assert whole.reason.startswith("at half") and not list(tmp_path.glob("*/checkpoint"))

    def test_a_trunk_at_half_the_rate_leaves_nothing(self, tmp_path):
        "Its branches would carry a rate that is not theirs."
        t = train_run(mlp_problem(model=Fragile), spec(D=16_000), WILD, storage=tmp_path, branches=(spec(D=15_000),))
        assert t.reason.startswith("at half") and len(list(tmp_path.glob("*/checkpoint"))) == 0


class Fragile(MLP):
    "Gives NaN where its weights have moved too far, as they do at a high rate and not at half of it."
    def forward(self, x): return super().forward(x)/(self.layers[4].bias.abs().max() < .53)


WILD = Recipe(batch_size=64, optimizer=lambda p: torch.optim.SGD(p, lr=1.), retry_diverged=True, clip=None)


class TestDivergence:
    def test_one_retry_at_half_the_rate_is_marked(self, tmp_path):
        r = train_run(mlp_problem(model=Fragile), spec(), WILD, storage=tmp_path)
        assert r.state == "SUCCEEDED" and r.attempt == 2 and r.reason.startswith("at half the learning rate, after the training loss became nan at step")
        assert max(m["lr"] for m in open_storage(tmp_path).metrics(r.run_id) if m["attempt"] == 2) == .5

    def test_without_asking_there_is_none(self):
        from dataclasses import replace
        r = train_run(mlp_problem(model=Fragile), spec(), replace(WILD, retry_diverged=False))
        assert r.state == "FAILED" and r.attempt == 1

    def test_a_second_failure_is_final(self, tmp_path):
        class Hopeless(MLP):
            def forward(self, x): return super().forward(x)/(self.layers[4].bias.abs().max() < .1)
        r = train_run(mlp_problem(model=Hopeless), spec(), WILD, storage=tmp_path)
        assert r.state == "FAILED" and r.attempt == 2 and r.reason.startswith("at half the learning rate too: the training loss became nan")

    def test_a_retry_that_is_killed_goes_on_at_half_the_rate(self, tmp_path):
        whole = train_run(mlp_problem(model=Fragile), spec(), WILD, storage=tmp_path/"whole")
        class FragileAndKilled(Noisy, Fragile): pass
        FragileAndKilled.forward = lambda self, x: Fragile.forward(self, Noisy.counted(self, x))
        problem = mlp_problem(model=FragileAndKilled)
        with killed_at(250), pytest.raises(Killed): train_run(problem, spec(), WILD, storage=tmp_path/"cut", checkpoint_steps=20)
        assert open_storage(tmp_path/"cut").read_json(open_storage(tmp_path/"cut").runs()[0], "attempt.json")["lr_scale"] == .5
        assert train_run(problem, spec(), WILD, storage=tmp_path/"cut").loss == whole.loss

    def test_a_spike_that_stays_ends_the_run(self):
        class Leaves(MLP):
            steps = 0
            def forward(self, x):
                self.steps += self.training
                return super().forward(x)*(-50. if self.steps > 400 else 1.)
        r = train_run(mlp_problem(model=Leaves), spec(D=64_000), Recipe(batch_size=64, optimizer=lambda p: torch.optim.SGD(p, lr=1e-2)))
        assert r.state == "FAILED" and "the training loss rose to" in r.reason and int(r.reason.split(" by step ")[1].split(",")[0]) <= 550

    def test_the_watch_bears_noise_and_forgives_a_spike(self):
        g = np.random.default_rng(0)
        for level in (4.8, .03):
            watch = DivergenceWatch()
            losses = level*(1 + np.arange(2000))**-.1*(1 + .1*g.standard_normal(2000))
            losses[500] *= 4                                    # one block of fifty steps
            assert not any(watch.update(x, math.exp(g.standard_normal())) for x in losses)

    def test_the_watch_sees_a_gradient_that_explodes(self):
        watch = DivergenceWatch()
        said = [watch.update(2., 1. if k < 100 else 1e4) for k in range(110)]
        assert not any(said[:100]) and next(filter(None, said)).startswith("the norm of the gradient rose to 1e+04 from 1")

    def test_the_watch_survives_a_checkpoint(self):
        a = Trainer(mlp_problem(), spec(), Recipe(batch_size=16), device="cpu")
        for _ in range(123): a.step()
        b = Trainer(mlp_problem(), spec(), Recipe(batch_size=16), device="cpu")
        b.load(a.save())
        assert vars(a.watch) == vars(b.watch) and b.watch.blocks == 2 and len(b._block) == 23


class TestMemory:
    class Hungry(MLP):
        "Runs out of memory over eight samples."
        error, most = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), 8
        def forward(self, x):
            if self.training and len(x) > self.most: raise self.error
            return super().forward(x)

    def test_out_of_memory_is_answered_by_smaller_parts(self, tmp_path):
        r = train_run(mlp_problem(model=self.Hungry), spec(), Recipe(batch_size=50), storage=tmp_path)
        plain = train_run(mlp_problem(), spec(), Recipe(batch_size=50))
        assert r.state == "SUCCEEDED" and open_storage(tmp_path).read_json(r.run_id, "result.json")["micro_batch"] == 7
        assert r.loss == pytest.approx(plain.loss, abs=2e-3) and r.D == plain.D

    @pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")])
    def test_any_lack_of_memory_counts(self, error):
        class Hungrier(self.Hungry): pass
        Hungrier.error = error
        assert train_run(mlp_problem(model=Hungrier), spec(D=500), Recipe(batch_size=50)).state == "SUCCEEDED"

    def test_a_sample_that_is_too_much_is_a_failure(self):
        class Starved(self.Hungry): most = 0
        r = train_run(mlp_problem(model=Starved), spec(D=500), Recipe(batch_size=50))
        assert r.state == "FAILED" and r.reason == "out of memory with 1 samples at a time (OutOfMemoryError)"

    def test_other_errors_are_not_memory(self):
        class Wrong(self.Hungry): error = RuntimeError("a shape is wrong")
        assert train_run(mlp_problem(model=Wrong), spec(D=500), Recipe(batch_size=50)).reason == "RuntimeError: a shape is wrong"

    def test_parts_add_up_to_the_whole_gradient(self):
        grads = []
        for m in (None, 7):
            t = Trainer(mlp_problem(), spec(), Recipe(batch_size=50, clip=None, optimizer=lambda p: torch.optim.SGD(p, lr=1.)), device="cpu", micro_batch=m)
            before = [p.detach().clone() for p in t.params]
            loss = t.step().item()
            grads.append([loss, *torch.cat([(a - b).flatten() for a, b in zip(before, t.params)]).tolist()])
        assert np.allclose(grads[0], grads[1], atol=1e-6) and np.abs(grads[0]).max() > .01

    def test_the_batch_is_cut_before_it_is_tried(self):
        cost = measure_cost(mlp_problem(), 64)
        assert micro_batch_for(mlp_problem(), 64, 1024, 1e12) is None and micro_batch_for(mlp_problem(), 64, 1024, None) is None
        m = micro_batch_for(mlp_problem(), 64, 1024, (16*cost.params.total + 600*cost.activation_bytes)/.8)
        assert m == 256 and micro_batch_for(mlp_problem(), 64, 1024, 10.) == 1


class TestEvaluation:
    def test_bits_per_byte_where_bytes_are_known(self):
        r = train_run(mlp_problem(bytes_per_token=4.), spec(D=500), Recipe(batch_size=50))
        assert r.bits_per_byte == pytest.approx(r.loss/math.log(2)/4) and math.isnan(train_run(mlp_problem(), spec(D=500), Recipe(batch_size=50)).bits_per_byte)

    def test_the_last_points_are_averaged(self, tmp_path):
        r = train_run(mlp_problem(), spec(), Recipe(batch_size=50, eval_last=4), storage=tmp_path)
        evals = open_storage(tmp_path).read_json(r.run_id, "result.json")["evals"]
        assert len(evals) == 4 and r.loss == pytest.approx(np.mean(evals)) and evals[-1] == train_run(mlp_problem(), spec(), Recipe(batch_size=50)).loss

    def test_looking_changes_nothing(self):
        "A held-out loss in the middle of a run leaves its random numbers alone."
        losses = []
        for look in (False, True):
            t = Trainer(mlp_problem(model=Noisy), spec(D=3000), Recipe(batch_size=50), device="cpu")
            while not t.done:
                if look: t.evaluate()
                t.step()
            losses.append(t.evaluate())
        assert losses[0] == losses[1]

    def test_its_noise_is_estimated_on_many_pieces(self):
        t = Trainer(mlp_problem(val_data=xy(4000, seed=3)), spec(), device="cpu")
        std = t.evaluate()[1]
        losses = nn.functional.cross_entropy(t.model(xy(4000, seed=3)[0]), xy(4000, seed=3)[1], reduction="none")
        assert std == pytest.approx((losses.std()/math.sqrt(4000)).item(), rel=.5)


def test_init_begins_anew():
    t = Trainer(mlp_problem(model=Noisy), spec(), Recipe(batch_size=16), device="cpu")
    first = [t.step().item() for _ in range(60)]
    t.init()
    assert (t.steps, t.tokens, t.watch.blocks) == (0, 0, 0) and [t.step().item() for _ in range(60)] == first


def test_a_compiled_run_is_the_same_but_for_rounding(monkeypatch):
    "With the compiler that only traces: what is compiled is the model in use, and the checkpoint is of the model as it was built."
    import functools
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr(Trainer, "compile", lambda self, mode: setattr(self, "net", torch.compile(self.net)) or setattr(self, "compiled", True))
    a, b = (train_run(mlp_problem(), spec(D=3000), Recipe(batch_size=50), compile=c) for c in (False, True))
    assert a.loss == pytest.approx(b.loss, rel=1e-5) and b.state == "SUCCEEDED"


def test_weight_decay_is_on_what_is_multiplied_with():
    t = Trainer(lm_problem(), spec(size=32), Recipe(weight_decay=.1, batch_size=4), device="cpu")       # at the base width, too
    decay = {id(p): g["weight_decay"] for g in t.optimizer.param_groups for p in g["params"]}
    assert {n: decay[id(p)] for n, p in t.model.named_parameters()} == {"embed.weight": 0, "body.weight": .1, "body.bias": 0, "head.weight": .1, "head.bias": 0}


class Endless(torch.utils.data.Dataset):
    "A trillion samples, made when they are asked for."
    tokens_per_sample = 1
    def __len__(self): return 1 << 40
    def batch(self, index):
        x = torch.stack([((index*(k + 7)) % 1009)/504.5 - 1 for k in range(8)], 1)
        return x, (x.sum(1) > 0).long()
    def __getitem__(self, i): return tuple(t[0] for t in self.batch(torch.tensor([i])))


def test_a_set_that_never_ends_is_shuffled_without_a_table():
    t = Trainer(mlp_problem(data=Endless(), val_data=xy(64)), spec(), Recipe(batch_size=64), device="cpu")
    a = t.data.index(1000, 50_000)
    assert len(set(a.tolist())) == 50_000 and abs(a.double().mean().item()/2**39 - 1) < .02 and torch.equal(a[100:200], t.data.index(1100, 100))
    losses = [t.step().item() for _ in range(200)]
    assert np.mean(losses[-20:]) < .5*np.mean(losses[:20])


@pytest.mark.parametrize("n", [1, 2, 3, 1000, 4097])
def test_the_permutation_is_one(n):
    from scaling_nb.training import _permuted
    for seed in (0, 1): assert sorted(_permuted(np.arange(n), n, seed).tolist()) == list(range(n))
    if n == 4097: assert np.corrcoef(np.arange(n), _permuted(np.arange(n), n, 0))[0, 1] < .1


def test_samples_are_gathered_not_looped_over():
    "A data set that knows how to give a batch is asked for batches alone."
    class Windows(Endless):
        def __getitem__(self, i): raise AssertionError("one by one")
        def __len__(self): return 1000
    from torch.utils.data import Subset
    data = _Indexed(Subset(Windows(), list(range(100, 600))), 0)
    x, y = data.take(490, 20)
    assert x.shape == (20, 8) and set(data.index(0, 500).tolist()) == set(range(100, 600))


class Drawn(IterableDataset):
    "Every pass draws its samples from the global generator of torch."
    def __iter__(self):
        while True: yield torch.randn(8), torch.randint(4, ())


class Augmented(torch.utils.data.Dataset):
    "Adds noise to what it gives, from two generators."
    x, y = xy(500)
    def __len__(self): return 500
    def __getitem__(self, i): return self.x[i] + .1*torch.randn(8) + .1*random.random(), self.y[i]


@pytest.mark.parametrize("data", [Drawn(), Augmented()], ids=["stream", "augmented"])
def test_data_that_draws_has_random_numbers_of_its_own(data, tmp_path):
    "A resumed run, a branch, and a run whose model draws more, see the samples of a whole run."
    problem = mlp_problem(model=Noisy, data=data, val_data=xy(64))
    recipe, calls = Recipe(batch_size=16, warmup=100), iter(range(10**9))
    whole = train_run(problem, spec(D=3000), recipe)
    train_run(problem, spec(D=3000), recipe, storage=tmp_path, should_stop=lambda: next(calls) == 60)
    cut = train_run(problem, spec(D=3000), recipe, storage=tmp_path, branches=(spec(D=2000),))
    assert cut.loss == whole.loss and train_run(problem, spec(D=2000), recipe, storage=tmp_path).loss == train_run(problem, spec(D=2000), recipe).loss
    seen = []
    for model in (MLP, Noisy):
        t = Trainer(mlp_problem(model=model, data=data, val_data=xy(64)), spec(), recipe, device="cpu")
        for _ in range(5): t.step()
        seen.append(t._next_batch()[0])
    assert torch.equal(*seen)


def test_the_held_out_set_is_frozen_even_if_its_loader_shuffles():
    from torch.utils.data import TensorDataset
    for generator in (None, torch.Generator()):
        loader = DataLoader(TensorDataset(*xy(600)), batch_size=16, shuffle=True, generator=generator)
        t = Trainer(mlp_problem(val_data=loader, val_samples=64), spec(), device="cpu")
        assert t.evaluate() == t.evaluate()


def test_a_failed_pass_is_gone_before_the_next_try():
    import weakref
    alive = []
    class Held:
        "Stands for activations."
    class Hungry(MLP):
        def forward(self, x):
            if self.training:
                assert not [r for r in alive if r() is not None], "the failed pass is still in memory"
                held = Held(); alive.append(weakref.ref(held))
                if len(x) > 8: raise torch.OutOfMemoryError("out of memory")
                del held
            return super().forward(x)
    t = Trainer(mlp_problem(model=Hungry), spec(), Recipe(batch_size=32), device="cpu")
    t.step()
    assert t.micro_batch == 8 and len(alive) >= 3


def test_numbers_of_numpy_come_back_from_a_checkpoint(tmp_path):
    recipe = Recipe(batch_size=16, schedule=np.cos, weight_decay=np.float64(.1), lr=np.float64(.01))
    calls = iter(range(10**9))
    run = RunSpec(budget=1., size=16, N=np.int64(500), D=2000., flops_per_token=3000., seed=np.int64(1))
    assert train_run(mlp_problem(), run, recipe, storage=tmp_path, should_stop=lambda: next(calls) == 30).state == "STOPPED"
    assert train_run(mlp_problem(), run, recipe, storage=tmp_path).loss == train_run(mlp_problem(), run, recipe).loss


def test_a_model_that_keeps_what_it_made_can_be_evaluated_first():
    class Caches(MLP):
        mask = None
        def forward(self, x):
            if self.mask is None: self.mask = torch.ones(8)
            return super().forward(x*self.mask)
    t = Trainer(mlp_problem(model=Caches), spec(), device="cpu")
    t.evaluate(); t.step()


@pytest.mark.parametrize("lr", [100., 300.])
def test_a_run_that_explodes_at_once_is_no_success(lr):
    assert train_run(mlp_problem(), spec(D=2000), Recipe(lr=lr, batch_size=16)).state == "FAILED"


def test_frozen_weights_and_weight_decay():
    class Frozen(MLP):
        def __init__(self, width): super().__init__(width); self.layers[2].weight.requires_grad_(False)
    assert train_run(mlp_problem(model=Frozen), spec(D=500), Recipe(weight_decay=.1, batch_size=16)).state == "SUCCEEDED"


def test_a_data_set_is_taken_for_what_it_is():
    from torch.utils.data import TensorDataset
    class Named(Augmented): batch = 32                                       # an attribute, and no way to give many samples
    class Doubled(TensorDataset):
        def __getitem__(self, i): assert isinstance(i, int); return 2*self.tensors[0][i], self.tensors[1][i]
    x, _ = fetch(Doubled(*xy(50)), torch.tensor([3, 1]))
    assert torch.equal(x, 2*xy(50)[0][[3, 1]]) and len(fetch(Named(), torch.tensor([3, 1]))[1]) == 2


def test_a_last_sample_that_reaches_beyond_the_end_has_no_negative_rate():
    for schedule in ("wsd", "cosine"):
        t = Trainer(lm_problem(), spec(D=17), Recipe(batch_size=1, schedule=schedule), device="cpu")
        rates = []
        while not t.done: t.step(); rates.append(t.optimizer.param_groups[0]["lr"])
        assert len(rates) == 2 and min(rates) >= 0


def test_a_function_of_the_notebook_is_hashed_where_its_source_is(monkeypatch):
    "In a worker there is only its byte code; the recipe brings along what it was called. At home it is looked at each time."
    from ray import cloudpickle

    from scaling_nb import recipes
    recipe = Recipe(lr=lambda N, D: .01, optimizer=lambda p: torch.optim.SGD(p, lr=.1))
    plain, wire = recipe.plain(), cloudpickle.dumps(recipe)
    monkeypatch.setattr(recipes, "content_hash", lambda f: "changed")
    assert cloudpickle.loads(wire).plain() == plain != recipe.plain()


def test_losses_below_zero_are_no_failure():
    "Such as a density: what counts is that the loss fell."
    problem = mlp_problem(loss_fn=lambda out, y: .02*nn.functional.cross_entropy(out, y) - 1)
    assert train_run(problem, spec(D=2000), Recipe(batch_size=16)).state == "SUCCEEDED"


def test_a_loader_that_keeps_its_workers_gives_the_same_run_twice_and_travels_on():
    from ray import cloudpickle
    loader = DataLoader(Augmented(), batch_size=25, num_workers=1, persistent_workers=True)
    problem = mlp_problem(data=loader, val_data=loader, val_samples=50)
    losses = [train_run(problem, spec(D=500), Recipe(batch_size=25)).loss for _ in range(2)]
    assert losses[0] == losses[1] and cloudpickle.dumps(problem)


def test_a_stop_at_a_parting_keeps_the_branch(tmp_path):
    recipe = Recipe(batch_size=10, warmup=100)
    for stopped_at in range(78, 83):                                          # 1000 tokens part at 800: step 80
        where, calls = tmp_path/str(stopped_at), iter(range(1, 10**9))
        for stop in (lambda calls=calls, at=stopped_at: next(calls) == at, None):
            train_run(mlp_problem(), spec(D=2000), recipe, storage=where, branches=(spec(D=1000),), should_stop=stop)
        branch = train_run(mlp_problem(), spec(D=1000), recipe, storage=where)
        assert branch.flops_measured < .25*branch.C and branch.loss == train_run(mlp_problem(), spec(D=1000), recipe).loss
