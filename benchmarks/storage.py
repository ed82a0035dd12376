"""Thousands of runs listed and framed, against reading each file by itself: python benchmarks/storage.py [runs ...]

On a local disk, in memory and on an S3 server of one Python process on this machine (moto), whose own time for a request is most of what is seen there:
so the rate at which it answers plain requests is printed beside."""
import json
import sys
import tempfile
import time
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]/"tests"))
from s3server import s3_server

from scaling_nb.records import open_storage, runs_frame, write_index

SAMPLE = 200


def files(n):
    "Mixed states: of ten runs six have a result, one a failure, two are at work, one is planned."
    metrics = b"".join(json.dumps(dict(step=s, tokens=1024*s, loss=3., attempt=1, t=1.7e9)).encode() + b"\n" for s in range(50))
    for i in range(n):
        run, kind = f"{i:012x}", i % 10
        yield f"{run}/spec.json", json.dumps(dict(budget=1e10, size=16, N=8192, D=100_000, flops_per_token=49152., seed=i, recipe=dict(lr=.01, batch_size=32), recipe_id="abcdef")).encode()
        if kind < 9:
            yield f"{run}/attempt.json", json.dumps(dict(attempt=1, token=uuid.uuid4().hex, started=1.7e9, host="h", pid=1, history=[])).encode()
            yield f"{run}/metrics.jsonl", metrics
        if kind < 6: yield f"{run}/result.json", json.dumps(dict(loss=2.5, loss_std=.01, tokens=100_000, wall_s=8., flops_measured=1e10)).encode()
        if kind == 6: yield f"{run}/failure.json", json.dumps(dict(reason="NaN", tokens=1000)).encode()


def fill(storage, n):
    "Not by the storage's own writes, which wait for the disk."
    if storage.local:
        for name, data in files(n):
            path = Path(storage.root)/name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return 0.
    storage.write_json("", "study.json", {})
    todo, start = {f"{storage.root}/{name}": data for name, data in files(n)}, time.perf_counter()
    storage.fs.pipe(todo)
    return len(todo)/(time.perf_counter() - start)


def timed(act):
    start = time.perf_counter()
    out = act()
    return out, time.perf_counter() - start


def one_by_one(storage, ids):
    for i in ids:
        for name in ("spec.json", "result.json", "failure.json", "attempt.json"): storage.read_json(i, name)


def bench(kind, url, n):
    storage = open_storage(url)
    rate = fill(storage, n)
    ids, listing = timed(storage.runs)
    frame, framed = timed(lambda: runs_frame(storage))
    assert len(frame) == len(ids) == n and (frame.state == "SUCCEEDED").sum() == sum(i % 10 < 6 for i in range(n))
    alone = timed(lambda: one_by_one(storage, ids[:SAMPLE]))[1]*n/min(n, SAMPLE)
    again = timed(lambda: runs_frame(storage))[1]
    write_index(storage)
    indexed = timed(lambda: runs_frame(open_storage(url)))[1]
    print(f"{kind:>8} {n:>7,} runs: listed in {listing:6.2f} s, framed in {framed:6.2f} s, framed again in {again:6.2f} s, anew with the index of the finished {indexed:6.2f} s; "
          f"file by file {alone:7.1f} s, ratio {alone/framed:4.1f}", flush=True)
    if kind == "S3": print(f"         the server took {rate:,.0f} plain uploads a second", flush=True)


if __name__ == "__main__":
    with s3_server():
        for n in [int(a) for a in sys.argv[1:]] or [1000, 10_000]:
            with tempfile.TemporaryDirectory() as folder: bench("local", folder, n)
            bench("memory", f"memory://bench-{uuid.uuid4().hex}", n)
            bench("S3", f"s3://bench-{n}/study", n)
