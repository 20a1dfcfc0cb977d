"""Which checkpoint a run goes on from, and what it says of those that it can't."""

import contextlib
import json
import os
import shutil
from contextlib import closing

import jax.numpy as jnp
import pytest

from adabatch_jax.config import TrainConfig
from adabatch_jax.config.settings import Keep
from adabatch_jax.reporting import plots
from adabatch_jax.runs.checkpoints.checkpoints import Checkpoints
from adabatch_jax.runs.display.progress import Progress
from adabatch_jax.runs.folder.finished_run import find_finished
from adabatch_jax.runs.folder.folder_reading import (
    LastCheckpoint,
    obstacles,
    read_last_checkpoint,
)
from adabatch_jax.runs.folder.metrics_files import MetricsWriter
from adabatch_jax.runs.folder.run_folder import RunFolder
from adabatch_jax.system.errors import RestoreError, StorageError
from adabatch_jax.system.files import read_sealed, write_sealed
from adabatch_jax.system.watchdog import Watchdog
from adabatch_jax.training.train_state import TrainState
from tests.run_folders import (
    CONFIG,
    PLAN,
    RUN_ID,
    content,
    metrics_content,
    write_checkpoint,
    write_summary,
)


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
    write_sealed(tmp_path / "last_checkpoint.json", {"run_id": RUN_ID, "step": 30})
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


def test_where_the_plots_go_is_known_before_the_run(run):
    axes = {f"curves_{axis.name}.png" for axis in plots.AXES}
    for name in axes:
        (run / name).mkdir()
    assert {path.name for path in obstacles(run)} == axes


def test_rows_that_cannot_be_read_are_not_called_lost(run):
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    with pytest.raises(StorageError, match="metrics.jsonl is a folder where .* move it away"):
        opened(run, allow_change=("rows",))


@pytest.mark.parametrize("text", ["", "[]", '{"step": "30"}', '{"no": 1}', "[" * 100_000])
def test_a_damaged_file_about_the_newest_says_nothing(run, text):
    (run / "last_checkpoint.json").write_text(text)
    assert read_last_checkpoint(run) == LastCheckpoint()
    assert opened(run)[0] == 30


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
            StorageError, match="last_checkpoint.json: Is a directory; move it away"
        ):
            saved(tmp_path, **arguments)
    else:
        saved(tmp_path, **arguments)
        (message,) = said.messages
        assert message.startswith("warning: ") and "last_checkpoint.json" in message


@pytest.fixture
def finished(run):
    """A run's folder that was finished with checkpoint 30."""
    for name in ("config.json", "plan.json", "environment.json"):
        (run / name).write_text(json.dumps({"the file": name}))
    (run / "metrics.csv").write_text("step\n30\n")
    write_summary(run, 30)
    return run


def found(path, digest=CONFIG.digest):
    there = find_finished(path, digest)
    return there.summary and there.summary["step"], there.changed


def test_a_finished_run_is_left_alone_unless_its_last_checkpoint_is_damaged(finished):
    assert found(finished) == (30, ()) and find_finished(finished, CONFIG.digest).is_whole
    assert found(finished, TrainConfig().digest) == (None, ())
    data = finished / "checkpoints" / "30" / "state" / "data"
    data.write_bytes(data.read_bytes()[:-1])
    assert found(finished) == (30, ("checkpoints/30",))
    assert opened(finished)[0] == 20
    shutil.rmtree(finished / "checkpoints")  # nobody needs them any more
    assert found(finished) == (30, ())


@pytest.mark.parametrize(
    "name",
    [
        "config.json", "plan.json", "environment.json", "metrics.jsonl", "metrics.csv",
        "last_checkpoint.json",
    ],
)  # fmt: skip
def test_each_file_of_a_finished_run_is_looked_at(finished, name):
    path = finished / name
    whole = path.read_bytes()
    for damaged in (whole * 2, whole[:-1], whole.replace(b"e", b"f", 1), b"", None):
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        assert found(finished) == (30, (name,))
    os.mkfifo(path)
    assert found(finished) == (30, (name,))


