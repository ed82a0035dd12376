"""One contract that every storage keeps: a local disk, memory, an S3 server; with real processes, real kills, real errors of the system."""
import base64
import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s3server import free_port, s3_environment, s3_server

from scaling_nb import records
from scaling_nb.records import (
    MetricsLog,
    RunState,
    RunWriter,
    Storage,
    StorageBusy,
    StorageError,
    StorageMismatch,
    Superseded,
    attempts_frame,
    begin_attempt,
    bind_storage,
    open_storage,
    parse_metrics,
    read_lease,
    read_record,
    run_state,
    runs_frame,
    take_lease,
    write_index,
)

SPEC = dict(budget=1e9, size=16, N=500, D=1000, flops_per_token=3000., seed=0)


@pytest.fixture(scope="session")
def s3():
    pytest.importorskip("s3fs"); pytest.importorskip("moto.server")
    with s3_server(): yield


def child(code, *args, **kw):
    "Another process, with the storage's URL and more in `sys.argv`."
    head = "import json, os, signal, sys, time\nfrom scaling_nb import records\nfrom scaling_nb.records import *\nstorage = open_storage(sys.argv[1])\n"
    return subprocess.Popen([sys.executable, "-c", head + code, *map(str, args)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)


def said(process, timeout=120):
    try: out, err = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None: process.kill()
    assert process.returncode == 0, err
    return out.strip()


def writer(storage, run_id, **kw):
    a = begin_attempt(storage, run_id, **kw)
    return RunWriter(storage, run_id, a["attempt"], a["token"])


class StorageContract:
    "What every storage promises. A backend is a subclass with a fixture `storage`; `shared` where other processes see it."
    shared = True

    @pytest.fixture
    def others(self):
        if not self.shared: pytest.skip("it lives in one process")

    def test_missing_is_none(self, storage):
        assert storage.read_json("a", "spec.json") is None and storage.runs() == [] and storage.metrics("a") == [] and not storage.exists("a", "spec.json")
        assert storage.files() == {} and storage.files(["a"]) == {"a": {}} and storage.read_many([("a", "x"), ("b", "y")]) == [None, None] and storage.read_many([]) == []
        assert len(runs_frame(storage)) == 0 and "loss" in runs_frame(storage).columns and len(attempts_frame(storage)) == 0 and read_lease(storage) is None and read_record(storage, "a") is None

    def test_round_trip_and_replacement(self, storage):
        storage.write_json("a", "spec.json", dict(x=1)); storage.write_json("a", "spec.json", dict(x=2, bad=math.inf))
        assert storage.read_json("a", "spec.json") == dict(x=2, bad=None) and storage.runs() == ["a"] and storage.exists("a", "spec.json")
        big = os.urandom(3_000_000); storage.write_bytes("a", "checkpoint", big)
        assert storage.read_bytes("a", "checkpoint") == big and storage.read_many([("a", "checkpoint"), ("b", "none"), ("a", "spec.json")])[0::2] == [big, b'{"x": 2, "bad": null}']

    def test_listing(self, storage):
        storage.write_json("", "study.json", {}); storage.write_json("planned", "spec.json", SPEC); storage.write_json("stray", "attempt.json", {})
        assert storage.runs() == ["planned"] and {i: sorted(f) for i, f in storage.files().items()} == dict(planned=["spec.json"], stray=["attempt.json"])
        assert {i: sorted(f) for i, f in storage.files(["stray", "none"]).items()} == dict(stray=["attempt.json"], none=[])
        many = [f"none{i}" for i in range(20)]
        assert {i: sorted(f) for i, f in storage.files(["stray", *many]).items()} == dict(stray=["attempt.json"], **{i: [] for i in many})
        assert abs(time.time() - storage.files()["planned"]["spec.json"]) < 30

    def test_an_index_saves_reading_and_changes_nothing(self, storage, monkeypatch):
        for i in range(12):
            storage.write_json(f"r{i:02}", "spec.json", {**SPEC, "seed": i})
            if i < 10: storage.write_json(f"r{i:02}", "attempt.json", dict(attempt=1)); storage.write_json(f"r{i:02}", "result.json", dict(loss=3. + i, tokens=100))
        write_index(storage)
        fresh, read, plain = Storage(storage.url), [], Storage.read_many
        monkeypatch.setattr(Storage, "read_many", lambda self, files: (read.extend(files), plain(self, files))[1])
        assert runs_frame(fresh).equals(runs_frame(storage)) and sorted(runs_frame(fresh).loss.dropna()) == [3. + i for i in range(10)]
        if not storage.local: assert {i for i, _ in read} == {"r10", "r11"}                  # the finished ones came with the index
        time.sleep(1.1)                                                                     # stores date files to the second
        storage.write_json("r00", "result.json", dict(loss=9., tokens=100)); storage.remove("r01", "result.json")
        after = runs_frame(Storage(storage.url)).set_index("run_id")
        assert after.loss["r00"] == 9. and after.state["r01"] != "SUCCEEDED" and after.loss["r02"] == 5.
        storage.write_bytes("", "finished.json", b"{torn")
        assert runs_frame(Storage(storage.url)).set_index("run_id").loss["r02"] == 5.

    def test_metrics_keep_the_last_of_a_step(self, storage):
        log = MetricsLog(storage, "a"); log.add(dict(step=1, loss=3.)); log.add(dict(step=2, loss=2.)); log.close()
        log = MetricsLog(storage, "a"); log.add(dict(step=2, loss=2.5)); log.add(dict(step=3, loss=float("nan"))); log.close()
        assert storage.metrics("a") == [dict(step=1, loss=3.), dict(step=2, loss=2.5), dict(step=3, loss=None)]

    @pytest.mark.parametrize("torn", [b'{"step": 2, "lo', '{"step": 2, "note": "é'.encode()[:-1], b"\0\0\0\0", b"{"])
    def test_a_torn_line_swallows_nothing(self, storage, torn):
        storage.write_bytes("a", "metrics.jsonl", b'{"step": 1}\n' + torn)
        assert storage.metrics("a") == [dict(step=1)]
        log = MetricsLog(storage, "a"); log.add(dict(step=2)); log.close()
        assert storage.metrics("a") == [dict(step=1), dict(step=2)]

    def test_remove_twice(self, storage):
        storage.write_json("a", "failure.json", {}); storage.remove("a", "failure.json"); storage.remove("a", "failure.json"); storage.remove("none", "failure.json")
        assert storage.read_json("a", "failure.json") is None

    def test_a_storage_of_another_study_is_refused_and_untouched(self, storage):
        bind_storage(storage, dict(name="A", model="1", data="x"))
        storage.write_json("r", "spec.json", dict(x=1))
        with pytest.raises(StorageMismatch, match="differs in: data.*nothing was changed"): bind_storage(storage, dict(name="A", model="1", data="y"))
        assert storage.read_json("", "study.json")["problem"]["data"] == "x" and storage.runs() == ["r"]

    def test_states(self, storage):
        storage.write_json("a", "spec.json", SPEC)
        assert run_state(storage, "a") is RunState.PENDING
        storage.write_json("a", "attempt.json", dict(attempt=1)); assert run_state(storage, "a") is RunState.RUNNING
        storage.write_json("a", "attempt.json", dict(attempt=1, stopped=1.)); assert run_state(storage, "a") is RunState.STOPPED
        storage.write_json("a", "failure.json", dict(reason="x")); assert run_state(storage, "a") is RunState.FAILED
        storage.write_json("a", "result.json", dict(loss=1.)); assert run_state(storage, "a") is RunState.SUCCEEDED

    def test_one_writer_a_run(self, storage):
        stale = writer(storage, "a"); stale.log(dict(step=1, loss=3.)); stale.write_bytes("checkpoint", b"1")
        now = writer(storage, "a", why="its node was lost"); now.log(dict(step=2, loss=2.)); now.flush()
        for act in (lambda: stale.write_bytes("checkpoint", b"stale"), lambda: stale.write_json("failure.json", {}), lambda: stale.remove("checkpoint")):
            with pytest.raises(Superseded, match="Attempt 1 at run a must be its latest.*attempt 2 on .* has begun"): act()
        stale.looked = -math.inf
        with pytest.raises(Superseded): stale.log(dict(step=2, loss=9.))
        stale.flush(); stale.close()
        now.write_json("result.json", dict(loss=2.)); now.close(); now.close()
        assert storage.read_bytes("a", "checkpoint") == b"1" and storage.read_json("a", "result.json") == dict(loss=2., attempt=2) and not storage.exists("a", "failure.json")
        assert [(r["step"], r["loss"], r["attempt"]) for r in storage.metrics("a")] == [(1, 3., 1), (2, 2., 2)] and all(abs(r["t"] - time.time()) < 60 for r in storage.metrics("a"))

    def test_two_attempts_of_one_number(self, storage):
        first = begin_attempt(storage, "a"); storage.write_json("a", "attempt.json", {**first, "token": "that of another scheduler"})
        with pytest.raises(Superseded): RunWriter(storage, "a", first["attempt"], first["token"]).write_bytes("checkpoint", b"")

    def test_rows_come_before_what_rests_on_them(self, storage):
        w = writer(storage, "a")
        for i in range(5): w.log(dict(step=i))
        w.write_bytes("checkpoint", b"after step 4")
        assert [r["step"] for r in storage.metrics("a")] == [0, 1, 2, 3, 4]
        w.close()

    def test_a_branch_starts_with_the_rows_of_its_trunk(self, storage):
        trunk = writer(storage, "t"); trunk = writer(storage, "t"); trunk.log(dict(step=1, loss=3.)); trunk.log(dict(step=2, loss=2.)); trunk.copy_metrics("b")
        branch = writer(storage, "b"); branch.log(dict(step=2, loss=2.5)); branch.close(); trunk.close()
        assert [(r["step"], r["loss"]) for r in storage.metrics("b")] == [(1, 3.), (2, 2.5)] and len(storage.metrics("t")) == 2

    def test_many_rows_are_few_looks_and_few_uploads(self, storage, monkeypatch):
        looks, uploads, start = [], [], time.monotonic()
        read, write = records.Storage.read_json, records.Storage.write_bytes
        monkeypatch.setattr(records.Storage, "read_json", lambda s, *a: (looks.append(a), read(s, *a))[1])
        w = writer(storage, "a"); looks.clear()
        monkeypatch.setattr(records.Storage, "write_bytes", lambda s, *a: (uploads.append(a[1]), write(s, *a))[1])
        for i in range(2000): w.log(dict(step=i, loss=1/(i + 1)))
        w.close()
        most = (time.monotonic() - start)/2 + 2
        assert len(looks) <= most and len(uploads) <= (0 if storage.local else most) and len(storage.metrics("a")) == 2000

    def test_threads(self, storage):
        "A view looks while a scheduler writes, on one storage."
        for i in range(12): storage.write_json(f"r{i}", "spec.json", SPEC)
        def write(i):
            w = writer(storage, f"r{i}"); [w.log(dict(step=s)) for s in range(20)]; w.write_json("result.json", dict(loss=float(i))); w.close()
        def look(_): return len(runs_frame(storage)), len(storage.runs())
        with ThreadPoolExecutor(8) as pool:
            writes, looks = [pool.submit(write, i) for i in range(12)], [pool.submit(look, i) for i in range(12)]
            assert [f.result() for f in looks] == [(12, 12)]*12 and [f.result() for f in writes] == [None]*12
        f = runs_frame(storage)
        assert sorted(f.loss) == list(range(12)) and all(len(storage.metrics(i)) == 20 for i in f.run_id)

    def test_what_another_process_just_wrote_is_seen(self, storage, others):
        storage.write_json("old", "spec.json", SPEC)
        assert storage.runs() == ["old"] and not storage.exists("old", "result.json") and not storage.exists("new", "spec.json") and list(runs_frame(storage).state) == ["PENDING"]
        said(child("storage.write_json('new', 'spec.json', json.loads(sys.argv[2])); storage.write_json('old', 'result.json', dict(loss=2.))", storage.url, json.dumps(SPEC)))
        assert storage.runs() == ["new", "old"] and storage.exists("old", "result.json") and storage.read_json("new", "spec.json") == SPEC
        assert sorted(runs_frame(storage).state) == ["PENDING", "SUCCEEDED"] and run_state(storage, "old") is RunState.SUCCEEDED

    def test_it_travels_to_other_processes(self, storage, others):
        storage.write_json("a", "spec.json", dict(x=1))
        sent = base64.b64encode(pickle.dumps(storage)).decode()
        code = "import base64, pickle, sys, os; os.chdir('/'); s = pickle.loads(base64.b64decode(sys.argv[1])); print(s.read_json('a', 'spec.json'), s.runs())"
        assert subprocess.run([sys.executable, "-c", code, sent], capture_output=True, text=True, check=True).stdout.strip() == "{'x': 1} ['a']"

    def test_a_file_is_the_old_one_or_the_new_one(self, storage, others):
        storage.write_bytes("a", "checkpoint", b"x"*300_000)
        reader = child("""
seen, n = set(), 0
print("ready", flush=True)
while not storage.exists("a", "stop"):
    data = storage.read_bytes("a", "checkpoint"); n += 1
    seen.add(("none" if data is None else "whole" if len(data) == 300_000 and len(set(data)) == 1 else "half") + chr((data or b"-")[0]))
print(json.dumps([n, sorted(seen)]))
""", storage.url)
        reader.stdout.readline()
        end = time.monotonic() + 2
        while time.monotonic() < end:
            for c in b"xy": storage.write_bytes("a", "checkpoint", bytes([c])*300_000)
        storage.write_bytes("a", "stop", b"")
        n, seen = json.loads(said(reader))
        assert n > 10 and seen == ["wholex", "wholey"]
        assert sorted(storage.files()["a"]) == ["checkpoint", "stop"], "nothing is left beside them"

    def test_writers_of_different_runs(self, storage, others):
        code = """
for i in range(4):
    run = f"{sys.argv[2]}-{i}"; storage.write_json(run, "spec.json", json.loads(sys.argv[3])); a = begin_attempt(storage, run)
    w = RunWriter(storage, run, a["attempt"], a["token"])
    for s in range(50): w.log(dict(step=s, loss=1.))
    w.write_json("result.json", dict(loss=float(i))); w.close()
"""
        for p in [child(code, storage.url, who, json.dumps(SPEC)) for who in "abc"]: said(p)
        f = runs_frame(storage)
        assert sorted(f.run_id) == [f"{w}-{i}" for w in "abc" for i in range(4)] and set(f.state) == {"SUCCEEDED"} and all(len(storage.metrics(i)) == 50 for i in f.run_id)

    def test_a_worker_that_wakes_up_writes_no_more(self, storage, others):
        frozen = child("""
a = begin_attempt(storage, "a"); w, step = RunWriter(storage, "a", a["attempt"], a["token"]), 0
try:
    while True:
        w.log(dict(step=step, loss=1.)); step += 1; time.sleep(.02)
        if step == 10: w.flush(); print("ready", flush=True)
except Superseded: print("superseded", flush=True)
try: w.write_bytes("checkpoint", b"stale")
except Superseded: print("superseded")
w.close()
""", storage.url)
        frozen.stdout.readline()
        frozen.send_signal(signal.SIGSTOP)
        begun = len(storage.metrics("a"))
        now = writer(storage, "a"); now.log(dict(step=5, loss=2.)); now.write_bytes("checkpoint", b"good")
        frozen.send_signal(signal.SIGCONT)
        assert said(frozen).split() == ["superseded"]*2 and begun >= 10
        now.log(dict(step=6, loss=2.)); now.close()
        assert storage.read_bytes("a", "checkpoint") == b"good" and [(r["step"], r["attempt"]) for r in storage.metrics("a")] == [(s, 1) for s in range(5)] + [(5, 2), (6, 2)]

    def test_random_storages_read_together_as_alone(self, storage):
        for i in range(25): fill(storage, f"r{i:02}", [(i*7 + k*5 + i//3) % len(FORMS) for k in range(5)])
        compare(storage)

    def test_one_listing_for_all_runs(self, storage, monkeypatch):
        for i in range(20): storage.write_json(f"r{i}", "spec.json", SPEC); storage.write_json(f"r{i}", "attempt.json", dict(attempt=1))
        calls = []
        for name in ("read_bytes", "read_many", "files"):
            whole = getattr(records.Storage, name)
            monkeypatch.setattr(records.Storage, name, lambda s, *a, name=name, whole=whole: (calls.append(name), whole(s, *a))[1])
        assert len(runs_frame(storage)) == 20 and [c for c in calls if c != "read_bytes"] == ["files", "read_many"]

    def test_nothing_is_unpickled(self, storage, tmp_path):
        class Bomb:
            def __reduce__(self): return os.mkdir, (str(tmp_path/"boom"),)
        for name in ("spec.json", "attempt.json", "result.json", "failure.json", "metrics.jsonl", "checkpoint"): storage.write_bytes("a", name, pickle.dumps(Bomb()))
        for name in ("study.json", "sweep.json"): storage.write_bytes("", name, pickle.dumps(Bomb()))
        assert len(runs_frame(storage)) == 0 and storage.metrics("a") == [] and read_lease(storage) is None and len(attempts_frame(storage)) == 0 and not (tmp_path/"boom").exists()


class TestLocal(StorageContract):
    @pytest.fixture
    def storage(self, tmp_path): return open_storage(tmp_path/"runs [1]")


class TestFileUrl(StorageContract):
    @pytest.fixture
    def storage(self, tmp_path): return open_storage(f"file://{tmp_path}/url")


class TestMemory(StorageContract):
    shared = False

    @pytest.fixture
    def storage(self): return open_storage(f"memory://{uuid.uuid4().hex}")


class TestS3(StorageContract):
    @pytest.fixture
    def storage(self, s3): return open_storage(f"s3://bucket-{uuid.uuid4().hex}/a/study")


# ------------------------------------------------------------------ many runs at once
FORMS = ["none", "whole", "other", "torn", "text", "empty"]


def fill(storage, run_id, forms):
    "Write the files of one run, each missing, whole or spoilt."
    whole = {"spec.json": (SPEC, {**SPEC, "budget": 2e9, "mock": True}), "attempt.json": (dict(attempt=2), dict(attempt=3, stopped=1.)), "result.json": (dict(loss=2., tokens=1024), {}),
             "failure.json": (dict(reason="NaN", tokens=0), dict(reason="lost", attempt=2)), "metrics.jsonl": (dict(step=1), dict(step=2))}
    for (name, (one, other)), form in zip(whole.items(), forms):
        data = json.dumps(other if FORMS[form] == "other" else one).encode()
        data = dict(none=None, whole=data, other=data, torn=data[:-3], text=b"\xff[1, 2", empty=b"")[FORMS[form]]
        if data is not None: storage.write_bytes(run_id, name, data)


def alone(storage, run_id):
    "A run read file by file, by the rules as the page tells them."
    spec, attempt, result, failure = (storage.read_json(run_id, f"{n}.json") for n in ("spec", "attempt", "result", "failure"))
    if not spec: return None
    n = (attempt or {}).get("attempt", 0)
    failed = bool(failure) and not failure.get("attempt", n) < n
    state = "SUCCEEDED" if result else "FAILED" if failed else "PENDING" if attempt is None else "STOPPED" if attempt.get("stopped") else "RUNNING"
    return (run_id, state, result["loss"] if result else None, n, failure["reason"] if state == "FAILED" else "", 1024 if result else 1000, spec["budget"], bool(spec.get("mock")))


def rows(frame): return [(r.run_id, r.state, None if math.isnan(r.loss) else r.loss, r.attempt, r.reason, r.D, r.budget, r.mock) for r in frame.itertuples()]


def compare(storage):
    ids = sorted(storage.files())
    expected = [r for i in ids if (r := alone(storage, i))]
    together = runs_frame(storage)
    assert sorted(rows(together)) == expected and rows(runs_frame(storage, ids[::-1])) == expected[::-1] and rows(runs_frame(storage, ids[:3])) == [r for r in expected if r[0] in ids[:3]]
    assert together.equals(runs_frame(storage, list(together.run_id)))
    assert storage.runs() == [i for i in ids if storage.exists(i, "spec.json")]
    assert rows(pd.DataFrame([vars(r) for i in ids if (r := read_record(storage, i))], columns=together.columns)) == expected


@settings(max_examples=60, deadline=None)
@given(runs=st.lists(st.lists(st.integers(0, len(FORMS) - 1), min_size=5, max_size=5), max_size=12), kind=st.sampled_from(["local", "memory"]))
def test_any_storage_reads_together_as_alone(runs, kind, tmp_path_factory):
    storage = open_storage(tmp_path_factory.mktemp("any") if kind == "local" else f"memory://{uuid.uuid4().hex}")
    for i, forms in enumerate(runs): fill(storage, f"r{i:02}", forms)
    compare(storage)


def test_clocks_that_differ(tmp_path):
    "A writer whose clock is ahead counts as heard of now; one whose clock is behind looks stopped; the rest of the table knows no clock."
    s, frames = open_storage(tmp_path), {}
    s.write_json("a", "spec.json", SPEC); begin_attempt(s, "a")
    for ahead, state in ((3600, "RUNNING"), (0, "RUNNING"), (-3600, "STOPPED")):
        os.utime(tmp_path/"a"/"attempt.json", (time.time() + ahead,)*2)
        frames[ahead] = runs_frame(s)
        assert frames[ahead].state[0] == state
    assert frames[3600].drop(columns="state").equals(frames[-3600].drop(columns="state"))
    for end in ("result.json", "failure.json"):
        s.write_json("a", end, dict(loss=1., reason="x"))
        for ahead in (3600, -3600):
            for p in (tmp_path/"a").iterdir(): os.utime(p, (time.time() + ahead,)*2)
            assert runs_frame(s).state[0] == ("SUCCEEDED" if end == "result.json" else "FAILED")
        s.remove("a", end)


# ------------------------------------------------------------------ metrics of several attempts
def test_late_rows_of_an_earlier_attempt_never_mix_in():
    line = lambda step, attempt, loss: json.dumps(dict(step=step, attempt=attempt, loss=loss)).encode() + b"\n"
    before = b"".join(line(s, 1, 1.) for s in range(6)) + line(4, 2, 2.) + line(5, 2, 2.)
    late = before + line(5, 1, 9.) + line(6, 1, 9.) + line(7, 1, 9.)
    assert parse_metrics(late) == parse_metrics(before) and [(r["step"], r["attempt"]) for r in parse_metrics(before)] == [(0, 1), (1, 1), (2, 1), (3, 1), (4, 2), (5, 2)]
    assert [r["loss"] for r in parse_metrics(line(1, 1, 1.) + line(1, 1, 2.))] == [2.] and parse_metrics(b'{"step": 1}\n{"step": null}\n{"step": "2"}\n') == [dict(step=1)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 4))), st.randoms())
def test_metrics_do_not_depend_on_when_a_late_row_came(found, random):
    "Each attempt writes its own rows in order; how those of two attempts interleave in the file changes nothing."
    rows = [dict(step=s, attempt=a, loss=i) for i, (s, a) in enumerate(found)]
    queues = {a: [r for r in rows if r["attempt"] == a] for a in {r["attempt"] for r in rows}}
    mixed = []
    while any(queues.values()): mixed.append(queues[random.choice([a for a in queues if queues[a]])].pop(0))
    text = lambda rows: b"".join(json.dumps(r).encode() + b"\n" for r in rows)
    out = parse_metrics(text(mixed))
    assert out == parse_metrics(text(rows))
    last = max((r["attempt"] for r in rows), default=0)
    assert [r for r in out if r["attempt"] == last] == [[r for r in rows if r["attempt"] == last and r["step"] == s][-1] for s in sorted({r["step"] for r in rows if r["attempt"] == last})]
    assert all(x["attempt"] <= y["attempt"] for x, y in zip(out, out[1:])), "a curve never goes back to an earlier attempt"


# ------------------------------------------------------------------ when the file system fails
LIMITED = """
import resource
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = lambda n: resource.setrlimit(resource.RLIMIT_FSIZE, (n, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))   # the system cuts a write off there, as on a full disk
"""


def test_a_full_disk_costs_no_row_and_leaves_no_half_line(tmp_path):
    out = said(child(LIMITED + """
log = MetricsLog(storage, "a")
limit(100)
for s in range(10): log.add(dict(step=s, note="x"*10))
size = os.path.getsize(storage.path("a", "metrics.jsonl"))
try: log.flush()
except StorageError as e: print(size, size % 36, type(e.__cause__).__name__, e.errno is not None)
limit(resource.RLIM_INFINITY)
log.add(dict(step=10)); log.close()
print([r["step"] for r in storage.metrics("a")])
""", tmp_path))
    lines = out.splitlines()
    assert re.fullmatch(r"100 \d+ OSError True", lines[0]) and lines[0].split()[1] != "0", "the limit fell inside a line"
    assert json.loads(lines[1]) == list(range(11))


def test_a_full_disk_leaves_the_old_file(tmp_path):
    out = said(child(LIMITED + """
a = begin_attempt(storage, "a"); w = RunWriter(storage, "a", a["attempt"], a["token"]); w.write_bytes("checkpoint", b"old")
limit(1000)
try: w.write_bytes("checkpoint", b"n"*100_000)
except StorageError as e: print(e)
print(storage.read_bytes("a", "checkpoint"), sorted(os.listdir(storage.path("a"))))
""", tmp_path))
    assert re.search(r"Writing .*a/checkpoint failed: OSError: \[Errno 27\] File too large.*what was stored before is whole", out) and "b'old' ['attempt.json', 'checkpoint']" in out


def every_method(storage):
    "What each way to a storage raises."
    w = RunWriter(storage, "a", 1, "x")
    acts = dict(write=lambda: storage.write_json("a", "x.json", {}), read=lambda: storage.read_json("a", "x.json"), exists=lambda: storage.exists("a", "x.json"),
                remove=lambda: storage.remove("a", "x.json"), runs=storage.runs, files=lambda: storage.files(["a"]), many=lambda: storage.read_many([("a", "x"), ("b", "x")]),
                frame=lambda: runs_frame(storage), begin=lambda: begin_attempt(storage, "a"), log=lambda: MetricsLog(storage, "a"), row=lambda: w.log(dict(step=1)),
                checkpoint=lambda: w.write_bytes("checkpoint", b""), lease=lambda: take_lease(storage, "s"))
    out = {}
    for name, act in acts.items():
        try: act(); out[name] = "nothing"
        except Exception as e: out[name] = type(e).__name__
    return out


def test_a_folder_that_cannot_be_a_folder(tmp_path):
    (tmp_path/"file").write_text("")
    loop = tmp_path/"loop"; loop.symlink_to(loop)          # ELOOP: neither there nor missing
    assert set(every_method(open_storage(loop)).values()) == {"StorageError"}
    with pytest.raises(StorageError, match="Writing .*file/a/spec.json failed: FileExistsError|NotADirectoryError"): open_storage(tmp_path/"file").write_json("a", "spec.json", {})


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may do anything")
def test_permission_refused(tmp_path):
    s = open_storage(tmp_path/"runs"); s.write_json("a", "spec.json", SPEC); (tmp_path/"runs"/"a").chmod(0)
    try:
        with pytest.raises(StorageError, match="Let this user read and write there"): s.write_json("a", "x.json", {})
        with pytest.raises(StorageError): runs_frame(s)
    finally: (tmp_path/"runs"/"a").chmod(0o700)


@pytest.mark.parametrize("what", [500, 403, "refused"])
def test_a_server_that_fails(what, tmp_path):
    "Each answer of a real server, and none at all, is a StorageError in each method."
    pytest.importorskip("s3fs")

    class Failing(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"     # which answers `Expect: 100-continue`

        def answer(self):
            body = f"<Error><Code>{'InternalError' if what == 500 else 'AccessDenied'}</Code><Message>told so</Message></Error>".encode()
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(what); self.send_header("Content-Length", str(len(body))); self.send_header("Content-Type", "application/xml"); self.end_headers()
            if self.command != "HEAD": self.wfile.write(body)
        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer
        def log_message(self, *args): pass
    server = None if what == "refused" else ThreadingHTTPServer(("127.0.0.1", 0), Failing)
    if server: threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        env = {**os.environ, **s3_environment(server.server_port if server else free_port()), "AWS_MAX_ATTEMPTS": "1", "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
        found = json.loads(said(child("import s3fs\ns3fs.S3FileSystem.retries = 1\nfrom test_storage import every_method\nprint(json.dumps(every_method(storage)))", "s3://bucket/runs", env=env)))
    finally:
        if server: server.shutdown(); server.server_close()
    assert set(found.values()) == {"StorageError"}, found


def test_a_storage_error_keeps_its_cause():
    with pytest.raises(StorageError) as e: open_storage("/proc").write_bytes("a", "x", b"")
    assert isinstance(e.value, OSError) and e.value.__cause__ is not None
    assert str(pickle.loads(pickle.dumps(e.value))) == str(e.value), "it travels from a worker"


# ------------------------------------------------------------------ attempts
def test_what_was_known_of_an_attempt_is_kept(tmp_path):
    s = open_storage(tmp_path); s.write_json("a", "spec.json", SPEC)
    first = begin_attempt(s, "a", lr_scale=.5, retry_of="NaN")
    assert first["attempt"] == 1 and first["pid"] == os.getpid() and first["host"] and first["history"] == [] and len(first["token"]) == 32
    RunWriter(s, "a", 1, first["token"]).write_json("failure.json", dict(reason="ValueError: no"))
    assert run_state(s, "a") is RunState.FAILED and list(attempts_frame(s).why) == ["ValueError: no"]
    second, third = begin_attempt(s, "a"), begin_attempt(s, "a", why="its node was lost", lr_scale=.25)
    assert (third["attempt"], third["lr_scale"], second["lr_scale"], third["retry_of"]) == (3, .25, .5, "NaN") and not s.exists("a", "failure.json")
    assert [set(h) for h in third["history"]] == [{"attempt", "started", "host", "why"}]*2 and s.read_json("a", "attempt.json") == third
    f = attempts_frame(s)
    assert list(f.attempt) == [1, 2, 3] and list(f.why) == ["ValueError: no", "its node was lost", ""] and f.started.is_monotonic_increasing and str(f.started.dt.tz) == "UTC"
    assert abs(f.started[0] - pd.Timestamp.now("UTC")) < pd.Timedelta("1min") and runs_frame(s).attempt[0] == 3
    s.write_json("old", "spec.json", SPEC); s.write_json("old", "attempt.json", dict(attempt=2))      # as earlier versions wrote it
    assert begin_attempt(s, "old")["attempt"] == 3 and list(attempts_frame(s, ["old"]).attempt) == [2, 3]


@pytest.mark.parametrize("when", ["before it is signed", "before the failure is removed"])
@pytest.mark.parametrize("stamped", [True, False])
def test_killed_while_an_attempt_begins(tmp_path, when, stamped):
    s = open_storage(tmp_path); s.write_json("a", "spec.json", SPEC)
    w = writer(s, "a")
    if stamped: w.write_json("failure.json", dict(reason="out of memory"))
    else: s.write_json("a", "failure.json", dict(reason="out of memory"))
    patch = "os.replace" if when == "before it is signed" else "records.Storage.remove"
    p = child(f"{patch} = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\nbegin_attempt(storage, 'a')", tmp_path)
    p.communicate(timeout=60); assert p.returncode == -signal.SIGKILL
    told = list(attempts_frame(s).why)
    if when == "before it is signed": assert run_state(s, "a") is RunState.FAILED and told == ["out of memory"]
    else: assert told[0] == "out of memory" and run_state(s, "a") is (RunState.RUNNING if stamped else RunState.FAILED)
    begin_attempt(s, "a")
    assert run_state(s, "a") is RunState.RUNNING and attempts_frame(s).why[0] == "out of memory" and runs_frame(s).attempt[0] in (2, 3) and len(runs_frame(s)) == 1


def test_a_late_failure_of_an_earlier_attempt_counts_for_nothing(tmp_path):
    s = open_storage(tmp_path); s.write_json("a", "spec.json", SPEC)
    begin_attempt(s, "a"); begin_attempt(s, "a")
    s.write_json("a", "failure.json", dict(reason="its network was gone", attempt=1))       # it had looked just before
    assert run_state(s, "a") is RunState.RUNNING and runs_frame(s).reason[0] == ""


# ------------------------------------------------------------------ the lease
HOLDER = """
lease = take_lease(storage, sys.argv[2], address="10.0.0.1:6379"); print("taken", flush=True)
try:
    while True: time.sleep(.1); lease.renew()
except StorageBusy as e: print("lost:", e, flush=True)
"""


@pytest.fixture(params=["local", "s3"])
def shared(request, tmp_path):
    if request.param == "local": return open_storage(tmp_path)
    request.getfixturevalue("s3")
    return open_storage(f"s3://lease-{uuid.uuid4().hex}/study")


@pytest.fixture
def holder(shared):
    p = child(HOLDER, shared.url, "monday")
    assert p.stdout.readline() == "taken\n"
    yield p
    p.kill(); p.communicate()


def elsewhere(storage):
    "Let the lease look as if its holder were on another machine."
    storage.write_json("", "sweep.json", {**read_lease(storage), "machine": "another"})


def test_a_lease_is_one_and_says_whose(shared, holder):
    known = read_lease(shared)
    assert known["session"] == "monday" and known["pid"] == holder.pid and known["address"] == "10.0.0.1:6379"
    start = time.monotonic()
    with pytest.raises(StorageBusy, match=rf"process {holder.pid} on {re.escape(known['host'])} holds it, at work since \d{{4}}-.* UTC. Attach"): take_lease(shared, "tuesday")
    assert time.monotonic() - start < 6 and read_lease(shared)["session"] == "monday" and holder.poll() is None


def test_a_killed_holder_of_this_machine_is_dead_at_once(shared, holder):
    holder.kill()                                          # and not waited for: a zombie has ended too
    start = time.monotonic()
    while records._born(holder.pid) != "" and time.monotonic() - start < 10: time.sleep(.02)
    start = time.monotonic(); lease = take_lease(shared, "tuesday", watch_s=60)
    assert time.monotonic() - start < 10
    lease.renew(); lease.release(); lease.release()
    assert read_lease(shared) is None
    with pytest.raises(StorageBusy, match="was removed"): lease.renew()


def test_a_number_that_another_process_has_now(tmp_path):
    s = open_storage(tmp_path); take_lease(s, "monday")
    s.write_json("", "sweep.json", {**read_lease(s), "born": "1"})
    start = time.monotonic(); take_lease(s, "tuesday", watch_s=60); assert time.monotonic() - start < 10


def test_a_frozen_holder_is_taken_over_and_finds_out(shared, holder):
    holder.send_signal(signal.SIGSTOP)
    start = time.monotonic(); lease = take_lease(shared, "tuesday", watch_s=1.5)
    assert time.monotonic() - start >= 1.5
    holder.send_signal(signal.SIGCONT)
    assert re.match(rf"lost: .*process {os.getpid()} on .* took it over", holder.stdout.readline())
    lease.renew(); assert read_lease(shared)["session"] == "tuesday" and read_lease(shared)["beat"] == 1


def test_a_holder_elsewhere_is_watched(tmp_path):
    s = open_storage(tmp_path); mine = take_lease(s, "monday"); mine.held["machine"] = "another"; mine.renew()
    stop = threading.Event()
    beating = threading.Thread(target=lambda: [mine.renew() for _ in iter(lambda: stop.wait(.2), True)]); beating.start()
    try:
        with pytest.raises(StorageBusy): take_lease(s, "tuesday", watch_s=3)
    finally: stop.set(); beating.join()
    start = time.monotonic(); take_lease(s, "tuesday", watch_s=1); assert time.monotonic() - start >= 1
    with pytest.raises(StorageBusy, match="took it over"): mine.renew()
    mine.release(); assert read_lease(s)["session"] == "tuesday", "what is another's is left alone"


def test_the_clock_decides_nothing(tmp_path):
    s = open_storage(tmp_path); mine = take_lease(s, "monday"); mine.held.update(machine="another", started=time.time() + 1e6); mine.renew()
    os.utime(tmp_path/"sweep.json", (1, 1))
    take_lease(s, "tuesday", watch_s=1)


def test_a_restarted_controller_takes_its_own_lease_at_once(shared, holder):
    start = time.monotonic(); lease = take_lease(shared, "monday", watch_s=60); assert time.monotonic() - start < 5
    assert "took it over" in holder.stdout.readline()
    lease.renew(); lease.release()


def test_two_that_come_at_once(shared):
    code = """
sys.stdin.readline()
try: lease = take_lease(storage, sys.argv[2])
except StorageBusy: print("busy")
else:
    try:
        for _ in range(3): time.sleep(1); lease.renew()
        print("held")
    except StorageBusy: print("busy")
"""
    both = [child(code, shared.url, s) for s in ("monday", "tuesday", "wednesday")]
    for p in both: p.stdin.write("\n"); p.stdin.flush()
    assert sorted(said(p) for p in both) == ["busy", "busy", "held"]


# ------------------------------------------------------------------ the code
def test_no_module_unpickles_a_storage():
    package = Path(records.__file__).parent
    assert not re.search(r"pickle\.|import .*pickle|torch\.load|\beval\(|\bexec\(", (package/"records.py").read_text())
    for p in package.rglob("*.py"):
        for call in re.findall(r"torch\.load\(.*", p.read_text()): assert "weights_only=True" in call, p.name
