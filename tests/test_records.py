"""What is remembered of a run (what every storage promises is in test_storage.py). Other people's tables: nothing is guessed between two, and everything is said."""
import gzip
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scaling_nb.records import RunState, StorageMismatch, bind_storage, open_storage, parse_metrics, read_runs, run_id, run_state, runs_frame
from scaling_nb.sweep import RunSpec

SPEC = RunSpec(budget=1e9, size=16, N=500, D=1000, flops_per_token=3000.)


def test_torn_lines_are_no_lines():
    assert parse_metrics(b'{"step": 1}\n{"step": 2, "lo') == [dict(step=1)]
    assert parse_metrics(b'garbage\n[1]\n\n{"step": 3}\n') == [dict(step=3)]


def test_runs_without_a_signature_are_not_adopted(tmp_path):
    s = open_storage(tmp_path); s.write_json("a", "spec.json", {})
    (tmp_path/"study.json").write_text('{"torn')
    with pytest.raises(StorageMismatch, match="no study.json that can be read"): bind_storage(s, dict(name="A"))


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    s = open_storage(tmp_path); s.write_json("a", "result.json", dict(loss=1.))
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"): s.write_json("a", "result.json", dict(loss=2.))
    assert s.read_json("a", "result.json") == dict(loss=1.) and sorted(p.name for p in (tmp_path/"a").iterdir()) == ["result.json"]


def test_silence_means_stopped(tmp_path):
    s = open_storage(tmp_path); s.write_json("a", "spec.json", {}); s.write_json("a", "attempt.json", dict(attempt=1))
    os.utime(tmp_path/"a"/"attempt.json", (time.time() - 1000,)*2)
    assert run_state(s, "a") is RunState.STOPPED


def test_run_id_hashes_what_decides_and_nothing_else():
    base = run_id(dict(name="A", model="m"), SPEC, dict(lr=.1))
    assert base == run_id(dict(name="B", model="m"), RunSpec(budget=5e9, size=16, N=500, D=1000, flops_per_token=3000.), dict(lr=.1))
    for other in (run_id(dict(name="A", model="n"), SPEC, dict(lr=.1)), run_id(dict(name="A", model="m"), SPEC, dict(lr=.2)),
                  run_id(dict(name="A", model="m"), RunSpec(1e9, 16, 500, 1001, 3000.), dict(lr=.1)), run_id(dict(name="A", model="m"), RunSpec(1e9, 16, 500, 1000, 3000., seed=1), dict(lr=.1))):
        assert other != base


def test_frame_holds_failed_runs_with_their_reason(tmp_path):
    s = open_storage(tmp_path)
    for i, end in (("a", ("result.json", dict(loss=2., tokens=1024))), ("b", ("failure.json", dict(reason="NaN")))):
        s.write_json(i, "spec.json", dict(budget=1e9, size=16, N=500, D=1000, flops_per_token=3000., seed=0)); s.write_json(i, *end)
    f = runs_frame(s)
    assert list(f.state) == ["SUCCEEDED", "FAILED"] and math.isnan(f.loss[1]) and f.reason[1] == "NaN" and f.D[0] == 1024 and f.C[0] == 3000*1024
    json.dumps(f.to_dict("records"))


# ------------------------------------------------------------------ anyone's table
ROWS = [(2e8, 5e9, 6e18, 3.1), (4e8, 2.5e9, 6e18, 3.0), (1e9, 1e9, 6e18, 3.3)]
DATA = Path(__file__).parents[2]/"shared"/"data"


def table(*names, rows=ROWS): return pd.DataFrame(rows, columns=names)


def same(frame, rows=ROWS): return np.allclose(frame[["N", "D", "C", "loss"]].to_numpy(float), np.array(rows, float), rtol=1e-12, equal_nan=True)


def notes(frame): return " ".join(frame.attrs["notes"])


