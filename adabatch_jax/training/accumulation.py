"""Gradients of one batch that is computed in micro-batches, one after another."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Outputs(NamedTuple):
    """What one (micro-)batch gives: gradients, the new model state, and metrics."""

    grads: Any
    model_state: Any
    metrics: Any


def accumulate(
    grad_fn: Callable[[Any, Mapping[str, jax.Array], jax.Array], Outputs],
    params: Any,
    model_state: Any,
    batch: Mapping[str, jax.Array],
    rng: jax.Array,
    sequential: bool = False,
) -> Outputs:
    """Returns what `grad_fn` would give for all micro-batches together.

    Sums are kept in float32 at least. A micro-batch whose weights sum to 0 is left out, even
    where it produced a NaN.

    Args:
      grad_fn: `(model_state, batch, rng) -> Outputs`, the weighted means of one micro-batch.
      params: what the gradients look like.
      model_state: the state that came into the step.
      batch: arrays (K, m, ...), among them "weight".
      rng: the step's key; micro-batch j gets `fold_in(rng, j)`.
      sequential: whether each micro-batch begins from the model state that the one before left,
        instead of from the one that came into the step.

    Returns:
      Means weighted by the micro-batches' sums of weights; for model state that is sequential or
      isn't floating-point the value of the last micro-batch with a real example.
    """

    def add(carried, indexed_microbatch):
        index, microbatch = indexed_microbatch
        grads, states = carried
        key = jax.random.fold_in(rng, index)
        outputs = grad_fn(states if sequential else model_state, microbatch, key)
        weight = microbatch["weight"].sum()
        add_up = functools.partial(_add, weight=weight)
        put = functools.partial(_put, weight=weight) if sequential else add_up
        carried = (
            jax.tree.map(add_up, grads, outputs.grads),
            jax.tree.map(put, states, outputs.model_state),
        )
        return carried, (weight, outputs.metrics)

    # Metrics are stacked instead of summed: what they look like is known only after tracing
    # `grad_fn`, and tracing it once is enough.
    indices = jnp.arange(batch["weight"].shape[0])
    begin = jax.tree.map(_zeros, params), model_state
    if not sequential:
        begin = jax.tree.map(_zeros, begin)
    (grads, new_state), (weights, metrics) = lax.scan(add, begin, (indices, batch))
    total = weights.sum()

    def mean(acc, like):
        if not _is_float(like):
            return acc
        # Without any real example: no gradient, and the model state as it was.
        return (acc / jnp.where(total > 0, total, 1).astype(acc.dtype)).astype(like.dtype)

    if not sequential:
        new_state = jax.tree.map(mean, new_state, model_state)
        new_state = jax.tree.map(functools.partial(_put, weight=total), model_state, new_state)
    return Outputs(
        grads=jax.tree.map(mean, grads, params),
        model_state=new_state,
        metrics=jax.tree.map(lambda values: _mean_of_means(values, weights), metrics),
    )


def _is_float(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _zeros(leaf: jax.Array) -> jax.Array:
    """Returns where to sum up, or for what isn't summed the value to begin with."""
    if not _is_float(leaf):
        return leaf
    return jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32))


def _add(acc: jax.Array, value: jax.Array, weight: jax.Array) -> jax.Array:
    new = acc + value.astype(acc.dtype) * weight.astype(acc.dtype) if _is_float(acc) else value
    return jnp.where(weight > 0, new, acc)


def _put(old: jax.Array, new: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.where(weight > 0, new, old)


def _mean_of_means(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the weighted mean of `values` (K, ...) without those whose weight is 0."""
    column = weights.reshape(weights.shape + (1,) * (values.ndim - 1))
    total = weights.sum()
    summed = jnp.where(column > 0, values * column, 0).sum(axis=0)
    return summed / jnp.where(total > 0, total, 1)
