"""The learning rate: known laws come back, nothing without a minimum is given a rate, nothing is trained twice, and widths are told apart."""
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from problems import TinyLM, lm_problem, mlp_problem

from scaling_nb.contracts import Problem, fingerprint
from scaling_nb.recipes import LrLaw, Recipe, resolve, why_apart
from scaling_nb.records import open_storage
from scaling_nb.sweep import RunSpec, plan_sweep
from scaling_nb.tuning import LrStatus, coordinate_check, default_prior, fit_lr, more_rates, tune_lr

SIZES, HORIZONS, LRS = ((16, 8_192), (32, 24_576)), (100_000, 400_000), .01*2.**np.arange(-2, 3)
NONE = (1e3, 1e3)


def world(c=(-3.2, -.05, -.1), curvature=.04, noise=.003, lrs=LRS, seed=0, skew=0.):
    rng, rows = np.random.default_rng(seed), []
    for size, N in SIZES:
        for D in HORIZONS:
            off = np.log(lrs) - c[0] - c[1]*math.log(N) - c[2]*math.log(D)
            rows.append(pd.DataFrame(dict(size=size, N=N, D=D, lr=lrs, loss=2 + 5e3/D + curvature/2*off**2*(1 + skew*off) + noise*rng.standard_normal(len(lrs)), state="SUCCEEDED")))
    return pd.concat(rows, ignore_index=True)


def one(loss, lrs=LRS, **columns): return pd.DataFrame(dict(size=16, N=8_192, D=100_000, lr=lrs[:len(loss)], loss=loss) | columns)


def status(frame, **kw): return tuple(fit_lr(frame, **kw).cells.iloc[0][["status", "reason"]])


pytestmark = pytest.mark.usefixtures("one_thread")


class TestLaw:
    LAW = LrLaw(-3.2, -.05, -.1, (8_192, 24_576), (1e5, 4e5), .04, np.diag([.01, .0025, .0025]))

    def test_rate_price_and_uncertainty(self):
        best = math.exp(-3.2 - .05*math.log(1e4) - .1*math.log(2e5))
        assert math.isclose(self.LAW(1e4, 2e5), best) and self.LAW.excess(best, 1e4, 2e5) < 1e-20
        assert math.isclose(self.LAW.excess(best/2, 1e4, 2e5), .02*math.log(2)**2)
        assert math.isclose(self.LAW.sd(1e4, 2e5), math.sqrt(.01 + .0025*(math.log(1e4)**2 + math.log(2e5)**2)))
        assert LrLaw(-3.).sd(1, 1) is None and LrLaw(-3.).excess(.1, 1, 1) is None

    def test_it_is_plain_data_in_a_recipe(self):
        recipe = Recipe(lr=self.LAW)
        assert recipe.plain()["lr"] == dict(rule="LrLaw", c0=-3.2, c1=-.05, c2=-.1)
        assert hash(recipe) == hash(Recipe(lr=LrLaw(-3.2, -.05, -.1, (8_192, 24_576), (1e5, 4e5), .04, np.diag([.01, .0025, .0025])))) and "LrLaw(lr = " in repr(recipe)
        run = RunSpec(1e9, 16, 8_192, 100_000, 6*8_192.)
        assert math.isclose(resolve(recipe, run, 64).lr, self.LAW(8_192, 100_000))
        assert "lr follows the length" in why_apart(recipe) and why_apart(Recipe(lr=replace(self.LAW, c2=0.))) == ""

    def test_far_outside_it_says_so(self):
        with pytest.warns(UserWarning, match="more than 10x outside"): self.LAW(1e6, 2e5)
        assert self.LAW.doubt(1e4, 2e5) == "" and "N = 98,304 is 4x outside 8,192 to 24,576" in self.LAW.doubt(4*24_576, 2e5) and "D = 50,000 is 2x" in self.LAW.doubt(1e4, 5e4)
        assert LrLaw(-3.).doubt(1, 1) == ""

    def test_another_base_width_is_refused(self):
        with pytest.raises(ValueError, match="`base_width` must be 32, the width at which"): Recipe(lr=self.LAW, base_width=64)
        Recipe(lr=replace(self.LAW, base_width=None), base_width=None)

    @pytest.mark.parametrize("bad", [dict(c0=math.nan), dict(c0=-3., N_range=(5, 1)), dict(c0=-3., D_range=(1,))])
    def test_numbers_that_cannot_be(self, bad):
        with pytest.raises(ValueError, match="must be"): LrLaw(**bad)


