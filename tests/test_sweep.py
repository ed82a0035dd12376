"""The plan: budgets kept, sizes buildable, every gap with its reason."""
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import TinyLM, lm_loss, lm_problem, mlp_problem
from torch import nn

from scaling_nb import sweep
from scaling_nb.contracts import Problem
from scaling_nb.flops import ModelCost, ParamCounts, measure_cost
from scaling_nb.hardware import Hardware
from scaling_nb.recipes import Recipe, resolve
from scaling_nb.sweep import Constraints, RunSpec, SweepPlan, measure_speed, nearest_size, plan_sweep, share_trunks, why_not
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
    p = plan_sweep(gpt(vocab=50304, T=128, depth=12, heads=32, tied=True), [1e21], n_sizes=2, speed=None)
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


ADDED, HELD = (RunSpec(C, 16, 1000, D, 6000., seed=3, role=role) for C, D, role in ((1e9, 160_000, "adaptive"), (3e9, 500_000, "hold-out")))


@pytest.mark.parametrize("specs, says", [((), "0 runs, 0 FLOPs"), ((HELD,), "1 run, 3e+09 FLOPs"), ((ADDED,), "1 run, 9.6e+08 FLOPs"), ((ADDED, HELD), "2 runs, 3.96e+09 FLOPs")])
@pytest.mark.parametrize("target", [None, 1e12])
def test_plans_without_a_grid_show_themselves(specs, says, target, capsys):
    "What `Study.next_runs` gives: nothing more to run, or runs that are added to a sweep."
    p = SweepPlan(specs, notes=("edge: its reason & more",), name="x", target=target)
    shown = [repr(p), p._repr_html_()]
    p._ipython_display_()
    shown.append(capsys.readouterr().out)
    assert p.extrapolation is None and all(says in x and "its reason" in x and "With" not in x and "Empty" not in x for x in shown) and "&amp; more" in shown[1]
    assert ("<table" in shown[1]) == bool(specs) == ("Chart" in shown[2]) and ("added to a sweep" in shown[0]) == bool(specs and target)
    if ADDED not in specs:
        with pytest.raises(ValueError, match="must hold runs that a fit will see"): p.forecast()


# ---------------------------------------------------------------- from a target

STREAM = 1 << 16   # samples: more than any plan here sees in four passes, all of them the same, so that they take no room


def text(T=16, vocab=16):
    x = torch.zeros(1, T, dtype=torch.long).expand(STREAM, T)
    return Problem(TinyLM, "width", data=(x, x), loss_fn=lm_loss, model_kwargs=dict(vocab=vocab))


SMALL = Recipe(batch_size=4)


def spent(plan, *roles): return sum(f for s, f in zip(plan.specs, plan.run_flops) if s.role in roles)


@settings(max_examples=5, deadline=None)
@given(target=st.floats(1e12, 1e15), money=st.floats(1e11, 4e11), shares=st.sampled_from([(.6, .15, .25), (1, 0, 0), (.5, .5, 0), (.7, 0, .3)]), trunks=st.booleans())
def test_a_plan_costs_what_it_may_and_never_more(target, money, shares, trunks):
    p = plan_sweep(text(), target=target, spend=money/target, shares=shares, trunks=trunks, recipe=SMALL, speed=None, slots=1)
    grid, above = spent(p, "grid", "repeat"), spent(p, "hold-out")
    assert .9*shares[0]*money < grid <= shares[0]*money and above <= shares[2]*money and p.reserve_flops == pytest.approx(shares[1]*money)
    assert p.total_flops + p.reserve_flops <= p.spend_flops*(1 + 1e-9) == pytest.approx(money*(1 + 1e-9))
    assert p.extrapolation == target/max(s.budget for s in p.specs if s.role == "grid") and p.budgets == sorted({s.budget for s in p.specs if s.role == "grid"})
    limits = p.constraints
    assert all(limits.tokens_per_param[0] <= s.D/s.N and s.D <= 4*p.unique_tokens for s in p.specs)
    for b in p.budgets:
        row = [s.D/s.N for s in p.specs if s.budget == b and s.role == "grid"]
        assert len(row) >= 3 and 2*min(row) <= 20 <= max(row)/2
    assert len(p.budgets) >= 3 and sum(s.role == "repeat" for s in p.specs) == 4


