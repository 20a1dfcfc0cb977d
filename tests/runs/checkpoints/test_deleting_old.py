"""What is kept, and that a kill during the deletion leaves it."""

import itertools
import math

import pytest

from adabatch_jax.runs.checkpoints import deleting_old
from adabatch_jax.runs.checkpoints.deleting_old import delete_leftovers, delete_old, old_steps
from adabatch_jax.runs.checkpoints.verifying import read_run
from adabatch_jax.system.errors import StorageError
from tests.runs.checkpoints.conftest import names
from tests.runs.checkpoints.test_verifying import write_checkpoint


def kept_by_hand(runs, newest):
    """The rule, one checkpoint at a time."""
    kept = {step for step, run in runs.items() if run["keep"]}
    kept |= set(sorted(runs)[-newest:])
    best_score, best_step = -math.inf, None
    for step, run in sorted(runs.items()):
        score = run["score"]
        if score is not None and math.isfinite(score) and score >= best_score:
            best_score, best_step = score, step
    return kept | {best_step}


def test_newest_best_and_marked_are_kept():
    scores = [None, math.nan, math.inf, 0.5, 0.7]
    for chosen in itertools.product(scores, repeat=4):
        for marked in range(4):
            runs = {
                step: {"score": score, "keep": position == marked}
                for position, (step, score) in enumerate(zip((9, 30, 200, 4), chosen, strict=True))
            }
            for newest in (1, 2, 5):
                wanted = sorted(runs.keys() - kept_by_hand(runs, newest))
                assert old_steps(runs, newest, {}) == wanted


def test_a_stop_takes_no_planned_ones_place():
    runs = {step: {"is_planned": step % 10 == 0} for step in (10, 13, 20, 27)}
    assert old_steps(runs, 1, {}) == [10, 13]
    assert old_steps({step: runs[step] for step in (10, 13)}, 1, {}) == []
    assert old_steps({**runs, 30: {}}, 2, {}) == [10, 13, 27]


def test_a_kill_leaves_nothing_that_looks_like_a_checkpoint(tmp_path, monkeypatch):
    for step in (3, 7):
        write_checkpoint(tmp_path, step)

    def killed(point):
        if point == "gc.mid":
            raise KeyboardInterrupt

    monkeypatch.setattr(deleting_old, "reach", killed)
    with pytest.raises(KeyboardInterrupt):
        delete_old(tmp_path, 7, 1, {})
    assert names(tmp_path) == [".removing-3", "7"]
    write_checkpoint(tmp_path, 3)  # saved again in another life
    monkeypatch.undo()
    delete_old(tmp_path, 7, 1, {})
    assert names(tmp_path) == ["7"]


def test_what_is_damaged_or_was_just_saved_stays(tmp_path):
    for step in (3, 5, 7, 9):
        write_checkpoint(tmp_path, step)
    (tmp_path / "3/manifest").unlink()
    delete_old(tmp_path, saved=5, newest=1, scores={})
    assert names(tmp_path) == ["3", "5", "9"]


def test_what_can_not_be_read_stays_and_takes_no_others_place(tmp_path, monkeypatch):
    for step in (3, 5, 7, 9):
        write_checkpoint(tmp_path, step)

    def refuse(path):
        if path.name in ("3", "7"):
            raise StorageError(f"cannot read {path}.")
        return read_run(path)

    monkeypatch.setattr(deleting_old, "read_run", refuse)
    unread = delete_old(tmp_path, saved=9, newest=2, scores={})
    assert [str(error) for error in unread] == [f"cannot read {tmp_path / s}." for s in "37"]
    assert names(tmp_path) == ["3", "5", "7", "9"]
    monkeypatch.undo()
    assert delete_old(tmp_path, saved=9, newest=2, scores={}) == []
    assert names(tmp_path) == ["7", "9"]


def test_leftovers_go_and_nothing_else(tmp_path):
    stays = ["7", "bad-7", "7 (copy)", "notes.orbax-checkpoint-tmp", ".removed"]
    goes = [".removing-3", "8.orbax-checkpoint-tmp", "9.orbax-checkpoint-tmp-17"]
    for name in stays + goes:
        (tmp_path / name / "state").mkdir(parents=True)
    (tmp_path / "10.orbax-checkpoint-tmp").write_text("a file")
    (tmp_path / "11.orbax-checkpoint-tmp").symlink_to(tmp_path / "7")
    delete_leftovers(tmp_path)
    assert names(tmp_path) == sorted(stays)
    assert (tmp_path / "7/state").is_dir()


def test_what_can_not_be_deleted_is_told(tmp_path, monkeypatch):
    for step in (3, 7):
        write_checkpoint(tmp_path, step)
    monkeypatch.setattr(
        deleting_old, "reach", lambda point: (tmp_path / "3").rename(tmp_path / "x")
    )
    with pytest.raises(StorageError, match=r"cannot remove .*/3: No such file"):
        delete_old(tmp_path, 7, 1, {})
