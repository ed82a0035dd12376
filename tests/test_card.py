"""The card of a study says what the study was: every field of the checklist, compared with the facts; gaps with their reason, nothing guessed."""
import json
from pathlib import Path

import pytest
import torch
from problems import mlp_problem

from scaling_nb.card import CHECKLIST, StudyCard, held_out_table, runs_hash, study_card
from scaling_nb.contracts import describe_data
from scaling_nb.recipes import LrLaw, Recipe
from scaling_nb.records import open_storage
from scaling_nb.scheduling import run_sweep
from scaling_nb.study import find_optimal, load_study
from scaling_nb.sweep import plan_sweep
from scaling_nb.training import MockLaw, train_run
from scaling_nb.zoo.gpt import GPT, next_token_loss

tokens = torch.zeros(3000, 65, dtype=torch.long)
ASK = dict(model=GPT, size_param="width", dataset=(tokens[:, :-1], tokens[:, 1:]), loss_fn=next_token_loss, model_kwargs=dict(vocab=128, seq_len=64), speed=None,
           compute_budgets=[1e15, 3e15, 1e16, 3e16, 1e17])


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    "A study of 35 runs, one of which failed, one trained twice, with two more that are held out."
    path = tmp_path_factory.mktemp("card")
    find_optimal(**ASK, mock=MockLaw(noise=.004), output_dir=path, recipe=Recipe(lr=.02, warmup=.1, eval_last=3))
    s = open_storage(path)
    one, two = s.runs()[:2]
    s.remove(one, "result.json"); s.write_json(one, "failure.json", dict(reason="the loss became nan"))
    s.write_json(two, "attempt.json", {**s.read_json(two, "attempt.json"), "attempt": 2, "history": [dict(attempt=1, started=1e9, host="h", why="the worker died")]})
    hold(path, [(4e17, 2176, 1.01), (4e17, 2176, 1.)])
    return path


def hold(path, runs):
    "Runs as a sweep leaves them, marked to be held out; the last number is a factor of the law's loss."
    s, law = open_storage(path), MockLaw()
    like = max((s.read_json(i, "spec.json") for i in s.runs()), key=lambda x: x["C"])
    for k, (C, _, off) in enumerate(runs):
        N, key = like["N"], f"held{k:08d}"
        D = int(C/like["flops_per_token"])
        s.write_json(key, "spec.json", {**like, "role": "hold-out", "run_id": key, "group": key, "budget": C, "D": D, "C": C, "seed": k})
        s.write_json(key, "result.json", dict(loss=off*law.loss(N, D), loss_std=.004, tokens=D, steps=0, flops_measured=C, wall_s=0., mock=True, attempt=1))


def test_every_field_is_there_and_json_holds_it(stored):
    card = load_study(stored).card()
    assert {s: tuple(f) for s, f in card.facts.items()} == CHECKLIST
    again = json.loads(json.dumps(card.to_dict(), allow_nan=False))
    assert again == card.to_dict() and StudyCard(again).markdown() == card.markdown() and StudyCard(again).unknown == card.unknown
    assert all(isinstance(why, str) and len(why) > 10 for why in card.unknown.values())
    page, text = card._repr_html_(), card.markdown()
    for section, fields in CHECKLIST.items():
        assert f"## {section[0].upper()}{section[1:]}" in text
        for f in fields: assert f"- **{f}**: " in text and f">{f}</th>" in page


