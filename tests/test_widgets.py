"""The live view without a browser: what it reads, what it says, what it sends, and what it leaves behind."""
import contextlib
import io
import json
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling_nb import widgets as wd
from scaling_nb.records import MetricsLog, open_storage
from scaling_nb.sweep import RunSpec
from scaling_nb.views import _static

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
    tail.hints = {"run0": "PENDING", "run1": "PENDING", "run2": "RUNNING", "run3": "SUCCEEDED"}
    tail.poll()
    assert tail.runs["run1"].state == "STOPPED"       # it waits, but it has begun
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
    with contextlib.redirect_stdout(io.StringIO()) as out:
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
        broken[0] = True
        view.close()       # the last look fails: what was seen stays, and the view is closed all the same
    assert out.getvalue().count("the view met an error: OSError: the disk is away") in (1, 2)
    assert "the last look failed: OSError: the disk is away" in view.bundles()[0]["text/html"] and view._closed


def test_an_error_is_in_the_page_while_it_lasts_and_no_longer(tmp_path):
    view = wd.RunView(open_storage(tmp_path), SPECS, mode="text")
    view.mode, view.widget = "widget", Recorder()
    view.tick()
    view._met(OSError("the disk is away"))
    assert view.widget.status["error"] == "the view met an error: OSError: the disk is away" and view.widget.status["flops"]
    view.tick()
    assert view.widget.status["error"] == ""


def test_a_curve_is_read_to_its_end_though_the_run_is_done(storage):
    "A long file takes several looks, and the last lines may come after the result."
    begin(storage, "run0")
    log = MetricsLog(storage, "run0")
    for step in range(1, 60_001):
        log.add(dict(step=step, tokens=step, loss=5 / step ** .1, note="x" * 80))
    log.close()
    finish(storage, "run0")
    tail = wd.RunTail(storage, SPECS)
    for _ in range(6):
        tail.poll()
    assert tail.runs["run0"].steps[-1] == 60_000 and tail.poll() == []
    begin(storage, "run1")
    write(storage, "run1", 1, 10)
    finish(storage, "run1")
    tail.poll()
    write(storage, "run1", 11, 20)
    assert tail.poll() == ["run1"] and tail.runs["run1"].steps[-1] == 20


# ---------------------------------------------------------------- what it sends

class Recorder:
    "Stands in for the widget: remembers what was set."
    def __init__(self):
        self.curves, self.tick, self.sent, self.messages = {}, 0, 0, []

    @contextlib.contextmanager
    def hold_sync(self):
        yield

    def send(self, message):
        self.messages.append(message)

    def set_curve(self, k, data):
        self.curves[k] = data
        self.sent += len(data)


def watched(storage, **options):
    "A view with a stand-in for its widget."
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
    x, y = wd.read_curve(w.curves[0])
    assert [x[0], x[-1], y[0]] == pytest.approx([1000, 50_000, 5], rel=1e-5)
    w.curves.clear()
    write(storage, "run1", 51, 52)
    view.tick()
    assert list(w.curves) == [1] and w.tick == 2
    assert w.rows[1][:2] == [1, int(1000 * 52 / 60)] and json.dumps(w.rows) and json.dumps(w.runs) and json.dumps(w.specs)
    begin(storage, "run5")
    storage.write_json("run5", "failure.json", dict(reason="x" * 1000))
    view.tick()
    assert w.rows[5][0] == 4 and w.rows[0][5] is None and w.failures == [["x" * 500, ""]] and w.rows[5][5] == 0


def test_runs_that_appear_later_do_not_inherit_curves(tmp_path):
    storage = open_storage(tmp_path)
    view = wd.RunView(storage, mode="widget")
    view.widget = Recorder()
    begin(storage, "run4")
    write(storage, "run4", 1, 5)
    view.tick()
    assert len(view.widget.curves[0]) == 16 + 5 * 4
    begin(storage, "run1")            # a smaller budget: it comes first in the table
    view.tick()
    assert view.widget.curves[0] == b"" and len(view.widget.curves[1]) == 16 + 5 * 4
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
    w = view.widget
    assert w.sent <= 32_000 and w.sent + len(json.dumps([w.rows, w.failures, w.status])) < 46_000


