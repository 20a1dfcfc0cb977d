"""What a loss function is, and the mean that it takes over a batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

LossFn = Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, tuple[Any, Any]]]


def weighted_mean(
    values: ArrayLike, weight: ArrayLike, axis_name: str | tuple[str, ...] | None = None
) -> jax.Array:
    """Returns the mean over a batch in which example i counts `weight[i]` times.

    Args:
      values: shape (B, ...), one entry per example; booleans count as 0 and 1.
      weight: shape (B,), 1 for a real example (or a weight of its own, at least 0) and 0 for
        padding. A padded row must be finite, as those that repeat a real example are.
      axis_name: inside `jax.pmap` or `jax.shard_map`, where a device sees its own rows alone: the
        axis whose devices share the batch, each with as many real examples as it happens to have.
        A mean of the devices' own means would count padded devices too much. Where gradients are
        taken inside, average them over the axis with `jax.lax.pmean`; a shard_map that checks
        its varying axes (`check_vma`, the default) has done so.

    Returns:
      The mean over the first axis, of shape `values.shape[1:]`; 0 where all weights are 0.

    >>> float(weighted_mean(jnp.array([1.0, 2.0, 9.0]), jnp.array([1.0, 1.0, 0.0])))
    1.5
    """
    values, weight = jnp.asarray(values), jnp.asarray(weight)
    column = weight.reshape(weight.shape + (1,) * (values.ndim - weight.ndim))
    total, weighted = weight.sum(), (values * column).sum(axis=0)
    if axis_name is not None:
        total, weighted = jax.lax.psum((total, weighted), axis_name)
    return weighted / jnp.where(total > 0, total, 1)
