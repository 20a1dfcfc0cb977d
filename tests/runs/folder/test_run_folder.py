"""Which checkpoint a run goes on from, and what it says of those that it can't."""

import contextlib
import json
import os
import shutil
from contextlib import closing
from pathlib import Path

import jax.numpy as jnp
import pytest

from adabatch_jax.config import TrainConfig
from adabatch_jax.config.settings import Keep
from adabatch_jax.runs.checkpoints.checkpoints import Checkpoints
from adabatch_jax.runs.display.progress import Progress
from adabatch_jax.runs.folder.folder_reading import (
    LastCheckpoint,
    finished_summary,
    read_last_checkpoint,
)
from adabatch_jax.runs.folder.metrics_files import MetricsWriter
from adabatch_jax.runs.folder.run_folder import RunFolder
from adabatch_jax.system.errors import RestoreError, StorageError
from adabatch_jax.system.watchdog import Watchdog
from adabatch_jax.training.train_state import TrainState
from tests.run_folders import CONFIG, PLAN, content, metrics_content, write_checkpoint

RUN_ID = "0" * 16


class Said(Progress):
    def __init__(self):
        self.messages = []

    def message(self, text):
        self.messages.append(text)


@pytest.fixture
def run(tmp_path):
    """A run's folder with checkpoints 10, 20 and 30."""
    for step in (10, 20, 30):
        write_checkpoint(tmp_path, step)
    (tmp_path / "metrics.jsonl").write_bytes(metrics_content(range(0, 31, 5)))
    (tmp_path / "last_checkpoint.json").write_text(json.dumps({"run_id": RUN_ID, "step": 30}))
    return tmp_path


def opened(path, **arguments):
    with RunFolder(path, **arguments) as folder:
        if folder.checkpoint is not None:
            folder.put_right()
        return folder.checkpoint and folder.checkpoint.step, folder.notes


def test_the_newest_is_taken(run):
    assert opened(run) == (30, [])


def test_a_checkpoint_of_another_run_is_skipped_by_its_id(run):
    write_checkpoint(run, 31, run_id="1" * 16)
    step, (note,) = opened(run)
    assert step == 30 and "checkpoint 31 can't be used (it is another run's)" in note
    assert opened(run) == (30, [])


def test_a_newest_one_that_is_gone_is_told(run):
    shutil.rmtree(run / "checkpoints" / "30")
    step, (note,) = opened(run)
    assert step == 20 and note.startswith("warning: checkpoint 30 is gone")


def test_until_it_is_put_right_nothing_is_changed(run):
    (run / "checkpoints" / "30" / "manifest").unlink()
    (run / "metrics.jsonl").write_text("garbage")
    before = content(run)
    with RunFolder(run, allow_change=("rows",)) as folder:
        assert folder.checkpoint.step == 20
        assert content(run) == before and folder.notes == folder.changes == []
        folder.put_right()
        assert (run / "checkpoints" / "bad-30").is_dir()
        assert (run / "bad-metrics-20.jsonl").read_text() == "garbage"
        assert len(folder.notes) == 2


def test_a_start_that_is_killed_having_put_one_aside_is_followed_by_one_that_tells(run):
    (run / "checkpoints" / "30" / "manifest").unlink()
    for _ in range(2):
        step, (note,) = opened(run)
        assert step == 20 and "checkpoint 30 can't be used" in note and "now bad-30" in note


def test_rows_that_cannot_be_read_are_not_called_lost(run):
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    with pytest.raises(
        StorageError, match="cannot read .*metrics.jsonl: Is a directory; move it away"
    ):
        opened(run, allow_change=("rows",))


@pytest.mark.parametrize("text", ["", "[]", '{"step": "30"}', '{"no": 1}', "[" * 100_000])
def test_a_damaged_file_about_the_newest_says_nothing(run, text):
    (run / "last_checkpoint.json").write_text(text)
    assert read_last_checkpoint(run) == LastCheckpoint()
    assert opened(run) == (30, [])


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_a_file_about_the_newest_that_can_not_be_read_is_not_taken_for_none(run, make):
    (run / "last_checkpoint.json").unlink(missing_ok=True)
    make(run / "last_checkpoint.json")
    with pytest.raises(StorageError, match=r"cannot read .*last_checkpoint.json: .*; move it away"):
        opened(run)


def test_lost_rows_are_refused_and_nothing_is_changed(run):
    rows = run / "metrics.jsonl"
    shutil.rmtree(run / "checkpoints" / "30" / "state")  # would be set aside
    for damaged in (rows.read_bytes().replace(b"9", b"8"), rows.read_bytes()[:30], None):
        rows.unlink(missing_ok=True)
        if damaged is not None:
            rows.write_bytes(damaged)
        before = content(run)
        with pytest.raises(RestoreError, match="metrics.jsonl.*--allow-change rows"):
            opened(run)
        assert content(run) == before


