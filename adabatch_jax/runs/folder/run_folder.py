"""The folder of a run while one process owns it: locked, with the checkpoint to go on from."""

import contextlib
import dataclasses
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adabatch_jax.runs.checkpoints.verifying import (
    Damaged,
    Found,
    check_checkpoint,
    newest_good,
    other_checkpoints,
    set_aside,
)
from adabatch_jax.runs.folder.ledger import NAME, Ledger, read_ledger
from adabatch_jax.runs.folder.lock import locked
from adabatch_jax.runs.folder.metrics import MetricsPosition, metrics_intact
from adabatch_jax.runs.folder.summary import read_summary
from adabatch_jax.system.errors import RestoreError
from adabatch_jax.system.files import read_file, storage_errors

CHECKPOINTS = "checkpoints"
WRITTEN_FILES = (
    "config.json", "plan.json", "environment.json", "metrics.jsonl", "metrics.csv", NAME,
    "summary.json", "report.html",
)  # fmt: skip

# What a checkpoint's own values are laid out as; others are another program's.
FORMAT = 1
_KEYS = {
    "step", "samples", "seed", "plan", "fingerprint", "examples_digest", "order_digest",
    "decisions", "pending_row", "seconds", "phase_seconds", "layout", "restarts", "identity",
    "versions", "metrics", "is_planned",
    "run_id",
}  # fmt: skip

_LOST_ROWS = "metrics.jsonl and metrics.csv have lost rows from before it"


class RunFolder:
    """A run's folder, made if need be; a context manager that keeps other processes out.

    Args:
      path: the folder.
      flag: where the user named it, for errors.

    Attributes:
      path: the folder.
      checkpoint: the newest sound checkpoint, when entered; None where none was saved yet.
      run_id: names the run, also in its checkpoints.
      notes: what was found and is worth a line each.
      changes: what of the settings changed since the checkpoint, as JSON values.

    Raises (when entered):
      UsageError: another process is training there.
      RestoreError: there were checkpoints, and none of them is sound.
      StorageError: the folder can't be read or written.
    """

    def __init__(self, path: str | os.PathLike, flag: str = "--workdir"):
        self.path, self._flag = Path(path), flag
        self.checkpoint: Found | None = None
        self.run_id = secrets.token_hex(8)
        self.notes: list[str] = []
        self.changes: list[dict[str, Any]] = []
        self._stack = contextlib.ExitStack()
        self._has_changed = False

    def __enter__(self) -> "RunFolder":
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            self.notes += stack.enter_context(locked(self.path, self._flag))
            self._find()
            if self.checkpoint is None and (self.path / "metrics.jsonl").exists():
                self.notes.append(
                    "note: the run here has no checkpoint yet, so it begins with its first update "
                    "again"
                )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def look_again(self) -> None:
        """Finds the checkpoint anew if a run has gone on here since."""
        if self._has_changed:
            self._has_changed = False
            self._find()

    def note_saved(self, step: int) -> None:
        """Remembers that a checkpoint exists."""
        self._has_changed = True
        ledger = dataclasses.replace(read_ledger(self.path), run_id=self.run_id, step=step)
        ledger.write(self.path)

    def position_of_rows(self) -> MetricsPosition | None:
        """Where the rows before the checkpoint end; None where there are none (any more).

        That they are lost is remembered: the run then has other rows where they were.
        """
        if self.checkpoint is None:
            return None
        ledger, position = read_ledger(self.path), _position(self.checkpoint)
        if not position.num_bytes or _are_known_as_lost(self.checkpoint, ledger):
            return None
        if not _are_gone(self.path):
            return position
        step = self.checkpoint.step
        dataclasses.replace(ledger, run_id=self.run_id, rows_lost_at=step).write(self.path)
        self.notes.append(
            "warning: metrics.jsonl and metrics.csv are gone, and the run goes on without the rows "
            f"up to update {step:,}"
        )
        return None

    def newest_planned_checkpoint(self) -> Found | None:
        """The newest sound checkpoint as of now, of those that no stop made be saved."""
        return find_checkpoint(
            self.path, lambda found: None if found.run["is_planned"] else "a stop made it be saved"
        )[0]

    def reject(self, reason: str) -> None:
        """Puts the checkpoint aside, for a reason that only its restoration showed.

        Raises:
          RestoreError: no other one is sound.
        """
        self._find([(self.checkpoint.step, reason)])

    def _find(self, rejected: Sequence[tuple[int, str]] = ()) -> None:
        """Finds the checkpoint to go on from; newer ones are put aside."""
        known = dict(rejected)
        self.checkpoint, rejected = find_checkpoint(self.path, lambda found: known.get(found.step))
        if self.checkpoint is None:
            reason = why_none(self.path, rejected)
            if reason is not None:
                raise RestoreError(reason)
        if self.checkpoint is None:
            return
        self.run_id, step = self.checkpoint.run["run_id"], read_ledger(self.path).step or 0
        if step > self.checkpoint.step and step not in dict(rejected):
            # A start that was killed may not have got to tell it.
            is_aside = (self.path / CHECKPOINTS / f"bad-{step}").exists()
            why = f"can't be used and is now bad-{step}" if is_aside else "is gone"
            self.notes.append(
                f"warning: checkpoint {step} {why}, and the run goes on from checkpoint "
                f"{self.checkpoint.step}"
            )
        for step, reason in rejected:
            moved = set_aside(self.path / CHECKPOINTS, step)
            self.notes.append(
                f"warning: checkpoint {step} can't be used ({reason}); it is now {moved.name}, "
                f"and the run goes on from checkpoint {self.checkpoint.step}"
            )