def test_it_says_what_the_study_was(stored):
    study = load_study(stored)
    card, fit = study.card(), study.surface
    assert card["question"] == {"study": "GPT(width)", "mock": True}
    assert card["form"]["parameters"] == fit.law.to_dict() and card["form"]["exponents"] == {"a": fit.law.a, "b": fit.law.b} and card["form"]["second estimator"]["a"] == study.isoflop.a
    assert card["definitions"]["C"].startswith("measured")
    model = card["model"]
    assert (model["name"], model["size parameter"], model["fixed arguments"]) == ("GPT", "width", {"vocab": 128, "seq_len": 64})
    assert model["source hash"] == study.info["problem"]["model"]
    assert model["sizes"] == sorted(study.frame["size"].unique()) and model["N range"] == {"least": study.frame.N.min(), "most": study.frame.N.max()}
    data = card["data"]
    assert (data["training samples"], data["unique tokens"], data["tokens per sample"]) == (2850, 2850*64, 64) and data["most epochs"] == pytest.approx(study.frame.D.max()/(2850*64))
    held = card["held-out"]
    assert held["how"] == "a seeded split of the data: 5%, seed 0" and held["samples"] == 150 and held["tokens"] == 9600 and held["smoothing"].startswith("mean of 3")
    assert held["standard error"] == pytest.approx(.004)
    recipe = card["recipe"]
    assert recipe["learning rate"] == .02 and recipe["warm-up share"]["most"] == pytest.approx(.1, abs=1e-3) and recipe["decay share"]["most"] == pytest.approx(.2, abs=1e-3)
    assert recipe["validated across horizons"].startswith("no") and recipe["optimizer"] == "adamw" and recipe["schedule"] == "wsd" and recipe["seeds"] == [0, 1]
    assert recipe["recipe"]["lr"] == .02 and "mock" not in recipe["recipe"]
    runs = card["runs"]
    assert (runs["planned"], runs["finished"], runs["in the fit"], len(fit.N)) == (37, 36, 34, 34)
    assert runs["by role"] == {"grid": 35, "hold-out": 2}
    assert [r["why"] for r in runs["failed"]] == ["the loss became nan"] and runs["unfinished"] == [] and [r["why"] for r in runs["left out"]] == ["held out"]*2
    assert [(r["attempts"], r["why"]) for r in runs["attempts"]["more than one"]] == [(2, ["the worker died"])]
    assert card["fit"]["delta"] == fit.delta and card["fit"]["converged"]["status"] == "CONVERGED" and card["fit"]["condition"] == fit.condition
    assert card["fit"]["starts"] == {"share that reached the best": fit.share_best}
    assert card["versions"]["hash of the runs"] == runs_hash(study.runs) and card["versions"]["first run started"].startswith("2001-09-09")
    assert card["cost"]["FLOPs"]["planned"] == pytest.approx(study.frame.C.sum())


def test_a_hold_out_run_is_predicted_by_a_fit_that_did_not_see_it(stored):
    study = load_study(stored)
    assert len(study.runs) == 34 and len(study.held_out) == 2 and not set(study.runs.run_id) & set(study.held_out.run_id) and "2 of them held out" in repr(study)
    assert study.surface.C.max() < 1.1e17 and study.isoflop.C.max() < 1.1e17                  # neither estimator saw them
    bad, good = study.card()["hold-out"]["result"]
    assert good["inside"] and not bad["inside"] and bad["error"] == pytest.approx(-1, abs=.3) and abs(good["error"]) < .3 and good["beyond"] == pytest.approx(4, rel=.01)
    assert good["predicted"] == pytest.approx(float(study.surface.law.loss(good["N"], good["D"])))


def test_a_hold_out_run_has_one_verdict(stored, tmp_path):
    study = load_study(stored)
    answer = study.predict()
    table, card = held_out_table(answer), study.card()["hold-out"]["result"]
    assert list(table.inside) == [h["inside"] for h in answer.held_out] == [r["inside"] for r in card] and len(card) == 2
    for k, name in dict(low="low", high="high", predicted="predicted", beyond="factor", loss="observed", error="error").items():
        assert list(table[k]) == [h[name] for h in answer.held_out] == [r[k] for r in card]
    byrun = study.held_out.set_index("run_id").loss
    assert [r["loss"] for r in card] == [byrun[r["run"]] for r in card]
    page = Path(study.report(tmp_path/"r.html")).read_text(encoding="utf-8")
    assert page.count("Put to the test") == 1 and "should the law be slightly wrong" in page
    assert not len(held_out_table(study.predict(held_out=None)))


