"""Reading the arrays of a checkpoint that has been verified, onto the devices that are wanted."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from adabatch_jax.runs.checkpoints.arrays import array_digest, as_leaf, described, is_free, stored
from adabatch_jax.runs.checkpoints.found import Damaged, Found
from adabatch_jax.runs.checkpoints.saving import state_handler
from adabatch_jax.system.errors import RestoreError
from adabatch_jax.training.digests import named_arrays


def restore(found: Found, like: Any) -> Any:
    """Reads a checkpoint's state and compares every array with its digest.

    Args:
      found: a checkpoint whose files were verified.
      like: a state of the same structure, whose shapes, dtypes and shardings are wanted.

    Raises:
      RestoreError: it holds other arrays than `like`.
      Damaged: it can't be read, or what was read isn't what was saved.
    """
    leaves = named_arrays(like)
    descriptions = {name: described(leaf) for name, leaf in leaves.items()}
    _compare(found, descriptions)
    arrays = _read(found, {name: stored(leaf) for name, leaf in leaves.items()})
    for name, array in arrays.items():
        if array_digest(descriptions[name], np.asarray(array)) != found.array_digests.get(name):
            raise Damaged(f"{name} has other values than were saved")
    restored = [as_leaf(arrays[name], leaf) for name, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(like), restored)


def _compare(found: Found, wanted: Mapping[str, str]) -> None:
    saved = found.run.get("arrays")
    if not isinstance(saved, dict):
        raise Damaged("run/metadata lists no arrays")
    for name in sorted({*saved, *wanted}):
        if saved.get(name) != wanted.get(name):
            raise RestoreError(
                f"the checkpoint {found.path} belongs to another model or optimizer: {name} is "
                f"{saved.get(name, 'absent')} there and {wanted.get(name, 'absent')} here."
            )


def _read(found: Found, like: Mapping[str, jax.Array | np.ndarray]) -> dict[str, Any]:
    targets = {name: array for name, array in like.items() if array.size}
    args = ocp.args.PyTreeRestore(
        {name: _target(array) for name, array in targets.items()},
        restore_args={name: _restore_args(array) for name, array in targets.items()},
    )
    try:
        with ocp.Checkpointer(state_handler()) as checkpointer:
            read = checkpointer.restore(found.path.absolute() / "state", args=args)
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise  # the device's fault: an older checkpoint would fare no better
    except Exception as error:  # Orbax raises many kinds, some of them bare
        raise Damaged(f"its state can't be read ({type(error).__name__})") from error
    return {name: read.get(name, array) for name, array in like.items()}


def _target(array: jax.Array | np.ndarray) -> Any:
    if _is_read_by_the_host(array):
        return np.empty(array.shape, array.dtype)
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def _is_read_by_the_host(array: jax.Array | np.ndarray) -> bool:
    # What Orbax puts on a device has to stay there.
    return isinstance(array, np.ndarray) or is_free(array)


def _restore_args(array: jax.Array | np.ndarray) -> ocp.RestoreArgs:
    if _is_read_by_the_host(array):
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(
        sharding=array.sharding, global_shape=array.shape, dtype=array.dtype
    )
