"""Arrays as shapes, dtypes and shardings: what programs are compiled for, and their memory."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from adabatch_jax.data.batches import ADDED_TYPES, refuse_added_names
from adabatch_jax.data.example_weights import example_weights
from adabatch_jax.data.sources import Source

Types = Mapping[str, tuple[tuple[int, ...], Any]]  # the shape and the dtype of one row, by name


def example_types(source: Source) -> Types:
    """The shape and the dtype that each array of an example has on the devices.

    >>> from adabatch_jax.data.sources import array_source
    >>> example_types(array_source({"label": np.zeros((5, 2), np.int64)}))
    {'label': ((2,), dtype('int32'))}
    """
    arrays = {name: np.asarray(a) for name, a in source.read(np.zeros(1, np.int64)).items()}
    refuse_added_names(arrays)
    if "weight" in arrays:
        arrays["weight"] = example_weights(arrays["weight"])
    return {
        name: (array.shape[1:], jax.dtypes.canonicalize_dtype(array.dtype))
        for name, array in arrays.items()
    }


def abstract_rows(
    types: Types, shape: tuple[int, ...] = (), sharding: Any = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Arrays of rows that are arranged in this shape, such as (B,) or (K, m).

    >>> abstract_rows({"label": ((2,), np.int32)}, (5,))
    {'label': ShapeDtypeStruct(shape=(5, 2), dtype=int32)}
    """
    return {
        name: jax.ShapeDtypeStruct((*shape, *of_row), dtype, sharding=sharding)
        for name, (of_row, dtype) in types.items()
    }


def abstract_batch(
    examples: Types, shape: tuple[int, ...], sharding: Any = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of such examples, with what batches add themselves; a weight of theirs is in it."""
    return abstract_rows({**examples, **ADDED_TYPES}, shape, sharding)


def abstract(tree: Any) -> Any:
    """Shapes, dtypes and shardings of a pytree of arrays."""

    def describe(leaf):
        if not isinstance(leaf, jax.Array):
            return leaf
        # Where an uncommitted array lies is nothing to insist on.
        sharding = leaf.sharding if leaf.committed else None
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(describe, tree)


def laid_out(tree: Any, shardings: Any) -> Any:
    """The shapes and dtypes of a pytree with these shardings; None leaves it as it is."""
    if shardings is None:
        return tree
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        tree,
        shardings,
    )


def tree_bytes(tree: Any) -> int:
    """What a pytree of arrays or of `jax.ShapeDtypeStruct`s takes, on all devices together.

    >>> tree_bytes({"w": np.zeros((10, 10), np.float32), "b": jax.ShapeDtypeStruct((), np.int8)})
    401
    """
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