@pytest.mark.parametrize("names", [
    ("N", "D", "C", "loss"), ("params", "tokens", "flops", "val_loss"), ("n_params", "n_tokens", "train_flops", "eval_loss"), ("Model Size", "Training Tokens", "Training FLOP", "loss"),
    ("model_size", "training_tokens", "compute", "validation_loss"), ("numParams", "trainTokens", "totalFlops", "finalLoss"), ("PARAMETERS", "TOKENS", "FLOPS", "LOSS"),
    ("summary/parameter_count", "summary/throughput/total_tokens", "summary/total_flos", "summary/eval/loss"),
    ("config.n_params", "config.tokens", "summary.train_flops", "summary.eval/paloma/macro_loss"),
    ("config/n_params/value", "config/tokens/value", "config/flops/value", "val/loss"), ("n", "d", "c", "l")])
def test_names_that_others_use(names):
    frame = read_runs(table(*names))
    assert same(frame) and list(frame.columns)[:4] == ["N", "D", "C", "loss"] and frame.dtypes.eq(float).all()
    assert all(f"`{n}` as {f}" in notes(frame) for n, f in zip(names, ("N", "D", "C", "loss")) if n != f)
    assert same(read_runs(frame)), "a frame that was read is read again"


@pytest.mark.parametrize("columns, rows", [  # tables that are out there, by their headers
    ("Model Size,Training FLOP,loss", "200000000,6e18,3.1"), ("model_size,n_tokens,loss", "2e8,5e9,3.1"), ("compute_budget,training_tokens,validation_loss", "6e18,5e9,3.1"),
    ("source,dataset,model,experiment,tokens,params,budget,loss", "a,b,c,d,5e9,2e8,6e18,3.1"), ("flops_budget,depth,num_params,tokens_trained,val_bpb,train_time_sec", "6e18,12,2e8,5e9,3.1,77")])
def test_published_headers(tmp_path, columns, rows):
    (tmp_path/"t.csv").write_text(f"# where it came from\n{columns}\n{rows}\n{rows}\n")
    frame = read_runs(tmp_path/"t.csv")
    assert same(frame, [(2e8, 5e9, 6e18, 3.1)]*2) and "6ND" in notes(frame) or "6N" in notes(frame) or "6D" in notes(frame)
    assert ("bits per byte" in notes(frame)) == ("bpb" in columns) and ("budget" in frame) == ("budget" in columns)


def written(kind, path):
    frame = table("params", "tokens", "flops", "loss").assign(name=["a", "b", "c"])
    text = {"csv": "# x\n#y\n" + frame.to_csv(index=False), "tsv": frame.to_csv(index=False, sep="\t"), "txt": frame.to_csv(index=False, sep=";"), "index.csv": frame.to_csv(),
            "json": frame.to_json(orient="records"), "columns.json": frame.to_json(), "lists.json": json.dumps(frame.to_dict("list")), "jsonl": frame.to_json(orient="records", lines=True) + "\n\n",
            "lines.json": frame.to_json(orient="records", lines=True), "bom.csv": "\ufeff" + frame.to_csv(index=False), "windows.csv": frame.to_csv(index=False).replace("\n", "\r\n")}[kind]
    file = path/f"t.{kind}"; file.write_bytes(text.encode())
    return file


@pytest.mark.parametrize("kind", ["csv", "tsv", "txt", "index.csv", "json", "columns.json", "lists.json", "jsonl", "lines.json", "bom.csv", "windows.csv"])
def test_formats(kind, tmp_path):
    file = written(kind, tmp_path)
    for source in (file, str(file), f"file://{file}"):
        frame = read_runs(source)
        assert same(frame) and frame["run_id"].tolist() == ["a", "b", "c"] and list(frame.columns) == ["run_id", "N", "D", "C", "loss"]
    (tmp_path/"t.what").write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="Pass format="): read_runs(tmp_path/"t.what")
    assert same(read_runs(tmp_path/"t.what", format=kind.rsplit(".")[-1]))


def test_urls_and_compression(tmp_path):
    import fsspec
    file = written("csv", tmp_path)
    (tmp_path/"t.csv.gz").write_bytes(gzip.compress(file.read_bytes()))
    assert same(read_runs(tmp_path/"t.csv.gz"))
    with fsspec.open("memory://read-runs/t.csv", "wb") as f: f.write(file.read_bytes())
    assert same(read_runs("memory://read-runs/t.csv"))
    with pytest.raises(FileNotFoundError): read_runs(tmp_path/"none.csv")