HOSTILE = ["", "{", "[]", "{}", "null", "[" * 100_000, '{"digest": 5}', '{"step": 1e999}', "\0"]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_summary_that_no_run_wrote_is_none(finished, text):
    (finished / "summary.json").write_text(text)
    assert found(finished) == (None, ("summary.json",))


@pytest.mark.parametrize(
    "change", [{"test_accuracy": 0.99}, {"weights_digest": "0"}, {"step": 20}, {"files": {}}]
)
def test_an_edited_summary_is_none(finished, change):
    summary = json.loads((finished / "summary.json").read_text())
    (finished / "summary.json").write_text(json.dumps(summary, sort_keys=True))
    assert found(finished) == (30, ())  # the same values, written in another way
    (finished / "summary.json").write_text(json.dumps(summary | change))
    assert found(finished) == (None, ("summary.json",))


def test_the_summary_of_another_run_is_none_of_this(finished):
    write_summary(finished, 30, run_id="1" * 16)
    assert found(finished) == (30, ("checkpoints/30",))
    with RunFolder(finished) as folder:
        assert folder.find_finished(CONFIG.to_dict()).summary is None


def rows_of_another_run(run):
    (run / "metrics.jsonl").write_bytes(metrics_content(range(1, 31, 5)))


@pytest.mark.parametrize("text", [*HOSTILE, '{"run_id": "1", "step": 30, "rows_lost_at": 30}'])
def test_a_damaged_file_about_the_newest_is_set_aside_and_written_anew(run, text):
    path = run / "last_checkpoint.json"
    whole = path.read_bytes()
    path.write_text(text)
    step, (note,) = opened(run)
    assert step == 30 and "last_checkpoint.json is damaged; it is now bad-last_checkpoint" in note
    assert (run / "bad-last_checkpoint.json").read_text() == text
    assert read_sealed(path) == {"run_id": RUN_ID, "step": 30, "rows_lost_at": None}
    assert opened(run) == (30, [])
    path.write_bytes(whole.replace(b"0", b"1", 1))
    assert opened(run)[0] == 30 and (run / "bad-last_checkpoint.json-2").exists()


def test_the_file_of_another_run_is_outvoted(run):
    last = {"run_id": "1" * 16, "step": 99, "rows_lost_at": 30}
    write_sealed(run / "last_checkpoint.json", last)
    rows_of_another_run(run)  # which says nothing then: three checkpoints do
    with pytest.raises(RestoreError, match="metrics.jsonl"):
        opened(run)
    (run / "metrics.jsonl").write_bytes(metrics_content(range(0, 31, 5)))
    step, (note,) = opened(run)
    assert step == 30 and "last_checkpoint.json is another run's, unlike the check" in note
    assert read_last_checkpoint(run) == LastCheckpoint(RUN_ID, 30)


@pytest.mark.parametrize("others", [1, 3])
def test_the_rows_tell_whose_folder_it_is(run, others):
    """However many checkpoints of another run were put there."""
    for step in (10, 20):
        shutil.rmtree(run / "checkpoints" / str(step))
    for step in range(31, 31 + others):
        write_checkpoint(run, step, run_id="1" * 16, metrics={"num_bytes": 9, "sha256": "0"})
    write_sealed(run / "last_checkpoint.json", {"run_id": "1" * 16, "step": 31})
    step, notes = opened(run)
    assert step == 30 and len(notes) == others + 1
    assert opened(run) == (30, [])


def test_what_cannot_be_told_is_refused(run):
    for step in (10, 20):
        shutil.rmtree(run / "checkpoints" / str(step))
    rows_of_another_run(run)
    write_sealed(run / "last_checkpoint.json", {"run_id": "1" * 16, "step": 31})
    before = content(run)
    with pytest.raises(RestoreError, match="can't be told whose folder"):
        opened(run)
    assert content(run) == before
