"""What is trained after the grid: open edges, runs chosen by the fit, and one that no fit sees; remembered, and never twice."""
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import MLP, mlp_problem

from scaling_nb.contracts import Problem
from scaling_nb.fitting import fit_law
from scaling_nb.intervals import fit_intervals
from scaling_nb.laws import ChinchillaLaw
from scaling_nb.recipes import Recipe
from scaling_nb.records import open_storage, runs_frame
from scaling_nb.rounds import Round, adaptive_round, hold_out_round, read_rounds, record_round
from scaling_nb.scheduling import Resources, run_sweep
from scaling_nb.study import load_study, train_study
from scaling_nb.sweep import Constraints, RunSpec, plan_sweep
from scaling_nb.training import MockLaw
from scaling_nb.zoo.gpt import GPT, next_token_loss


class Stream(torch.utils.data.IterableDataset):
    "Tokens without end."
    def __iter__(self):
        while True: yield torch.zeros(64, dtype=torch.long), torch.zeros(64, dtype=torch.long)


VAL = (torch.zeros(10, 64, dtype=torch.long),) * 2
GPTS = Problem(GPT, "width", data=Stream(), val_data=VAL, loss_fn=next_token_loss, model_kwargs=dict(vocab=128, seq_len=64))
TARGET, LAW = 1e19, MockLaw(noise=.003)


@pytest.fixture(scope="module")
def plan(): return plan_sweep(GPTS, target=TARGET, spend=.01, speed=None, tokens_per_param=8)   # near the optimum of the law, so that no edge is open


