"""Which checkpoints a run has, and whether they can be trusted."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from adabatch_jax.reporting.diagnosis.findings import RESTORE, Finding, good, note, problem
from adabatch_jax.runs.checkpoints.verifying import (
    Damaged,
    Found,
    check_checkpoint,
    committed_steps,
    leftovers,
    other_checkpoints,
)
from adabatch_jax.runs.folder.run_folder import CHECKPOINTS
from adabatch_jax.system.quantities import bytes_text


def verified(directory: Path) -> tuple[list[Found], dict[int, str]]:
    """Reads and verifies every checkpoint; one that is removed meanwhile is left out.

    Returns:
      The good ones, oldest first, and the reasons against the others by step.

    Raises:
      StorageError: the folder can't be read; one that doesn't exist holds none.
    """
    found, damaged = [], {}
    for step in committed_steps(directory):
        path = directory / str(step)
        try:
            found.append(check_checkpoint(path))
        except Damaged as error:
            if path.exists():
                damaged[step] = str(error)
    return found, damaged


def checkpoint_findings(
    directory: Path, found: Sequence[Found], damaged: Mapping[int, str], is_in_use: bool
) -> Iterator[Finding]:
    """A line for each checkpoint, and for what else lies there.

    Args:
      directory: the folder of the checkpoints.
      found: the good ones.
      damaged: the reasons against the others, by step.
      is_in_use: whether a process is at work there.
    """
    by_step = {checkpoint.step: checkpoint for checkpoint in found}
    for step in sorted({*by_step, *damaged}):
        if step in damaged:
            text = f"damaged: {damaged[step]}."
            yield problem(f"checkpoint {step}", text, RESTORE, step=step, reason=damaged[step])
        else:
            size = num_bytes(by_step[step].path)
            yield good(
                f"checkpoint {step}", _described(by_step[step], size), step=step, num_bytes=size
            )
    if not by_step and not damaged:
        yield note(CHECKPOINTS, "there is none yet.")
    for name in other_checkpoints(directory):
        yield note(CHECKPOINTS, f"{name} was set aside or renamed; nothing reads it.", name=name)
    for name in leftovers(directory):
        text = "is at work now" if is_in_use else "was left by a process that was killed"
        yield note(CHECKPOINTS, f"{name} {text}.", name=name)


def num_bytes(folder: Path) -> int:
    """The bytes of all files below a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def _described(found: Found, size: int) -> str:
    parts = ["good"]
    samples = found.run.get("samples")
    if isinstance(samples, int):
        parts.append(f"sample {samples:,}")
    parts.append(f"{len(found.array_digests)} arrays, {bytes_text(size)}")
    if found.run.get("keep") is True:
        parts.append("kept")
    return ", ".join(parts)
