"""The plan: budgets kept, sizes buildable, every gap with its reason."""
import numpy as np
import pytest
import torch
from problems import lm_problem, mlp_problem
from torch import nn

from scaling_nb.contracts import Problem
from scaling_nb.sweep import RunSpec, measure_speed, plan_sweep
from scaling_nb.zoo.gpt import GPT, next_token_loss


def gpt(n=50, vocab=128, T=64, **kw):
    x = torch.zeros(n, T + 1, dtype=torch.long)
    return Problem(GPT, "width", data=(x[:, :-1], x[:, 1:]), loss_fn=next_token_loss, model_kwargs=dict(vocab=vocab, seq_len=T, **kw))


def test_budgets_are_kept_to_one_sample():
    f = plan_sweep(gpt(), [1e10, 1e11, 1e12], speed=None).frame
    assert ((f.budget - f.C) >= 0).all() and ((f.budget - f.C) < f.flops_per_token*64).all()
    assert (f.D % 64 == 0).all()


def test_grid_spans_the_expected_optimum():
    f = plan_sweep(gpt(), [1e13], speed=None, span=(1/8, 4)).frame.sort_values("N")
    assert len(f) == 7
    steps = np.diff(np.log(f.N))
    assert steps.min() > .2 and 20 < f.N.max()/f.N.min() < 50   # 32, but for rounding
    assert f["D/N"].max() > 20*8 and f["D/N"].min() < 20/4


def test_sizes_are_multiples_of_64_where_large():
    f = plan_sweep(gpt(heads=4), [1e17, 1e18], speed=None).frame
    assert (f["size"] % 64 == 0).all() and f["size"].max() > 500


def test_multiple_is_kept():
    assert (plan_sweep(gpt(), [1e12], multiple=12, speed=None).frame["size"] % 12 == 0).all()


def test_counting_by_6nd_relabels_and_remembers_what_was_measured():
    p = plan_sweep(gpt(), [1e11], flops_per_param_per_token=6, speed=None)
    for s in p.specs:
        assert s.flops_per_token == 6*s.N and s.measured_flops_per_token > 6*s.N
        assert s.C == pytest.approx(6*s.N*s.D) and abs(s.C/1e11 - 1) < .01


def test_ladder_of_depth_and_width():
    def ladder(size): return dict(width=16*size, depth=size)
    p = plan_sweep(Problem(GPT, ladder, data=gpt().data, loss_fn=next_token_loss, model_kwargs=dict(vocab=128, seq_len=64)), [1e12], speed=None)
    assert len(p) >= 3 and p.frame["size"].max() < 64


def test_unbuildable_sizes_are_named_and_the_others_go_on():
    p = plan_sweep(gpt(), [1e11], sizes=[16, 17, 24], speed=None)
    assert sorted(p.frame["size"]) == [16, 24] and list(p.skipped_sizes) == [17] and "rotary" in p.skipped_sizes[17]


def test_dropped_cells_carry_their_reason():
    p = plan_sweep(gpt(), [1e11], sizes=[16, 512], speed=None)
    assert list(p.dropped["size"]) == [512] and "under 0.1" in p.dropped.reason[0]


@pytest.mark.parametrize("budgets, words", [([], "empty"), ([0], "positive"), ([-1e9], "positive"), ([float("nan")], "positive"), ([1e3], "needs")])
def test_bad_budgets(budgets, words):
    with pytest.raises(ValueError, match=words): plan_sweep(gpt(), budgets, sizes=[16] if budgets == [1e3] else None, speed=None)


def test_too_small_budget_without_sizes():
    with pytest.raises(ValueError, match="the smallest model that was tried needs"): plan_sweep(gpt(), [10.0], speed=None)


def test_no_size_can_be_built():
    class Never(nn.Module):
        def __init__(self, width): raise ValueError("never")
    with pytest.raises(ValueError, match="never"): plan_sweep(mlp_problem(model=Never), [1e9], speed=None)


def test_replicates_are_the_central_sizes_of_the_outer_budgets():
    f = plan_sweep(gpt(), [1e10, 1e11, 1e12], replicates=1, speed=None).frame
    again = f[f.seed == 1]
    assert sorted(again.budget) == [1e10, 1e10, 1e12, 1e12] and again["D/N"].between(4, 100).all()


def test_epochs_and_thin_grids_are_noted():
    p = plan_sweep(gpt(n=50), [1e10], speed=None)
    assert any("pass over the data more than four times" in n for n in p.notes) and any("fewer than three budgets" in n for n in p.notes)
    assert p.unique_tokens == 47*64 or p.unique_tokens == 48*64


def test_large_models_are_planned_without_memory():
    p = plan_sweep(gpt(vocab=50304, T=1024, depth=12, heads=32, tied=True), [1e21], n_sizes=2, speed=None)
    assert p.frame.N.max() > 5e9


def test_speed_and_time():
    p = lm_problem()
    assert measure_speed(p, 32, seconds=.05) > 1e5
    assert plan_sweep(p, [1e8], speed=1e6, slots=2).seconds > 1


def test_spec_refuses_nonsense():
    with pytest.raises(ValueError, match="`D` must be positive"): RunSpec(1e9, 8, 100, 0, 600.)


def test_plan_shows_itself():
    p = plan_sweep(gpt(), [1e10, 1e11], sizes=[16, 17, 24, 512], speed=None)
    assert "skipped: size 17" in repr(p) and "<table" in p._repr_html_()
