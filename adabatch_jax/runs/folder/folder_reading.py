"""What a run's folder holds, read without changing anything; neither JAX nor Orbax.

A start of a run and the doctor ask the same functions.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from adabatch_jax.runs.checkpoints.verifying import (
    Damaged,
    Found,
    check_checkpoint,
    committed_steps,
    newest_good,
    other_checkpoints,
)
from adabatch_jax.runs.folder.metrics_files import MetricsPosition
from adabatch_jax.system.errors import RestoreError
from adabatch_jax.system.files import read_file, storage_errors

CHECKPOINTS = "checkpoints"
LAST_CHECKPOINT = "last_checkpoint.json"
WRITTEN_FILES = (
    "config.json", "plan.json", "environment.json", "metrics.jsonl", "metrics.csv",
    LAST_CHECKPOINT, "summary.json", "report.html",
)  # fmt: skip

# What a checkpoint's own values are laid out as; others are another program's.
FORMAT = 2
_KEYS = {
    "step", "samples", "seed", "plan", "fingerprint", "examples_digest", "order_digest",
    "decisions", "pending_row", "seconds", "phase_seconds", "layout", "restarts", "identity",
    "versions", "metrics", "is_planned", "run_id",
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
        with storage_errors(path / LAST_CHECKPOINT, action="read"):
            try:
                content = read_file(path / LAST_CHECKPOINT)
            except FileNotFoundError:
                return LastCheckpoint()
        last = LastCheckpoint(**json.loads(content))
    except (ValueError, TypeError, RecursionError):
        return LastCheckpoint()
    steps = (last.step, last.rows_lost_at)
    is_sound = all(step is None or type(step) is int for step in steps)
    return last if is_sound and isinstance(last.run_id, str | None) else LastCheckpoint()


def find_checkpoint(
    path: Path, known: Collection[tuple[int, str]] = ()
) -> tuple[Found | None, list[tuple[int, str]]]:
    """Returns a run's newest sound checkpoint, and why newer ones can't be used, newest first.

    It is None where none was saved yet. Reasons that are `known` already are taken as given.
    Raises a RestoreError where there were checkpoints, and none of them is sound.
    """
    reasons = dict(known)
    found, rejected = newest_usable(path, lambda found: reasons.get(found.step))
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
    path: Path, object_to: Callable[[Found], str | None]
) -> tuple[Found | None, list[tuple[int, str]]]:
    """As `find_checkpoint`, where none may be left; `object_to` says why one can't be used."""
    run_id = read_last_checkpoint(path).run_id

    def objection(found: Found) -> str | None:
        if found.run.get("format") != FORMAT:
            return "it was written by another version of this program"
        if not _KEYS <= found.run.keys():
            return "it is not this program's"
        if run_id not in (None, found.run["run_id"]):
            return "it is another run's"
        return object_to(found)

    with storage_errors(path / CHECKPOINTS, action="read"):
        return newest_good(path / CHECKPOINTS, objection)


def position_of_rows(path: Path, found: Found) -> MetricsPosition | None:
    """Where the rows before a checkpoint end; None where the run went on without them.

    Raises a RestoreError where they are damaged or missing.
    """
    lost_at = read_last_checkpoint(path).rows_lost_at
    if lost_at is not None and found.step <= lost_at:
        return None
    position = MetricsPosition(**found.run["metrics"])
    position.content(path / "metrics.jsonl")
    return position


def read_summary(path: Path, config_digest: str) -> dict[str, Any] | None:
    """The summary of the run in a folder, if it was finished with just these settings; else None.

    What a person wrote into config.json since is not what the run was made with. A summary whose
    figures can't be told is none: it is written again.
    """
    try:
        summary = json.loads(read_file(path / "summary.json"))
    except (OSError, ValueError, RecursionError):
        return None
    is_ours = isinstance(summary, dict) and summary.get("config_digest") == config_digest
    return summary if is_ours and has_figures(summary) else None


def has_figures(summary: Mapping[str, Any]) -> bool:
    """Whether a summary holds what every finished run has."""
    counts = (summary.get("step"), summary.get("samples"))
    return all(type(count) is int for count in counts) and all(
        isinstance(figure, int | float)
        for figure in (summary.get("total_seconds"), summary.get("test_accuracy", 0.0))
    )


def finished_summary(path: Path, config_digest: str) -> dict[str, Any] | None:
    """The summary of the run in a folder, if nothing is left to be done with these settings.

    A last checkpoint that is damaged is to be computed again, and rows that are damaged are to be
    told; a last checkpoint that was removed isn't missed.
    """
    summary = read_summary(path, config_digest)
    checkpoints = path / CHECKPOINTS
    if summary is not None and summary["step"] in committed_steps(checkpoints):
        try:
            found = check_checkpoint(checkpoints / str(summary["step"]))
            if found.run.get("format") == FORMAT:
                position_of_rows(path, found)
        except (Damaged, RestoreError):
            return None
    return summary
