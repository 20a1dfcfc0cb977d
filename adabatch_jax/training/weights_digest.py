"""A digest of the weights, by which runs are compared, and names for the leaves of pytrees."""

import hashlib
from typing import Any

import jax
import numpy as np

from adabatch_jax.training.train_state import TrainState


def named_arrays(tree: Any) -> dict[str, jax.Array]:
    """The leaves of a pytree by their paths, in the tree's order.

    >>> list(named_arrays({"layers": [{"w": 1.0}], "layers.0": {"w": 2.0}}))
    ['layers.0.w', 'layers\\\\.0.w']
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {".".join(map(_escaped, path)): leaf for path, leaf in leaves}


def _escaped(key: Any) -> str:
    # So that no two paths have the same name.
    name = jax.tree_util.keystr((key,), simple=True)
    return name.replace("\\", "\\\\").replace(".", "\\.")


def weights_digest(state: TrainState) -> str:
    """A hash of parameters and model state, whatever devices they lie on.

    >>> import optax
    >>> state = TrainState.create(params={"w": np.ones(3, np.float32)}, tx=optax.sgd(1.0))
    >>> weights_digest(state)[:8]
    'eec650a1'
    """
    digest = hashlib.sha256()
    weights = {"params": state.params, "model_state": state.model_state}
    for name, array in sorted(named_arrays(weights).items()):
        value = np.ascontiguousarray(array)
        digest.update(f"{name}:{value.dtype}:{value.shape};".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
