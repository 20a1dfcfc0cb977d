"""Which checkpoints are kept, and how the others go: a kill at any instant leaves the kept ones."""

import contextlib
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adabatch_jax.runs.checkpoints.verifying import (
    Damaged,
    committed_steps,
    leftovers,
    read_run,
)
from adabatch_jax.system.errors import StorageError
from adabatch_jax.system.fault_points import reach
from adabatch_jax.system.files import storage_errors


def delete_old(
    directory: Path, saved: int, newest: int, scores: Mapping[int, float]
) -> list[StorageError]:
    """Deletes what a kill left behind and what need not be kept, never the step `saved`.

    What is damaged, or can't be read now, takes no other's place among those that are kept, and
    isn't ours to delete; the latter is returned.
    """
    delete_leftovers(directory)
    runs, unreadable = {}, []
    for step in committed_steps(directory):
        try:
            runs[step] = read_run(directory / str(step))
        except Damaged:
            continue
        except StorageError as error:
            unreadable.append(error)
    for step in old_steps(runs, newest, scores):
        if step != saved:
            _delete(directory, step)
    return unreadable


def old_steps(
    runs: Mapping[int, Mapping[str, Any]], newest: int, scores: Mapping[int, float]
) -> list[int]:
    """The steps that need not be kept, oldest first.

    Kept are the newest, the newest `newest` that were due (a stop makes others be saved), the one
    with the best score and those that are marked for good.

    Args:
      runs: the checkpoints' own values, by step: "score", "is_planned", "keep".
      newest: at least 1.
      scores: as in `best_first`.

    >>> runs = {10: {"score": 0.7}, 20: {"score": 0.9}, 30: {"keep": True}, 40: {}, 50: {}}
    >>> old_steps(runs, newest=1, scores={})
    [10, 40]
    >>> old_steps(runs, newest=1, scores={40: 0.95})
    [10, 20]
    """
    steps = sorted(runs)
    planned = [step for step in steps if runs[step].get("is_planned", True)]
    kept = {*planned[-newest:], *steps[-1:], *best_first(runs, scores)[:1]}
    return [step for step in steps if step not in kept and not runs[step].get("keep")]


def best_first(runs: Mapping[int, Mapping[str, Any]], scores: Mapping[int, float]) -> list[int]:
    """The steps whose score is known, by it, best first; of equals the newest.

    A NaN would be the best of all, so only finite scores count.

    Args:
      runs: the checkpoints' own values, by step: "score".
      scores: larger is better; also those that were measured after a checkpoint was saved.

    >>> best_first({10: {"score": 0.7}, 20: {"score": 0.9}, 30: {}}, {10: 0.9, 40: 1.0})
    [20, 10]
    """
    known = {step: scores.get(step, run.get("score")) for step, run in runs.items()}
    scored = [step for step, score in known.items() if score is not None and math.isfinite(score)]
    return sorted(scored, key=lambda step: (known[step], step), reverse=True)


def delete_leftovers(directory: Path) -> None:
    """Deletes what a kill left of a save or a deletion; no other process may be at work."""
    for name in leftovers(directory):
        _delete_files(directory / name)


def _delete(directory: Path, step: int) -> None:
    """Deletes a checkpoint: it has gone before the first of its files goes."""
    reach("gc.before")
    aside = directory / f".removing-{step}"
    _delete_files(aside)
    with storage_errors(directory / str(step), action="remove"):
        os.rename(directory / str(step), aside)
    reach("gc.mid")
    _delete_files(aside)


def _delete_files(path: Path) -> None:
    # What doesn't go now, as an open file on NFS, goes at the next save or start.
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink()