def test_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    table("params", "tokens", "flops", "loss").to_parquet(tmp_path/"t.parquet")
    assert same(read_runs(tmp_path/"t.parquet"))


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    def missing(*a, **kw): raise ImportError("no engine")
    monkeypatch.setattr(pd, "read_parquet", missing)
    (tmp_path/"t.parquet").write_bytes(b"PAR1")
    with pytest.raises(ImportError, match="pip install pyarrow.*CSV or JSON lines"): read_runs(tmp_path/"t.parquet")


def test_a_hash_inside_a_cell_is_text(tmp_path):
    (tmp_path/"t.csv").write_text('# comment\nname,params,tokens,loss,notes\nrun #1,2e8,5e9,3.1,"first\n# a heading\nlast"\n# out\nrun #2,4e8,2e9,3.0,x\n')
    frame = read_runs(tmp_path/"t.csv")
    assert frame["run_id"].tolist() == ["run #1", "run #2"] and frame["notes"][0] == "first\n# a heading\nlast"


def export(loss=3.1, state="finished", **more):
    return dict(name="a", state=state, config=dict(lr=.1, optimizer=dict(beta=.9)),
                summary={"parameter_count": 2e8, "throughput/total_tokens": 5e9, "throughput/total_gflops": 6e9, "eval/loss": loss, "_wandb": {"runtime": 7}, **more})


def test_nested_exports(tmp_path):
    runs = [export(3.1), export(3.0)]
    (tmp_path/"a.jsonl").write_text("\n".join(map(json.dumps, runs)))
    (tmp_path/"b.json").write_text(json.dumps(runs))
    pd.DataFrame(dict(summary=[str(r["summary"]) for r in runs], config=[str(r["config"] | dict(best=math.nan)) for r in runs], name=["a", "a"])).to_csv(tmp_path/"c.csv")   # as in the manual of W&B
    for source in (tmp_path/"a.jsonl", tmp_path/"b.json", tmp_path/"c.csv", runs, pd.DataFrame(runs)):
        frame = read_runs(source)
        assert same(frame, [(2e8, 5e9, 6e18, 3.1), (2e8, 5e9, 6e18, 3.0)]) and frame["config/optimizer/beta"].tolist() == [.9, .9] and frame["summary/_wandb/runtime"].tolist() == [7, 7]
        assert "times 1e+09 as C" in notes(frame)


@pytest.mark.parametrize("field, names", [
    ("loss", ("val_loss", "loss")), ("N", ("num_params", "num_scaling_params")), ("D", ("tokens", "train_tokens")), ("C", ("flops", "compute")), ("budget", ("budget", "flops_budget"))])
def test_ambiguous_names_are_listed(field, names):
    base = dict(params=[1e8, 2e8], tokens=[5e9, 6e9], flops=[6e18, 7e18], loss=[3., 2.9], budget=[6e18, 7e18])
    base = {k: v for k, v in base.items() if k not in names and not (field == "N" and k == "params")}
    two = pd.DataFrame({**base, names[0]: [3., 2.], names[1]: [3., 2.5]})
    if field == "budget":
        assert read_runs(two)["budget"].tolist() == [3., 2.], "our own name counts first"
        two = two.rename(columns=dict(budget="compute_budget")); names = ("compute_budget", "flops_budget")
    with pytest.raises(ValueError, match=f"2 columns could be (the )?{field}") as e: read_runs(two)
    assert all(n in str(e.value) for n in names) and "columns={" in str(e.value)
    assert read_runs(two, columns={field: names[1]})[field].tolist() == [3., 2.5]
    assert read_runs(two.assign(**{names[1]: two[names[0]]}))[field].tolist() == [3., 2.], "two that agree are one"
    assert read_runs(two.assign(**{names[1]: np.nan}))[field].tolist() == [3., 2.], "an empty one is none"


