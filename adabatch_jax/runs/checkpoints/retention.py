"""Which checkpoints are kept, and how the others go: a kill at any instant leaves the kept ones."""

import contextlib
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adabatch_jax.runs.checkpoints.found import is_leftover
from adabatch_jax.system.fault_points import reach
from adabatch_jax.system.files import storage_errors


@dataclass(frozen=True)
class Stored:
    """What decides whether a checkpoint is kept.

    Attributes:
      step: finished updates.
      score: what is best where it is highest; None where nothing was measured.
      keep: whether it is kept whatever comes.
      is_planned: whether it was due, or a stop made it be saved.
    """

    step: int
    score: float | None = None
    keep: bool = False
    is_planned: bool = True

    @classmethod
    def of(cls, run: Mapping[str, Any]) -> "Stored":
        """What a checkpoint's JSON values say; a score that is no finite number is none."""
        score = run.get("score")
        is_number = isinstance(score, int | float) and not isinstance(score, bool)
        finite = float(score) if is_number and abs(score) < math.inf else None
        return cls(
            run["step"], finite, run.get("keep") is True, run.get("is_planned", True) is True
        )


def removable(stored: Sequence[Stored], keep_newest: int) -> list[int]:
    """The steps that need not be kept, oldest first.

    Kept are the newest, the newest `keep_newest` that were planned, the one with the best score
    (of equals the newest) and those that are marked. A NaN would be the best of all, so only
    finite scores count.

    >>> scores = {10: 0.7, 20: 0.9, 30: 0.9, 40: float("nan"), 50: None}
    >>> removable([Stored(step, score) for step, score in scores.items()], keep_newest=1)
    [10, 20, 40]
    """
    ordered = sorted(stored, key=lambda one: one.step)
    scored = [one for one in ordered if one.score is not None and math.isfinite(one.score)]
    best = max(scored, key=lambda one: (one.score, one.step), default=None)
    planned = [one for one in ordered if one.is_planned]
    newest = {one.step for one in (*planned[-keep_newest:], *ordered[-1:])}
    return [
        one.step for one in ordered if one.step not in newest and one is not best and not one.keep
    ]


def remove(directory: Path, step: int) -> None:
    """Removes a checkpoint: it has gone before the first of its files goes.

    Raises:
      StorageError: it can't be renamed.
    """
    reach("gc.before")
    aside = directory / f".removing-{step}"
    _delete(aside)
    with storage_errors(directory / str(step), action="remove"):
        os.rename(directory / str(step), aside)
    reach("gc.mid")
    _delete(aside)


def leftovers(directory: Path) -> list[str]:
    """The names of what a kill left behind of a save or a removal, or a live run is at."""
    with storage_errors(directory, action="read"):
        names = os.listdir(directory) if directory.exists() else []
    return sorted(filter(is_leftover, names))


def remove_leftovers(directory: Path) -> None:
    """Removes what a kill left behind of a save or a removal; only where no other run is alive."""
    for name in leftovers(directory):
        _delete(directory / name)


def _delete(path: Path) -> None:
    # What doesn't go now, as an open file on NFS, goes at the next start.
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink()