def test_a_hold_out_run_without_a_fit_is_not_judged(tmp_path):
    find_optimal(**ASK | dict(compute_budgets=[1e15]), mock=MockLaw(noise=.004), output_dir=tmp_path/"s", recipe=Recipe(lr=.02))
    s = open_storage(tmp_path/"s")
    for i in s.runs()[3:]: s.remove(i, "result.json"); s.write_json(i, "failure.json", dict(reason="lost"))
    hold(tmp_path/"s", [(4e17, 2176, 1.)])
    study = load_study(tmp_path/"s")
    told = study.card()["hold-out"]
    assert told["runs"] == 1 and told["result"]["not known"].startswith("not judged: no fit")


def test_the_hash_is_of_the_numbers_alone(stored):
    runs = load_study(stored).runs
    assert runs_hash(runs) == runs_hash(runs.sample(frac=1, random_state=0)) != runs_hash(runs.iloc[1:]) and runs_hash(runs) != runs_hash(runs.assign(loss=runs.loss + 1e-12))


def test_an_old_storage_has_gaps_with_their_reason(stored, tmp_path):
    import shutil
    old = tmp_path/"old"
    shutil.copytree(stored, old)
    s = open_storage(old)
    info = s.read_json("", "study.json")
    s.write_json("", "study.json", {k: v for k, v in info.items() if k not in ("data", "held_out", "unique_tokens")})
    for i in s.runs():
        spec = s.read_json(i, "spec.json")
        s.write_json(i, "spec.json", {k: v for k, v in spec.items() if k not in ("role", "settings", "measured_flops_per_token", "group")})
    study = load_study(old)
    card = study.card()
    assert {tuple(k) for k in card.unknown} >= {("held-out", "how"), ("held-out", "fingerprint"), ("data", "tokens per sample"), ("data", "unique tokens"), ("recipe", "batch, samples")}
    assert "stored before" in card.unknown["held-out", "how"] and {s: tuple(f) for s, f in card.facts.items()} == CHECKLIST
    assert len(study.runs) == 36 and study.report(tmp_path/"r.html")


def test_a_study_without_a_fit_still_has_a_card(stored, tmp_path):
    import shutil
    shutil.copytree(stored, tmp_path/"none")
    for p in (tmp_path/"none").glob("*/result.json"): p.unlink()
    study = load_study(tmp_path/"none")
    card = study.card()
    assert "no run has finished" in card.unknown["form", "parameters"] and card.unknown["versions", "hash of the runs"] and card.unknown["fit", "objective"]
    assert "2 planned" in card.unknown["hold-out", "result"] and len(card["runs"]["unfinished"]) == 36
    (tmp_path/"empty").mkdir()
    open_storage(tmp_path/"empty").write_json("", "study.json", study.info)
    empty = study_card(load_study(tmp_path/"empty"))
    assert {s: tuple(f) for s, f in empty.facts.items()} == CHECKLIST and empty["runs"]["planned"] == 0 and json.dumps(empty.to_dict(), allow_nan=False)


def test_real_runs_say_what_they_ran_on(tmp_path):
    import platform

    import scaling_nb
    problem = mlp_problem()
    plan = plan_sweep(problem, [1e6, 2e6], sizes=[8, 12], speed=None)
    storage = open_storage(tmp_path)
    for spec in plan.specs: train_run(problem, spec, storage=storage)
    study = load_study(tmp_path)
    card = study.card()
    assert card["versions"]["package"] == scaling_nb.__version__ and card["versions"]["torch"] == torch.__version__ and card["versions"]["python"] == platform.python_version()
    assert card["cost"]["threads"] == torch.get_num_threads() and card["cost"]["wall time"].endswith("together") and not card["question"]["mock"]
    assert card["cost"]["devices"] == (["cpu"] if not torch.cuda.is_available() else [torch.cuda.get_device_name()]) and card["versions"]["last run ended"] >= card["versions"]["first run started"]