def test_missing_names_are_said():
    with pytest.raises(ValueError, match="held-out loss.*'train/loss'.*columns={'loss'"): read_runs(pd.DataFrame(dict(N=[1e8], D=[1e9], other=[1], **{"train/loss": [3.]})))
    with pytest.raises(ValueError, match="There are 'N', 'D'"): read_runs(pd.DataFrame(dict(N=[1e8], D=[1e9])))
    with pytest.raises(ValueError, match="Two of N, D and C.*N \\('params'\\) was found"): read_runs(pd.DataFrame(dict(params=[1e8], loss=[3.])))
    with pytest.raises(ValueError, match="none was found"): read_runs(pd.DataFrame(dict(loss=[3.], x=[1])))
    with pytest.raises(ValueError, match="no column 'tokns' for D. Did you mean 'tokens'"): read_runs(table("params", "tokens", "flops", "loss"), columns={"D": "tokns"})
    with pytest.raises(ValueError, match="'params' is no field.*columns={'N': 'params'}"): read_runs(table("params", "tokens", "flops", "loss"), columns={"params": "N"})
    with pytest.raises(ValueError, match="twice"): read_runs(pd.DataFrame([[1e8, 1e9, 3., 3.]], columns=["N", "D", "loss", "loss"]))


@pytest.mark.parametrize("name, field, factor", [
    ("params (B)", "N", 1e9), ("params_m", "N", 1e6), ("tokens_in_billions", "D", 1e9), ("Training tokens (trillion)", "D", 1e12), ("model_size_bn", "N", 1e9)])
def test_units_are_asked_for(name, field, factor):
    other = "tokens" if field == "N" else "params"
    frame = pd.DataFrame({name: [1., 2.], other: [1e9, 2e9], "loss": [3., 2.9]})
    with pytest.raises(ValueError, match="in units of") as e: read_runs(frame)
    assert f"columns={{{field!r}: ({name!r}, {factor:g})}}" in str(e.value)
    assert read_runs(frame, columns={field: (name, factor)})[field].tolist() == [factor, 2*factor]


def test_the_third_follows_and_is_said():
    full = table("N", "D", "C", "loss")
    for gone, says in (("N", "N = C / 6D"), ("D", "D = C / 6N"), ("C", "C = 6ND")):
        assert same(read_runs(full.drop(columns=gone))) and says in notes(read_runs(full.drop(columns=gone)))
    assert notes(read_runs(full)) == ""
    by_budget = read_runs(full.drop(columns=["C", "D"]).assign(budget=6e18))
    assert same(by_budget) and "C is the budget" in notes(by_budget)


def test_units_that_cannot_be_are_noticed():
    full = table("N", "D", "C", "loss")
    assert "C is 1e-09 times 6ND" in notes(read_runs(full.assign(C=6e9))) and "never reaches 1000" in notes(read_runs(full.assign(N=full.N/1e9).drop(columns="C")))
    assert "budgets are 0.33 times C" not in notes(read_runs(full.assign(budget=2e18))) and "budgets are 0.17 times C" in notes(read_runs(full.assign(budget=1e18)))


@pytest.mark.parametrize("text, value", [("7B", 7e9), ("1.3b", 1.3e9), (" 350M ", 3.5e8), ("125k", 1.25e5), ("1.5 T", 1.5e12), ("1.2e9", 1.2e9), ("1,000,000", 1e6), ("2_000_000", 2e6)])
def test_numbers_as_people_write_them(text, value, tmp_path):
    pd.DataFrame({"params": [text, "2e8"], "tokens": [1e9, 1e9], "loss": [3., 2.9]}).to_csv(tmp_path/"t.csv", index=False)
    frame = read_runs(tmp_path/"t.csv")
    assert frame["N"].tolist() == [value, 2e8] and (f"{text.strip()!r} as {value:g}" in notes(frame)) == (text.strip()[-1] in "BbMkT" or "," in text)