def find_checkpoint(
    path: Path, object_to: Callable[[Found], str | None] = lambda found: None
) -> tuple[Found | None, list[tuple[int, str]]]:
    """Returns the newest checkpoint that a run can go on from, and why newer ones can't be used.

    Reads only. A sound checkpoint whose rows of metrics are lost can't be used: an older one
    that still has its rows gives the uninterrupted run's.

    Args:
      path: the run's folder.
      object_to: says why a sound checkpoint can't be used all the same, or None.
    """

    ledger = read_ledger(path)

    def objection(found: Found) -> str | None:
        if found.run.get("format") != FORMAT:
            return "it was written by another version of this program"
        if not _KEYS <= found.run.keys():
            return "it is not this program's"
        if ledger.run_id not in (None, found.run["run_id"]):
            return "it is another run's"
        if not can_use_rows(path, found):
            return _LOST_ROWS
        return object_to(found)

    with storage_errors(path / CHECKPOINTS, action="read"):
        return newest_good(path / CHECKPOINTS, objection)


def finished_summary(path: Path, config_digest: str) -> dict[str, Any] | None:
    """The summary of the run in a folder, if nothing is left to be done with these settings.

    A last checkpoint that is damaged is to be computed again, and rows that are damaged are to be
    put right; a last checkpoint that was removed isn't missed.
    """
    summary = read_summary(path, config_digest)
    if summary is not None and (last := path / CHECKPOINTS / str(summary["step"])).exists():
        try:
            found = check_checkpoint(last)
        except Damaged:
            return None
        if not has_its_rows(path, found):
            return None
    return summary


def has_its_rows(path: Path, found: Found) -> bool:
    """Whether metrics.jsonl itself has the rows before a checkpoint, or nothing has them."""
    if found.run.get("format") != FORMAT or _are_gone(path):
        return True
    if _are_known_as_lost(found, read_ledger(path)):
        return True
    position = _position(found)
    try:
        content = read_file(path / "metrics.jsonl")
    except OSError:
        return not position.num_bytes
    return position.cut(content) is not None


def can_use_rows(path: Path, found: Found) -> bool:
    """Whether a run can go on from a checkpoint with its rows, or knows to do without them."""
    is_known = _are_known_as_lost(found, read_ledger(path))
    return is_known or metrics_intact(path, _position(found))


def why_none(path: Path, rejected: list[tuple[int, str]]) -> str | None:
    """The sentence for a run without a usable checkpoint; None where none was saved yet."""
    directory = path / CHECKPOINTS
    if rejected:
        step, reason = rejected[0]
        others = f", nor can {len(rejected) - 1} older" if len(rejected) > 1 else ""
        way_out = "begin anew in another workdir"
        if reason == _LOST_ROWS:
            way_out = "move both files away to go on without the earlier rows"
        return (
            f"checkpoint {step} in {directory} can't be used ({reason}){others}; put sound ones "
            f"back, or {way_out}."
        )
    renamed = other_checkpoints(directory)
    if renamed or any(os.path.lexists(path / name) for name in (NAME, "summary.json")):
        holds = f"only {renamed[0]!r}" if renamed else "none"
        return (
            f"the run in {path} had checkpoints and {directory} holds {holds} now; put them back "
            "under their own names, or begin anew in another workdir."
        )
    return None


def _are_gone(path: Path) -> bool:
    """Whether both files of rows are missing."""
    return not any((path / name).exists() for name in ("metrics.jsonl", "metrics.csv"))


def _position(found: Found) -> MetricsPosition:
    return MetricsPosition(**found.run["metrics"])


def _are_known_as_lost(found: Found, ledger: Ledger) -> bool:
    """Whether the run went on without the rows before this checkpoint."""
    return ledger.rows_lost_at is not None and found.step <= ledger.rows_lost_at
