"""What a run's folder holds, read without changing anything; neither JAX nor Orbax.

A start of a run and the doctor ask the same functions.
"""

import collections
import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from adabatch_jax.runs.checkpoints.verifying import (
    Damaged,
    Found,
    committed_steps,
    newest_good,
    other_checkpoints,
    read_run,
)
from adabatch_jax.runs.folder.metrics_files import MetricsPosition
from adabatch_jax.system.errors import NotAsWritten, RestoreError, StorageError
from adabatch_jax.system.files import read_file, read_sealed, storage_errors, temporary_path

CHECKPOINTS = "checkpoints"
LOGS = "logs"  # of each process, where there are several
LAST_CHECKPOINT = "last_checkpoint.json"
SUMMARY = "summary.json"
STOPPED_AT_PHASE = "stopped_at_phase"  # in the summary of a run that isn't finished yet
DATASET = "dataset.json"
TOKENIZER = "tokenizer.json"  # as the run's text was made tokens by, wherever that file is now
ENVIRONMENT = "environment.json"
# What a finished run's summary has the digests of.
BEFORE_SUMMARY = (
    "config.json", "plan.json", DATASET, TOKENIZER, ENVIRONMENT, "metrics.jsonl",
    "metrics.csv", LAST_CHECKPOINT,
)  # fmt: skip

REPORT = ("report.html", *(f"curves_{axis}.png" for axis in ("epochs", "updates", "seconds")))

# What a checkpoint's own values are laid out as; others are another program's.
FORMAT = 6
_KEYS = {
    "step", "samples", "seed", "plan", "fingerprint", "examples_digest", "order_digest", "data",
    "decisions", "pending_row", "seconds", "phase_seconds", "layout", "restarts", "identity",
    "numerics", "metrics", "is_planned", "run_id", "means", "dataset",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LastCheckpoint:
    """What `last_checkpoint.json` says: a run that lost its checkpoints doesn't begin anew."""

    run_id: str | None = None  # its checkpoints have it too
    step: int | None = None  # of the newest that was saved
    rows_lost_at: int | None = None  # the one that the run went on from without the rows before


def read_last_checkpoint(path: Path) -> LastCheckpoint:
    """What a run's folder says of its newest checkpoint; nothing where the file is damaged.

    A StorageError says that the file is there and can't be read.
    """
    try:
        return LastCheckpoint(**(read_sealed(path / LAST_CHECKPOINT) or {}))
    except (NotAsWritten, TypeError):
        return LastCheckpoint()


def find_checkpoint(
    path: Path, known: Collection[tuple[int, str]] = ()
) -> tuple[Found | None, list[tuple[int, str]]]:
    """Returns a run's newest sound checkpoint, and why newer ones can't be used, newest first.

    It is None where none was saved yet. Reasons that are `known` already are taken as given.
    Raises a RestoreError where there were checkpoints, and none of them is sound.
    """
    reasons = dict(known)
    found, rejected = newest_usable(path, run_here(path), lambda found: reasons.get(found.step))
    if found is not None:
        return found, rejected
    directory = path / CHECKPOINTS
    if rejected:
        step, reason = rejected[0]
        others = f", nor can {len(rejected) - 1} older" if len(rejected) > 1 else ""
        raise RestoreError(
            f"checkpoint {step} in {directory} can't be used ({reason}){others}; put sound ones "
            "back, or begin anew in another workdir."
        )
    renamed = other_checkpoints(directory)
    if renamed or any(os.path.lexists(path / name) for name in (LAST_CHECKPOINT, "summary.json")):
        holds = f"only {renamed[0]!r}" if renamed else "none"
        raise RestoreError(
            f"the run in {path} had checkpoints and {directory} holds {holds} now; put them back "
            "under their own names, or begin anew in another workdir."
        )
    return None, []


def newest_usable(
    path: Path, run_id: str | None, object_to: Callable[[Found], str | None]
) -> tuple[Found | None, list[tuple[int, str]]]:
    """As `find_checkpoint` of a run, where none may be left.

    `object_to` says why one can't be used.
    """

    def objection(found: Found) -> str | None:
        if reason := not_readable(found.run):
            return reason
        return object_to(found) if found.run["run_id"] == run_id else "it is another run's"

    with storage_errors(path / CHECKPOINTS, action="read"):
        return newest_good(path / CHECKPOINTS, objection)


def not_readable(run: Mapping[str, Any]) -> str | None:
    """Why this program can't make use of a checkpoint's own values, or None."""
    if run.get("format") != FORMAT:
        return "it was written by another version of this program"
    return None if _KEYS <= run.keys() else "it is not this program's"


def run_here(path: Path) -> str | None:
    """The id of the run that a folder is of; None where nothing tells.

    What doesn't agree is outvoted: the rows decide, which one run's checkpoints describe, as each
    has its own times; where they tell nothing, most of the checkpoints and the file about the
    newest. Raises a RestoreError where as many say one thing as another.
    """
    runs = []
    for step in reversed(committed_steps(path / CHECKPOINTS)):
        with contextlib.suppress(Damaged):
            run = read_run(path / CHECKPOINTS / str(step))
            if not_readable(run) is None:
                runs.append(run)
    noted = read_last_checkpoint(path).run_id
    votes = collections.Counter(run["run_id"] for run in runs)
    votes.update([] if noted is None else [noted])
    if len(votes) < 2:
        return next(iter(votes), None)
    rows = path / "metrics.jsonl"
    with storage_errors(rows, action="read"):
        content = read_file(rows) if rows.exists() else b""
    described = {
        run["run_id"]
        for run in runs
        if run["metrics"]["num_bytes"] and MetricsPosition(**run["metrics"]).is_in(content)
    }
    if len(described) == 1:
        return described.pop()
    (first, most), (_, others) = votes.most_common(2)
    if most > others:
        return first
    raise RestoreError(
        f"it can't be told whose folder {path} is: its rows, its checkpoints and {LAST_CHECKPOINT} "
        "are different runs'; move away what doesn't belong to it."
    )


def position_of_rows(path: Path, found: Found) -> MetricsPosition | None:
    """Where the rows before a checkpoint end; None where the run went on without them.

    Raises a RestoreError where they are damaged or missing.
    """
    last = read_last_checkpoint(path)
    if last.run_id == found.run["run_id"] and found.step <= (last.rows_lost_at or -1):
        return None
    position = MetricsPosition(**found.run["metrics"])
    position.content(path / "metrics.jsonl")
    return position


def check_no_obstacles(path: Path) -> None:
    """Raises a StorageError where a folder lies where a run writes a file."""
    for folder in obstacles(path):
        raise StorageError(f"{folder} is a folder where a run writes a file; move it away.")


def obstacles(path: Path) -> Iterator[Path]:
    """Folders that lie where a run writes a file, and that a file can't replace."""
    for name in (*BEFORE_SUMMARY, SUMMARY, *REPORT):
        for file in (path / name, temporary_path(path / name)):
            if file.is_dir() and not file.is_symlink():
                yield file


def has_environment(path: Path) -> bool:
    """Whether something can be read of what the run was made with."""
    with storage_errors(path / ENVIRONMENT, action="read"):
        try:
            is_there = (path / ENVIRONMENT).is_file()
            return is_there and isinstance(json.loads(read_file(path / ENVIRONMENT)), dict)
        except (ValueError, RecursionError):
            return False
