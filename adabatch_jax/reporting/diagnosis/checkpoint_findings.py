"""Which checkpoints a run has, and whether they can be trusted."""

import os
from collections.abc import Iterator
from pathlib import Path

from adabatch_jax.reporting.diagnosis.findings import (
    RESTORE,
    Finding,
    good,
    note,
    of_error,
    problem,
)
from adabatch_jax.runs.checkpoints.verifying import (
    Damaged,
    Found,
    check_checkpoint,
    committed_steps,
    leftovers,
    other_checkpoints,
)
from adabatch_jax.runs.folder.folder_reading import CHECKPOINTS
from adabatch_jax.system.errors import StorageError
from adabatch_jax.system.files import storage_errors
from adabatch_jax.system.quantities import bytes_text


def checkpoint_findings(directory: Path, is_in_use: bool) -> Iterator[Finding]:
    """A line for each checkpoint, which is verified, and for what else lies there.

    Where a process is at work there, it may remove one meanwhile.

    Raises:
      StorageError: the folder can't be read; one that doesn't exist holds none.
    """
    steps = committed_steps(directory)
    if not steps:
        yield note(CHECKPOINTS, "there is none yet.")
    for step in steps:
        subject, path = f"checkpoint {step}", directory / str(step)
        try:
            found, size = check_checkpoint(path), num_bytes(path)
        except Damaged as error:
            text = f"damaged: {error}."
            yield problem(subject, text, RESTORE, step=step, reason=str(error))
        except StorageError as error:
            if os.path.lexists(path):
                yield of_error(subject, error, step=step)
        else:
            yield good(subject, _described(found, size), step=step, num_bytes=size)
    for name in other_checkpoints(directory):
        yield note(CHECKPOINTS, f"{name} was set aside or renamed; nothing reads it.", name=name)
    for name in leftovers(directory):
        text = "is at work now" if is_in_use else "was left by a process that was killed"
        yield note(CHECKPOINTS, f"{name} {text}.", name=name)


def num_bytes(folder: Path) -> int:
    """The bytes of all files below a folder; raises a StorageError where one can't be read."""
    with storage_errors(folder, action="read"):
        return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def _described(found: Found, size: int) -> str:
    parts = ["good"]
    samples = found.run.get("samples")
    if isinstance(samples, int):
        parts.append(f"sample {samples:,}")
    parts.append(f"{len(found.arrays)} arrays, {bytes_text(size)}")
    if found.run.get("keep") is True:
        parts.append("kept")
    return ", ".join(parts)
