"""Callbacks of a run: what they are shown, what they keep and write, and when they end it."""

import io
import json
import os
import struct
import sys

import jax
import numpy as np
import pytest

import bilevax as bx
from bilevax.core import files
from bilevax.core.results import History
from bilevax.runs import show_progress
from bilevax.runs.callbacks import Callbacks
from bilevax.runs.checkpoints import kept_state
from bilevax.testing.closed_forms import FiniteQuadratic

P = FiniteQuadratic.random(0, n=20, d=3, m=2)
NOISE = np.random.default_rng(1)
VAL = {"target": P.val_data["target"] + 0.5 * NOISE.normal(size=(9, 3)), "r": np.full(9, 0.1)}
SOURCES = bx.Arrays(P.train_data, 2), bx.Arrays(VAL, 1)
SOBA = bx.SOBA(0.3 / P.curvature.L, 0.02)


START = P.problem, SOBA, np.zeros(3), np.full(2, 3.0), *SOURCES
KEY = jax.random.key(0)


def run(callback=None, steps=600, every=10, directory=None):
    """One program serves all of these."""
    return bx.minimize(*START, steps=steps, key=KEY, callback=callback, every=every, run=directory)


@pytest.fixture(scope="module")
def course():
    """What a callback sees of a run, and its result."""
    seen = []
    return seen, run(seen.append)


def history(outer_value, step=None, seconds=None, code=None):
    n = len(outer_value)
    filled = (np.zeros(n, np.int32) if code is None else np.asarray(code), 10 * np.arange(1, n + 1))
    seconds = np.arange(1.0, n + 1) if seconds is None else np.asarray(seconds)
    step = np.arange(1, n + 1) if step is None else np.asarray(step)
    return History(np.asarray(outer_value, float), np.ones(n), *filled, seconds, step)


def progress(*args, steps=100, w=0.0, lam=0.0, **columns):
    entries = history(*args, **columns)
    return bx.Progress(int(entries.step[-1]) if len(entries.step) else 0, steps, w, lam, entries)


def looks(values):
    """One for each entry; w is its number."""
    return [
        progress(values[: i + 1], w=np.full(2, float(i + 1)), lam={"l": np.float64(-i)}) for i in range(len(values))
    ]


def feed(callback, seen):
    """How many looks it took until the callback ended the run, None if it did not."""
    return next((i for i, look in enumerate(seen, 1) if callback(look)), None)


class Told:
    """A callback that writes down what it is told."""

    def __init__(self, log, name, ends=None, raises=None):
        self.log, self.name, self.ends, self.raises = log, name, ends, raises

    def begin(self, progress):
        self.log.append((self.name, "begin", progress.step))

    def __call__(self, progress):
        self.log.append((self.name, "look", progress.step))
        if self.raises:
            raise self.raises
        return self.ends

    def end(self, progress):
        self.log.append((self.name, "end", progress.step))


def test_all_of_several_are_called_in_their_order_and_one_ends_the_run():
    log = []
    result = run([Told(log, "a", ends=True), lambda progress: log.append(progress.step), Told(log, "b")])
    assert log == [("a", "begin", 0), ("b", "begin", 0), ("a", "look", 10), 10, ("b", "look", 10),
                   ("a", "end", 10), ("b", "end", 10)]  # fmt: skip
    assert result.history.step[-1] == 10
    assert not result.interrupted


@pytest.mark.parametrize("fault", [ValueError("mine"), KeyboardInterrupt()])
def test_what_a_callback_raises_is_passed_on_and_all_are_told_of_the_end(fault):
    log = []
    given = Told(log, "a"), Told(log, "b", raises=fault), Told(log, "c")
    if isinstance(fault, KeyboardInterrupt):
        assert run(given).interrupted
    else:
        with pytest.raises(ValueError, match="mine") as caught:
            run(given)
        assert caught.value is fault
    assert [entry[0] for entry in log if entry[1] == "look"] == ["a", "b"]
    assert [entry[0] for entry in log if entry[1] == "end"] == ["a", "b", "c"]


