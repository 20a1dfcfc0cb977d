"""Whether the disk has room for a run's checkpoints."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from adabatch_jax.runs.checkpoints.verifying import committed_steps
from adabatch_jax.system.errors import StorageError
from adabatch_jax.system.files import free_bytes
from adabatch_jax.system.quantities import bytes_text

_OWN_BYTES = 2**16  # JSON, digests and Orbax's own files, with some hundred arrays


def checkpoint_bytes(state: Any) -> int:
    """What a checkpoint of a state takes on disk, in bytes; it may be compressed to less.

    Args:
      state: a pytree of arrays, or of `jax.ShapeDtypeStruct`.

    >>> checkpoint_bytes({"w": jax.ShapeDtypeStruct((1000, 1000), np.float32)}) // 1000
    4065
    """
    leaves = (x if hasattr(x, "dtype") else np.asarray(x) for x in jax.tree.leaves(state))
    return _OWN_BYTES + sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def check_free_space(directory: Path, num_bytes: int, newest: int) -> str | None:
    """Compares the free space with what a run's checkpoints will take.

    Args:
      directory: theirs; those that it holds already take no new space.
      num_bytes: the size of one.
      newest: how many are kept, beside the best and the one that is being written.

    Returns:
      A warning where there is room for one but not for all, None where there is for all.

    Raises:
      StorageError: there isn't even room for one.
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