@pytest.mark.parametrize("recipe,says", [(Recipe(lr="step_law"), "no: the published rule step_law"), (Recipe(lr=LrLaw(-4., 0., -.1)), "yes"), (Recipe(lr=LrLaw(-4.)), "no: the rate was measured"),
                                         (Recipe(lr=lambda N, D: .01), "function of the user's"), (Recipe(optimizer=lambda p: torch.optim.SGD(p, lr=.1)), "no")])
def test_what_is_said_of_the_rate(tmp_path, recipe, says):
    problem = mlp_problem()
    run_sweep(problem, plan_sweep(problem, [1e7, 2e7, 4e7], sizes=[8, 12, 16, 24, 32], speed=None, recipe=recipe), storage=tmp_path, mock=True)
    card = load_study(tmp_path).card()
    said = card["recipe"]["validated across horizons"]
    assert says in (said["not known"] if isinstance(said, dict) else said)
    if callable(recipe.optimizer): assert "factory" in card.unknown["recipe", "learning rate"]


def test_what_is_known_of_the_data():
    x, y = torch.arange(2000).reshape(200, 10), torch.arange(2000).reshape(200, 10)
    problem = mlp_problem().__class__(GPT, "width", data=(x, y), loss_fn=next_token_loss, val_samples=6, bytes_per_token=3.5)
    d = describe_data(problem)
    assert d["data"] == dict(samples=190, tokens_per_sample=10, bytes_per_token=3.5, tokenizer=None) and (d["held_out"]["samples"], d["held_out"]["tokens"], d["held_out"]["at_most"]) == (6, 60, False)
    from dataclasses import replace
    other = lambda **kw: describe_data(replace(problem, **kw))["held_out"]["fingerprint"]
    same = describe_data(replace(problem, model=torch.nn.Linear, model_kwargs=dict(a=1)))["held_out"]["fingerprint"]
    assert same == d["held_out"]["fingerprint"] and len({same, other(seed=1), other(val_samples=7), other(val_data=(x[:50], y[:50])), other(data=(x + 1, y))}) == 5
    assert other(val_data=(x[:50], y[:50])) == other(val_data=(x[:50], y[:50]), data=(x + 1, y))          # another training set, the same held-out set: losses compare

    assert describe_data(replace(problem, val_data=(x[:4, :5], y[:4, :5])))["held_out"]["tokens"] == 20   # its own windows, not those of the training set

    class Named(torch.utils.data.TensorDataset):
        tokenizer = "gpt2"
    assert describe_data(replace(problem, data=Named(x, y)))["data"]["tokenizer"] == "gpt2"

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self): return iter(zip(x, y))
    d = describe_data(replace(problem, data=Stream(), val_data=Stream()))
    assert d["data"]["samples"] is None and d["held_out"] == {**d["held_out"], "at_most": True, "samples": 6, "how": "the first of a stream of its own"}


def test_studies_of_one_held_out_set_compare_and_others_do_not(tmp_path):
    from scaling_nb.comparison import Outcome, compare
    small = {**ASK, "val_dataset": (tokens[:50, :-1], tokens[:50, 1:])}
    a = find_optimal(**small, mock=MockLaw(noise=.004), output_dir=tmp_path/"a")
    b = find_optimal(**{**small, "model_kwargs": dict(vocab=128, seq_len=64, depth=3)}, mock=MockLaw(noise=.004), output_dir=tmp_path/"b")
    c = compare(a, b, names=("depth 2", "depth 3"))
    assert c.mock and c.outcome is not Outcome.ONE_BETTER and not any("held-out" in n for n in c.notes)
    d = find_optimal(**ASK, mock=MockLaw(noise=.004), output_dir=tmp_path/"d")
    with pytest.raises(ValueError, match="held-out data"): compare(a, d)