def test_what_a_callback_was_shown_does_not_change_later():
    """Beyond the entries for which there was room at first."""
    kept = []
    result = run(lambda at: kept.append((at, jax.tree.map(np.array, at))), steps=300, every=2)
    assert len(result.history.step) == 150
    for now, then in kept:
        jax.tree.map(np.testing.assert_array_equal, now, then)
        assert now.history.step.tolist() == list(range(2, now.step + 1, 2))


def test_a_call_of_several_entries_shows_them_all():
    seen = []
    result = run(lambda at: seen.append(at.history.step.tolist()), every=600)
    assert seen == [[256, 512, 600]] == [result.history.step.tolist()]


def test_states_go_to_the_callback_of_the_same_class_and_number():
    class Kept:
        def __init__(self, value=None):
            self.value = value

        def __call__(self, progress):
            pass

        def state(self):
            return {"value": self.value}

        def resume(self, state):
            self.value = state["value"]

    busy = Told([], "a")
    busy.state = "a word of its own"
    state = Callbacks([Kept(1), print, Kept(2), busy]).state()
    new = Kept(), Kept(), Kept()
    callbacks = Callbacks([Told([], "a"), *new])
    callbacks.resume(state)
    callbacks.begin(progress([]))
    assert [kept.value for kept in new] == [1, 2, None]


def test_wrong_arguments_are_refused_in_a_sentence(refused):
    def scored(w, lam):
        return w

    for call, match in [
        (lambda: run(bx.ShowProgress), r"callback must be made of its class first: ShowProgress\(\.\.\.\)"),
        (lambda: run([print, 3]), "callback must be a function of a Progress, or a list of them, got 3"),
        (lambda: run("ab"), "callback must be a function of a Progress, or a list of them, got 'ab'"),
        (lambda: bx.EarlyStopping(0), "patience must be at least 1, got 0"),
        (lambda: bx.EarlyStopping(3, 0.1), r"score must be a function of \(w, lam\), got 0.1"),
        (lambda: bx.EarlyStopping(3, min_change=-0.1), r"min_change must lie in \[0, inf\], got -0.1"),
        (lambda: bx.EarlyStopping(3, scored)(looks([1.0])[0]), r"score must be a scalar, got shape \(2,\)"),
        (lambda: bx.TimeLimit(0.0), r"seconds must lie in \]0, inf\], got 0"),
        (lambda: bx.JSONLines(3), "path must be a path, got 3"),
        (lambda: bx.JSONLines("a", every=0), "every must be at least 1, got 0"),
        (lambda: bx.TensorBoard(None), "directory must be a path, got None"),
    ]:
        refused(call, bx.ParameterError, match)


@pytest.mark.parametrize(
    ("values", "options", "stops", "best"),
    [
        ([3.0, 2.0, 2.5, 1.0, 1.5, 1.5, 1.5, 0.0], {}, 7, 4),
        ([3.0, 2.0, 2.0, 2.0, 2.0], {}, 5, 2),  # no better: as good
        ([3.0, 2.95, 2.91, 2.89, 5.0], {"min_change": 0.1}, None, 4),  # against the best that counts
        ([3.0, 2.95, 2.91, 2.90, 0.0], {"min_change": 0.1}, 4, 1),  # 0.1 is not more than that
        ([np.nan, 2.0, np.nan, np.nan, np.nan], {}, 5, 2),
        ([-1.0, -2.0, np.inf, -np.inf], {}, None, 4),
    ],
)
def test_early_stopping_ends_a_run_after_as_many_steps_without_a_better_one(values, options, stops, best):
    stopping = bx.EarlyStopping(3, **options)
    assert feed(stopping, looks(values)) == stops
    assert (stopping.best.step, stopping.best.value) == (best, values[best - 1])
    assert stopping.best.w.tolist() == [best, best]
    assert stopping.best.lam == {"l": 1 - best}


def test_a_value_that_was_never_a_number_is_said():
    for what, options in (("outer_value", {}), ("score", {"score": lambda w, lam: np.nan})):
        stopping = bx.EarlyStopping(3, **options)
        with pytest.warns(UserWarning, match=f"^EarlyStopping ends a run whose {what} was never a number: nan$"):
            assert feed(stopping, looks([np.nan] * 4)) == 3
        assert stopping.best is None