@pytest.mark.parametrize("c", [(-4.6, 0., 0.), (-3.2, -.05, -.1), (-7., .1, .15), (3.2, -.6, -.2)])
def test_a_known_law_comes_back(c):
    middle = c[0] + c[1]*math.log(14_000) + c[2]*math.log(2e5)
    t = fit_lr(world(c, noise=1e-4, lrs=math.exp(middle)*2.**np.arange(-2.4, 3)))
    assert t.status is LrStatus.LAW and np.allclose([t.law.c1, t.law.c2], c[1:], atol=.005) and np.isclose(t.law(8_192, 100_000), math.exp(c[0] + c[1]*math.log(8_192) + c[2]*math.log(1e5)), rtol=.01)
    assert math.isclose(t.law.curvature, .04, rel_tol=.05) and t.law.N_range == (8_192, 24_576) and t.law.D_range == (1e5, 4e5)
    assert t.recipe.lr is t.law and (t.cells.lr_low < t.cells.lr).all() and (t.cells.lr < t.cells.lr_high).all()


def test_noise_free_losses_are_fitted_exactly():
    t = fit_lr(world(noise=0.), prior=NONE)
    assert np.allclose([t.law.c0, t.law.c1, t.law.c2], [-3.2, -.05, -.1], atol=1e-6)


def test_intervals_cover():
    inside = z = 0
    for seed in range(150):
        t = fit_lr(world(seed=seed, noise=.005))
        true = np.exp(-3.2 - .05*np.log(t.good.N) - .1*np.log(t.good.D))
        inside += ((t.good.lr_low < true) & (true < t.good.lr_high)).mean()/150
        z += (abs(math.log(t(49_152, 800_000)) + 3.2 + .05*math.log(49_152) + .1*math.log(800_000)) < 1.645*t.law.sd(49_152, 800_000))/150
    assert .84 < inside < .96 and .82 < z < .98


def test_the_noise_is_what_it_is():
    assert np.isclose(np.mean([fit_lr(world(seed=s)).noise**2 for s in range(60)])**.5, .003, rtol=.1)
    seeds = pd.concat([world(seed=s).assign(seed=s) for s in range(4)])
    t = fit_lr(seeds)
    assert t.dof >= 60 and t.good.se.max() < .75*fit_lr(world()).good.se.min() and t.cells.rates.tolist() == [5]*4
    assert fit_lr(world(), noise=.01).noise == .01


def test_what_is_refused():
    up, valley = np.arange(5.), np.array([.08, .02, 0, .021, .079])
    assert status(one(2 + .1*up))[0] == "edge" and "smallest of 5 rates: the minimum lies below it" in status(one(2 + .1*up))[1]
    assert status(one(2 - .1*up))[0] == "edge" and "largest of 5 rates: the minimum lies above it" in status(one(2 - .1*up))[1]
    assert status(one([2.0, 1.999, 2.001, 1.9985, 2.0007]), noise=.01)[0] == "flat"
    assert status(one(2 - valley + [0, 0, -.2, 0, 0]))[0] == "not convex" or status(one(2 - valley))[0] in ("edge", "not convex")
    assert status(one(2 + valley[1:4], LRS[1:4]))[0] == "no noise" and status(one(2 + valley[1:4], LRS[1:4]), noise=.001)[0] == "ok"
    assert status(one(2 + valley))[0] == "ok"
    lost = one([2.1, 2.0, math.nan, math.nan, math.nan], state=["SUCCEEDED"]*2 + ["FAILED"]*3)
    assert status(lost) == ("too few", "2 rates ended with a loss and 0.01 diverged; five make a parabola whose noise can be seen")
    t = fit_lr(one(2 + .1*up))
    assert t.status is LrStatus.REFUSED and not t.status.ok and t.law is None and "refused (edge)" in repr(t)
    with pytest.raises(ValueError, match="no cell has a minimum"): t(1e4, 1e5)