@given(st.lists(st.tuples(st.floats(1, 1e13), st.floats(1e-4, 1e4)), min_size=1, max_size=150), st.integers(2, 200))
def test_a_curve_reads_as_it_was_written(rows, points):
    tokens = np.array(sorted({x for x, _ in rows}))
    losses = np.array([y for _, y in rows][:len(tokens)])
    at = wd.thin_curve(tokens, points)
    data = wd.curve_bytes(tokens, losses, points)
    assert len(data) == 16 + 4 * len(at)
    x, y = wd.read_curve(data)
    np.testing.assert_allclose(x, tokens[at], rtol=1e-3)
    np.testing.assert_allclose(y, wd.smooth_curve(tokens, losses)[at], rtol=1e-3)


def test_what_a_log_axis_cannot_show_is_not_sent():
    assert wd.curve_bytes([10, 20], [-1., -2.], 50) == b""
    assert wd.read_curve(wd.curve_bytes([10, 2000, 30000], [3., 2., -1.], 50)).shape == (2, 2)


def test_failures_are_told_once_with_the_end_of_their_traceback(tmp_path):
    storage = open_storage(tmp_path)
    view = watched(storage)
    trace = "Traceback (most recent call last):\n" + "".join(f'  File "a.py", line {i}, in f{i}\n    f{i + 1}()\n' for i in range(9)) + "ValueError: no"
    for run in ("run0", "run1", "run2"):
        begin(storage, run)
    for run in ("run0", "run1"):
        storage.write_json(run, "failure.json", dict(reason="ValueError: no", traceback=trace))
    storage.write_json("run2", "failure.json", dict(reason="another"))
    view.tick()
    (reason, told), (other, nothing) = view.widget.failures
    assert (reason, other, nothing) == ("ValueError: no", "another", "") and [r[5] for r in view.widget.rows] == [0, 0, 1, None, None, None]
    assert told.splitlines() == ["  ... 6 calls before ...", *[s for i in (6, 7, 8) for s in (f'  File "a.py", line {i}, in f{i}', f"    f{i + 1}()")], "ValueError: no"]
    assert wd.short_traceback("ValueError: no") == "ValueError: no" and len(wd.short_traceback("x" * 9000)) == 1500
    html = view.bundles()[0]["text/html"]
    assert "where it was raised" in html and html.count("in f8") == 1 and "in f2" not in html


def test_roles_and_speeds_are_seen(tmp_path):
    storage = open_storage(tmp_path)
    for i, role in enumerate(("grid", "hold-out")):
        begin(storage, f"run{i}")
        storage.write_json(f"run{i}", "spec.json", {**storage.read_json(f"run{i}", "spec.json"), "role": role})
    log = MetricsLog(storage, "run0")
    for k in range(1, 4):
        log.add(dict(step=k, tokens=1000 * k, loss=3., t=100. + 2 * k, attempt=1))
    log.close()
    view = watched(storage)
    view.tick()
    frame = view.frame()
    assert frame.role.tolist()[:2] == ["grid", "hold-out"] and frame.speed[0] == pytest.approx(500) and np.isnan(frame.speed[1])
    assert view.widget.rows[0][6] == 500 and view.widget.rows[1][6] is None
    assert ">role<" in view.bundles()[0]["text/html"]


