"""PlanView without a browser: every control is a method, the call as code makes the same plan, and nothing is swallowed."""
import json
import time

import numpy as np
import pytest
import torch

from scaling_nb import Constraints, Hardware, PlanView, Problem, Recipe, plan_sweep
from scaling_nb import plan_view as pv
from scaling_nb.zoo.gpt import GPT, next_token_loss

TEXT = torch.randint(0, 128, (20_000, 65), generator=torch.Generator().manual_seed(0))
PROBLEM = Problem(GPT, "width", data=(TEXT[:, :-1].contiguous(), TEXT[:, 1:].contiguous()), loss_fn=next_token_loss, model_kwargs=dict(vocab=128, seq_len=64))
CARD = Hardware("card", 1e12, memory=1e9, dollars_per_hour=2.)


def view(**kw): return PlanView(PROBLEM, **(dict(target=1e15, spend=.02, speed=None) | kw))


def made_by_code(v, **names):
    namespace = dict(problem=PROBLEM, **names)
    exec(v.code(), namespace)
    return namespace["plan"]


BATCHES = Recipe(batch_size=16)


@pytest.mark.parametrize("given, moved", [
    (dict(), {}), (dict(), dict(spend=.03, n_sizes=6, replicates=2)), (dict(), dict(spend_flops=1e13)), (dict(), dict(low=1e10, top=1e12, n_budgets=4)),
    (dict(), dict(top=1e12, smallest=.2, largest=3)),
    (dict(), dict(target=2e15, epochs=3, memory=None)), (dict(hardware=CARD), dict(hours=.01)),
    (dict(hardware=CARD), dict(dollars=.02, seconds=2e4)), (dict(hardware="H100 SXM", price=2.), dict(spend=.01)),
    (dict(target=None, spend=None, budgets=[1e10, 3e10, 1e11]), dict(n_budgets=5, least_tokens_per_param=2)),
    (dict(target=None, spend=None, budgets=[1e10, 3e10, 1e11]), dict(target=1e13, smallest_size=8, largest_size=64)),
    (dict(target=None, spend=None, budgets=[1e10, 3e11, 1e13]), dict(spend=.1)), (dict(target=None, spend=None, budgets=[1e10, 3e11, 1e13]), dict(spend_flops=1e13)),
    (dict(target=None, spend=None, budgets=[1e10, 3e11, 1e13], hardware=CARD), dict(dollars=.05)),
    (dict(sizes=np.arange(8, 136, 8), shares=np.array([.7, .1, .2])), dict(spend=np.float64(.05), replicates=np.int64(1))),
    (dict(constraints=Constraints.recommended(steps=100), recipe=BATCHES), dict(n_budgets=4, steps=150))])
def test_the_call_makes_the_same_plan(given, moved):
    v = view(**given).set(**moved)
    assert made_by_code(v, recipe=BATCHES, BATCHES=BATCHES) == v.plan == plan_sweep(PROBLEM, **v._asked)
    for k, x in moved.items():
        assert v.state[k] == x


def test_the_target_decides_until_a_budget_is_moved():
    v = view()
    assert v.decided["low"] == v.decided["top"] == "from the target" and v.state["top"] == max(v.plan.budgets)
    top = v.state["top"]
    v.set(low=top/10)
    assert "low" not in v.decided and v.decided["spend"] == "what the budgets cost"
    assert v.state["top"] == top and len(v.plan.budgets) == v.state["n_budgets"] == 5 and "spend" not in v._asked
    v.set(spend=.03)
    assert v.decided["top"] == "from the target" and "budgets" not in v._asked
    assert v.reset().plan == view().plan and not v.moved


def test_a_limit_starts_from_the_plan_as_it_stands():
    v = view()
    was = v.plan.constraints
    assert v.decided["steps"] == "recommended"
    v.set(epochs=3)
    assert v.plan.constraints == Constraints(**{**was.__dict__, "epochs": 3}) and "epochs" not in v.decided
    v.set(epochs=None)
    assert v.plan.constraints.epochs is None
    assert v.reset("epochs").plan.constraints == was