def test_all_runs_of_a_cell_diverged():
    t = fit_lr(one([math.nan]*5, state="FAILED"))
    assert t.status is LrStatus.REFUSED and t.cells.status[0] == "too few" and more_rates(t) == {(16, 100_000): (.000625, .00125)}
    assert more_rates(fit_lr(one([math.nan]*5, state="FAILED", diverged=False))) == {}


def test_divergence_bounds_and_is_no_point():
    y = [2.08, 2.02, 2.0, 2.021, math.nan]
    clean, cut = fit_lr(one(y[:4]), noise=.002), fit_lr(one(y, state=["SUCCEEDED"]*4 + ["FAILED"]), noise=.002)
    assert cut.cells.lr[0] == clean.cells.lr[0]
    lucky = one([2.08, 2.02, 2.0, math.nan, 1.5], state=["SUCCEEDED"]*3 + ["FAILED", "SUCCEEDED"])
    assert status(lucky) == ("cliff", "the loss falls up to 0.01 and 0.02 diverged: no rise was seen in between")
    assert np.allclose(more_rates(fit_lr(lucky))[16, 100_000], [math.sqrt(2)*.01])
    seeds = pd.concat([one(y, state=["SUCCEEDED"]*4 + ["FAILED"]), one([2.08, 2.02, 2.0, 2.021, 2.3])])
    assert fit_lr(seeds).cells.rates[0] == 4       # one seed of two diverged: that rate is too high


def test_another_failure_is_a_gap():
    f = one([2.08, 2.02, math.nan, 2.021, 2.079], state=["SUCCEEDED", "SUCCEEDED", "FAILED", "SUCCEEDED", "SUCCEEDED"], diverged=False, reason=["", "", "out of memory", "", ""])
    assert status(f, noise=.002)[0] == "ok" and fit_lr(f, noise=.002).cells.rates[0] == 4
    f = one([2.08, 2.02, math.nan], state=["SUCCEEDED", "SUCCEEDED", "FAILED"], diverged=False, reason=["", "", "out of memory"])
    assert "another run failed: out of memory" in status(f)[1]


def test_a_parabola_is_fitted_near_the_minimum():
    "Far away the loss levels off; more rates there must not move the minimum."
    lrs = .01*2.**np.arange(-6, 7)
    off = np.log(lrs/.009)
    t = fit_lr(one(2 + .3*(1 - np.exp(-.1*off**2)), lrs), noise=.002)
    assert abs(math.log(t.cells.lr[0]/.009)) < .05


@pytest.mark.parametrize("skew", [-.15, .15])
def test_a_lopsided_valley_moves_the_rate_little(skew):
    "The parabola is symmetric and real valleys are not: 1.5 times as steep on one side moves the minimum by an eighth, which costs next to nothing."
    t = fit_lr(world(skew=skew))
    off = math.log(t(14_000, 200_000)) + 3.2 + .05*math.log(14_000) + .1*math.log(200_000)
    assert abs(off) < .2 and .02*off**2 < .001


