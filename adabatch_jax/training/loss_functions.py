"""What a loss function is, and the mean that it takes over a batch."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

LossFn = Callable[[Any, Any, Mapping[str, jax.Array], jax.Array], tuple[jax.Array, tuple[Any, Any]]]


def weighted_mean(values: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns the mean over a batch in which example i counts `weight[i]` times.

    Args:
      values: shape (B, ...), one entry per example; booleans count as 0 and 1.
      weight: shape (B,), 1 for a real example and 0 for padding. A padded row must be finite,
        as those that repeat a real example are.

    Returns:
      The mean over the first axis, of shape `values.shape[1:]`; 0 where all weights are 0.

    >>> float(weighted_mean(jnp.array([1.0, 2.0, 9.0]), jnp.array([1.0, 1.0, 0.0])))
    1.5
    """
    values, weight = jnp.asarray(values), jnp.asarray(weight)
    total = weight.sum()
    column = weight.reshape(weight.shape + (1,) * (values.ndim - weight.ndim))
    return (values * column).sum(axis=0) / jnp.where(total > 0, total, 1)
