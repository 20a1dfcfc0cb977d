"""What is kept, and that a kill during the removal leaves it."""

import itertools
import math

import pytest

from adabatch_jax.runs.checkpoints import retention
from adabatch_jax.runs.checkpoints.retention import Stored, removable, remove, remove_leftovers
from adabatch_jax.system.errors import StorageError


def kept_by_hand(stored, keep_newest):
    """The rule, one checkpoint at a time."""
    kept = {one.step for one in stored if one.keep}
    kept |= set(sorted(one.step for one in stored)[-keep_newest:])
    best_score, best_step = -math.inf, None
    for one in sorted(stored, key=lambda one: one.step):
        if one.score is not None and math.isfinite(one.score) and one.score >= best_score:
            best_score, best_step = one.score, one.step
    return kept | {best_step}


def test_newest_best_and_marked_are_kept():
    scores = [None, math.nan, math.inf, 0.5, 0.7]
    for chosen in itertools.product(scores, repeat=4):
        for marked in range(4):
            stored = [
                Stored(step, score, keep=position == marked)
                for position, (step, score) in enumerate(zip((9, 30, 200, 4), chosen, strict=True))
            ]
            for keep_newest in (1, 2, 5):
                kept = kept_by_hand(stored, keep_newest)
                wanted = [one.step for one in stored if one.step not in kept]
                assert removable(stored, keep_newest) == sorted(wanted)


@pytest.mark.parametrize(
    ("score", "read"),
    [(0.5, 0.5), (3, 3.0), (None, None), (math.nan, None), (-math.inf, None), ("0.5", None)]
    + [(True, None), ([], None)],
)
def test_only_a_finite_number_is_a_score(score, read):
    assert Stored.of({"step": 3, "score": score, "keep": True}) == Stored(3, read, keep=True)


def test_old_checkpoints_have_no_score():
    assert Stored.of({"step": 3}) == Stored(3, None, keep=False)


def test_a_kill_leaves_nothing_that_looks_like_a_checkpoint(tmp_path, monkeypatch):
    for step in (3, 7):
        (tmp_path / str(step) / "state").mkdir(parents=True)

    def killed(point):
        if point == "gc.mid":
            raise KeyboardInterrupt

    monkeypatch.setattr(retention, "reach", killed)
    with pytest.raises(KeyboardInterrupt):
        remove(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".removing-3", "7"]
    (tmp_path / "3/state").mkdir(parents=True)  # saved again in another life
    monkeypatch.undo()
    remove(tmp_path, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["7"]


def test_leftovers_go_and_nothing_else(tmp_path):
    stays = ["7", "bad-7", "7 (copy)", "notes.orbax-checkpoint-tmp", ".removed"]
    goes = [".removing-3", "8.orbax-checkpoint-tmp", "9.orbax-checkpoint-tmp-17"]
    for name in stays + goes:
        (tmp_path / name / "state").mkdir(parents=True)
    (tmp_path / "10.orbax-checkpoint-tmp").write_text("a file")
    (tmp_path / "11.orbax-checkpoint-tmp").symlink_to(tmp_path / "7")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(stays)
    assert (tmp_path / "7/state").is_dir()


def test_what_can_not_be_removed_is_told(tmp_path):
    with pytest.raises(StorageError, match=r"cannot remove .*/3: No such file"):
        remove(tmp_path, 3)


def test_a_stop_takes_no_planned_ones_place():
    stored = [Stored(10), Stored(13, is_planned=False), Stored(20), Stored(27, is_planned=False)]
    assert removable(stored, keep_newest=1) == [10, 13]
    assert removable(stored[:2], keep_newest=1) == []
    assert removable([*stored, Stored(30)], keep_newest=2) == [10, 13, 27]