class TestFewCells:
    def test_what_is_assumed(self):
        f = world()
        for keep, want, zero in (("size == 16 and D == 100_000", LrStatus.CONSTANT, ("c1", "c2")), ("size == 16", LrStatus.NO_N, ("c1",)), ("D == 100_000", LrStatus.NO_D, ("c2",)),
                                 ("size == 16 or D == 100_000", LrStatus.LAW, ())):
            t = fit_lr(f.query(keep), noise=.003)
            assert t.status is want and [k for k in ("c1", "c2") if getattr(t.law, k) == 0] == list(zero)

    def test_a_slope_that_is_not_asked_for(self):
        law = fit_lr(world(), drift="N").law
        assert law.c2 == 0 != law.c1 and law.sd(14_000, 2e6) > law.sd(14_000, 2e5) + .2 and fit_lr(world(), drift="").status is LrStatus.CONSTANT

    def test_two_cells_on_a_diagonal(self):
        f = world().query("(size == 16 and D == 100_000) or (size == 32 and D == 400_000)")
        assert fit_lr(f, noise=.003).status is LrStatus.NO_N
        assert fit_lr(f, noise=.003, recipe=Recipe(base_width=None)).status is LrStatus.NO_D

    def test_what_was_not_measured_is_uncertain(self):
        law = fit_lr(world().query("size == 16 and D == 100_000"), noise=.003).law
        here, there = law.sd(8_192, 100_000), law.sd(81_920, 100_000)
        assert math.isclose(there**2 - here**2, (.1*math.log(10))**2, rel_tol=1e-6)

    def test_refused_cells_are_left_out_by_name(self):
        f = world()
        f.loc[(f["size"] == 16) & (f.D == 100_000), "loss"] = np.arange(5.)
        t = fit_lr(f)
        assert t.cells.status.tolist() == ["edge", "ok", "ok", "ok"] and t.status is LrStatus.LAW
        assert "size 16, N 8,192, D 100,000: refused (edge): the lowest loss is at 0.0025" in repr(t) and len(t.good) == 3


def test_slopes_have_a_prior():
    with pytest.raises(ValueError, match="`prior` must be two positive"): fit_lr(world(), prior=(math.inf, .1))
    assert default_prior(32) == (.1, .2) and default_prior(None) == (.5, .2)
    held, free = (fit_lr(world(noise=.006, seed=3), prior=p).law for p in (None, NONE))
    assert abs(held.c1) < abs(free.c1) and held.sd(1e6, 1e7) < free.sd(1e6, 1e7)


def test_cells_count_by_their_variance():
    f = world(noise=.002)
    f.loc[(f["size"] == 32) & (f.D == 400_000), "loss"] = (2 + .002*np.log(f.lr/.02)**2)[(f["size"] == 32) & (f.D == 400_000)]      # a shallow valley elsewhere
    t = fit_lr(f, noise=.0003)
    assert abs(math.log(t(8_192, 100_000)/t.cells.lr[0])) < .3*abs(math.log(t(24_576, 400_000)/t.cells.lr[3]))


def test_what_to_train_next():
    assert more_rates(fit_lr(world())) == {}
    up = more_rates(fit_lr(world(lrs=.0004*2.**np.arange(5))))
    assert set(up) == {(s, D) for s, _ in SIZES for D in HORIZONS} and np.allclose(up[16, 100_000], [.0128, .0256])
    assert np.allclose(more_rates(fit_lr(world(lrs=.04*2.**np.arange(5))))[32, 400_000], [.01, .02])
    flat = more_rates(fit_lr(one([2.0, 1.9999, 1.9985, 1.9999, 2.0001]), noise=.05))
    assert np.allclose(flat[16, 100_000], LRS[:4]*math.sqrt(2))


@pytest.mark.parametrize("frame, said", [
    (world().drop(columns="lr"), "lr is missing"), (world().assign(lr=-1.), "`lr` must be positive"), (world().assign(N=math.nan), "`N` must be positive"), (world().iloc[:0], "at least one run")])
def test_bad_frames(frame, said):
    with pytest.raises(ValueError, match=said): fit_lr(frame)


def test_a_table_without_sizes():
    assert fit_lr(world().drop(columns="size")).law == fit_lr(world()).law


