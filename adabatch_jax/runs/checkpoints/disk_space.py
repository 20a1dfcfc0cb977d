"""Whether the disk has room for a run's checkpoints."""

from pathlib import Path
from typing import Any

from adabatch_jax.data.abstract_arrays import tree_bytes
from adabatch_jax.runs.checkpoints.verifying import committed_steps
from adabatch_jax.system.errors import StorageError
from adabatch_jax.system.files import free_bytes
from adabatch_jax.system.quantities import bytes_text

_OWN_BYTES = 2**16  # JSON, digests and Orbax's own files, with some hundred arrays


def checkpoint_bytes(state: Any) -> int:
    """What a checkpoint of a state, or of its shapes, takes on disk; it may be compressed to less."""
    return _OWN_BYTES + tree_bytes(state)


def check_free_space(directory: Path, num_bytes: int, newest: int) -> str | None:
    """Says where there is too little room for all checkpoints that are kept, of so many bytes each.

    Kept are the `newest`, the best and the one that is being written; those that are there already
    take no new space. Raises a StorageError where there is room for none.
    """
    free = free_bytes(directory)
    if free < num_bytes:
        raise StorageError(
            f"a checkpoint takes {bytes_text(num_bytes)} and the disk of {directory} has "
            f"{bytes_text(free)} free; make room, or give a workdir on another disk."
        )
    missing = max(1, newest + 2 - len(committed_steps(directory)))
    if free < missing * num_bytes:
        return (
            f"the disk of {directory} has {bytes_text(free)} free, and {missing} more checkpoints "
            f"of {bytes_text(num_bytes)} each are to be written there"
        )
    return None