def test_a_plain_grid_is_ten_times_its_top_budget():
    "METHODS: five half-decade budgets of seven sizes cost 10.2 top budgets."
    p = plan_sweep(text(), target=1e13, spend=.01, shares=(1, 0, 0), replicates=0, trunks=False, constraints=Constraints(), recipe=SMALL, speed=None, slots=1)
    assert p.extrapolation*.01 == pytest.approx(10.2, rel=.02) and len(p) == 35 and len(p.budgets) == 5 and p.reserve_flops == 0


def test_the_hold_out_run_stands_apart():
    p = plan_sweep(text(), target=1e13, spend=.01, recipe=SMALL, speed=None, slots=1)
    held = [s for s in p.specs if s.role == "hold-out"]
    assert len(held) == 1 and held[0].budget == pytest.approx(3*p.budgets[-1], rel=.02) and 10 < held[0].D/held[0].N < 40
    assert p.specs.index(held[0]) not in {i for t in p.trunks for i in t.runs} and p.trunks
    assert held[0].budget not in p.budgets and list(p.frame.role)[-1] == "hold-out"
    said = repr(p)
    assert "(hold-out)" in said and f"{p.extrapolation:,.0f}x below it; hold-out run at 3x" in said and "15% kept for adaptive rounds" in said
    assert "\nbefore the adaptive rounds: " + str(p.forecast()) in said
    plain = plan_sweep(text(), target=1e13, spend=.01, shares=(.75, 0, .25), recipe=SMALL, speed=None, slots=1)
    assert "\n" + str(plain.forecast()) in repr(plain) and "adaptive" not in repr(plain)


def test_a_hold_out_run_shares_no_trunk():
    runs = [RunSpec(budget=0, size=16, N=8192, D=D, flops_per_token=6., role=role) for D, role in ((1_000_000, "grid"), (2_000_000, "grid"), (8_000_000, "hold-out"))]
    assert [t.runs for t in share_trunks(runs, Recipe(), 64)] == [(1, 0)]


def test_rows_of_a_target_stand_on_common_rungs():
    p = plan_sweep(text(), target=1e14, spend=.005, recipe=SMALL, speed=None, slots=1)
    rows = {b: {s.size for s in p.specs if s.budget == b and s.role == "grid"} for b in p.budgets}
    shared = [len(rows[a] & rows[b]) for a, b in zip(p.budgets, p.budgets[1:])]
    assert min(shared) >= 2 and p.total_flops < p.separate_flops


def test_low_budgets_move_up_before_runs_get_short():
    p = plan_sweep(text(), target=1e12, spend=.5, recipe=Recipe(batch_size=8), speed=None, slots=1)
    assert p.budgets[-1]/p.budgets[0] < 99 and any("lower ones would not keep three sizes" in n for n in p.notes)
    assert min(x.steps(16) for x in (resolve(p.recipe, s, 16) for s in p.specs)) >= p.constraints.steps
    assert p.constraints.steps == 500 or any("steps are allowed, not only of 500" in n for n in p.notes)


def test_limits_that_are_asked_for_are_not_given_up():
    asked = Constraints.recommended(steps=400)
    with pytest.raises(ValueError, match=r"The least that does is spend="): plan_sweep(text(), target=1e13, spend=.001, constraints=asked, recipe=Recipe(batch_size=32), speed=None, slots=1)


def test_the_least_spend_that_is_named_works():
    ask = dict(target=1e13, recipe=Recipe(batch_size=32), speed=None, slots=1, constraints=Constraints.recommended())
    with pytest.raises(ValueError) as e: plan_sweep(text(), spend=.001, **ask)
    least = float(re.search(r"spend=([\d.e-]+)", str(e.value))[1].rstrip(","))
    assert .001 < least < 1 and len(plan_sweep(text(), spend=least, **ask).budgets) >= 3
    with pytest.raises(ValueError): plan_sweep(text(), spend=.7*least, **ask)


def test_limits_that_nothing_keeps():
    with pytest.raises(ValueError, match="No share of the target does"): plan_sweep(text(), target=1e11, spend=.5, constraints=Constraints(sizes=(None, 3)), recipe=SMALL, speed=None, slots=1)


