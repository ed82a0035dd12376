"""Storage: every backend keeps the same promises."""
import json
import math
import os
import time

import pytest

from scaling_nb.records import MetricsLog, RunState, StorageMismatch, bind_storage, open_storage, parse_metrics, run_id, run_state, runs_frame
from scaling_nb.sweep import RunSpec

SPEC = RunSpec(budget=1e9, size=16, N=500, D=1000, flops_per_token=3000.)


@pytest.fixture(params=["local", "memory", "file-url"])
def storage(request, tmp_path):
    return open_storage({"local": tmp_path/"runs", "memory": f"memory://{tmp_path.name}-{time.time_ns()}", "file-url": f"file://{tmp_path}/url"}[request.param])


class TestStorage:
    "One class of tests that every backend must pass."
    def test_missing_is_none(self, storage):
        assert storage.read_json("a", "spec.json") is None and storage.runs() == [] and storage.metrics("a") == []
        assert len(runs_frame(storage)) == 0 and "loss" in runs_frame(storage).columns

    def test_round_trip_and_replacement(self, storage):
        storage.write_json("a", "spec.json", dict(x=1)); storage.write_json("a", "spec.json", dict(x=2, bad=math.inf))
        assert storage.read_json("a", "spec.json") == dict(x=2, bad=None) and storage.runs() == ["a"]

    def test_metrics_keep_the_last_of_a_step(self, storage):
        log = MetricsLog(storage, "a"); log.add(dict(step=1, loss=3.)); log.add(dict(step=2, loss=2.)); log.close()
        log = MetricsLog(storage, "a"); log.add(dict(step=2, loss=2.5)); log.add(dict(step=3, loss=float("nan"))); log.close()
        assert storage.metrics("a") == [dict(step=1, loss=3.), dict(step=2, loss=2.5), dict(step=3, loss=None)]

    def test_remove_twice(self, storage):
        storage.write_json("a", "failure.json", {}); storage.remove("a", "failure.json"); storage.remove("a", "failure.json")
        assert storage.read_json("a", "failure.json") is None

    def test_a_storage_of_another_study_is_refused_and_untouched(self, storage):
        bind_storage(storage, dict(name="A", model="1", data="x"))
        storage.write_json("r", "spec.json", dict(x=1))
        with pytest.raises(StorageMismatch, match="differs in: data.*nothing was changed"): bind_storage(storage, dict(name="A", model="1", data="y"))
        assert storage.read_json("", "study.json")["problem"]["data"] == "x" and storage.runs() == ["r"]

    def test_states(self, storage):
        storage.write_json("a", "spec.json", dict(budget=1, size=1, N=1, D=1, flops_per_token=1., seed=0))
        assert run_state(storage, "a") is RunState.PENDING
        storage.write_json("a", "attempt.json", dict(attempt=1)); assert run_state(storage, "a") is RunState.RUNNING
        storage.write_json("a", "attempt.json", dict(attempt=1, stopped=1.)); assert run_state(storage, "a") is RunState.STOPPED
        storage.write_json("a", "failure.json", dict(reason="x")); assert run_state(storage, "a") is RunState.FAILED
        storage.write_json("a", "result.json", dict(loss=1.)); assert run_state(storage, "a") is RunState.SUCCEEDED


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