def test_lost_rows_may_be_left_behind_once_and_stay_known_as_lost(run):
    rows, damaged = run / "metrics.jsonl", metrics_content(range(1, 31, 5))
    rows.write_bytes(damaged)
    with RunFolder(run, allow_change=("rows",)) as folder:
        folder.put_right()
        assert folder.checkpoint.step == 30 and "without the rows" in folder.notes[-1]
        assert folder.changes == [{"kind": "rows_lost", "step": 30}]
    assert (run / "bad-metrics-30.jsonl").read_bytes() == damaged
    # Killed before the next checkpoint, which the new rows belong to.
    with closing(MetricsWriter(run)) as metrics:
        metrics.write({"step": 31})
    for allowed in ((), ("rows",)):
        with RunFolder(run, allow_change=allowed) as folder:
            folder.put_right()
            assert folder.checkpoint.step == 30 and folder.notes == []
            assert folder.changes == [{"kind": "rows_lost", "step": 30}]
    write_checkpoint(run, 35)  # says that rows before it exist
    with pytest.raises(RestoreError, match="metrics.jsonl"):
        opened(run)
    assert (run / "bad-metrics-30.jsonl").read_bytes() == damaged


def saved(path, step=5, before=lambda: None, progress=None, on_save_error="stop"):
    """Saves a checkpoint as a run does; returns the folder."""
    state = TrainState(jnp.int32(step), {"w": jnp.ones(2)}, {}, ())
    with RunFolder(path) as folder, Watchdog(None, None) as watchdog:
        folder.open(Keep(), None, on_save_error, watchdog, progress or Progress())
        folder.begin(PLAN, {}, False)
        before()
        folder.save(step, state, {})
        folder.wait_for_saves(step)
        folder.close()
    return folder


@pytest.mark.parametrize("failure", [None, KeyError("first")])
def test_the_first_error_is_the_one_that_is_raised(tmp_path, failure, monkeypatch):
    def fail(self):
        raise StorageError(type(self).__name__)

    for part in (Checkpoints, MetricsWriter):
        monkeypatch.setattr(part, "close", fail)
    with RunFolder(tmp_path) as folder, Watchdog(None, None) as watchdog:
        folder.open(Keep(), None, "stop", watchdog, Progress())
        folder.begin(PLAN, {}, False)
        first = StorageError if failure is None else KeyError
        with pytest.raises(first, match="Checkpoints" if failure is None else "first"):
            with contextlib.ExitStack() as stack:
                stack.push(folder.close)
                if failure is not None:
                    raise failure


def test_a_new_run_has_an_id_of_its_own(tmp_path):
    ids = set()
    for name in "ab":
        saved(tmp_path / name)
        last = read_last_checkpoint(tmp_path / name)
        assert last == LastCheckpoint(last.run_id, 5) and last.run_id
        ids.add(last.run_id)
    assert len(ids) == 2


@pytest.mark.parametrize("on_error", ["stop", "warn"])
def test_what_is_noted_of_a_checkpoint_is_as_needed_as_the_checkpoint(tmp_path, on_error):
    def block():
        (tmp_path / "last_checkpoint.json").mkdir()

    said = Said()
    arguments = {"before": block, "progress": said, "on_save_error": on_error}
    if on_error == "stop":
        with pytest.raises(
            StorageError, match="cannot read .*last_checkpoint.json: Is a directory; move it away"
        ):
            saved(tmp_path, **arguments)
    else:
        saved(tmp_path, **arguments)
        (message,) = said.messages
        assert message.startswith("warning: ") and "last_checkpoint.json" in message


def test_a_finished_run_is_left_alone_unless_its_last_checkpoint_or_rows_are_damaged(run):
    (run / "summary.json").write_text(
        json.dumps({"step": 30, "samples": 9, "total_seconds": 1.0, "config_digest": CONFIG.digest})
    )
    assert finished_summary(run, CONFIG.digest)["step"] == 30
    assert finished_summary(run, TrainConfig().digest) is None
    rows = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(rows.replace(b"9", b"8"))
    assert finished_summary(run, CONFIG.digest) is None
    (run / "metrics.jsonl").unlink()
    assert finished_summary(run, CONFIG.digest) is None
    (run / "metrics.jsonl").write_bytes(rows)
    data = run / "checkpoints" / "30" / "state" / "data"
    data.write_bytes(data.read_bytes()[:-1])
    assert finished_summary(run, CONFIG.digest) is None
    assert opened(run)[0] == 20
    shutil.rmtree(run / "checkpoints")  # nobody needs them any more
    assert finished_summary(run, CONFIG.digest)["step"] == 30
