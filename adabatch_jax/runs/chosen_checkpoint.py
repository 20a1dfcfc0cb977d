"""Which of a run's checkpoints is read where nothing is trained: the newest, the best, a step's."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from adabatch_jax.config.settings import TrainConfig
from adabatch_jax.runs.checkpoints.deleting_old import best_first
from adabatch_jax.runs.checkpoints.verifying import (
    Damaged,
    Found,
    check_checkpoint,
    committed_steps,
    read_run,
)
from adabatch_jax.runs.folder.folder_reading import (
    CHECKPOINTS,
    find_checkpoint,
    not_readable,
    run_here,
)
from adabatch_jax.runs.folder.metrics_files import read_metrics
from adabatch_jax.runs.folder.opened_folder import opened
from adabatch_jax.runs.folder.workdir_choice import is_run
from adabatch_jax.system.errors import RestoreError, UsageError

T = TypeVar("T")


def from_checkpoint(
    workdir: str | os.PathLike, best: bool, step: int | None, use: Callable[[Found], T]
) -> T:
    """Returns what `use` makes of a checkpoint of a run; nothing in the folder is changed.

    Its files are verified before. Where `use` raises `Damaged`, the newest one before it is taken,
    as by a run that goes on, or the next best.

    Args:
      best: take the one with the best score instead of the newest.
      step: take that of this update.

    Raises:
      UsageError: there is no run, or no such checkpoint; the sentence lists those there are.
      RestoreError: none of those that may be taken is sound.
      StorageError: they can't be read.
    """
    with opened(workdir, "workdir") as folder:
        return _from_folder(folder.path, best, step, use)


def _from_folder(path: Path, best: bool, step: int | None, use: Callable[[Found], T]) -> T:
    if best and step is not None:
        raise UsageError("best and step: give one of them, each chooses a checkpoint.")
    if not path.is_dir():
        raise UsageError(f"there is no run's folder {str(path)!r}.")
    if not is_run(path):
        raise UsageError(f"{str(path)!r} is no run's folder: it has no config.json.")
    if best or step is not None:
        return _of_those(path, _best_first(path) if best else [_existing(path, step)], use)
    rejected = []
    while True:
        found, rejected = find_checkpoint(path, rejected)
        if found is None:
            raise UsageError(f"the run in {path} has saved no checkpoint yet.")
        try:
            return use(found)
        except Damaged as error:
            rejected.append((found.step, str(error)))


def config_of(found: Found) -> TrainConfig | None:
    """The settings of a run of the command; None of one of `fit` alone."""
    identity = found.run["identity"]
    if not {"dataset", "model", "batch_schedule"} <= identity.keys():
        return None
    return TrainConfig.from_dict(identity, origin=f"the checkpoint {found.path}")


def _of_those(path: Path, steps: list[int], use: Callable[[Found], T]) -> T:
    reasons, run_id = [], run_here(path)
    for step in steps:
        try:
            found = check_checkpoint(path / CHECKPOINTS / str(step))
            reason = not_readable(found.run)
            if reason is None and found.run["run_id"] == run_id:
                return use(found)
            reasons.append(reason or "it is another run's")
        except Damaged as error:
            reasons.append(str(error))
    raise RestoreError(
        f"checkpoint {steps[0]} in {path / CHECKPOINTS} can't be used ({reasons[0]})."
    )


def _existing(path: Path, step: int) -> int:
    steps = committed_steps(path / CHECKPOINTS)
    if step not in steps:
        there = f"there are {', '.join(map(str, steps))}" if steps else "there are none yet"
        raise UsageError(f"the run in {path} has no checkpoint of update {step}; {there}.")
    return step


def _best_first(path: Path) -> list[int]:
    """The steps whose score is known, the one that is kept as the best first."""
    runs: dict[int, Mapping[str, Any]] = {}
    for step in committed_steps(path / CHECKPOINTS):
        try:
            run = read_run(path / CHECKPOINTS / str(step))
        except Damaged:
            continue
        if not_readable(run) is None:
            runs[step] = run
    steps = best_first(runs, _scores_of_rows(path, runs))
    if not steps:
        raise UsageError(
            f"no checkpoint of the run in {path} has a score (--keep-best); there are "
            f"{', '.join(map(str, runs)) or 'none'}."
        )
    return steps


def _scores_of_rows(path: Path, runs: Mapping[int, Mapping[str, Any]]) -> dict[int, float]:
    """What was measured after a checkpoint was saved, as where a stop came between."""
    rows = path / "metrics.jsonl"
    newest = Found(max(runs), path, runs[max(runs)], {}) if runs else None
    config = config_of(newest) if newest else None
    if config is None or config.keep.score is None or not rows.is_file():
        return {}
    scores = {row["step"]: config.keep.score.of(row) for row in read_metrics(rows) if "step" in row}
    return {step: score for step, score in scores.items() if score is not None}
