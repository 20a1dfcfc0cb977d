"""What a dispatch computes: updates around which batches are gathered, as functions to trace."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adabatch_jax.data.resident_examples import gather
from adabatch_jax.system.errors import UsageError
from adabatch_jax.training.train_state import TrainState
from adabatch_jax.training.update import Constants, Metrics, Update, Updated

Arrays = Mapping[str, jax.Array]
Tables = Mapping[str, jax.Array]
Numbers = tuple[jax.Array, jax.Array]
"""Which of the stacked updates is the first, and how many there are."""


def one_update(
    update: Update,
    state: TrainState,
    arrays: Arrays,
    numbers: Numbers,
    rng: jax.Array,
    tables: Tables,
    constants: Constants,
) -> Updated:
    """One of the updates whose inputs are stacked, with a batch that is gathered from `tables`."""
    batch = gathered(update, update_at(arrays, numbers[0]), tables)
    state, metrics, is_finite, weight = update(state, batch, rng, constants)
    return state, scalars(metrics), is_finite, weight


def several_updates(
    update: Update,
    most: int,
    state: TrainState,
    arrays: Arrays,
    numbers: Numbers,
    rng: jax.Array,
    tables: Tables,
    constants: Constants,
) -> Updated:
    """Performs some consecutive ones, `most` at most, of the updates whose inputs are stacked.

    Their number is an argument, so that pieces that are cut short need no program of their own.

    Returns:
      The state, and metrics, flags and weights of shape (most,), behind the last update 0 and
      True.
    """
    first, count = numbers

    def one(number, state):
        at = (first + number, count)
        return one_update(update, state, arrays, at, rng, tables, constants)

    def body(number, carried):
        state, *results = one(number, carried[0])

        def put(places, value):
            return lax.dynamic_update_index_in_dim(places, value, number, 0)

        return state, *jax.tree.map(put, carried[1:], tuple(results))

    _, *like = jax.eval_shape(one, 0, state)
    metrics, are_finite, weights = jax.tree.map(lambda leaf: jnp.zeros(most, leaf.dtype), like)
    return lax.fori_loop(0, count, body, (state, metrics, ~are_finite, weights))


def update_at(arrays: Arrays, number: jax.Array) -> Arrays:
    """The inputs of one update out of stacked ones; of the only one without copying them."""

    def at(array):
        if array.shape[0] == 1:
            return array[0]
        return lax.dynamic_index_in_dim(array, number, keepdims=False)

    return jax.tree.map(at, dict(arrays))


def add_microbatch(
    update: Update,
    sums: Any,
    state: TrainState,
    arrays: Arrays,
    number: jax.Array,
    rng: jax.Array,
    tables: Tables,
    constants: Constants,
) -> tuple[Any, jax.Array]:
    """`update.add` with a micro-batch that is gathered from `tables`.

    Returns:
      The sums, and a number of theirs that can be waited for when they were donated to the next
      call.
    """
    microbatch = gathered(update, update_at(arrays, jnp.int32(0)), tables, split=True)
    sums = update.add(sums, state, microbatch, rng, number, constants)
    return sums, sums.weight + 0


def gathered(
    update: Update, inputs: Arrays, tables: Tables, split: bool = False
) -> dict[str, jax.Array]:
    """Adds the examples' arrays, which lie on the devices, to their indices and weights."""
    if not tables:
        return dict(inputs)
    batch = gather(tables, inputs)
    if update.mesh is not None:
        is_stacked = update.microbatch_size is not None and not split
        batch = lax.with_sharding_constraint(batch, update.mesh.of_batch(batch, int(is_stacked)))
    # The update is then computed as if its batch had come from the host, to the bit.
    return lax.optimization_barrier(batch)


def with_gathered_rows(
    inputs: Mapping[str, Any], tables: Tables
) -> dict[str, jax.ShapeDtypeStruct]:
    """What a batch looks like when what is gathered from `tables` was added to its inputs."""
    shape = inputs["index"].shape
    rows = jax.tree.map(
        lambda table: jax.ShapeDtypeStruct((*shape, *table.shape[1:]), table.dtype), dict(tables)
    )
    return {**inputs, **rows}


def scalars(metrics: Metrics) -> Metrics:
    """Returns the metrics; a UsageError names the first one that can't stand in a row."""
    for name, value in metrics.items():
        shape = getattr(value, "shape", None)
        if shape != ():
            what = f"is a {type(value).__name__}" if shape is None else f"has the shape {shape}"
            raise UsageError(
                f"a metric is a number, but loss_fn's {name!r} {what}; return its mean, or one "
                "metric per entry."
            )
    return metrics
