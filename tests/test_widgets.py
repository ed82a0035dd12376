"""The live view without a browser: what it reads, what it says, what it sends, and what it leaves behind."""
import contextlib
import io
import json
import threading
import time

import numpy as np
import pytest

from scaling_nb import widgets as wd
from scaling_nb.records import MetricsLog, open_storage
from scaling_nb.sweep import RunSpec

SPECS = {f"run{i}": RunSpec(budget=1e9 * 4 ** (i // 3), size=8 * (i % 3 + 1), N=1000 * (i + 1), D=60_000, flops_per_token=6000. * (i + 1)) for i in range(6)}


def begin(storage, run, attempt=1, **more):
    s = SPECS[run]
    storage.write_json(run, "spec.json", dict(run_id=run, budget=s.budget, size=s.size, N=s.N, D=s.D, flops_per_token=s.flops_per_token, seed=0, mock=False))
    storage.write_json(run, "attempt.json", dict(attempt=attempt, **more))


def write(storage, run, first, last, base=5.0):
    log = MetricsLog(storage, run)
    for step in range(first, last + 1):
        log.add(dict(step=step, tokens=step * 1000, loss=base / step ** .1))
    log.close()


def finish(storage, run, loss=2.5):
    storage.write_json(run, "result.json", dict(loss=loss, tokens=SPECS[run].D))


@pytest.fixture(params=["local", "memory"])
def storage(request, tmp_path):
    "Both kinds of storage: a folder, and an fsspec file system that is not local."
    yield open_storage(tmp_path if request.param == "local" else f"memory://{tmp_path.name}")


# ---------------------------------------------------------------- the tail

def test_a_tail_reads_only_what_is_new(storage):
    tail = wd.RunTail(storage, SPECS)
    assert tail.poll() == [] and set(tail.frame().state) == {"PENDING"}
    begin(storage, "run0")
    write(storage, "run0", 1, 10)
    assert tail.poll() == ["run0"] and tail.runs["run0"].steps == list(range(1, 11))
    offset = tail.runs["run0"].offset
    assert tail.poll() == [] and tail.runs["run0"].offset == offset
    write(storage, "run0", 11, 12)
    assert tail.poll() == ["run0"] and tail.runs["run0"].steps == list(range(1, 13))
    assert tail.runs["run0"].share == pytest.approx(.2) and tail.runs["run0"].state == "RUNNING"
    finish(storage, "run0")
    assert tail.poll() == ["run0"] and tail.runs["run0"].state == "SUCCEEDED" and tail.runs["run0"].final == 2.5
    assert tail.poll() == []


def test_a_torn_last_line_waits_and_a_torn_middle_line_is_passed_over(tmp_path):
    storage = open_storage(tmp_path)
    begin(storage, "run0")
    path = tmp_path / "run0" / "metrics.jsonl"
    tail = wd.RunTail(storage, SPECS)
    with open(path, "w") as f:
        for part, steps in (('{"step": 1, "tokens": 10, "loss": 3}\n{"st', [1]), ('ep": 2, "tokens": 20, "loss": 2}\n', [1, 2]), ('{"step": 3, "tok\n', [1, 2]),
                            ('{"step": 4, "tokens": 40, "loss": 1}\n[1]\nnull\n\n', [1, 2, 4])):
            f.write(part)
            f.flush()
            tail.poll()
            assert tail.runs["run0"].steps == steps


def test_a_resumed_run_keeps_the_last_write_of_a_step(storage):
    begin(storage, "run0")
    write(storage, "run0", 1, 20, base=5)
    tail = wd.RunTail(storage, SPECS)
    tail.poll()
    begin(storage, "run0", attempt=2)
    write(storage, "run0", 11, 15, base=7)   # from the checkpoint of step 10
    tail.poll()
    run = tail.runs["run0"]
    assert run.steps == list(range(1, 16)) and run.losses[10] == pytest.approx(7 / 11 ** .1) and run.attempt == 2
    assert [m["loss"] for m in storage.metrics("run0")][:15] == pytest.approx(run.losses)


def test_a_file_that_shrank_is_read_again(tmp_path):
    storage = open_storage(tmp_path)
    begin(storage, "run0")
    write(storage, "run0", 1, 20)
    tail = wd.RunTail(storage, SPECS)
    tail.poll()
    (tmp_path / "run0" / "metrics.jsonl").unlink()
    write(storage, "run0", 1, 3, base=9)
    tail.poll()
    assert tail.runs["run0"].steps == [1, 2, 3] and tail.runs["run0"].losses[0] == 9


def test_memory_is_bounded_and_the_ends_stay(tmp_path):
    storage = open_storage(tmp_path)
    begin(storage, "run0")
    write(storage, "run0", 1, 5000)
    tail = wd.RunTail(storage, SPECS, keep=100)
    tail.poll()
    run = tail.runs["run0"]
    assert len(run.steps) <= 200 and run.steps[0] == 1 and run.steps[-1] == 5000
    assert len(run.steps) == len(run.tokens) == len(run.losses)


def test_states_come_from_the_disk_and_hints_fill_in(storage):
    tail = wd.RunTail(storage, SPECS)
    for run in SPECS:
        begin(storage, run)
    begin(storage, "run1", stopped=1.0)
    storage.write_json("run2", "failure.json", dict(reason="ValueError: no"))
    tail.poll()
    states = {r: tail.runs[r].state for r in SPECS}
    assert states == dict(run0="RUNNING", run1="STOPPED", run2="FAILED", run3="RUNNING", run4="RUNNING", run5="RUNNING")
    tail.hints = {"run0": "PENDING", "run2": "RUNNING", "run3": "SUCCEEDED"}
    tail.poll()
    assert tail.runs["run0"].state == "PENDING" and tail.runs["run2"].state == "FAILED"
    assert tail.runs["run3"].state == "RUNNING"       # an end is believed when its file is there
    storage.remove("run2", "failure.json")            # a retry
    begin(storage, "run2", attempt=2)
    tail.poll()
    assert tail.runs["run2"].state == "RUNNING" and tail.runs["run2"].reason == ""


def test_a_run_that_fell_silent_counts_as_stopped(tmp_path, monkeypatch):
    storage = open_storage(tmp_path)
    begin(storage, "run0")
    tail = wd.RunTail(storage, SPECS)
    tail.poll()
    assert tail.runs["run0"].state == "RUNNING"
    now = time.monotonic()
    monkeypatch.setattr(wd.time, "monotonic", lambda: now + wd.QUIET_S + 5)
    tail.poll()
    assert tail.runs["run0"].state == "STOPPED"


def test_which_runs_are_followed(tmp_path):
    storage = open_storage(tmp_path)
    everything, listed, ids = wd.RunTail(storage), wd.RunTail(storage, list(SPECS.values())[:2]), wd.RunTail(storage, ["run5"])
    for run in ("run0", "run5"):
        begin(storage, run)
        write(storage, run, 1, 3)
    for tail, known in ((everything, {"run0", "run5"}), (listed, {"run0", "planned 1"}), (ids, {"run5"})):
        tail.poll()
        assert set(tail.runs) == known
    assert listed.frame().state.tolist() == ["RUNNING", "PENDING"] and listed.frame().N.tolist() == [1000, 2000]


def test_empty_and_missing_storages(tmp_path):
    view = wd.RunView(tmp_path / "nowhere", mode="text")
    assert view.tick() == "no runs yet" and len(view.frame()) == 0 and len(view.tail.curves()) == 0
    summary, chart = view.bundles()
    assert "0 of 0 runs" in summary["text/plain"] and chart["text/plain"] == ""
    with pytest.raises(ValueError, match="'auto', 'widget' or 'text'"):
        wd.RunView(tmp_path, mode="none")


# ---------------------------------------------------------------- what it says

def _followed(size, D, share, seconds, state, attempt=1):
    r = wd.FollowedRun(f"{size}-{D}", dict(size=size, D=D, C=float(size * D)), state=state)
    for i in (0, 1):
        if seconds:
            r.add(dict(step=i, tokens=1 + (D * share - 1) * i, loss=2., t=1e9 + seconds * i, attempt=attempt), 100)
    return r


def test_the_time_left_comes_from_each_sizes_own_pace():
    assert wd.time_left([]) is None and wd.time_left([_followed(8, 1e6, 0, 0, "PENDING")]) is None
    running = _followed(8, 1e6, .5, 60, "RUNNING")
    low, mid, high = wd.time_left([running])
    assert low < 60 < high and mid == pytest.approx(60, rel=.2)               # half is done in a minute
    slow = _followed(16, 1e6, 1., 1200, "SUCCEEDED")
    low, mid, high = wd.time_left([running, slow, _followed(16, 1e6, 0, 0, "PENDING")])
    assert mid == pytest.approx(1260, rel=.2)                                  # one worker: the large one comes after, at its size's pace
    assert wd.time_left([slow]) is None                                        # nothing trains


def test_the_pace_is_that_of_one_attempt():
    "Days between two attempts are no time of training."
    r = _followed(8, 1e6, .5, 60, "RUNNING")
    for i in (0, 1):
        r.add(dict(step=2 + i, tokens=5e5 + 1e5 * i, loss=2., t=2e9 + 12 * i, attempt=2), 100)
    assert r.pace == pytest.approx(12 / 1e5)


def test_the_line_and_the_reasons(tmp_path):
    storage = open_storage(tmp_path)
    tail = wd.RunTail(storage, SPECS)
    for run in SPECS:
        begin(storage, run)
    for run in ("run1", "run2"):
        storage.write_json(run, "failure.json", dict(reason="Diverged: nan"))
    storage.write_json("run3", "failure.json", dict(reason=""))
    finish(storage, "run0")
    tail.poll()
    assert wd.status_text(tail.frame(), left=(100, 120, 300)) == "1 of 6 runs done, 2 running, 3 failed; 4 % of 7.6e9 FLOPs; 1.67 min to 5 min left"
    lines = wd.failure_lines(tail.frame())
    assert lines == ["failed: N = 2.00k at 1.0e9, N = 3.00k at 1.0e9: Diverged: nan", "failed: N = 4.00k at 4.0e9: no reason was given"]
    html = wd.RunView(storage, SPECS, mode="text")
    html.tick()
    assert "Diverged: nan" in html.bundles()[0]["text/html"]


def test_text_is_printed_at_most_so_often_and_once_at_the_end(tmp_path):
    storage = open_storage(tmp_path)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        view = wd.RunView(storage, SPECS, hz=2, text_every=30, mode="text").show()
        for run in SPECS:
            begin(storage, run)
            write(storage, run, 1, 60)
            finish(storage, run)
        view.close()
        view.close()
    lines = out.getvalue().splitlines()
    assert 1 <= len(lines) <= 2 and lines[-1] == "6 of 6 runs done; 7.6e9 FLOPs"
    assert not [t for t in threading.enumerate() if t.name == "RunView"]


def test_an_error_is_shown_and_the_view_goes_on(tmp_path, monkeypatch):
    view = wd.RunView(open_storage(tmp_path), SPECS, hz=2, mode="text")
    broken = [True]
    real = view.tail.poll

    def poll():
        if broken[0]:
            raise OSError("the disk is away")
        return real()
    monkeypatch.setattr(view.tail, "poll", poll)
    with contextlib.redirect_stdout(io.StringIO()):
        view._thread = threading.Thread(target=view._loop, daemon=True)
        view._thread.start()
        deadline = time.monotonic() + 20
        while view.error is None and time.monotonic() < deadline:
            time.sleep(.05)
        assert view.error == "OSError: the disk is away"
        broken[0] = False
        while view.error is not None and time.monotonic() < deadline:
            time.sleep(.05)
        assert view.error is None
        view.close()


# ---------------------------------------------------------------- what it sends

class Recorder:
    "Stands in for the widget: remembers what was set."
    def __init__(self):
        self.curves, self.tick, self.sent = {}, 0, 0

    @contextlib.contextmanager
    def hold_sync(self):
        yield

    def set_curve(self, k, data):
        self.curves[k] = data
        self.sent += len(data)


def watched(storage, **options):
    view = wd.RunView(storage, SPECS, mode="widget", **options)
    view.widget = Recorder()
    return view


def test_only_curves_that_moved_are_sent(tmp_path):
    storage = open_storage(tmp_path)
    view = watched(storage)
    for run in ("run0", "run1"):
        begin(storage, run)
        write(storage, run, 1, 50)
    view.tick()
    w = view.widget
    assert [k for k in w.curves if w.curves[k]] == [0, 1] and [r["id"] for r in w.runs] == list(SPECS)
    x, y = np.frombuffer(w.curves[0], "f4").reshape(2, -1)
    assert x[0] == 1000 and x[-1] == 50_000 and y[0] == 5
    w.curves.clear()
    write(storage, "run1", 51, 52)
    view.tick()
    assert list(w.curves) == [1] and w.tick == 2
    assert w.rows[1][:2] == [1, int(1000 * 52 / 60)] and json.dumps(w.rows) and json.dumps(w.runs) and json.dumps(w.spec)
    begin(storage, "run5")
    storage.write_json("run5", "failure.json", dict(reason="x" * 1000))
    view.tick()
    assert w.rows[5][0] == 4 and len(w.rows[5][5]) == 200


def test_runs_that_appear_later_do_not_inherit_curves(tmp_path):
    storage = open_storage(tmp_path)
    view = wd.RunView(storage, mode="widget")
    view.widget = Recorder()
    begin(storage, "run4")
    write(storage, "run4", 1, 5)
    view.tick()
    assert len(view.widget.curves[0]) == 5 * 8
    begin(storage, "run1")            # a smaller budget: it comes first in the table
    view.tick()
    assert view.widget.curves[0] == b"" and len(view.widget.curves[1]) == 5 * 8
    assert [r["id"] for r in view.widget.runs] == ["run1", "run4"]


def test_an_update_stays_within_its_budget(tmp_path):
    "200 runs of 500 points that all move at once."
    storage = open_storage(tmp_path)
    specs = {f"r{i:03d}": RunSpec(budget=1e9 * 3 ** (i % 5), size=8, N=1000 + i, D=500_000, flops_per_token=6e3) for i in range(200)}
    view = wd.RunView(storage, specs, mode="widget")
    view.widget = Recorder()
    for run in specs:
        (tmp_path / run).mkdir()
        (tmp_path / run / "attempt.json").write_text('{"attempt": 1}')
        (tmp_path / run / "metrics.jsonl").write_text("".join(json.dumps(dict(step=k, tokens=k * 1000, loss=3.0 + 1 / k)) + "\n" for k in range(1, 501)))
    view.tick()
    assert view.widget.sent <= 48_000 and len(json.dumps(view.widget.rows)) < 12_000


def test_the_widget_itself(tmp_path):
    "The real widget, without a kernel: its traits, a run that appears late, and its last state."
    w = wd.RunWidget()
    assert "snb-run" in w._esm and len(w._esm) > 500_000 and not wd.in_kernel()
    w.set_curve(0, b"12345678")
    w.set_curve(7, b"12345678")
    assert {"c0", "c7", "rows", "tick"} <= set(w.keys) and w.get_state()["c7"] == b"12345678"
    w.close()


def test_closing_before_the_widget_was_needed_makes_none(tmp_path, monkeypatch):
    monkeypatch.setattr(wd, "RunWidget", lambda: pytest.fail("a widget was made"))
    shown = []

    class Handle:
        def update(self, bundle, raw):
            shown.append(bundle)
    import IPython.display
    monkeypatch.setattr(IPython.display, "display", lambda data, raw, display_id: Handle())
    storage = open_storage(tmp_path)
    for run in SPECS:
        begin(storage, run)
        write(storage, run, 1, 60)
        finish(storage, run)
    view = wd.RunView(storage, SPECS, mode="widget").show()
    view.close()
    summary, chart = shown
    assert summary["text/plain"] == "6 of 6 runs done; 7.6e9 FLOPs" and "<details>" in summary["text/html"]
    assert "application/vnd.vegalite.v5+json" in chart and "6 training curves" in chart["text/plain"]
    assert len(json.dumps(chart)) < 120_000


def test_a_thread_feeds_while_the_view_looks(storage):
    "No step is lost or doubled, whatever the interleaving."
    view = watched(storage)

    def feed(run):
        begin(storage, run)
        log = MetricsLog(storage, run)
        for step in range(1, 61):
            log.add(dict(step=step, tokens=step * 1000, loss=5 / step))
        log.close()
        finish(storage, run)
    threads = [threading.Thread(target=feed, args=(run,)) for run in SPECS]
    [t.start() for t in threads]
    while any(t.is_alive() for t in threads):
        view.tick()
    view.tick()
    assert all(view.tail.runs[r].steps == list(range(1, 61)) for r in SPECS)
    assert view.frame().state.eq("SUCCEEDED").all() and wd.status_text(view.frame()) == "6 of 6 runs done; 7.6e9 FLOPs"


def test_nbclient_leaves_no_debris(tmp_path):
    "A notebook run by a program: one summary, one chart, no message of progress, and a widget state without its megabyte of JavaScript."
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    code = f"""
import sys; sys.path.insert(0, {str(__import__('pathlib').Path(__file__).parent)!r})
import time
from test_widgets import *
storage = open_storage({str(tmp_path / 'runs')!r})
view = wd.RunView(storage, SPECS, hz=2).show()
for run in SPECS:
    begin(storage, run); write(storage, run, 1, 60); finish(storage, run)
end = time.time() + 60
while view.widget is None and time.time() < end: time.sleep(.1)
assert view.widget is not None, view.error
time.sleep(1)
view.close();
"""
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(nb, timeout=240, kernel_name="python3").execute()
    outputs = nb.cells[0].outputs
    assert [sorted(o.data) for o in outputs] == [["text/html", "text/plain"], ["application/vnd.vegalite.v5+json", "image/svg+xml", "text/plain"]]
    assert outputs[0].data["text/plain"] == "6 of 6 runs done; 7.6e9 FLOPs"
    assert len(json.dumps(nb)) < 200_000, "the widget's JavaScript was saved with the notebook"


def test_a_finished_sweep_says_what_it_spent(tmp_path):
    "Branches of a trunk cost less than their C; a run that does not say keeps the sum at what was planned."
    storage = open_storage(tmp_path)
    for run in SPECS:
        begin(storage, run)
        write(storage, run, 1, 60)
        finish(storage, run)
        storage.write_json(run, "result.json", {**storage.read_json(run, "result.json"), "flops_measured": 1e9})
    tail = wd.RunTail(storage, SPECS)
    tail.poll()
    assert wd.status_text(tail.frame()) == "6 of 6 runs done; 6.0e9 FLOPs"
