"""Gradients of one batch that is computed in micro-batches, one after another."""

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
    grad_fn: Callable[[Mapping[str, jax.Array], jax.Array], Outputs],
    params: Any,
    model_state: Any,
    batch: Mapping[str, jax.Array],
    rng: jax.Array,
) -> Outputs:
    """Returns what `grad_fn` would give for all micro-batches together.

    Sums are kept in float32 at least. A micro-batch whose weights sum to 0 is left out, even
    where it produced a NaN.

    Args:
      grad_fn: `(batch, rng) -> Outputs`, the weighted means of one micro-batch.
      params: what the gradients look like.
      model_state: the state that came into the step.
      batch: arrays (K, m, ...), among them "weight".
      rng: the step's key; micro-batch j gets `fold_in(rng, j)`.

    Returns:
      Means weighted by the micro-batches' sums of weights; for model state that isn't
      floating-point the value of the last micro-batch with a real example.
    """

    def add(sums, indexed_microbatch):
        index, microbatch = indexed_microbatch
        outputs = grad_fn(microbatch, jax.random.fold_in(rng, index))
        weight = microbatch["weight"].sum()
        values = outputs.grads, outputs.model_state
        sums = jax.tree.map(lambda acc, value: _add(acc, value, weight), sums, values)
        return sums, (weight, outputs.metrics)

    # Metrics are stacked instead of summed: what they look like is known only after tracing
    # `grad_fn`, and tracing it once is enough.
    indices = jnp.arange(batch["weight"].shape[0])
    zeros = jax.tree.map(_zeros, (params, model_state))
    (grads, new_state), (weights, metrics) = lax.scan(add, zeros, (indices, batch))
    total = weights.sum()

    def mean(acc, like):
        if not _is_float(like):
            return acc
        # Without any real example: no gradient, and the model state as it was.
        return (acc / jnp.where(total > 0, total, 1).astype(acc.dtype)).astype(like.dtype)

    new_state = jax.tree.map(mean, new_state, model_state)
    return Outputs(
        grads=jax.tree.map(mean, grads, params),
        model_state=jax.tree.map(
            lambda new, old: jnp.where(total > 0, new, old), new_state, model_state
        ),
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


def _mean_of_means(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the weighted mean of `values` (K, ...) without those whose weight is 0."""
    column = weights.reshape(weights.shape + (1,) * (values.ndim - 1))
    total = weights.sum()
    summed = jnp.where(column > 0, values * column, 0).sum(axis=0)
    return summed / jnp.where(total > 0, total, 1)