@pytest.mark.parametrize("column, value, says", [
    ("params", "seven", "row 1 holds 'seven'"), ("loss", "diverged", "row 1 holds 'diverged'"), ("loss", "3B", "row 1 holds '3B'"), ("loss", "3,141", "row 1 holds '3,141'"),
    ("params", "160M-deduped", "160M-deduped"),
    ("params", True, "row 1 holds True"), ("params", [1], "row 1 holds"), ("loss", -1., "loss must be positive.*row 1"), ("loss", 0., "loss=0"), ("params", 0., "N must be positive.*row 1"),
    ("params", None, "N=nan"), ("tokens", -5., "D=-5"), ("tokens", "-5", "D=-5")])
def test_bad_rows_are_named(column, value, says):
    frame = table("params", "tokens", "flops", "loss").astype(object)
    frame.at[1, column] = value
    with pytest.raises(ValueError, match=says): read_runs(frame)


@pytest.mark.parametrize("gap", [None, math.nan, "", "nan", "NaN", "null", "None", "n/a", "-", pd.NA])
def test_runs_without_a_loss_stay(gap):
    frame = table("params", "tokens", "flops", "loss").astype(object)
    frame.at[1, "loss"] = gap; frame.at[1, "tokens"] = None
    read = read_runs(frame)
    assert same(read, [ROWS[0], (4e8, math.nan, 6e18, math.nan), ROWS[2]])


def test_a_table_in_which_every_run_failed():
    frame = read_runs(table("N", "D", "C", "loss").assign(loss=math.nan, loss_std=math.nan, group=None))
    assert frame["loss"].isna().all() and "loss_std" in frame and "group" not in frame


def test_a_run_that_never_started_stays():
    read = read_runs(table("params", "tokens", "loss", rows=[(2e8, 5e9, 3.1), (4e8, 0., math.nan)]))
    assert read["D"].tolist() == [5e9, 0] and math.isnan(read["loss"][1])


def test_infinite_losses_are_for_the_fit_to_judge():
    assert math.isinf(read_runs(table("N", "D", "C", "loss").assign(loss=[3., math.inf, 2.]))["loss"][1])


def test_runs_that_did_not_finish_have_no_final_loss():
    frame = table("N", "D", "C", "loss").assign(State=["finished", "crashed", "Running"])
    read = read_runs(frame)
    assert read["state"].tolist() == ["SUCCEEDED", "FAILED", "RUNNING"] and read["loss"].isna().tolist() == [False, True, True]
    assert "row" in notes(read) and "1 (crashed)" in notes(read) and "2 (Running)" in notes(read)
    kept = read_runs(frame, columns={"state": None})
    assert same(kept) and "state" not in kept and kept["State"].tolist() == ["finished", "crashed", "Running"]
    assert same(read_runs(frame.assign(State="whatever"))), "a word that is not known decides nothing"


@pytest.mark.parametrize("name, content, says", [
    ("e.csv", "", "is empty"), ("e.csv", " \n\n", "is empty"), ("e.json", "", "is empty"), ("e.jsonl", "\n", "is empty"),
    ("h.csv", "params,tokens,loss\n", "only a header: params, tokens, loss"),
    ("c.csv", "# a\n# b\n", "nothing is in it but comments"), ("n.csv", "1e8,2e9,3.1\n2e8,1e9,3.0\n", "must name the columns"), ("e.json", "[]", "no runs"),
    ("e.json", "{}", "array of runs"), ("e.json", "3", "array of runs"),
    ("b.json", "{nope", "not JSON"), ("b.jsonl", '{"a": 1}\n{"b": ', "line 2 is not JSON"), ("l.csv", "params,tokens,loss\n1,2,3,4\n", "could not be read"),
    ("x.csv", "params,tokens,\xe9t\xe9\n", "could not be read"), ("s.json", '{"a": [1, 2], "b": [1]}', "could not be read")])
def test_broken_files_say_so(name, content, says, tmp_path):
    (tmp_path/name).write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=says): read_runs(tmp_path/name)


def test_the_order_of_rows_and_other_columns_stay():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(dict(params=rng.uniform(1e8, 1e9, 50), tokens=rng.uniform(1e9, 1e10, 50), loss=rng.uniform(2, 4, 50), lr=rng.uniform(0, 1, 50)), index=rng.permutation(50))
    before, read = frame.copy(), read_runs(frame)
    assert (read["N"].to_numpy() == frame["params"].to_numpy()).all() and (read["lr"].to_numpy() == frame["lr"].to_numpy()).all() and list(read.index) == list(range(50))
    pd.testing.assert_frame_equal(frame, before)