def test_neither_torch_nor_ray():
    code = """
import sys
for m in ('torch', 'ray'): sys.modules[m] = None
import pandas as pd
from scaling_nb import fit_lr, plot_lr
t = fit_lr(pd.DataFrame(dict(N=100, D=1000, lr=[.01, .02, .04, .08, .16], loss=[2.04, 2.01, 2., 2.011, 2.039])))
print(round(t(100, 1000), 3)); t._repr_html_(); plot_lr(t)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "0.04"


class TestTuning:
    "`tune_lr` with a sweep that writes losses of a known law."
    @pytest.fixture
    def trained(self, monkeypatch):
        from scaling_nb import scheduling
        from scaling_nb.training import describe_run
        trained, best = [], {}

        def run_sweep(problem, plan, recipes, *, storage, **_):
            prints, ids = fingerprint(problem), []
            for s, r in zip(plan.specs, recipes):
                info = describe_run(problem, s, r, None, prints)
                ids.append(key := info["run_id"])
                if storage.exists(key, "result.json") or storage.exists(key, "failure.json"): continue
                off = math.log(r.lr/best.get(s.size, .01))
                storage.write_json(key, "spec.json", info); storage.write_json(key, "attempt.json", dict(attempt=1))
                if off > 2.5: storage.write_json(key, "failure.json", dict(reason="the loss became nan", diverged=True, tokens=64))
                else: storage.write_json(key, "result.json", dict(loss=2 + .02*off**2 + .0005*math.sin(7*off + s.D + s.seed), tokens=s.D))
                trained.append((s.size, s.D, r.lr, s.seed))
            return scheduling.Sweep(storage, tuple(ids))
        monkeypatch.setattr(scheduling, "run_sweep", run_sweep)
        return trained, best

    def test_five_rates_in_four_cells_and_nothing_twice(self, trained, tmp_path):
        trained, _ = trained
        t = tune_lr(lm_problem(), [16, 32], [3_200, 12_800], storage=tmp_path, recipe=Recipe(retry_diverged=True))
        assert t.status is LrStatus.LAW and len(trained) == 20 == len(t.frame) and {r[2] for r in trained} == {.0025, .005, .01, .02, .04} and abs(math.log(t(500, 6_400)/.01)) < .1
        assert not t.recipe.retry_diverged and t.recipe.lr is t.law
        again = tune_lr(lm_problem(), [16, 32], [3_200, 12_800], storage=tmp_path)
        assert len(trained) == 20 and again.cells.equals(t.cells) and again.law == t.law

    def test_a_list_that_ends_too_early_is_extended(self, trained, tmp_path):
        trained, best = trained
        best[16] = .07
        t = tune_lr(lm_problem(), [16, 32], [3_200, 12_800], storage=tmp_path)
        assert t.cells.rates.tolist() == [7, 7, 5, 5] and len(trained) == 24 and len(set(trained)) == 24 and (t.cells.status == "ok").all()
        assert abs(math.log(t.cells.lr[0]/.07)) < .1

    def test_twice_at_most_then_refused_by_name(self, trained, tmp_path):
        trained, best = trained
        best[16] = 5.
        t = tune_lr(lm_problem(), [16, 32], [3_200], storage=tmp_path)
        assert t.cells.rates.tolist() == [9, 5] and t.cells.status.tolist() == ["edge", "ok"] and t.status is LrStatus.CONSTANT
        assert tune_lr(lm_problem(), [16], [3_200], storage=tmp_path, extend=0).status is LrStatus.REFUSED

    def test_diverged_rates_bound(self, trained, tmp_path):
        trained, best = trained
        best[16] = .002
        t = tune_lr(lm_problem(), [16], [3_200], storage=tmp_path)
        assert t.frame.diverged.sum() == 1 and t.frame.loc[t.frame.diverged, "D"].tolist() == [3_200] and t.cells.status[0] == "ok" and abs(math.log(t.cells.lr[0]/.002)) < .1

    def test_seeds_and_defaults(self, trained, tmp_path):
        trained, _ = trained
        t = tune_lr(lm_problem(), [16, 32], storage=tmp_path, seeds=2, recipe=Recipe(lr=.02))
        assert len(trained) == 40 and {r[3] for r in trained} == {0, 1} and sorted({r[2] for r in trained}) == [.005, .01, .02, .04, .08]
        horizons = sorted(t.frame.D.unique())
        assert len(horizons) == 2 and math.isclose(horizons[1]/horizons[0], 4, rel_tol=.01) and all(D % 16 == 0 for D in horizons)

    def test_a_folder_of_its_own(self, trained, tmp_path):
        from scaling_nb.training import train_run
        problem = mlp_problem()
        train_run(problem, plan_sweep(problem, [1e6], sizes=[8], speed=None).specs[0], storage=tmp_path)
        with pytest.raises(ValueError, match="folder of its own.*holds 1 runs"): tune_lr(problem, [8, 16], storage=tmp_path)

    @pytest.mark.parametrize("kw, said", [
        (dict(recipe=Recipe(optimizer=lambda p: None)), "brings its own learning rate"), (dict(seeds=0), "`seeds` must be at least 1"), (dict(lrs=[.1, .2]), "three rates or more"),
        (dict(lrs=[-1, .1, .2]), "all positive"), (dict(horizons=[3]), "at least one sample of 16"), (dict(sizes=[]), "at least one size")])
    def test_what_is_refused(self, trained, kw, said, tmp_path):
        with pytest.raises(ValueError, match=said): tune_lr(**{**dict(problem=lm_problem(), sizes=[16, 32], storage=tmp_path), **kw})
        assert not trained[0] and not open_storage(tmp_path).runs()


@pytest.mark.ray
@pytest.mark.long
def test_on_ray_a_real_sweep_and_the_same_line_again(tmp_path, capsys):
    from scaling_nb.scheduling import Resources
    tune = lambda: tune_lr(lm_problem(val_samples=256), [8, 32], [16_000, 48_000], storage=tmp_path, resources=Resources(slots=2), extend=0, view=False)
    t = tune()
    assert (t.frame.state == "SUCCEEDED").all() and len(t.frame) == 20 and t.frame.lr.nunique() == 5 and set(t.cells.status) <= {"ok", "edge", "flat", "cliff"}
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("result.json")}
    capsys.readouterr()
    again = tune()
    assert again.cells.equals(t.cells) and {p: p.stat().st_mtime_ns for p in tmp_path.rglob("result.json")} == files and "nothing was trained" in capsys.readouterr().out
    import ray
    ray.shutdown()


class TestCoordinates:
    @pytest.fixture(scope="class")
    def gpt(self):
        from scaling_nb.zoo.data import TokenWindows, byte_tokens, stdlib_text
        from scaling_nb.zoo.gpt import GPT, next_token_loss
        train, val = (TokenWindows(byte_tokens(part[:400_000]), seq_len=32) for part in stdlib_text())
        return Problem(GPT, "width", data=train, val_data=val, loss_fn=next_token_loss, model_kwargs=dict(vocab=128, depth=2, seq_len=32))

    @pytest.mark.parametrize("lr", [.01, "auto"])
    def test_flat_with_the_groups(self, gpt, lr):
        check = coordinate_check(gpt, [32, 64, 128, 256], Recipe(lr=lr), samples=8)
        assert check.flat and check.drift[["output", "change"]].abs().max(axis=None) < .25 and "flat: one rate serves all widths" in repr(check)
        assert set(check.frame.module) == {"embed", "head", *(f"blocks.{i}.{m}" for i in (0, 1) for m in ("attn.qkv", "attn.out", "mlp.up", "mlp.down"))}
        assert set(check.frame.step) == set(range(5)) and (check.frame.change[check.frame.step == 0] == 0).all()

    def test_drifting_without(self, gpt):
        check = coordinate_check(gpt, [32, 64, 128, 256], Recipe(base_width=None), samples=8)
        drift = check.drift.set_index("module")
        assert not check.flat and drift.change["head"] > .5 and drift.change["blocks.0.attn.qkv"] > .5 and abs(drift.output["blocks.0.attn.qkv"]) < .25 and "modules drift" in repr(check)

    def test_the_model_and_the_generators_are_left_alone(self, gpt):
        state = torch.get_rng_state()
        a, b = (coordinate_check(gpt, [16, 32], steps=1, samples=4, seed=3) for _ in range(2))
        assert a.frame.equals(b.frame) and torch.equal(state, torch.get_rng_state())

    def test_what_is_refused(self):
        with pytest.raises(ValueError, match="two sizes or more"): coordinate_check(lm_problem(), [16])
        deep = Problem(lambda depth: TinyLM(16*(1 + 0*depth)), "depth", data=lm_problem().data, loss_fn=lm_problem().loss_fn)
        with pytest.raises(ValueError, match="no weight of .* is seen to get a larger fan-in"): coordinate_check(deep, [1, 2])

    def test_a_run_that_explodes_is_not_flat(self):
        check = coordinate_check(lm_problem(), [8, 16, 32], Recipe(lr=1e30, base_width=None), steps=3)
        assert not check.flat