def test_budgets_come_down_to_what_the_data_allow():
    few = Problem(TinyLM, "width", data=tuple(x[:1200] for x in text().data), loss_fn=lm_loss)
    p = plan_sweep(few, target=1e13, spend=.01, constraints=Constraints(tokens_per_param=(3, 400), epochs=4), recipe=SMALL, speed=None, slots=1)
    assert max(s.D for s in p.specs) <= 4*p.unique_tokens and any("larger budgets break a limit" in n for n in p.notes)
    assert spent(p, "grid", "repeat") < .9*.6*p.spend_flops


def test_budgets_are_kept_and_the_target_remembered():
    plain, aimed = (plan_sweep(text(), [1e8, 3e8, 1e9], recipe=SMALL, speed=None, slots=1, **kw) for kw in ({}, dict(target=1e11)))
    assert plain.specs == aimed.specs and plain.target is plain.extrapolation is None and aimed.extrapolation == pytest.approx(100)
    assert "for a target of 1e+11 FLOPs: top budget 1e+09, 100x below it" in repr(aimed) and "for a target" not in repr(plain)
    assert aimed.reserve_flops == 0 and aimed.spend_flops is None and {s.role for s in aimed.specs} == {"grid"}
    assert [n for n in aimed.notes if n not in plain.notes] == ["budgets are named, so nothing is kept for adaptive rounds or a hold-out run"] and aimed.notes[0] in repr(aimed)


@pytest.mark.parametrize("target, says", [(1e8, "top budget 1e+09; the target lies within the budgets"), (3e8, "; the target lies within the budgets"), (1e9, "; the target lies within the budgets"),
    (1.5e9, "top budget 1e+09, 1.5x below it"), (1e7, "; the target lies below all budgets, of which the lowest is 1e+08")])
def test_a_target_that_is_no_extrapolation(target, says):
    said = repr(plan_sweep(text(), [1e8, 3e8, 1e9], target=target, recipe=SMALL, speed=None, slots=1))
    assert f"{says}\n" in said and ("below it" in said) == (target > 1e9)


CARD = Hardware("a card", peak_flops=2.5e9, memory=1e9, dollars_per_hour=2.)   # 1e9 FLOP/s at 40 %


def test_hours_and_dollars_are_flops():
    ask = dict(target=1e13, hardware=CARD, recipe=SMALL)
    by_hours, by_dollars = plan_sweep(text(), hours=.01, slots=2, **ask), plan_sweep(text(), dollars=.04, **ask)
    assert by_hours.spend_flops == pytest.approx(.01*3600*1e9*2) == by_dollars.spend_flops
    assert by_hours.slots == 2 and by_dollars.slots == 1 and by_hours.hardware is CARD
    assert by_hours.hours <= .01 and by_hours.longest_seconds <= 36 and by_hours.seconds == pytest.approx(max(by_hours.total_flops/2e9, by_hours.longest_seconds))
    assert by_dollars.dollars == pytest.approx(by_dollars.total_flops/1e9/3600*2) and by_dollars.dollars <= .04
    assert "40% of its peak of 2.5e+09, an assumption; $0.03 at $2 an hour" in repr(by_dollars)


def test_this_machine_is_measured():
    p = plan_sweep(text(), target=1e12, hours=1e-3, hardware="measure", slots=2, recipe=SMALL)
    assert p.hardware.name == "this machine" and p.hardware.utilization == 1 and 1e5 < p.hardware.flops < 1e13 and p.hours <= 1e-3*1.01
    assert "measured at size" in repr(p) and "assumption" not in repr(p) and p.dollars is None


@pytest.mark.parametrize("ask", [dict(target=1e12, hours=1e-3, hardware="measure", slots=2), dict(target=1e12, spend=.2, hardware="measure", price=2.), dict(budgets=[1e8, 1e9], hardware="measure"),
                                 dict(budgets=[1e8, 1e9], constraints=Constraints(seconds=1.)),
                                 dict(target=1e12, spend=.2, constraints=Constraints(tokens_per_param=(3, 400), seconds=100.)), dict(budgets=[1e8, 1e9])])