def test_the_profile_fills_in(tmp_path):
    "Nothing, then points joined, then a parabola; what a fit must not see bends no line."
    storage = open_storage(tmp_path)
    view = watched(storage)
    view.tick()
    assert view.widget.lines == []
    for k, (run, loss) in enumerate((("run0", 3.), ("run1", 2.5), ("run2", 2.9))):
        begin(storage, run)
        finish(storage, run, loss)
        view.tick()
        assert [line["fit"] for line in view.widget.lines] == [[], [False], [True]][k]
    (line,) = view.widget.lines
    assert line["g"] == "1.0e9" and min(line["y"]) < 2.55 and len(line["x"]) == len(line["y"]) > 10
    before = view.widget.lines
    begin(storage, "run3")
    storage.write_json("run3", "spec.json", {**storage.read_json("run3", "spec.json"), "role": "hold-out"})
    finish(storage, "run3", 1.)
    begin(storage, "run4")
    finish(storage, "run4", 1.5)
    view.tick()
    assert view.widget.lines == before          # one point is no line, and the other is not counted
    assert wd.group_names(view.frame(), "size") == {8: "8", 16: "16", 24: "24"}
    with pytest.raises(ValueError, match="'budget' or 'size'"):
        wd.group_names(view.frame(), "N")


# ---------------------------------------------------------------- the buttons

class Trainer:
    "Stands in for whoever trains."
    def __init__(self, **state):
        self.calls, self.state = [], dict(alive=True, paused=False, over=False) | state

    def status(self):
        if "error" in self.state:
            raise self.state["error"]
        return self.state

    def pause(self):
        self.calls.append("pause")
        self.state["paused"] = True

    def resume(self):
        self.calls.append("resume")
        self.state["paused"] = False

    def cancel(self, run):
        self.calls.append(("cancel", run))

    def retry(self, run):
        if run == "run2":
            raise ConnectionError("the cluster is away")
        self.calls.append(("retry", run))


def test_a_button_reaches_whoever_trains_and_its_row_says_so_until_the_run_moves(tmp_path):
    storage, trainer = open_storage(tmp_path), Trainer()
    view = watched(storage, control=trainer)
    begin(storage, "run0")
    begin(storage, "run1")
    storage.write_json("run1", "failure.json", dict(reason="no", attempt=1))
    view.tick()
    assert view.press("pause")["ok"] and view.widget.status["can"] == dict(alive=True, paused=True, over=False)
    assert view.press("resume")["ok"] and not view.widget.status["can"]["paused"]
    assert view.press("cancel", "run0")["ok"] and view.press("retry", "run1")["ok"]
    assert trainer.calls == ["pause", "resume", ("cancel", "run0"), ("retry", "run1")]
    notes = lambda: [r[7] for r in view.widget.rows][:2]
    assert notes() == ["cancelling", "to be retried"]
    storage.write_json("run0", "failure.json", dict(reason="cancelled", attempt=1))
    view.tick()
    assert notes() == ["", "to be retried"]
    storage.remove("run1", "failure.json")
    begin(storage, "run1", attempt=2)
    view.tick()
    assert notes() == ["", ""] and view.widget.rows[1][:1] == [1]


@pytest.mark.parametrize("what, run, words", [
    ("retry", "run2", "retry of size 24 at 1.0e9 failed: ConnectionError: the cluster is away"), ("retry", "run0", "Only a run that failed can be tried again, and run0 is running."),
    ("cancel", "run1", "A run that has ended cannot be cancelled, and run1 has succeeded."), ("cancel", "nobody", "must be one of the 6 runs of this view, but got 'nobody'"),
    ("dance", None, "There is no button 'dance'.")])
def test_what_a_press_raises_is_in_the_view(tmp_path, what, run, words):
    storage = open_storage(tmp_path)
    view = watched(storage, control=Trainer())
    for name in ("run0", "run1", "run2"):
        begin(storage, name)
    finish(storage, "run1")
    storage.write_json("run2", "failure.json", dict(reason="no", attempt=1))
    view.tick()
    said = view.press(what, run)
    assert not said["ok"] and words in said["text"] and view.widget.said == said and said["run"] == run
    assert view.press("pause")["n"] == said["n"] + 1