@pytest.fixture(scope="module")
def trained(plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return folder, train_study(GPTS, plan, storage=folder, mock=LAW)


def test_the_grid_then_two_rounds_then_the_hold_out(plan, trained):
    _, study = trained
    assert [r.what for r in study.rounds] == ["adaptive", "adaptive", "hold-out"] and study.target == TARGET
    roles = study.frame.role.value_counts()
    assert roles["grid"] + roles["repeat"] == sum(s.role != "hold-out" for s in plan.specs) and roles["adaptive"] <= 8 and roles["hold-out"] == 1
    added = sum(r.flops for r in study.rounds if r.what != "hold-out")
    assert 0 < added <= plan.reserve_flops and plan.total_flops + added <= .01*TARGET*1.001


def test_what_is_held_out_is_in_no_fit(trained):
    folder, study = trained
    assert len(study.held_out) == 1 and len(study.surface.N) == len(study.runs) == len(study.frame) - 1
    late = study.held_out.iloc[0]
    assert late.C > 2.9*study.surface.C.max() and not ((study.runs["size"] == late["size"]) & (study.runs.seed == late.seed)).any()
    said = study.predict(TARGET).held_out
    assert len(said) == 1 and said[0]["observed"] == late.loss


def test_rounds_narrow_the_answer(plan, trained):
    "By about as much as they said."
    _, study = trained
    width = lambda f: np.diff(np.log(fit_intervals(f, TARGET, levels=(.9,)).iloc[0][["low", "high"]].to_numpy(float)))[0]
    assert width(study.surface) < .75*width(fit_law(study.runs[study.runs.role != "adaptive"]))


def test_the_same_line_trains_nothing_and_chooses_nothing(plan, trained, capsys):
    folder, study = trained
    before = {p: p.read_bytes() for p in folder.rglob("*.json") if p.name != "finished.json"}
    again = train_study(GPTS, plan, storage=folder, mock=LAW)
    assert {p: p.read_bytes() for p in folder.rglob("*.json") if p.name != "finished.json"} == before and again.predict() == study.predict(TARGET)
    assert "Added" not in capsys.readouterr().out


def test_interrupted_after_a_choice_goes_on_with_it(plan, tmp_path, monkeypatch):
    "The round is on disk before its runs train: what was chosen stays chosen, even if the fit would choose otherwise today."
    import scaling_nb.scheduling
    real, calls = scaling_nb.scheduling.run_sweep, []
    def dies(*a, **kw):
        calls.append(a)
        if len(calls) == 2: raise KeyboardInterrupt
        return real(*a, **kw)
    monkeypatch.setattr(scaling_nb.scheduling, "run_sweep", dies)
    with pytest.raises(KeyboardInterrupt): train_study(GPTS, plan, storage=tmp_path, mock=LAW)
    monkeypatch.setattr(scaling_nb.scheduling, "run_sweep", real)
    study = load_study(tmp_path)
    (chosen,) = study.rounds
    assert chosen.what == "adaptive" and not (study.frame.role == "adaptive").any()
    changed = Round("adaptive", chosen.specs[:1], "chosen by hand.", TARGET, plan.spend_flops)
    ledger = json.loads((tmp_path/"rounds.json").read_text())
    (tmp_path/"rounds.json").write_text(json.dumps({next(iter(ledger)): []}))
    record_round(open_storage(tmp_path), next(iter(ledger)), changed)
    study = train_study(GPTS, plan, storage=tmp_path, mock=LAW)
    assert study.rounds[0] == changed and [r.what for r in study.rounds] == ["adaptive", "adaptive", "hold-out"]
    assert (study.frame.role == "adaptive").sum() == sum(len(r.specs) for r in study.rounds[:2])


def test_an_open_edge_is_moved_at_most_twice(tmp_path, capsys):
    "Sizes far above the optimum: two more below, twice, and then the sweep goes on without that minimum."
    plan = replace(plan_sweep(GPTS, [3e14, 1e15, 3e15, 1e16], target=TARGET, speed=None, span=(3, 11), n_sizes=6), reserve_flops=2e17, spend_flops=5e17)
    study = train_study(GPTS, plan, storage=tmp_path, mock=LAW)
    edges = study.frame[study.frame.role == "edge"]
    assert len(edges) and edges.groupby("budget")["size"].nunique().max() <= 4 and (edges["size"] < 64*64).all()
    assert study.rounds[0].what == "edge"
    for b, g in edges.groupby("budget"): assert g.N.max() < study.frame[(study.frame.budget == b) & (study.frame.role == "grid")].N.min()


def test_runs_that_teach_nothing_are_not_trained(trained):
    _, study = trained
    assert "no run fits" in adaptive_round(GPTS, study.surface, study.frame, study.plan, TARGET, spend=1e12)
    law, rng = ChinchillaLaw(1.69, 406.4, 410.7, .34, .28), np.random.default_rng(0)
    N, D = (v.ravel() for v in np.meshgrid(np.geomspace(1e6, 3e7, 40), np.geomspace(1e7, 1e9, 40)))
    known = fit_law(N, D, law.loss(N, D)*np.exp(.003*rng.standard_normal(len(N))))          # by 1600 runs
    assert "not worth it" in adaptive_round(GPTS, known, study.frame, study.plan, TARGET, spend=3e14)
    told = study.next_runs(2, spend=1e12)
    assert not told.specs and "no further run" in told.notes[0]


def test_further_runs_have_a_seed_of_their_own(trained):
    _, study = trained
    more = study.next_runs(4)
    taken = set(zip(study.frame["size"], study.frame.seed))
    assert 1 <= len(more) <= 4 and not taken & {(s.size, s.seed) for s in more.specs} and len({(s.size, s.seed) for s in more.specs}) == len(more)
    assert more.target == TARGET and "standard error" in more.notes[0] and more.specs[0].role == "adaptive"


def test_a_study_without_its_problem_says_what_it_lacks(plan, trained):
    folder, _ = trained
    with pytest.raises(ValueError, match="opened without"): load_study(folder).next_runs()
    with pytest.raises(ValueError, match="recipe of the plan differs in lr"): load_study(folder, GPTS, plan_sweep(GPTS, [1e15], speed=None, recipe=Recipe(lr=.5))).next_runs()
    assert len(load_study(folder, GPTS, plan).next_runs(2)) == 2


def test_rounds_must_be_waited_for(plan, tmp_path):
    for how in (dict(detached=True), dict(wait=False)):
        with pytest.raises(ValueError, match="must be waited for"): train_study(GPTS, plan, storage=tmp_path, **how)
    assert not list(tmp_path.iterdir())


def test_no_target_no_rounds(tmp_path):
    study = train_study(GPTS, plan_sweep(GPTS, [1e15, 3e15, 1e16], speed=None), storage=tmp_path, mock=LAW)
    assert study.rounds == [] and not (tmp_path/"rounds.json").exists()
    study.problem = GPTS
    with pytest.raises(ValueError, match="`target` must be given"): study.next_runs()
    assert len(study.next_runs(2, target=1e18)) == 2


def test_without_a_law_nothing_is_held_out(plan, tmp_path, capsys):
    "Losses that no law explains: the largest run of all would test nothing."
    study = train_study(GPTS, plan, storage=tmp_path, mock=MockLaw(A=1e-9, B=1e-9, noise=.05))
    said = capsys.readouterr().out
    assert not study.frame.role.isin(["adaptive", "hold-out"]).any() and "No adaptive runs: the surface gives no answer" in said and said.count("No run is held out") == 1


def test_a_larger_sum_has_rounds_of_its_own(tmp_path):
    "And its hold-out run lies above its own grid."
    small, large = (plan_sweep(GPTS, target=TARGET, spend=s, speed=None, tokens_per_param=8) for s in (.001, .01))
    train_study(GPTS, small, storage=tmp_path, mock=LAW)
    study = train_study(GPTS, large, storage=tmp_path, mock=LAW)
    assert sum(r.what == "hold-out" for r in study.rounds) == 2 and {r.spend for r in study.rounds} == {small.spend_flops, large.spend_flops}
    assert study.held_out.C.max() > 2.5*study.runs.C.max() and sum(r.what == "adaptive" and r.spend == large.spend_flops for r in study.rounds) == 2


def test_added_runs_keep_to_the_constraints(tmp_path):
    limits = Constraints(tokens_per_param=(3, 400), sizes=(None, 512), steps=100)
    plan = plan_sweep(GPTS, target=TARGET, spend=.001, speed=None, constraints=limits)
    study = train_study(GPTS, plan, storage=tmp_path, mock=MockLaw(A=406.4*8, noise=.003))
    added = study.frame[study.frame.role.isin(["edge", "adaptive", "hold-out"])]
    assert len(added) and (added["size"] <= 512).all() and (added.D/added.N).between(3, 400).all()


def test_a_size_that_cannot_be_built_is_no_end(tmp_path, capsys):
    "The law asks for a larger model than there is: the nearest is held out, or none, and the study stands."
    class Small(GPT):
        def __init__(self, width, **kw):
            if width > 512: raise ValueError("too wide")
            super().__init__(width, **kw)
    problem = Problem(Small, "width", data=Stream(), val_data=VAL, loss_fn=next_token_loss, model_kwargs=dict(vocab=128, seq_len=64))
    plan = plan_sweep(problem, target=TARGET, spend=.001, speed=None)
    study = train_study(problem, plan, storage=tmp_path, mock=MockLaw(A=406.4*30, noise=.003))
    assert (study.frame["size"] <= 512).all() and (len(study.held_out) or "No run is held out: No size near" in capsys.readouterr().out)


def test_bad_arguments_before_anything_is_trained(plan, trained, tmp_path):
    for bad in (dict(criterion="typo"), dict(k=0)):
        with pytest.raises(ValueError, match=next(iter(bad))): train_study(GPTS, plan, storage=tmp_path, mock=LAW, **bad)
    with pytest.raises(ValueError, match="one Recipe"): train_study(GPTS, plan, [plan.recipe]*len(plan), storage=tmp_path, mock=LAW)
    assert not list(tmp_path.iterdir())
    for bad in (dict(criterion="x"), dict(spend=-1)):
        with pytest.raises(ValueError, match=next(iter(bad))): trained[1].next_runs(2, **bad)


def test_a_round_trained_by_hand_leaves_the_target(plan, tmp_path):
    study = train_study(GPTS, plan, storage=tmp_path, mock=LAW)
    run_sweep(GPTS, study.next_runs(2, target=1e17), storage=tmp_path, mock=LAW)
    assert load_study(tmp_path).target == TARGET and (load_study(tmp_path).frame.role == "adaptive").sum() > (study.frame.role == "adaptive").sum()


def test_a_study_of_one_budget_shows_itself(tmp_path):
    study = train_study(GPTS, plan_sweep(GPTS, [1e15], speed=None), storage=tmp_path/"s", mock=LAW)
    assert "Study of" in study._repr_html_() and "No answer" in (tmp_path/"r.html").read_text() if study.report(tmp_path/"r.html") else False


def test_what_was_chosen_is_read_again_exactly(tmp_path):
    storage = open_storage(tmp_path)
    one = Round("adaptive", (RunSpec(1e9, 64, 1000, 10**6, 1e3/3, role="adaptive"),), "why not.", 1e20)
    assert read_rounds(storage, "x") == []
    record_round(storage, "x", one)
    record_round(storage, "y", Round("hold-out", one.specs, "other recipe"))
    assert read_rounds(storage, "x") == [one] and read_rounds(storage, "x", 1e20) == [one] and read_rounds(storage, "x", 2e20) == [] and len(read_rounds(storage, "y")) == 1
    assert "size 64" in str(one) and one.flops == pytest.approx(1e9/3)


def test_a_hold_out_that_pays_for_nothing_is_refused(trained):
    _, study = trained
    with pytest.raises(ValueError, match="no run is held out there"): hold_out_round(GPTS, study.surface, study.frame, study.plan, 1e3)


@pytest.mark.ray
@pytest.mark.long
def test_real_runs_through_sweep_add(tmp_path):
    "A grid on Ray, and what it teaches added to the same sweep while it is open."
    problem, recipe = mlp_problem(model=MLP), Recipe(batch_size=50)
    plan = plan_sweep(problem, [1e7, 2e7, 4e7], n_sizes=5, speed=None, recipe=recipe)
    sweep = run_sweep(problem, plan, storage=tmp_path, resources=Resources(cpus=1, slots=2), view=False, wait=False)
    sweep.wait()
    more = load_study(tmp_path, problem, plan).next_runs(2, target=1e9)      # so small, every budget is best at its smallest size
    sweep.add(more)
    sweep.wait()
    sweep.close()
    f = runs_frame(tmp_path)
    assert len(more) and {s.role for s in more.specs} == {"edge"} and len(f) == len(plan) + len(more) and (f.state == "SUCCEEDED").all() and (f.role == "edge").sum() == len(more)
    assert len(load_study(tmp_path, problem, plan).runs) == len(f)
