"""The whole pipeline on a law that is known: what goes in must come out, with its interval."""
import subprocess
import sys

import numpy as np
import pytest
import torch
from problems import mlp_problem, xy
from torch import nn

from scaling_nb.laws import ChinchillaLaw
from scaling_nb.records import StorageMismatch
from scaling_nb.study import Study, find_optimal, load_study
from scaling_nb.sweep import SweepPlan
from scaling_nb.training import MockLaw
from scaling_nb.zoo.gpt import GPT, next_token_loss

tokens = torch.zeros(3000, 65, dtype=torch.long)
GPT_ASK = dict(model=GPT, size_param="width", dataset=(tokens[:, :-1], tokens[:, 1:]), loss_fn=next_token_loss, model_kwargs=dict(vocab=128, seq_len=64), speed=None,
               compute_budgets=[1e15, 3e15, 1e16, 3e16, 1e17])


def truth(law, fit, C):
    "Optimum of a mock law by brute search over N, with the architecture's measured FLOPs."
    N = np.geomspace(1e5, 1e12, 400_001)
    L = law.loss(N, C/fit.flops_per_token(N))
    return N[L.argmin()], L.min()


def test_exact_mock_sweep_is_recovered_to_six_digits(tmp_path):
    law = MockLaw()
    study = find_optimal(**GPT_ASK, mock=law, output_dir=tmp_path)
    fit = study.surface
    for k in ("E", "A", "B", "alpha", "beta"): assert getattr(fit.law, k) == pytest.approx(getattr(law, k), rel=1e-6), k
    exact = ChinchillaLaw(law.E, law.A, law.B, law.alpha, law.beta)
    C = 10*1e17
    N, D, L = exact.optimum(C, flops_per_token=fit.flops_per_token)
    a = study.predict(C)
    assert a.method == "surface" and a.N == pytest.approx(N, rel=1e-6) and a.D == pytest.approx(D, rel=1e-6) and a.loss == pytest.approx(L, rel=1e-6)
    assert N == pytest.approx(truth(law, fit, C)[0], rel=1e-4)               # by a road that does not use the formula


@pytest.mark.parametrize("noise_seed", [1, 2, 3])
def test_noisy_mock_sweep_is_within_the_interval(tmp_path, noise_seed):
    law = MockLaw(noise=.004)
    study = find_optimal(**{**GPT_ASK, "seed": noise_seed}, mock=law, output_dir=tmp_path)
    a = study.predict(1e18, level=.95)
    N, L = truth(law, study.surface, 1e18)
    assert a.N_interval[0] < N < a.N_interval[1] and a.loss_interval[0] < L < a.loss_interval[1]
    from scaling_nb.intervals import bootstrap_fit
    b = np.asarray(bootstrap_fit(study.surface, n=300, seed=0))
    for i, k in ((3, "alpha"), (4, "beta")):
        lo, hi = np.quantile(b[:, i], [.005, .995])
        assert lo < getattr(law, k) < hi, k
    assert a.mock and "mock" in str(a)


def test_the_same_call_trains_nothing_and_says_the_same(tmp_path, capsys):
    a = find_optimal(**GPT_ASK, mock=True, output_dir=tmp_path)
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.json")}
    b = find_optimal(**GPT_ASK, mock=True, output_dir=tmp_path)
    assert "nothing was trained" in capsys.readouterr().out and a.predict(1e18) == b.predict(1e18)
    assert files == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.json")}


def test_train_false_is_the_plan(tmp_path):
    plan = find_optimal(**GPT_ASK, train=False, output_dir=tmp_path/"none")
    assert isinstance(plan, SweepPlan) and not (tmp_path/"none").exists()


def test_resume_false_refuses_a_used_directory(tmp_path):
    find_optimal(**GPT_ASK, mock=True, output_dir=tmp_path)
    with pytest.raises(ValueError, match="resume=False.*nothing was changed"): find_optimal(**GPT_ASK, mock=True, output_dir=tmp_path, resume=False)


