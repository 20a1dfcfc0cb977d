"""Whether a run was finished, and what of it is still as it was left; neither JAX nor Orbax."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adabatch_jax.runs.checkpoints.verifying import Damaged, Found, check_checkpoint
from adabatch_jax.runs.folder.folder_reading import (
    BEFORE_SUMMARY,
    CHECKPOINTS,
    STOPPED_AT_PHASE,
    SUMMARY,
    not_readable,
)
from adabatch_jax.system.errors import NotAsWritten
from adabatch_jax.system.files import read_file, read_sealed, storage_errors


def read_summary(path: Path) -> dict[str, Any] | None:
    """The figures of the finished run in a folder; None where there are none.

    One that was asked to stop at a phase, and has the rest of its plan before it, is not finished.

    Raises a NotAsWritten where summary.json isn't what a run wrote.
    """
    summary = read_sealed(path / SUMMARY)
    if summary is not None and not has_figures(summary):
        raise NotAsWritten(f"{path / SUMMARY} is damaged: it lacks the run's figures.")
    return None if summary is None or STOPPED_AT_PHASE in summary else summary


@dataclasses.dataclass(frozen=True)
class Finished:
    """What is there of a run that was finished.

    Attributes:
      summary: its figures; None where there are none that the run wrote.
      changed: the names of what isn't there as the run left it.
      run_id: whose figures they are.
      run: the last checkpoint's own values, where this program can read them; else None.
    """

    summary: Mapping[str, Any] | None = None
    changed: tuple[str, ...] = ()
    run_id: str | None = None
    run: Mapping[str, Any] | None = None

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left to be done."""
        return self.summary is not None and not self.changed


def find_finished(path: Path, config_digest: str, verified: Found | None = None) -> Finished:
    """What is there of a run that was finished with just these settings.

    What a person wrote into config.json since is not what the run was made with. A last checkpoint
    that was removed isn't missed; one that was `verified` just now isn't read again.
    """
    if not os.path.isdir(path):
        return Finished()
    try:
        summary = read_summary(path)
    except NotAsWritten:
        return Finished(None, (SUMMARY,))
    if summary is None or summary.get("config_digest") != config_digest:
        return Finished()
    run_id, files, now = summary.pop("run_id"), summary.pop("files"), digests_of_files(path)
    changed = [name for name, digest in files.items() if now.get(name) != digest]
    last = path / CHECKPOINTS / str(summary["step"])
    run = None
    if last.exists():
        try:
            is_known = verified is not None and verified.path == last
            run = (verified if is_known else check_checkpoint(last)).run
        except Damaged:
            pass
        if run is None or run.get("run_id") != run_id:
            changed.append(f"{CHECKPOINTS}/{last.name}")
    is_readable = run is not None and not_readable(run) is None
    return Finished(summary, tuple(changed), run_id, run if is_readable else None)


def digests_of_files(path: Path) -> dict[str, str]:
    """sha256 of what a run writes before its summary, by name."""
    with storage_errors(path, action="read"):
        return {
            name: hashlib.sha256(read_file(path / name)).hexdigest()
            for name in BEFORE_SUMMARY
            if (path / name).is_file()
        }


def has_figures(summary: Mapping[str, Any]) -> bool:
    """Whether a summary holds what every finished run has."""
    counts = (summary.get("step"), summary.get("samples"))
    return all(type(count) is int for count in counts) and all(
        isinstance(figure, int | float)
        for figure in (summary.get("total_seconds"), summary.get("test_accuracy", 0.0))
    )