def test_a_view_that_only_watches_has_no_buttons(tmp_path):
    view = watched(open_storage(tmp_path))
    view.tick()
    assert view.widget.status["can"] is None
    for press in (view.pause, view.resume, lambda: view.cancel("run0"), lambda: view.retry("run0")):
        with pytest.raises(RuntimeError, match="only watches.*control=sweep"):
            press()


def test_messages_of_the_page(tmp_path):
    trainer = Trainer()
    view = watched(open_storage(tmp_path), control=trainer)
    view._heard(view.widget, {"ping": 7}, [])
    assert view.widget.messages == [{"pong": 7}] and not trainer.calls
    view._heard(view.widget, {"press": "pause", "run": None}, [])
    deadline = time.monotonic() + 20
    while not view.said and time.monotonic() < deadline:
        time.sleep(.01)
    assert trainer.calls == ["pause"] and view.said["ok"]


def test_what_whoever_trains_says_of_itself():
    assert wd.control_state(None) == {}
    assert wd.control_state(object()) == dict(alive=True, paused=False, over=False)
    assert wd.control_state(Trainer(paused=True)) == dict(alive=True, paused=True, over=False)
    assert wd.control_state(Trainer(error=OSError("away"))) == dict(alive=False, paused=False, over=False, error="OSError: away")


def test_a_notebook_that_is_saved_meanwhile_holds_the_state(tmp_path, monkeypatch):
    view, kept = watched(open_storage(tmp_path)), []
    begin(view.tail.storage, "run0")
    view.tick()

    class Handle:
        def update(self, bundle, raw):
            kept.append(bundle["text/html"])
    view._handles = [(None, Handle())]
    view._keep_still()
    view._keep_still()                        # not at each tick
    assert len(kept) == 1 and "0 of 6 runs done, 1 running, 5 waiting" in kept[0] and f'data-view="{view.widget.status["view"]}"' in kept[0] and "all 6 runs" in kept[0]


def test_nothing_of_the_page_is_fetched_and_a_finished_sweep_stays_small(tmp_path):
    for name in ("parts.js", "plot.js", "live.js", "fit.js", "plan.js", "look.css"):
        text = _static(name).replace("http://www.w3.org/2000/svg", "").replace("url(#", "")
        assert "http" not in text and "import " not in text and "url(" not in text
    storage = open_storage(tmp_path)
    specs = {f"r{i:02d}": RunSpec(budget=1e9 * 4 ** (i // 8), size=8 * (i % 8 + 1), N=1000 * 2 ** (i // 8) * (i % 8 + 1), D=500_000, flops_per_token=6e3) for i in range(40)}
    for i, run in enumerate(specs):
        (tmp_path / run).mkdir()
        (tmp_path / run / "attempt.json").write_text('{"attempt": 1}')
        (tmp_path / run / "metrics.jsonl").write_text("".join(json.dumps(dict(step=k, tokens=k * 1000, loss=2.0 + i / 100 + 1 / k ** .3)) + "\n" for k in range(1, 501)))
        (tmp_path / run / "result.json").write_text(json.dumps(dict(loss=2.0 + i / 100)))
    view = wd.RunView(storage, specs, mode="widget")
    view.tick()
    summary, chart = view.bundles()
    assert len(json.dumps([summary, chart])) < 800_000 and {"application/vnd.vegalite.v5+json", "image/svg+xml", "text/plain"} == set(chart)
    assert "40 training curves" in chart["text/plain"] and "40 runs, all with a loss" in chart["text/plain"]


def test_the_widget_itself(tmp_path):
    "The real widget, without a kernel: its traits, a run that appears late, and its last state."
    w = wd.RunWidget()
    assert "snb-run" in w._esm and len(w._esm) > 500_000 and ".snb-run" in w._css and not wd.in_kernel()
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
view.close()        # as the last line, which the cell would display: it is there already
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