def test_what_cannot_be_planned_is_said_and_the_last_plan_stays():
    v = view()
    good = v.plan
    with pytest.raises(ValueError, match="The least that does is spend="): v.set(spend=1e-7)
    assert v.plan is good and "The least that does" in v.error and v.state["spend"] == 1e-7 and "The least that does" in repr(v) and repr(good) in repr(v)
    assert v.parts()["status"]["error"] == v.error and v.code() == view().code()       # the code is of the plan that stands
    with pytest.raises(ValueError, match="must be under the highest"): v.set(low=1e13, top=1e12)
    with pytest.raises(ValueError, match="no control 'speeed'"): v.set(n_sizes=4, speeed=1)
    with pytest.raises(TypeError, match="`spend` must be a number"): v.set(spend="much")
    with pytest.raises(ValueError, match="must be positive"): v.set(target=-1)
    assert "n_sizes" not in v.moved                                                     # a wrong word moves nothing
    assert v.reset().error == "" and v.plan == good
    with pytest.raises(TypeError, match="`sped` is no argument"): view(sped=1)
    with pytest.raises(ValueError, match="exactly one of `spend`"): PlanView(PROBLEM, target=1e15)


def test_a_model_that_cannot_be_built_is_told():
    def model(width, vocab, seq_len): raise MemoryError("no room")
    broken = Problem(model, "width", data=PROBLEM.data, loss_fn=next_token_loss, model_kwargs=PROBLEM.model_kwargs)
    with pytest.raises((ValueError, TypeError), match="no room"): PlanView(broken, [1e10, 1e11, 1e12], speed=None)


def wait_for(check, seconds=60):
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end
        time.sleep(.01)


def test_the_page_is_followed_and_the_newest_wish_counts():
    v = view()
    for n, spend in enumerate((.03, .025, .021), 1): v.press("move", n=n, spend=spend)
    wait_for(lambda: v.answered == 3 and not v._wishes and v.plan.spend_flops == .021e15)
    v.press("move", n=4, spend=1e-7)                          # an error is told
    wait_for(lambda: v.error)
    assert "The least that does" in v.parts()["status"]["error"] and v.plan.spend_flops == .021e15
    v.press("move", n=5, reset=[])
    wait_for(lambda: v.answered == 5 and not v.moved and not v.error and v.plan.spend_flops == .02e15)
    v.press("move", n=6, nonsense=1)
    wait_for(lambda: "no control 'nonsense'" in v.error)
    assert v.parts()["call"] == v.code() and not v.press("problem")["ok"]
    wait_for(lambda: v._worker is None)                       # a view at rest keeps no thread, closed or not
    v.close()


def test_a_newer_wish_ends_the_measuring(monkeypatch):
    "A plan that builds models is left when somebody moves on; what it measured is kept."
    v, seen = view(n_sizes=3), []
    monkeypatch.setattr(pv, "telling", lambda tell: __import__("contextlib").nullcontext(seen.append(tell)))
    v._wishes = [(1, None, dict(n_sizes=4))]
    v._fulfil()
    v._wishes = [(2, None, {})]
    with pytest.raises(pv._Newer): seen[0](128)


def test_a_plan_that_comes_late_changes_nothing(monkeypatch):
    "A hand moves on while the rest is timed, and while an older wish is planned: all that is said is of the newest."
    v, real, late = view(speed="measure"), pv.plan_sweep, []
    monkeypatch.setattr("scaling_nb.sweep._speed_of", lambda *a: 1e9)

    def slow(problem, **kw):
        plan = real(problem, **kw)
        while late: late.pop()()
        return plan
    monkeypatch.setattr(pv, "plan_sweep", slow)
    says = lambda: (v.plan.spend_flops, v.state["spend"], f"spend={v.state['spend']:g}" in v.code(), v.decided, v.error, v.stale)
    v.moved = dict(spend=.03); v._replan(quick=True)
    late.append(lambda: (v._note_move("spend", .05), v._replan(quick=True)))
    for _ in v.steps(): pass
    assert says()[:3] == (.05e15, .05, True) and not v._timed and v.stale and v._forecast_of is None
    for _ in v.steps(): pass
    assert v._timed and not v.stale and v.plan == plan_sweep(PROBLEM, **v._asked)
    for last in (lambda: v.set(spend=.04), lambda: v.set(spend=.04, n_sizes=4)):
        v.reset()
        late.append(last)
        v._wishes = [(1, None, dict(spend=.03))]
        v._fulfil()
        assert says()[:3] == (.04e15, .04, True)
    late.append(lambda: v.set(spend=.03))
    monkeypatch.setattr(pv, "plan_sweep", lambda problem, **kw: slow(problem, **kw) if kw.get("spend") != 1e-7 else late and late.pop()() or real(problem, **kw))
    v._wishes = [(2, None, dict(spend=1e-7))]
    v._fulfil()
    assert says()[:3] == (.03e15, .03, True) and not v.error


