"""Whatever a user can get hold of shows itself: as HTML in a notebook, as a few lines elsewhere, and with nobody's markup in it."""
import enum
import inspect
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from problems import mlp_problem

import scaling_nb as snb
from scaling_nb.showing import Shown, html_rows, tell

EVIL = "<img src=x onerror=alert(1)> & \"quotes\""
FETCHED = re.compile(r"<script|<link|<iframe|@import|\bsrc\s*=|\bhref\s*=\s*[\"']?\s*(?:https?:)?//|url\(\s*[\"']?(?:https?:)?//", re.I)


# ---------------------------------------------------------------- the helper

def test_values_are_told_in_words():
    told = [tell(v) for v in (None, True, 7, 12_345, 4.0e20, .1 + .2, float("nan"), "x", {}, {"width": 64}, (.9, .95), tuple(range(30)), len, torch.nn.Linear, np.zeros((3, 2)), np.float32(.5), np.int64(9))]
    assert told == ["none", "yes", "7", "12,345", "4e20", "0.3", "nan", "x", "none", "width: 64", "0.9, 0.95", "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ... (30 in all)", "len", "Linear",
                    "ndarray of 3 x 2", "0.5", "9"]
    assert tell(object()) == "object" and tell("a" * 500) == "a" * 97 + "..."


def test_text_is_the_constructor_and_breaks_where_a_field_ends():
    recipe = snb.Recipe(lr=.02, betas=(.9, .99))
    text = repr(recipe)
    assert max(map(len, text.splitlines())) <= 100 and eval(text, {"Recipe": snb.Recipe}) == recipe
    assert repr(snb.ChinchillaLaw(1.69, 406.4, 410.7, .34, .28)) == "ChinchillaLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)"


def test_a_long_string_in_a_field_stays_whole():
    @dataclass(frozen=True, repr=False)
    class Note(Shown):
        text: str
        data: object = None
    long = Note("one two  three-four " * 12, np.zeros((4, 4)))
    assert eval(repr(long).replace("ndarray of 4 x 4", "None"), {"Note": Note}).text == long.text and "ndarray of 4 x 4" in repr(long)


def test_markup_is_text():
    assert EVIL not in html_rows([("a<b", EVIL)]) and "a&lt;b" in html_rows([("a<b", EVIL)])


# ---------------------------------------------------------------- every public object