def test_groups_are_said_and_can_be_refused():
    frame = table("N", "D", "C", "loss").assign(Group=["a", "a", "b"])
    read = read_runs(frame)
    assert read["group"].tolist() == ["a", "a", "b"] and "2 groups" in notes(read)
    assert "group" not in read_runs(frame.rename(columns=dict(Group="group")), columns={"group": None}) and "group" not in read_runs(frame.assign(Group=None))


def test_a_table_of_several_experiments_says_so():
    frame = pd.concat([table("N", "D", "C", "loss").assign(experiment=e) for e in "ab" for _ in range(2)])
    assert "`experiment` has 2 different values" in notes(read_runs(frame)) and "experiment" not in notes(read_runs(frame.assign(experiment="a")))


def test_a_storage_is_read_as_it_is(tmp_path):
    s = open_storage(tmp_path/"runs")
    for i, loss in (("a", 2.), ("b", 1.9)):
        s.write_json(i, "spec.json", dict(budget=1e9, size=16, N=5000, D=10000, flops_per_token=30000., seed=0)); s.write_json(i, "result.json", dict(loss=loss, tokens=10240))
    frame = runs_frame(s)
    for source in (s, tmp_path/"runs", str(tmp_path/"runs"), frame): assert read_runs(source)["loss"].tolist() == [2., 1.9]
    frame.to_csv(tmp_path/"runs.csv", index=False)
    back = read_runs(tmp_path/"runs.csv")
    assert back["C"].tolist() == frame["C"].tolist() and back["state"].tolist() == frame["state"].tolist() and list(back["run_id"]) == ["a", "b"] and set(frame.columns) == set(back.columns)
    (tmp_path/"nothing").mkdir()
    with pytest.raises(ValueError, match="folder without runs"): read_runs(tmp_path/"nothing")


def test_the_published_table():
    path = DATA/"chinchilla_figure4.csv"
    if not path.exists(): pytest.skip("chinchilla_figure4.csv is not beside this checkout")
    frame = read_runs(path)
    assert len(frame) == 245 and notes(frame) == "Read `params` as N, `train_flops` as C. D = C / 6N: the table has no tokens."


def test_reading_and_fitting_need_neither_torch_nor_ray(tmp_path):
    code = """
import sys
for m in ('torch', 'ray', 'pyarrow'): sys.modules[m] = None
from scaling_nb.laws import ChinchillaLaw
from scaling_nb.records import read_runs
from scaling_nb.fitting import fit_law
law = ChinchillaLaw(1.69, 406.4, 410.7, .34, .28)
with open(sys.argv[1], 'w') as f:
    print('model_size,training_tokens,val_loss', file=f)
    for C in (1e18, 1e19, 1e20):
        for k in (.2, .5, 1, 2, 5):
            N = k*law.optimum(C)[0]; print(N, C/(6*N), law.loss(N, C/(6*N)), sep=',', file=f)
print(round(fit_law(read_runs(sys.argv[1])).law.alpha, 6))
"""
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path/"t.csv")], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "0.34", run.stderr


def test_a_stored_sweep_says_what_was_held_out(tmp_path):
    s = open_storage(tmp_path)
    for i, role in enumerate(["grid", "grid", "hold-out"]):
        s.write_json(f"run{i}", "spec.json", dict(run_id=f"run{i}", role=role, budget=1e15, size=i, N=10**6 * (i + 1), D=10**8, C=1e15, flops_per_token=1e7, seed=0))
    assert read_runs(tmp_path).attrs["notes"] == ("1 of these 3 runs is held out (`role`): `fit_law` and `fit_isoflop` leave them out.",)
    s.write_json("run2", "spec.json", dict(run_id="run2", role="grid", budget=1e15, size=2, N=10**6, D=10**8, C=1e15, flops_per_token=1e7, seed=0))
    assert read_runs(tmp_path).attrs["notes"] == ()
