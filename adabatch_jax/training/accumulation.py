"""Gradients of one batch that is computed in micro-batches, one after another.

With n_j the sum of weights of micro-batch j, all that is a mean combines as
sum(n_j * x_j) / sum(n_j). A micro-batch with n_j = 0 is left out, even where it produced a NaN.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from adabatch_jax.training.gradients import GradFn, Outputs


class Sums(NamedTuple):
    """Sums of n_j times what some micro-batches gave, in float32 at least; `weight` is sum(n_j).

    Model state that is sequential (each micro-batch begins with what the one before left) or isn't
    floating-point is that of the last micro-batch with a real example.
    """

    grads: Any
    model_state: Any
    metrics: Any
    weight: jax.Array


def begin(params: Any, model_state: Any, metrics: Any, sequential: bool) -> Sums:
    """The sums before the first micro-batch; of metrics, shapes and dtypes will do."""
    return Sums(
        grads=jax.tree.map(_zeros, params),
        model_state=model_state if sequential else jax.tree.map(_zeros, model_state),
        metrics=jax.tree.map(_metric_zeros, metrics),
        weight=jnp.zeros((), jnp.float32),
    )


def add(
    sums: Sums, outputs: Outputs, weight: jax.Array, is_real: jax.Array, sequential: bool
) -> Sums:
    """The sums with one more micro-batch, which `is_real` if any device has an example of it."""
    add_up = functools.partial(_add, weight=weight)
    put = functools.partial(_put, is_real=is_real) if sequential else add_up
    return Sums(
        grads=jax.tree.map(add_up, sums.grads, outputs.grads),
        model_state=jax.tree.map(put, sums.model_state, outputs.model_state),
        metrics=jax.tree.map(add_up, sums.metrics, outputs.metrics),
        weight=sums.weight + weight.astype(sums.weight.dtype),
    )


def finish(sums: Sums, params: Any, model_state: Any, sequential: bool) -> Outputs:
    """What all micro-batches give together; without any real example nothing but gradients of 0."""
    total = sums.weight
    divisor = jnp.where(total > 0, total, 1)

    def mean(acc, like):
        return (acc / divisor.astype(acc.dtype)).astype(like.dtype) if _is_float(like) else acc

    new_state = sums.model_state
    if not sequential:
        new_state = jax.tree.map(mean, new_state, model_state)
        put = functools.partial(_put, is_real=total > 0)
        new_state = jax.tree.map(put, model_state, new_state)
    return Outputs(
        grads=jax.tree.map(mean, sums.grads, params),
        model_state=new_state,
        metrics=jax.tree.map(lambda acc: mean(acc, acc), sums.metrics),
    )


def left_out_if_empty(outputs: Outputs, weight: jax.Array, model_state: Any) -> Outputs:
    """What a batch in one piece gives, as `finish` of it: nothing if its weights sum up to 0."""

    def nothing(value: jax.Array) -> jax.Array:
        # A sum that is no number has something to say.
        return jnp.where(weight != 0, value, jnp.zeros_like(value))

    return Outputs(
        grads=jax.tree.map(nothing, outputs.grads),
        model_state=jax.tree.map(
            functools.partial(_put, is_real=weight != 0), model_state, outputs.model_state
        ),
        metrics=jax.tree.map(nothing, outputs.metrics),
    )


def sum_up(
    grad_fn: GradFn,
    params: Any,
    model_state: Any,
    batch: Mapping[str, jax.Array],
    rng: jax.Array,
    sequential: bool,
    weights: jax.Array | None = None,
) -> Sums:
    """The sums over all micro-batches of arrays (K, m, ...); micro-batch j gets `fold_in(rng, j)`.

    Where `batch` is one device's share, `weights` are its sums of weights over all devices, (K,).
    """

    def add_next(sums, numbered_microbatch):
        index, of_all, microbatch = numbered_microbatch
        before = sums.model_state if sequential else model_state
        outputs = grad_fn(before, microbatch, jax.random.fold_in(rng, index))
        weight = microbatch["weight"].sum()
        # Metrics are stacked instead: what they look like is known only after tracing
        # `grad_fn`, and tracing it once is enough.
        sums = add(sums, outputs._replace(metrics={}), weight, of_all > 0, sequential)
        return sums, (weight, outputs.metrics)

    weights = batch["weight"].sum(1) if weights is None else weights
    indices = jnp.arange(weights.shape[0])
    sums, (own_weights, metrics) = lax.scan(
        add_next, begin(params, model_state, {}, sequential), (indices, weights, batch)
    )

    def total(values):
        column = own_weights.reshape(own_weights.shape + (1,) * (values.ndim - 1))
        column = column.astype(_metric_dtype(values))
        return jnp.where(column > 0, values * column, 0).sum(0)

    return sums._replace(metrics=jax.tree.map(total, metrics))


def _is_float(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _metric_dtype(leaf: jax.Array) -> jnp.dtype:
    return jnp.promote_types(leaf.dtype, jnp.float32)


def _metric_zeros(leaf: jax.Array) -> jax.Array:
    return jnp.zeros(leaf.shape, _metric_dtype(leaf))


def _zeros(leaf: jax.Array) -> jax.Array:
    if not _is_float(leaf):
        return leaf
    return jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32))


def _add(acc: jax.Array, value: jax.Array, weight: jax.Array) -> jax.Array:
    new = acc + value.astype(acc.dtype) * weight.astype(acc.dtype) if _is_float(acc) else value
    return jnp.where(weight > 0, new, acc)


def _put(old: jax.Array, new: jax.Array, is_real: jax.Array) -> jax.Array:
    return jnp.where(is_real, new, old)
