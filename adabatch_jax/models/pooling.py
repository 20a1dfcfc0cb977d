"""Pooling, and the way from images (batch, height, width, features) to rows of features."""

import jax
import jax.numpy as jnp
from jax import lax


def max_pool(
    images: jax.Array, size: int, *, stride: int | None = None, padding: int = 0
) -> jax.Array:
    """Returns the maximum of each window of `size` x `size` pixels, as PyTorch does.

    Rows and columns at the end that fill no window are left out. By default windows don't overlap.

    >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), 2).ravel().tolist()
    [5.0, 7.0, 13.0, 15.0]
    >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), 3, stride=2, padding=1).ravel().tolist()
    [5.0, 7.0, 13.0, 15.0]
    """
    if stride in (None, size) and not padding:
        batch, height, width, features = images.shape
        rows, columns = height // size, width // size
        images = images[:, : rows * size, : columns * size]
        return images.reshape(batch, rows, size, columns, size, features).max((2, 4))
    edge = (padding, padding)
    images = jnp.pad(images, ((0, 0), edge, edge, (0, 0)), constant_values=-jnp.inf)
    # Columns first: among equal pixels the gradient goes to the first in reading order.
    for axis in (2, 1):
        images = _running_max(images, size, size if stride is None else stride, axis)
    return images


def _running_max(images: jax.Array, size: int, stride: int, axis: int) -> jax.Array:
    """Returns the maximum of each window along one axis.

    One axis after the other by comparisons of slices: on CPU the gradient takes a third to a
    half of the time that `lax.reduce_window`'s does.
    """
    num_windows = (images.shape[axis] - size) // stride + 1
    largest = None
    for start in range(size):
        stop = start + (num_windows - 1) * stride + 1
        pixels = lax.slice_in_dim(images, start, stop, stride, axis)
        # A NaN must go on to the loss, where it is found.
        larger = None if largest is None else (pixels > largest) | jnp.isnan(pixels)
        largest = pixels if largest is None else jnp.where(larger, pixels, largest)
    return largest


def global_average(images: jax.Array) -> jax.Array:
    """Returns the mean over all pixels, (batch, features), in float32 at least.

    >>> global_average(jnp.ones((2, 4, 4, 3), "bfloat16")).dtype
    dtype('float32')
    """
    return images.mean((1, 2), dtype=jnp.promote_types(images.dtype, jnp.float32))


def flatten(images: jax.Array) -> jax.Array:
    """Returns (batch, features * height * width) in PyTorch's order, pixels fastest.

    >>> flatten(jnp.arange(4).reshape(1, 1, 2, 2)).tolist()
    [[0, 2, 1, 3]]
    """
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)
