"""A digest of the weights, by which runs are compared, and names for the leaves of pytrees."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from adabatch_jax.data.mesh import resharded
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


def stored_numbers(leaf: Any) -> jax.Array | np.ndarray:
    """The numbers that a leaf is stored as: a key's bits, an array for a host's scalar."""
    if is_key(leaf):
        return jax.random.key_data(leaf)
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def on_host(leaf: Any) -> np.ndarray:
    """All numbers of a leaf; processes that share them out call this alike."""
    numbers = stored_numbers(leaf)
    if isinstance(numbers, jax.Array) and not numbers.is_fully_addressable:
        if not numbers.is_fully_replicated:
            numbers = resharded(numbers, NamedSharding(numbers.sharding.mesh, PartitionSpec()))
    return np.asarray(numbers)


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of typed random keys (`jax.random.key`)."""
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def weights_digest(state: TrainState) -> str:
    """A hash of parameters and model state, whatever devices they lie on.

    >>> import optax
    >>> state = TrainState.create(params={"w": np.ones(3, np.float32)}, tx=optax.sgd(1.0))
    >>> weights_digest(state)[:8]
    'eec650a1'
    """
    return digest_of_named(named_arrays({"params": state.params, "model_state": state.model_state}))


def digest_of_named(arrays: Mapping[str, Any]) -> str:
    """A hash of names, types, shapes and values, in hex."""
    digest = hashlib.sha256()
    for name, leaf in sorted(arrays.items()):
        value = np.ascontiguousarray(on_host(leaf))
        digest.update(f"{name}:{value.dtype}:{value.shape};".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