def test_the_same_question_gets_the_same_plan(ask, monkeypatch):
    "A speed is noisy, so it is measured once: here every measurement gives another, and another object holds the problem."
    speeds = iter(np.geomspace(3e9, 1e9, 20))
    monkeypatch.setattr(sweep, "_speeds", {})
    monkeypatch.setattr(sweep, "measure_speed", lambda *a, **kw: float(next(speeds)))
    first, again = (plan_sweep(text(), recipe=SMALL, **ask) for _ in range(2))
    assert first == again and first.seconds > 0
    if len(ask) == 1: assert first.hardware is None
    else:
        assert first.hardware.name == "this machine" and f"on {first.hardware}" in repr(first)
        monkeypatch.setattr(sweep, "_speeds", {})                               # another process
        assert plan_sweep(text(), recipe=SMALL, **ask) != first == plan_sweep(text(), recipe=SMALL, **{**ask, "hardware": first.hardware})


def test_a_long_run_is_dropped_by_its_time():
    p = plan_sweep(text(), [1e8, 1e10], constraints=Constraints(seconds=5), hardware=CARD, recipe=SMALL, slots=1)
    assert set(p.frame.budget) == {1e8} and p.dropped.reason.str.contains(r"time = 10 s is over 5 s").all()
    assert set(plan_sweep(text(), [1e8, 1e10], constraints=Constraints(seconds=5), speed=1e9, recipe=SMALL, slots=1).frame.budget) == {1e8}
    with pytest.raises(ValueError, match="needs its speed"): plan_sweep(text(), [1e8], constraints=Constraints(seconds=5), speed=None)


def test_what_does_not_fit_the_card_is_dropped():
    "On budgets that are named, and beside limits of one's own, which win where they name a memory."
    ask = dict(hardware="T4", multiple=256, recipe=SMALL)
    p = plan_sweep(gpt(), [1e20], **ask)
    large = p.dropped[p.dropped.N > 1e9]
    assert len(large) and large.reason.str.contains(r"memory = [\d.]+ GB is over 16 GB").all() and p.frame.N.max() < 1e9 and p.constraints == Constraints(memory=16e9)
    assert f"dropped: budget 1e+20, size {large['size'].iloc[0]}: memory = " in repr(p)
    held = plan_sweep(gpt(), [1e20], constraints=Constraints(tokens_per_param=(1, None)), **ask)
    assert held.specs == p.specs and held.constraints == Constraints(tokens_per_param=(1, None), memory=16e9)
    wide = plan_sweep(gpt(), [1e20], constraints=Constraints(memory=1e12), **ask)
    assert not len(wide.dropped) and wide.frame.N.max() > 1e9 and wide.constraints.memory == 1e12


@pytest.mark.parametrize("own", [{}, dict(memory=9e5, seconds=30.)])
def test_the_card_and_the_clock_are_limits_beside_those_of_a_target(own):
    p = plan_sweep(text(), target=1e13, hours=.01, slots=2, hardware=CARD, recipe=SMALL, constraints=Constraints(tokens_per_param=(3, 400), **own))
    assert (p.constraints.memory, p.constraints.seconds) == ((9e5, 30.) if own else (1e9, 36.)) and p.constraints.tokens_per_param == (3, 400)
    assert p.longest_seconds <= p.constraints.seconds


@pytest.mark.parametrize("ask, words", [
    (dict(), "or a `target` must be given"), (dict(target=1e12), "exactly one of"), (dict(target=1e12, spend=.1, hours=1), "exactly one of.*`spend` and `hours`"),
    (dict(budgets=[1e9], spend=.1), "`spend` came too"),
    (dict(target=-1, spend=.1), "`target` must be positive"), (dict(target=1e12, spend=0), "share of the target"), (dict(target=1e12, spend=1.5), "share of the target"),
    (dict(target=1e12, hours=1), "`hours` needs `hardware`"),
    (dict(target=1e12, dollars=1, hardware="T4"), "No price is known of T4"), (dict(target=1e12, dollars=1, hardware="abacus"), "must be one of"),
    (dict(budgets=[1e9], price=1.), "`price` needs `hardware`"),
    (dict(target=1e9, hours=1, hardware="T4"), "more than the target"), (dict(target=1e12, spend=.1, shares=(.5, .2, .2)), "sum to 1"), (dict(target=1e12, spend=.1, shares=(0, .5, .5)), "sum to 1"),
    (dict(target=1e12, spend=.1, n_budgets=2), "`n_budgets`"), (dict(target=1e12, spend=.1, budget_ratio=1), "`budget_ratio`"),
    (dict(target=1e12, hours=-1, hardware="T4"), "`hours` must be positive"),
    (dict(budgets=[1e9], slots=0), "`slots` must be at least 1"), (dict(budgets=[1e9], slots=1.5), "`slots` must be at least 1")])