@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    "One or more of each: as a user would get them, with markup wherever a user's own words go."
    path = tmp_path_factory.mktemp("showing")
    tokens = torch.zeros(3000, 65, dtype=torch.long)
    from scaling_nb.zoo.gpt import GPT, next_token_loss
    ask = dict(model=GPT, size_param="width", dataset=(tokens[:, :-1], tokens[:, 1:]), loss_fn=next_token_loss, model_kwargs=dict(vocab=128, seq_len=64), speed=None)
    snb.find_optimal(**ask, mock=snb.MockLaw(noise=.004), compute_budgets=[1e15, 3e15, 1e16, 3e16], output_dir=path)
    storage = snb.open_storage(path)
    lost = storage.runs()[0]
    storage.remove(lost, "result.json")
    storage.write_json(lost, "failure.json", dict(reason=f"ValueError: {EVIL}", attempt=1))
    study = snb.load_study(path)
    fit, isoflop, law = study.surface, study.isoflop, snb.ChinchillaLaw(1.69, 406.4, 410.7, .34, .28)
    problem = replace(mlp_problem(), model_kwargs=dict(note=EVIL))
    gpt = snb.Problem(GPT, "width", data=ask["dataset"], loss_fn=next_token_loss, model_kwargs=ask["model_kwargs"])
    plan = snb.plan_sweep(gpt, budgets=[1e15, 3e15, 1e16], speed=None)
    N = np.repeat(np.geomspace(1e6, 1e9, 8), 10)
    C = np.tile(np.geomspace(1e15, 1e20, 10), 8)
    rows = [dict(size=s, N=n, D=d, lr=lr, loss=2 + .02 * np.log(lr * d ** .2 / .1) ** 2 + .001 * np.sin(9 * lr * d), state="SUCCEEDED") for s, n in ((16, 8_192), (32, 24_576)) for d in (100_000, 400_000)
            for lr in .0025 * 2. ** np.arange(5)]
    import pandas as pd
    check = snb.CoordinateCheck(pd.DataFrame([dict(size=w, width=w, step=s, module=f"block.{EVIL}", rms=1., change=.1 * s) for w in (16, 32, 64) for s in (0, 1, 2)]))
    from scaling_nb.cluster import Node
    from scaling_nb.doubts import doubts
    from scaling_nb.yardsticks import surface_misfit
    trainer = snb.Trainer(mlp_problem(), snb.RunSpec(1e7, 8, 200, 1600, 1200.))
    return [problem, snb.check_problem(mlp_problem()), snb.measure_cost(gpt, 64), snb.measure_cost(gpt, 64).params, snb.Recipe(lr=snb.LrLaw(-3.)), snb.LrLaw(-3., .1, -.2, (1e4, 1e6), (1e5, 1e7)),
            snb.resolve(snb.Recipe(), plan.specs[0], 64), snb.find_hardware("H100 SXM"), replace(snb.find_hardware("H100 SXM"), name=EVIL), snb.Constraints(), plan.specs[0], plan, storage,
            snb.read_runs(storage.url) if False else snb.RunRecord(**{**study.frame.iloc[0].to_dict(), "reason": EVIL}) if False else _record(study, EVIL), snb.MockLaw(), trainer, snb.Limits(),
            snb.Resources(), snb.attach(path), check, snb.fit_lr(pd.DataFrame(rows)), law, snb.CoupledLaw(1.7, 400, 400, .34, .28, .9), snb.KaplanLaw(),
            snb.DataConstrainedLaw(1.7, 400, 400, .34, .28, unique=1e9), snb.Form(lambda N, D, c: c + 0 * N, ("c",), ((0, 9),), name=EVIL),
            snb.FormLaw(snb.Form(lambda N, D, c: c + 0 * N, ("c",), ((0, 9),), name=EVIL), (2.,)), snb.PowerLaw(1., 2., -.3), isoflop.parabolas[0], fit, isoflop,
            snb.fit_envelope(N, C, law.loss(N, C / (6 * N))), snb.fit_power_law([1e15, 1e16, 1e17, 1e18], [4., 3., 2.5, 2.2]), study.predict(), snb.Refusal("no_law", EVIL, "do"),
            snb.choose(fit, C=1e16, N=2e6), snb.inference_optimal(fit, loss=float(fit.law.loss(2e6, 4e7)), tokens_served=1e10), snb.overtrained(fit, 1e16, 200), fit.curve,
            snb.compare(fit, replace(fit), names=(EVIL, "b"), n_boot=0) if "n_boot" in inspect.signature(snb.compare).parameters else snb.compare(fit, replace(fit), names=(EVIL, "b")),
            snb.Round("edge", plan.specs[:3], EVIL), study, study.card(), Node("1", EVIL, 4., 0., None, 2 ** 33), doubts(fit, 1e17), surface_misfit(fit),
            snb.predict_width(plan, law=law), snb.simulate(plan, law, n=4) if "n" in inspect.signature(snb.simulate).parameters else None]


def _record(study, reason):
    from dataclasses import fields
    row = study.frame.iloc[0].to_dict()
    return snb.RunRecord(**{f.name: row.get(f.name, "") for f in fields(snb.RunRecord)} | dict(reason=reason))


def test_print(objects):
    for o in objects:
        if o is None: print("NONE"); continue
        r, h = repr(o), getattr(o, "_repr_html_", None)
        html = h() if h else ""
        print(type(o).__name__, "lines", r.count("\n") + 1, "cols", max(map(len, r.splitlines())), "html", len(html), "at" if " at 0x" in r else "", "FETCH" if FETCHED.search(html) else "", "EVIL" if "<img" in html else "")
