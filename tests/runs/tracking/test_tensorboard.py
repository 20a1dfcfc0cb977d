"""TensorBoard shows each step once; without its package there is one warning, and all goes on."""

import errno
import os
import sys

import numpy as np
import pytest

from adabatch_jax.runs.folder.metrics_files import read_metrics
from adabatch_jax.runs.tracking.tracked_run import TrackedRun
from adabatch_jax.runs.tracking.trackers import Tracking
from adabatch_jax.schedules.plan import make_plan
from tests.runs import small_run


def _without_the_package(directory, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("tensorboardX")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    return r"the package tensorboardX isn't installed"


def _a_file_in_the_way(directory, monkeypatch):
    (directory / "tensorboard").write_text("")
    return "File exists"


def _disk_full_later(directory, monkeypatch):
    from tensorboardX.event_file_writer import EventsWriter

    original, calls = EventsWriter.write_event, []

    def write_event(self, event):
        calls.append(event)
        if len(calls) > 3:  # version, start and the first row
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(self, event)

    monkeypatch.setattr(EventsWriter, "write_event", write_event)
    return "No space left on device"


@pytest.mark.parametrize("fault", [_without_the_package, _a_file_in_the_way, _disk_full_later])
def test_one_warning_and_all_rows(fault, tmp_path, monkeypatch, capsys):
    reason = fault(tmp_path, monkeypatch)
    result = small_run.train(make_plan(4, small_run.N, "3ep"), tmp_path)
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert err.startswith("warning: TensorBoard gets nothing more of this run (") and reason in err
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [row["step"] for row in result.history]
    assert len(rows) > 3 and result.state.step == 45


def test_it_has_every_number(tmp_path):
    row = {"step": 100, "samples": np.int64(12_800), "train_loss": np.float32(0.5), "phase": 0}
    tracking = Tracking(["tensorboard"])
    tracking.start(TrackedRun("a", tmp_path, {}))
    tracking.row(row | {"examples_digest": "5e+00010", "test_loss": float("nan")})
    tracking.finish({})
    shown = _shown(tmp_path / "tensorboard")
    assert np.isnan(shown.pop("test_loss")[0][1])
    assert shown == {key: [(100, row[key])] for key in ("samples", "train_loss", "phase")}


def _events(directory):
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(directory.iterdir()):
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            yield Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def _shown(directory):
    """By tag, the steps and values that TensorBoard shows: a start hides what it does again."""
    from tensorboardX.proto.event_pb2 import SessionLog

    shown = {}
    for event in _events(directory):
        if event.session_log.status == SessionLog.START:
            shown = {t: [p for p in points if p[0] < event.step] for t, points in shown.items()}
        for value in event.summary.value:
            shown.setdefault(value.tag, []).append((event.step, value.simple_value))
    return shown


def _shown_by_tensorboard(directory):
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="TensorBoard itself isn't installed",
    )
    read = reader.EventAccumulator(str(directory))
    read.Reload()
    return {
        tag: [(event.step, event.value) for event in read.Scalars(tag)]
        for tag in read.Tags()["scalars"]
    }


@pytest.mark.parametrize("shown_in", [_shown, _shown_by_tensorboard])
def test_no_step_is_shown_twice_after_restarts(shown_in, tmp_path, faults):
    """Within one second too, where files differ in the step alone that a start went on from."""
    plan = make_plan(4, small_run.N, "14st")
    options = {"log_every": "1st", "checkpoint_every": "4st", "eval_fn": None, "eval_source": None}
    for update in (7, 6, 3):  # 7, 10 and 11: one checkpoint is passed twice
        faults(f"step.end:{update}:raise")
        with pytest.raises(Exception, match="step.end"):
            small_run.train(plan, tmp_path, **options)
    faults("")
    history = small_run.train(plan, tmp_path, **options).history
    steps = [event.step for event in _events(tmp_path / "tensorboard") if event.summary.value]
    assert len(steps) > len(set(steps))
    shown = shown_in(tmp_path / "tensorboard")
    points = [(row["step"], pytest.approx(row["train_loss"], rel=1e-6)) for row in history]
    assert shown["train_loss"] == points and len(points) == 14


def test_files_are_in_order_however_fast_starts_follow(tmp_path):
    for begin, end in ((0, 30), (10, 120), (100, 110)):
        tracking = Tracking(["tensorboard"])
        tracking.start(TrackedRun("a", tmp_path, {}, {"step": begin} if begin else None))
        for step in range(begin + 10, end + 1, 10):
            tracking.row({"step": step, "train_loss": float(step)})
        tracking.finish()
    assert [step for step, _ in _shown(tmp_path / "tensorboard")["train_loss"]] == [
        *range(10, 120, 10)
    ]
