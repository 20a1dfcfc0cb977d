"""Arrays as shapes, dtypes and shardings: what programs are compiled for, and their memory."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from adabatch_jax.data.array_trees import map_arrays
from adabatch_jax.data.batches import ADDED_TYPES, refuse_unfit_values, with_float_weights
from adabatch_jax.data.example_reading import SourceReader, reader_of
from adabatch_jax.data.sources import Source

Types = Mapping[str, Any]  # a `jax.ShapeDtypeStruct` of one row of each array, nested as they are


def example_types(source: Source | SourceReader) -> Types:
    """The shape and the dtype that each array of an example has on the devices.

    >>> from adabatch_jax.data.sources import array_source
    >>> example_types(array_source({"label": np.zeros((5, 2), np.int64)}))
    {'label': ShapeDtypeStruct(shape=(2,), dtype=int32)}
    """
    arrays = reader_of(source).example()
    refuse_unfit_values(arrays)

    def row(array: np.ndarray) -> jax.ShapeDtypeStruct:
        dtype = jax.dtypes.canonicalize_dtype(array.dtype)
        return jax.ShapeDtypeStruct(array.shape[1:], dtype)

    return map_arrays(row, with_float_weights(arrays))


def abstract_rows(
    types: Types, shape: tuple[int, ...] = (), sharding: Any = None
) -> dict[str, Any]:
    """Arrays of rows that are arranged in this shape, such as (B,) or (K, m).

    >>> abstract_rows({"label": jax.ShapeDtypeStruct((2,), np.int32)}, (5,))
    {'label': ShapeDtypeStruct(shape=(5, 2), dtype=int32)}
    """
    return jax.tree.map(
        lambda row: jax.ShapeDtypeStruct((*shape, *row.shape), row.dtype, sharding=sharding),
        dict(types),
    )


def abstract_batch(examples: Types, shape: tuple[int, ...], sharding: Any = None) -> dict[str, Any]:
    """A batch of such examples, with what batches add themselves; a weight of theirs is in it."""
    added = {name: jax.ShapeDtypeStruct(*of_row) for name, of_row in ADDED_TYPES.items()}
    return abstract_rows({**examples, **added}, shape, sharding)


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
    """The shapes and dtypes of a pytree with these shardings, or one for all; None leaves it."""
    if shardings is None:
        return tree
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        tree,
        jax.tree.broadcast(shardings, tree),
    )


def tree_bytes(tree: Any) -> int:
    """What a pytree of arrays or of `jax.ShapeDtypeStruct`s takes, on all devices together.

    >>> tree_bytes({"w": np.zeros((10, 10), np.float32), "b": jax.ShapeDtypeStruct((), np.int8)})
    401
    """
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