def test_patience_is_in_outer_steps_whatever_the_looks():
    stopping = bx.EarlyStopping(20)
    steps = [5, 10, 29, 30, 31]
    seen = [progress([1.0, *[2.0] * i], step=steps[: i + 1]) for i in range(5)]
    assert feed(stopping, seen) == 3  # 29 - 5 >= 20
    assert feed(bx.EarlyStopping(25), seen) == 4


def test_entries_between_two_looks_count_by_their_mean_but_for_those_that_failed():
    code = [0, 0, 0, bx.Code.DIVERGED]
    stopping = bx.EarlyStopping(100)
    for n, value in [(1, 4.0), (3, 1.5)]:
        stopping(progress([4.0, 1.0, 2.0, -9.0][:n], code=code[:n]))
        assert stopping.best.value == value
    stopping(progress([4.0, 1.0, 2.0, -9.0], code=code))
    assert stopping.best.step == 3


def test_early_stopping_finds_the_best_of_a_run(course):
    """Against a search of all that the run came by; and by a score of one's own, which is exact."""
    seen, result = course
    values = result.history.outer_value
    assert len(values) == len(seen) + 2  # stretches end at 256 and 512 too
    of_looks = [np.mean(values[(result.history.step > at.step - 10) & (result.history.step <= at.step)]) for at in seen]
    scores = [P.value(np.asarray(at.lam)) for at in seen]
    for stopping, found in [
        (bx.EarlyStopping(150), of_looks),
        (bx.EarlyStopping(30, lambda w, lam: P.value(np.asarray(lam))), scores),
    ]:
        best = np.array([np.argmin(found[: i + 1]) for i in range(len(found))])
        ended = int(np.argmax(np.arange(len(found)) - best >= stopping.patience // 10))
        assert 0 < best[ended] < ended  # neither at the start nor at the end
        stopped = run([stopping])
        assert stopped.history.step[-1] == seen[ended].step
        assert stopping.best.step == seen[best[ended]].step
        assert stopping.best.value == found[best[ended]]
        np.testing.assert_array_equal(stopping.best.w, seen[best[ended]].w)
        np.testing.assert_array_equal(stopping.best.lam, seen[best[ended]].lam)
        np.testing.assert_array_equal(stopped.lam, seen[ended].lam)  # the result is the last point


@pytest.mark.parametrize("score", [None, lambda w, lam: float(np.abs(lam["l"] + 5.0))])
def test_early_stopping_that_is_resumed_decides_as_undisturbed(score):
    rng = np.random.default_rng(3)
    seen = looks(list(rng.normal(size=40) + 1.0 / np.arange(1, 41)))
    # every third entry is looked at; after the others there may be a checkpoint too
    whole = bx.EarlyStopping(12, score)
    ended = feed(whole, seen[2::3])
    assert 3 <= ended < 13
    for at in range(1, 3 * ended):
        first, then = bx.EarlyStopping(12, score), bx.EarlyStopping(12, score)
        first.begin(progress([]))
        assert feed(first, seen[2:at:3]) is None
        then.begin(seen[at - 1])
        then.resume(json_round_trip(first.state()))
        assert (then.best is None) == (at < 3)
        left = [look for look in seen[2::3] if look.step > at]
        assert feed(then, left) == ended - at // 3
        assert (then.best.step, then.best.value) == (whole.best.step, whole.best.value)
        jax.tree.map(np.testing.assert_array_equal, (then.best.w, then.best.lam), (whole.best.w, whole.best.lam))


@pytest.mark.parametrize("at", [90, 260])
def test_a_run_that_goes_on_is_told_and_stopped_as_if_it_had_never_ended(tmp_path, at):
    """Killed after its last checkpoint, which was at some step; the log has more entries than that."""
    path, board = tmp_path / "lines", tmp_path / "board"

    def callbacks():
        return [bx.EarlyStopping(150), bx.JSONLines(path), bx.TensorBoard(board)]

    whole, *_ = stopped = callbacks()
    result = run(stopped)
    lines = records(result.history)
    assert read(path) == lines
    path.unlink()

    def kill(progress):
        if progress.step == at:
            raise RuntimeError("killed")

    begun = bx.Run(tmp_path / "run", seconds=0.0)
    with pytest.raises(RuntimeError, match="killed"):
        run([*callbacks(), kill], directory=begun)
    assert read(path)[-1]["step"] == at  # the checkpoint is of the call before
    log = []
    stopping, *others = callbacks()
    again = run([Told(log, "a"), *others, stopping], directory=tmp_path / "run")
    assert log[0][:2] == ("a", "begin")
    assert log[0][2] in (at - 10, 256)  # as 256 too may end a call
    assert log[-1] == ("a", "end", result.history.step[-1])
    for name in ("step", "value", "w", "lam"):
        np.testing.assert_array_equal(getattr(stopping.best, name), getattr(whole.best, name))
    np.testing.assert_array_equal(again.lam, result.lam)
    assert read(path) == records(again.history)
    assert [timeless(record) for record in read(path)] == [timeless(record) for record in lines]
    shown = [step for tag, step, _ in scalars(board) if tag == "outer_value"]
    assert shown == result.history.step.tolist()
    # of a run that has ended the best point is there, and nothing is made again
    finished = bx.EarlyStopping(150)
    run([finished, bx.JSONLines(path)], directory=begun)
    np.testing.assert_array_equal(finished.best.lam, whole.best.lam)
    assert isinstance(finished.best.lam, jax.Array)
    assert read(path) == records(again.history)


def timeless(record):
    return {name: value for name, value in record.items() if name != "seconds"}


def test_what_a_callback_kept_can_be_read_before_the_run_goes_on(tmp_path):
    assert kept_state(tmp_path) is None
    run(steps=10, directory=tmp_path / "without")
    assert kept_state(tmp_path / "without") is None
    stopping = bx.EarlyStopping(100)
    run([stopping, print], steps=50, directory=tmp_path / "with")
    kept = kept_state(tmp_path / "with")
    assert kept["best"]["value"] == stopping.best.value
    np.testing.assert_array_equal(kept["best"]["lam"][0], stopping.best.lam)


def test_a_callback_that_raises_leaves_the_last_checkpoint(tmp_path):
    def fault(progress):
        if progress.step == 50:
            raise ValueError("mine")

    kept = bx.Run(tmp_path, seconds=0.0)
    with pytest.raises(ValueError, match="mine"):
        run(fault, steps=100, directory=kept)
    seen = []
    result = run(lambda at: seen.append(at.step), steps=100, directory=kept)
    assert seen == [50, 60, 70, 80, 90, 100]
    np.testing.assert_array_equal(result.lam, run(steps=100).lam)


def test_a_time_limit_goes_on_from_what_the_run_took_before(tmp_path):
    """And a callback that is new when the run goes on begins then."""
    kept = bx.Run(tmp_path, seconds=0.0)
    first = run(bx.TimeLimit(1e-9), steps=50, directory=kept)
    assert first.history.step[-1] == 10
    stopping, spent = bx.EarlyStopping(30, lambda w, lam: np.nan), float(first.history.seconds[-1])
    go_on = bx.Run(tmp_path, seconds=0.0, override=("ended",))
    result = run([bx.TimeLimit(spent + 1e-9), stopping], steps=50, directory=go_on)
    assert result.history.step.tolist() == [10, 20]
    with pytest.warns(UserWarning, match="was never a number"):
        result = run([bx.TimeLimit(1e9), stopping], steps=50, directory=go_on)
    assert result.history.step[-1] == 40  # 30 after it began, at 10
    assert np.all(np.diff(result.history.seconds) > 0)


def json_round_trip(state):
    """Plain containers of numbers and strings, but for arrays of numbers."""

    def default(x):
        assert isinstance(x, np.ndarray)
        assert x.dtype == np.float64
        return {"array": x.tolist()}

    return json.loads(
        json.dumps(state, default=default), object_hook=lambda x: np.array(x["array"]) if "array" in x else x
    )


def test_a_callback_that_serves_a_second_run_begins_anew(tmp_path):
    stopping, fresh, lines = bx.EarlyStopping(10**6), bx.EarlyStopping(10**6), bx.JSONLines(tmp_path / "lines")
    run([stopping, lines], steps=40)
    first = stopping.best
    second = run([stopping, fresh, lines], steps=10)
    assert first.value < fresh.best.value  # else what was kept of the first run would be seen
    assert (stopping.best.step, stopping.best.value) == (10, fresh.best.value)
    assert read(tmp_path / "lines") == records(second.history)


def test_a_time_limit_counts_the_whole_run():
    assert feed(bx.TimeLimit(2.5), looks([1.0] * 9)) == 3
    assert feed(bx.TimeLimit(3.0), looks([1.0] * 9)) == 3
    assert bx.TimeLimit(100.0)(progress([1.0, 1.0], seconds=[50.0, 101.0]))  # 50 before it was resumed
    assert run(bx.TimeLimit(1e-9)).history.step.tolist() == [10]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def records(history):
    """As the file has them."""
    codes = [bx.Code(int(code)).name for code in history.code]
    names = "step", "outer_value", "gradient_norm", "code", "samples", "seconds"
    rows = zip(*(codes if name == "code" else getattr(history, name).tolist() for name in names), strict=True)
    return [dict(zip(names, row, strict=True)) for row in rows]


@pytest.mark.parametrize("every", [10, 600, None])
def test_the_lines_are_the_history(tmp_path, every):
    path = tmp_path / "new" / "lines.jsonl"
    result = run([bx.JSONLines(path), bx.JSONLines(str(path) + "3", every=3)], every=every)
    assert read(path) == records(result.history)
    assert read(path.with_name("lines.jsonl3")) == records(result.history)[2::3]


def test_what_is_not_finite_is_null(tmp_path):
    bx.JSONLines(tmp_path / "lines")(progress([np.nan, -np.inf], code=[0, bx.Code.NONFINITE]))
    found = read(tmp_path / "lines")
    assert [record["outer_value"] for record in found] == [None, None]
    assert [record["code"] for record in found] == ["OK", "NONFINITE"]


def test_an_interrupted_run_has_written_all_of_its_entries(tmp_path):
    """Those of the last call too, between two looks."""

    def interrupt(progress):
        if progress.step == 600:
            raise KeyboardInterrupt

    directory = tmp_path / "board"
    given = [interrupt, bx.JSONLines(tmp_path / "lines"), bx.TensorBoard(directory)]
    result = run(given, every=600)
    assert result.interrupted
    assert read(tmp_path / "lines") == records(result.history)
    assert [step for tag, step, _ in scalars(directory) if tag == "outer_value"] == result.history.step.tolist()


@pytest.mark.parametrize("every", [1, 3])
def test_a_resumed_run_goes_on_from_the_entries_it_has(tmp_path, every):
    """Whatever the file held after them, and where some of them, or all, were lost."""
    whole = progress(list(range(9)))
    again = whole._replace(history=whole.history._replace(seconds=whole.history.seconds + 0.5 * (np.arange(9) > 4)))
    path = tmp_path / "lines"
    bx.JSONLines(path, every=every)(whole)
    text = path.read_bytes()
    expected = [json.dumps(record) + "\n" for record in records(again.history)[every - 1 :: every]]
    for length in [*range(0, len(text), 41), len(text)]:
        path.write_bytes(text[:length])  # killed, perhaps within a line
        lines = bx.JSONLines(path, every=every)
        for n in (5, 6, 9):
            part = again._replace(step=n, history=History(*(column[:n] for column in again.history)))
            (lines.begin if n == 5 else lines)(part)
            assert path.read_text() == "".join(expected[: n // every]), length
    path.unlink()
    bx.JSONLines(path, every=every).begin(again)
    assert path.read_text() == "".join(expected)


def test_a_run_killed_before_its_first_checkpoint_begins_the_file_anew(tmp_path):
    path = tmp_path / "lines"
    bx.JSONLines(path)(progress([1.0, 2.0]))
    lines = bx.JSONLines(path)
    lines.begin(progress([]))
    assert len(read(path)) == 2
    lines(progress([1.0], seconds=[7.0]))
    assert [record["seconds"] for record in read(path)] == [7.0]


@pytest.mark.parametrize("content", ["name,age\n", "{}\n", '{"step": 1, "outer_value": 2.5', "{}"])
def test_what_is_not_of_this_run_is_left_as_it_is(tmp_path, content):
    path = tmp_path / "lines"
    path.write_text(content)
    with pytest.raises(bx.ParameterError, match="lines is not of this run; remove it, or give JSONLines another path"):
        run(bx.JSONLines(path), steps=10)
    assert path.read_text() == content
    assert os.listdir(tmp_path) == ["lines"]


def test_a_log_that_cannot_be_written_ends_the_run_with_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for callback in (
        bx.JSONLines(tmp_path / "file" / "lines"),
        bx.JSONLines(tmp_path),
        bx.TensorBoard(tmp_path / "file"),
    ):
        with pytest.raises(bx.StorageError, match=f"cannot .* {tmp_path}"):
            run(callback, steps=10)
    # a full disk: half of the lines fit
    lines, board = bx.JSONLines(tmp_path / "lines"), bx.TensorBoard(tmp_path / "board")
    for callback in (lines, board):
        callback.begin(progress([1.0, 2.0]))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    class Full:
        def __getattr__(self, name):
            return getattr(os, name)

        def write(self, descriptor, content):
            return os.write(descriptor, content[: len(content) // 2])

    monkeypatch.setattr(files, "os", Full())
    for callback in (lines, board):
        with pytest.raises(bx.StorageError, match="No space left on device; free some space"):
            callback(progress([1.0, 2.0, 3.0, 4.0]))
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def events(path):
    """The events of a file, and its bytes as tensorboardX itself writes them."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter

    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        (length,) = struct.unpack("<Q", data[at : at + 8])
        found.append(Event.FromString(data[at + 12 : at + 12 + length]))
        at += 16 + length
    writer = RecordWriter(str(path) + ".again")
    for event in found:
        writer.write(event.SerializeToString())
    writer.close()
    again = path.with_name(path.name + ".again")
    assert again.read_bytes() == data
    again.unlink()
    return found


def scalars(directory):
    """(tag, step, value), as TensorBoard would show them: files in the order of their names; a start forgets steps."""
    shown = []
    for name in sorted(os.listdir(directory)):
        version, *rest = events(directory / name)
        assert version.file_version == "brain.Event:2"
        for event in rest:
            if event.session_log.status == event.session_log.START:
                shown = [scalar for scalar in shown if scalar[1] < event.step]
            shown += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return shown


def test_tensorboard_has_the_history_too(tmp_path):
    result = run(bx.TensorBoard(tmp_path))
    assert len(os.listdir(tmp_path)) == 1
    found = scalars(tmp_path)
    for name in ("outer_value", "gradient_norm"):
        shown = [(step, value) for tag, step, value in found if tag == name]
        assert shown == list(zip(result.history.step.tolist(), np.float32(getattr(result.history, name)), strict=True))
    # 3 rows a step: 30 in a call
    rates = [(step, value) for tag, step, value in found if tag == "samples_per_second"]
    assert [step for step, _ in rates] == list(range(10, 601, 10))
    (path,) = tmp_path.iterdir()
    times = {event.step: event.wall_time for event in events(path)}
    assert times[600] - times[10] == pytest.approx(np.ptp(result.history.seconds), abs=1e-4)


def test_samples_per_second_are_those_of_a_call(tmp_path):
    """Two entries in the first call, one in the second, two in the third."""
    seconds = [2.0, 2.0, 3.0, 3.5, 3.5]
    expected = [(2, 20 / 2.0), (3, 10 / 1.0), (5, 20 / 0.5)]
    board = bx.TensorBoard(tmp_path)
    for n in (2, 3, 5):
        board(progress([1.0] * n, seconds=seconds[:n]))
    shown = [scalar[1:] for scalar in scalars(tmp_path) if scalar[0] == "samples_per_second"]
    assert shown == expected
    bx.TensorBoard(tmp_path).begin(progress([1.0] * 5, seconds=seconds))  # all at once
    assert [scalar[1:] for scalar in scalars(tmp_path) if scalar[0] == "samples_per_second"] == expected


def test_tensorboard_shows_no_entry_twice_after_a_resume(tmp_path):
    """The second file has what was lost, and forgets what the first run did after its last checkpoint."""
    bx.TensorBoard(tmp_path)(progress([5.0, 4.0, 3.0, 2.0, 1.0]))
    board = bx.TensorBoard(tmp_path)
    board.begin(progress([5.0, 4.0, 3.0]))
    board(progress([5.0, 4.0, 3.0, 2.5]))
    shown = [scalar[1:] for scalar in scalars(tmp_path) if scalar[0] == "outer_value"]
    assert shown == [(1, 5.0), (2, 4.0), (3, 3.0), (4, 2.5)]
    assert len(os.listdir(tmp_path)) == 2


def test_tensorboard_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(bx.UsageError, match=r"tensorboardX is not installed; pip install 'bilevax\[tensorboard\]'"):
        bx.TensorBoard(tmp_path)


class Terminal(io.StringIO):
    """A stream that counts its writes."""

    def __init__(self, is_terminal):
        super().__init__()
        self.is_terminal, self.writes = is_terminal, 0

    def isatty(self):
        return super().isatty() or self.is_terminal

    def write(self, text):
        self.writes += 1
        return super().write(text)


class Clock:
    """A clock that a test sets."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.mark.parametrize(("is_terminal", "each", "end"), [(True, 13, 2), (False, 320, 1)])
def test_progress_is_shown_now_and_then_however_many_looks_there_are(monkeypatch, is_terminal, each, end):
    out, clock, made = Terminal(is_terminal), Clock(), []
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr(show_progress, "time", clock)
    line = show_progress._line
    monkeypatch.setattr(show_progress, "_line", lambda *args: made.append(1) or line(*args))
    show, look = bx.ShowProgress(), progress([0.5], step=[1000], steps=10_000)
    show.begin(progress([]))
    for i in range(3200):  # 50 seconds
        clock.now = i / 64
        show(look._replace(step=1000 + i))
    lines = len(made)
    assert lines == -(-3200 // each)
    assert out.writes == lines
    show.end(look._replace(step=5000))
    assert len(made) == lines + 1
    assert out.writes == lines + end


def test_what_is_shown(monkeypatch):
    clock, out = Clock(), Terminal(False)
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr(show_progress, "time", clock)
    show = bx.ShowProgress()
    show.begin(progress([]))
    show(progress([0.5], step=[1000], steps=10_000, seconds=[31.0]))
    clock.now = 10.0  # 2000 steps in 10 s, compilation left aside: 7000 in 35 s
    show(progress([0.5, 0.01234], step=[1000, 3000], steps=10_000, seconds=[31.0, 41.0]))
    clock.now = 11.0
    show(progress([0.5, 0.01234], step=[1000, 3200], steps=10_000, seconds=[31.0, 42.0]))
    show.end(
        progress([0.5, np.nan], step=[1000, 3400], steps=10_000, seconds=[31.0, 72.0], code=[0, bx.Code.NONFINITE])
    )
    assert out.getvalue().splitlines() == [
        "step 1,000 of 10,000, outer value 0.500, gradient norm 1.00, 10 samples, 31.0 s",
        "step 3,000 of 10,000, outer value 0.0123, gradient norm 1.00, 20 samples, 41.0 s, about 35.0 s left",
        "step 3,400 of 10,000, outer value –, gradient norm 1.00, 20 samples, 1 min 12 s, NONFINITE",
    ]


def test_a_terminal_has_one_line_no_longer_than_it_is_wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    out = Terminal(True)
    monkeypatch.setattr(sys, "stderr", out)
    run(bx.ShowProgress(), steps=20)
    *lines, after = out.getvalue().split("\r")[1:], out.getvalue()[-1]
    assert after == "\n"
    assert out.getvalue().count("\n") == 1
    for line in lines[0]:
        text, erase, _ = line.partition("\x1b[K")
        assert erase
        assert len(text) == 39
    assert lines[0][-1].startswith("step 20 of 20, outer value ")


def test_a_stderr_that_is_gone_does_not_end_a_run(monkeypatch):
    class Gone(Terminal):
        def write(self, text):
            raise OSError

    closed = Terminal(True)
    for stream in (None, Gone(False), Gone(True), closed, closed):  # closed in a run, and before one
        monkeypatch.setattr(sys, "stderr", stream)
        assert run([bx.ShowProgress(), lambda _: closed.close()], steps=20).history.step.tolist() == [10, 20]
