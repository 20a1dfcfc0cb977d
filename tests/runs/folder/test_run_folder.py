"""Which checkpoint a run goes on from, and what it says of those that it can't."""

import json
import shutil

import pytest

from adabatch_jax.config import TrainConfig
from adabatch_jax.runs.folder.ledger import Ledger, read_ledger
from adabatch_jax.runs.folder.metrics import MetricsWriter
from adabatch_jax.runs.folder.run_folder import RunFolder, finished_summary
from adabatch_jax.system.errors import RestoreError, StorageError
from tests.run_folders import CONFIG, metrics_content, write_checkpoint

RUN_ID = "0" * 16


@pytest.fixture
def run(tmp_path):
    """A run's folder with checkpoints 10, 20 and 30."""
    for step in (10, 20, 30):
        write_checkpoint(tmp_path, step)
    (tmp_path / "metrics.jsonl").write_bytes(metrics_content(range(0, 31, 5)))
    Ledger(RUN_ID, 30).write(tmp_path)
    return tmp_path


def opened(path):
    with RunFolder(path) as folder:
        return folder.checkpoint and folder.checkpoint.step, folder.notes


def test_the_newest_is_taken(run):
    assert opened(run) == (30, [])


def test_a_checkpoint_of_another_run_is_skipped_by_its_id(run):
    write_checkpoint(run, 31, run_id="1" * 16)
    # It would do by its rows: another run may have none yet.
    (run / "metrics.jsonl").write_bytes(metrics_content(range(0, 32, 5)))
    step, (note,) = opened(run)
    assert step == 30 and "checkpoint 31 can't be used (it is another run's)" in note
    assert opened(run) == (30, [])


def test_a_newest_one_that_is_gone_is_told(run):
    shutil.rmtree(run / "checkpoints" / "30")
    step, (note,) = opened(run)
    assert step == 20 and note.startswith("warning: checkpoint 30 is gone")


def test_a_start_that_is_killed_having_put_one_aside_is_followed_by_one_that_tells(run):
    (run / "checkpoints" / "30" / "digests" / "manifest").unlink()
    for _ in range(2):
        step, (note,) = opened(run)
        assert step == 20 and "checkpoint 30 can't be used" in note and "now bad-30" in note


@pytest.mark.parametrize("name", ["metrics.jsonl", "metrics.csv"])
def test_rows_that_cannot_be_read_are_not_called_lost(name, run):
    if name == "metrics.csv":
        (run / name).mkdir()
        assert opened(run) == (30, [])  # nobody needs it yet
        (run / "metrics.jsonl").write_text("")
    else:
        (run / name).unlink()
        (run / name).mkdir()
    with pytest.raises(StorageError, match=f"cannot read .*{name}: Is a directory"):
        opened(run)


@pytest.mark.parametrize("text", ["", "[]", '{"step": "30"}', '{"no": 1}', "[" * 100_000])
def test_a_damaged_ledger_says_nothing(run, text):
    (run / "last_checkpoint.json").write_text(text)
    assert read_ledger(run) == Ledger()
    assert opened(run) == (30, [])


def test_rows_that_are_gone_stay_known_as_lost(run):
    (run / "metrics.jsonl").unlink()
    with RunFolder(run) as folder:
        assert folder.checkpoint.step == 30
        assert folder.position_of_rows() is None and "are gone" in folder.notes[-1]
    # Killed before the next checkpoint, which the new rows belong to.
    with MetricsWriter(run) as metrics:
        metrics.write({"step": 31})
    with RunFolder(run) as folder:
        assert folder.checkpoint.step == 30 and folder.notes == []
        assert folder.position_of_rows() is None
    write_checkpoint(run, 35)  # says that rows before it exist
    with pytest.raises(RestoreError, match="metrics.jsonl and metrics.csv") as caught:
        for step in (30, 20, 10):
            shutil.rmtree(run / "checkpoints" / str(step))
        opened(run)
    assert json.loads((run / "last_checkpoint.json").read_text())["rows_lost_at"] == 30
    assert "35" in str(caught.value)


def test_a_new_run_has_an_id_of_its_own(tmp_path):
    ids = set()
    for name in "ab":
        with RunFolder(tmp_path / name) as folder:
            ids.add(folder.run_id)
            folder.note_saved(5)
        assert read_ledger(tmp_path / name) == Ledger(folder.run_id, 5)
    assert len(ids) == 2


def test_a_finished_run_is_left_alone_unless_its_last_checkpoint_or_rows_are_damaged(run):
    (run / "summary.json").write_text(
        json.dumps({"step": 30, "samples": 9, "total_seconds": 1.0, "config_digest": CONFIG.digest})
    )
    assert finished_summary(run, CONFIG.digest)["step"] == 30
    assert finished_summary(run, TrainConfig().digest) is None
    rows = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(rows.replace(b"9", b"8"))
    assert finished_summary(run, CONFIG.digest) is None
    (run / "metrics.jsonl").unlink()  # with no other file to put them right from
    assert finished_summary(run, CONFIG.digest)["step"] == 30
    (run / "metrics.jsonl").write_bytes(rows)
    data = run / "checkpoints" / "30" / "state" / "data"
    data.write_bytes(data.read_bytes()[:-1])
    assert finished_summary(run, CONFIG.digest) is None
    assert opened(run)[0] == 20
    shutil.rmtree(run / "checkpoints")  # nobody needs them any more
    assert finished_summary(run, CONFIG.digest)["step"] == 30