def test_a_directory_of_another_study(tmp_path):
    find_optimal(**GPT_ASK, mock=True, output_dir=tmp_path)
    runs = len(load_study(tmp_path).frame)
    with pytest.raises(StorageMismatch): find_optimal(**{**GPT_ASK, "model_kwargs": dict(vocab=128, seq_len=64, depth=3)}, mock=True, output_dir=tmp_path)
    assert len(load_study(tmp_path).frame) == runs


def test_a_rehearsal_is_never_taken_for_a_measurement(tmp_path):
    ask = dict(model=mlp_problem().model, size_param="width", dataset=xy(), loss_fn=nn.CrossEntropyLoss(), compute_budgets=[1e7, 2e7, 4e7], sizes=[8, 12, 16, 24], speed=None, output_dir=tmp_path)
    mock = find_optimal(**ask, mock=True)
    assert mock.mock and len(mock.runs) == 12
    real = find_optimal(**ask, view=False)
    assert not real.mock and len(real.runs) == 12 and len(real.refresh().frame) == 12
    assert not set(mock.runs.run_id) & set(real.runs.run_id)
    import ray
    ray.shutdown()


def test_a_study_opens_without_torch_or_ray(tmp_path):
    study = find_optimal(**GPT_ASK, mock=MockLaw(noise=.004), output_dir=tmp_path)
    code = f"""
import sys
for m in ('torch', 'ray'): sys.modules[m] = None
from scaling_nb import load_study
s = load_study({str(tmp_path)!r})
print(repr(s.predict(1e18).N)); s.report({str(tmp_path/'r.html')!r}); s.chinchilla_table()
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    assert float(out.stdout) == pytest.approx(study.predict(1e18).N, rel=1e-12)
    page = (tmp_path/"r.html").read_text()
    assert "mock" in page and "vegaEmbed" in page
    import re
    assert not re.search(r'(src|href)="https?://', page)


def test_an_empty_place_is_no_study(tmp_path):
    with pytest.raises(FileNotFoundError, match="study.json"): load_study(tmp_path/"nowhere")


def test_no_finished_run_is_said_not_fitted(tmp_path):
    find_optimal(**GPT_ASK, mock=True, output_dir=tmp_path)
    for p in tmp_path.glob("*/result.json"): p.unlink()
    empty = Study(tmp_path)
    assert len(empty.runs) == 0 and "none: no run has finished" in repr(empty)
    with pytest.raises(ValueError, match="no run has finished"): empty.predict(1e18)
    empty.report(tmp_path/"r.html")
    assert "no run has finished" in (tmp_path/"r.html").read_text()


def test_failed_runs_are_doubts(tmp_path):
    from scaling_nb.records import open_storage
    find_optimal(**GPT_ASK, mock=MockLaw(noise=.004), output_dir=tmp_path)
    s = open_storage(tmp_path)
    r = s.runs()[0]
    s.remove(r, "result.json"); s.write_json(r, "failure.json", dict(reason="the loss became nan"))
    study = Study(tmp_path)
    assert any("the loss became nan" in d for d in study.doubts) and len(study.runs) == 34 and len(study.frame) == 35
    assert study.predict(1e18).N > 0


def test_table_and_plot(tmp_path):
    study = find_optimal(**GPT_ASK, mock=MockLaw(noise=.004), output_dir=tmp_path)
    t = study.chinchilla_table()
    assert list(t.C[-2:]) == pytest.approx([1e18, 1e19]) and t.N.is_monotonic_increasing and (t.N_low < t.N).all() and (t.N < t.N_high).all()
    spec = study.plot().to_dict()
    assert len(spec["vconcat"]) == 3


def test_how_runs_were_trained_is_part_of_the_study(tmp_path):
    "The recipe and its numbers are read back, and stand in the report; a run at half the rate is named."
    from problems import mlp_problem

    from scaling_nb.recipes import Recipe
    from scaling_nb.records import open_storage
    from scaling_nb.scheduling import run_sweep
    from scaling_nb.study import load_study
    from scaling_nb.sweep import plan_sweep
    problem = mlp_problem()
    recipe = Recipe(lr=.02, batch_size=((0, 8), (1000, 32)), warmup=100)
    plan = plan_sweep(problem, [1e7, 2e7, 4e7], sizes=[8, 12, 16, 24, 32], speed=None, recipe=recipe)
    runs = run_sweep(problem, plan, storage=tmp_path, mock=True)
    study = load_study(tmp_path)
    assert study.recipe["lr"] == .02 and len(study.settings) == len(plan) and (study.settings.lr == .02).all() and (study.settings.warmup == 100).all()
    assert (study.settings.first_batch == 8).all() and study.settings.last_batch.max() == 32
    storage, key = open_storage(tmp_path), runs.ids[0]
    storage.write_json(key, "result.json", {**storage.read_json(key, "result.json"), "reason": "at half the learning rate, after the training loss became nan"})
    study = load_study(tmp_path)
    assert any("was trained at half the learning rate" in d for d in study.doubts)
    page = open(study.report(tmp_path/"report.html"), encoding="utf-8").read()
    assert "How the runs were trained" in page and "schedule wsd" in page


def test_held_out_runs_are_seen_by_no_fit_and_reported(tmp_path):
    from test_card import hold
    study = find_optimal(**GPT_ASK, mock=MockLaw(noise=.004), output_dir=tmp_path/"runs")
    before = study.predict(1e18), study.chinchilla_table()
    hold(tmp_path/"runs", [(1e18, 0, 1.5)])                                    # a run that would wreck any fit
    study = load_study(tmp_path/"runs")
    assert len(study.frame) == 36 and len(study.runs) == 35 and list(study.held_out.run_id) == ["held00000000"] and study.held_out.loss[0] > 2
    assert study.predict(1e18).N == before[0].N and study.chinchilla_table().N.equals(before[1].N)
    assert "held out" in study.charts() and "1 of them held out" in repr(study)
    page = open(study.report(tmp_path/"report.html"), encoding="utf-8").read()
    assert "Put to the test" in page and "fitted without this run" in page and "held00000000" in page and "35 grid, 1 hold-out" in page


def test_the_report_is_one_file_with_the_card_beside_it(tmp_path):
    "Nothing that a browser would fetch; charts that it can draw; the same card three times."
    import json
    from html.parser import HTMLParser
    study = find_optimal(**GPT_ASK, mock=MockLaw(noise=.004), output_dir=tmp_path/"runs")
    page = open(study.report(tmp_path/"out"/"report.html"), encoding="utf-8").read()
    assert sorted(p.name for p in (tmp_path/"out").iterdir()) == ["report.card.json", "report.card.md", "report.html"]

    class Fetches(HTMLParser):
        found, charts, order, text = [], 0, [], ""

        def handle_starttag(self, tag, attrs):
            self.found += [(tag, k, v) for k, v in attrs if k in ("src", "href", "srcset", "data", "action", "poster", "xlink:href") and v and not v.startswith(("#", "data:"))]
            self.found += [(tag, k, v) for k, v in attrs if k == "style" and "url(" in v] + ([tag] if tag in ("link", "iframe", "object", "embed", "base") else [])
            self.charts += tag == "figure"
            if tag == "details": self.order.append("details")

        def handle_data(self, data):
            if data in ("The answer", "What to distrust", "Pictures", "Every run", "The card"): self.order.append(data)
    reader = Fetches()
    reader.feed(page)
    assert reader.found == [] and reader.charts >= 8 and page.count('class="snb-chart"') == reader.charts
    assert reader.order == ["The answer", "What to distrust", "Pictures", "details", "Every run", "The card", "details"]
    style = page[page.index("<style>"):page.index("</style>")]
    assert "@import" not in style and "url(" not in style and "vegaEmbed" in page
    card = study.card()
    assert json.loads((tmp_path/"out"/"report.card.json").read_text()) == card.to_dict() and (tmp_path/"out"/"report.card.md").read_text() == card.markdown() and card._repr_html_() in page
