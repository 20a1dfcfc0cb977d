"""What a start goes on from in a run's folder, and how what it can't go on with is set aside."""

import dataclasses
import os
from collections.abc import Collection
from pathlib import Path

from adabatch_jax.runs.checkpoints.verifying import Found, set_aside
from adabatch_jax.runs.folder.folder_reading import (
    CHECKPOINTS,
    LAST_CHECKPOINT,
    LastCheckpoint,
    check_no_obstacles,
    find_checkpoint,
    position_of_rows,
    read_last_checkpoint,
)
from adabatch_jax.runs.folder.metrics_files import MetricsPosition
from adabatch_jax.system.errors import RestoreError
from adabatch_jax.system.files import storage_errors, write_atomically, write_sealed


@dataclasses.dataclass(frozen=True)
class StartPoint:
    """What a start finds in a run's folder.

    Attributes:
      checkpoint: the newest sound one; None where none was saved yet.
      rows: where the rows of metrics before it end; None where they were lost, or it is none.
      loses_rows: whether they were lost since the last start.
      rejected: newer checkpoints, and why not to use them, newest first.
    """

    checkpoint: Found | None = None
    rows: MetricsPosition | None = None
    loses_rows: bool = False
    rejected: Collection[tuple[int, str]] = ()


def find_start(
    path: Path, known: Collection[tuple[int, str]] = (), may_lose_rows: bool = False
) -> StartPoint:
    """Finds the checkpoint to go on from, and whether its rows are lost; changes nothing.

    Checkpoints that are `known` not to be usable, and why, are taken as given.

    Raises:
      RestoreError: there were checkpoints, and none of them is sound; or rows before the newest
        one are damaged or missing, and that may not be.
      StorageError: something can't be read, or a folder lies where a run writes a file.
    """
    check_no_obstacles(path)
    checkpoint, rejected = find_checkpoint(path, known)
    if checkpoint is None:
        return StartPoint()
    try:
        rows = position_of_rows(path, checkpoint)
    except RestoreError:
        if not may_lose_rows:
            raise
        return StartPoint(checkpoint, None, True, rejected)
    return StartPoint(checkpoint, rows, False, rejected)


def put_folder_right(path: Path, start: StartPoint) -> tuple[LastCheckpoint, list[str]]:
    """Sets aside what a run can't go on with from the checkpoint of `start`.

    Returns what last_checkpoint.json says then, and a line for people on each thing.
    """
    here, run_id = start.checkpoint.step, start.checkpoint.run["run_id"]
    last, notes = read_last_checkpoint(path), []
    if last.run_id != run_id:
        notes.append(_set_aside_last_checkpoint(path, last))
        last = LastCheckpoint(run_id, here)
        write_last_checkpoint(path, last)
    if start.loses_rows:
        notes.append(_set_aside_rows(path, here))
        last = dataclasses.replace(last, rows_lost_at=here)
        write_last_checkpoint(path, last)
    newest = last.step or 0
    if newest > here and newest not in dict(start.rejected):
        # A start that was killed may not have got to tell it.
        is_aside = (path / CHECKPOINTS / f"bad-{newest}").exists()
        why = f"can't be used and is now bad-{newest}" if is_aside else "is gone"
        notes.append(
            f"warning: checkpoint {newest} {why}, and the run goes on from checkpoint {here}"
        )
    for step, reason in start.rejected:
        moved = set_aside(path / CHECKPOINTS, step)
        notes.append(
            f"warning: checkpoint {step} can't be used ({reason}); it is now {moved.name}, "
            f"and the run goes on from checkpoint {here}"
        )
    return last, notes


def write_last_checkpoint(path: Path, last: LastCheckpoint) -> None:
    """Writes what a run's folder says of its newest checkpoint."""
    write_sealed(path / LAST_CHECKPOINT, dataclasses.asdict(last))


def _set_aside_last_checkpoint(path: Path, last: LastCheckpoint) -> str:
    """Makes way for the file about the newest checkpoint, where it isn't what this run wrote."""
    if not os.path.lexists(path / LAST_CHECKPOINT):
        return f"note: {LAST_CHECKPOINT} is missing, and is written anew"
    moved = set_aside(path, LAST_CHECKPOINT)
    what = "damaged" if last.run_id is None else "another run's, unlike the checkpoints"
    return f"warning: {LAST_CHECKPOINT} is {what}; it is now {moved.name}, and is written anew"


def _set_aside_rows(path: Path, step: int) -> str:
    """Makes way for other rows where some were lost."""
    rows, aside = path / "metrics.jsonl", path / f"bad-metrics-{step}.jsonl"
    with storage_errors(path):
        if rows.exists() and not aside.exists():
            os.rename(rows, aside)
    write_atomically(rows, b"")
    return (
        f"warning: the run goes on without the rows up to update {step:,}; what was left of them "
        f"is {aside.name}"
    )