def test_unclear_questions(ask, words):
    with pytest.raises(ValueError, match=words): plan_sweep(mlp_problem(), **ask, speed=None)


# ---------------------------------------------------------------- limits

RUN = RunSpec(budget=1e9, size=16, N=1000, D=64_000, flops_per_token=6000.)
COST = ModelCost(16, ParamCounts(1200, 1200, 1000, 100, 200), 6000., 2000., 1200, 64, activation_bytes=5e5)


@pytest.mark.parametrize("limits, words", [
    (dict(tokens_per_param=(65, None)), "D/N = 64 is under 65"), (dict(tokens_per_param=(None, 60)), "D/N = 64 is over 60"), (dict(steps=500), "steps = 250 is under 500"),
    (dict(sizes=(None, 8)), "size = 16 is over 8"),
    (dict(sizes=(17, None)), "size = 16 is under 17"), (dict(warmup_share=.1), "warm-up = 25% of the run is over 10% of the run"),
    (dict(batch=.05), "batch = .* critical is over 0.05 critical"), (dict(epochs=4), "epochs = 6.4 is over 4"),
    (dict(memory=1e6), "memory = 1.02 MB is over 1 MB"), (dict(seconds=300), "time = 6.4 min is over 5 min")])
def test_every_limit_says_its_number(limits, words):
    settings = resolve(Recipe(batch_size=4, warmup=16_000), RUN, 64)
    say = lambda **kw: why_not(Constraints(**kw), RUN, COST, settings, unique_tokens=10_000, speed=1e6)
    assert re.fullmatch(words, say(**limits)) and say() == ""
    assert say(steps=500, epochs=4) == "steps = 250 is under 500; epochs = 6.4 is over 4"


def test_a_limit_needs_what_it_is_measured_by():
    settings = resolve(Recipe(batch_size=4), RUN, 64)
    assert why_not(Constraints(epochs=1, seconds=1), RUN, COST, settings) == ""      # a stream has no epochs, an unknown machine no hours


@pytest.mark.parametrize("kw, field", [(dict(tokens_per_param=3), "tokens_per_param"), (dict(tokens_per_param=(400, 3)), "tokens_per_param"), (dict(sizes=(1, 2, 3)), "sizes"),
    (dict(steps=0), "steps"), (dict(memory=-1), "memory")])
def test_a_limit_that_is_none(kw, field):
    with pytest.raises(ValueError, match=f"`{field}` must be"): Constraints(**kw)


def test_limits_on_named_budgets_only_drop():
    free, held = (plan_sweep(text(), [1e8, 1e9], recipe=SMALL, speed=None, constraints=c, slots=1) for c in (None, Constraints.recommended()))
    assert set(held.specs) < set(free.specs) and len(held) + len(held.dropped) == len(free) and held.dropped.reason.str.contains("D/N = .* is (?:under 3|over 400)").any()
    assert held.constraints.steps == 500 and free.constraints == Constraints()


# ---------------------------------------------------------------- the nearest model

@given(st.floats(2e3, 1e6))
@settings(max_examples=6, deadline=None)
def test_the_nearest_size_is_the_nearest(N):
    p = gpt(depth=1)
    near = nearest_size(p, N, multiple=4)
    others = [measure_cost(p, s).N for s in (near.size - 4, near.size + 4) if s > 0]
    assert near.size % 4 == 0 and all(abs(math.log(near.N/N)) <= abs(math.log(o/N)) for o in others)
    assert near.flops_per_token > 6*near.N and near.params.matmul == near.N


def test_no_size_near():
    with pytest.raises(ValueError, match="`N` must be a positive number"): nearest_size(gpt(), 0)
    class Never(nn.Module):
        def __init__(self, width): raise ValueError("never")
    with pytest.raises(ValueError, match="never"): nearest_size(mlp_problem(model=Never), 1e4)