def test_limits_of_hours_and_hardware_follow_them():
    v = view(spend=None, hours=.01, hardware=CARD)
    assert v.state["seconds"] == 36 and v.decided["seconds"] == "the hours" and v.decided["memory"] == "of card"
    v.set(steps=100)
    assert v.set(hours=.1).plan.constraints.seconds == 360 == v.state["seconds"] and "seconds=" not in v.code() and v._asked["constraints"].memory is None and v.decided["memory"] == "of card"
    v.set(seconds=100, memory=None)
    assert v.plan.constraints.seconds == 100 and "seconds" not in v.decided and v.state["memory"] == 1e9    # the card's memory holds anyway
    v.reset()
    v.set(dollars=.02)
    assert v.plan.constraints.seconds is None and "seconds" not in v.decided


def test_where_one_recommended_limit_was_moved_the_others_still_give_way():
    v = view(spend=.02).set(epochs=3)
    assert v.plan.constraints.steps == v.state["steps"] == 500 and v.decided["steps"] == "recommended"
    v.set(spend=2e-4)
    assert v.plan.constraints.steps == v.state["steps"] == view(spend=2e-4).plan.constraints.steps == 250 and v.plan.constraints.epochs == 3
    assert v.decided["steps"].startswith("less than recommended") and v.decided["batch"] == "recommended" and made_by_code(v) == v.plan
    v.set(spend=.02)
    assert v.plan.constraints.steps == 500


def test_what_may_be_spent_is_of_the_target_that_is_shown():
    v = PlanView(PROBLEM, [1e10, 3e11, 1e13], speed=None)
    assert v.state["target"] == 1e14 and v.decided["target"] == "10x the highest budget"
    assert v.set(spend=.1).plan.target == 1e14 and v.decided["target"] == "10x the highest budget"
    v.reset()
    v.set(top=3e13)
    shown = v.state["target"]
    assert shown == 3e14 and v.set(spend_flops=2e13).plan.target == shown and v.plan.spend_flops == pytest.approx(2e13)


def test_it_answers_at_once():
    "Under 100 ms from a control's change to a plan of 150 cells and what the page gets, sizes known."
    v = PlanView(PROBLEM, [1e11*1.6**i for i in range(12)], n_sizes=20, multiple=8, speed=None)
    assert len(v.plan) >= 150
    took = []
    for k in (19, 20)*4:
        start = time.perf_counter()
        v.set(n_sizes=k); message = v.parts()
        took.append(time.perf_counter() - start)
    assert min(took[2:]) < .1, took
    assert len(json.dumps(message)) < 40_000


def test_the_width_comes_when_the_hand_rests():
    v = view()
    assert v.stale and v.parts()["width"] == {}
    for _ in v.steps(): pass
    width = v.parts()["width"]
    assert not v.stale and width["now"][0].startswith("×/÷ ") and {"doubled", "repeated", "guess"} <= set(width)
    v.set(spend=.03)
    assert v.stale and v.parts()["width"] == width                # the old one, until then
    w = PlanView(PROBLEM, [1e10, 1e11, 1e12], hardware=CARD)
    assert w.plan.seconds and pv.plan_facts(w.plan)["hours"] and pv.plan_facts(w.plan)["dollars"] and "card, 4e11 FLOP/s" in pv.plan_facts(w.plan)["hardware"]
    assert v.plan.seconds is None and pv.plan_facts(v.plan)["hours"] is None and pv.plan_facts(v.plan)["dollars"] is None


def test_what_was_dropped_is_grouped():
    v = view().set(epochs=1)
    groups = {g["what"]: g["n"] for g in pv.dropped_groups(v.plan)}
    reasons = [r for d in v.plan.dropped_cells for r in d["reason"].split("; ")]
    assert sum(groups.values()) == len(reasons) and len(groups) < len(reasons)
    assert {c[5] for c in v.parts()["grid"]["cells"]} >= {0, 2} and len(v.parts()["grid"]["cells"]) == len({(s.budget, s.size, s.role == "hold-out") for s in v.plan.specs}) + len(v.plan.dropped_cells)


def test_words_and_a_picture_without_a_browser(capsys):
    v = view()
    assert repr(v) == repr(v.plan) and "<svg" in v.still() and "<table" in v.still() and len(v.still()) < 60_000
    v.show()
    assert "SweepPlan of GPT(width)" in capsys.readouterr().out
