"""Random changes of images that depend on (seed, epoch, example) and on nothing else.

An example gets the same augmentation in whichever batch, micro-batch, row or process it lands,
because every random number comes from its own key.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike


def example_keys(seed: int | jax.Array, batch: Mapping[str, ArrayLike]) -> jax.Array:
    """Returns one key per example.

    Args:
      seed: the run's seed.
      batch: a batch with "epoch" and "index", integers of shape (B,) or (K, m).

    Returns:
      Typed keys of the shape of `batch["index"]`. They are always threefry2x32: other
      generators, rbg above all, don't give an example the same numbers in another batch.

    >>> keys = example_keys(0, {"epoch": jnp.array([0, 0, 1]), "index": jnp.array([5, 6, 5])})
    >>> keys.shape, len(set(jax.random.bits(key).item() for key in keys))
    ((3,), 3)
    """
    key = jax.random.key(seed, impl="threefry2x32")

    def fold(epoch: jax.Array, index: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(key, epoch), index)

    return _per_example(fold, jnp.ndim(batch["index"]))(batch["epoch"], batch["index"])


def crop_offsets(keys: jax.Array, padding: int) -> tuple[jax.Array, jax.Array]:
    """Returns each example's row and column offset, int32 in [0, 2 * padding].

    One 32-bit word per example serves crop and flip: its bits 0-15 give the row, bits 16-30
    the column, bit 31 the flip, so that the three are independent. With a `padding` of at most
    127 the offsets' probabilities differ by less than 1 %.
    """
    bits, num_offsets = _bits(keys), 2 * padding + 1
    rows = ((bits & 0xFFFF) * num_offsets) >> 16
    columns = ((bits >> 16 & 0x7FFF) * num_offsets) >> 15
    return rows.astype(jnp.int32), columns.astype(jnp.int32)


def random_crop(keys: jax.Array, images: jax.Array, padding: int = 4) -> jax.Array:
    """Pads each image with zeros on all sides and cuts a random window of its old size out.

    Images are (..., height, width, channels) of any dtype, with a key for each from `example_keys`.

    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> random_crop(keys, jnp.ones((2, 8, 8, 1), jnp.uint8), padding=2).shape
    (2, 8, 8, 1)
    """

    def crop(image: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
        height, width = image.shape[:2]
        rows = jnp.arange(height) + row - padding
        columns = jnp.arange(width) + column - padding
        inside = _within(rows, height)[:, None] & _within(columns, width)[None, :]
        # A gather with a mask: as fast as slicing a padded copy, without making the copy.
        window = image[rows.clip(0, height - 1)[:, None], columns.clip(0, width - 1)[None, :]]
        return jnp.where(inside[:, :, None], window, jnp.zeros((), image.dtype))

    return _per_example(crop, keys.ndim)(images, *crop_offsets(keys, padding))


def random_flip(keys: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each image left to right with probability 1/2, independently of `random_crop`.

    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> random_flip(keys, jnp.ones((2, 8, 8, 1))).shape
    (2, 8, 8, 1)
    """

    def flip(image: jax.Array, mirrored: jax.Array) -> jax.Array:
        return jnp.where(mirrored, image[:, ::-1], image)

    return _per_example(flip, keys.ndim)(images, (_bits(keys) >> 31).astype(bool))


def normalize(
    images: jax.Array,
    mean: Sequence[float] | float,
    std: Sequence[float] | float,
    dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """Returns `(images / 255 - mean) / std`, of floating-point images `(images - mean) / std`.

    Do this on the device, inside jit: numpy rounds differently. Images (..., height, width,
    channels) are uint8, or floating-point with pixels in [0, 1]; `mean` and `std`, of pixels in
    [0, 1], are one number or one per channel. The arithmetic is float32 at least, whatever the
    result's `dtype`.

    >>> normalize(jnp.full((1, 1, 1, 3), 255, jnp.uint8), (0.5, 0.6, 0.75), 0.5).ravel().tolist()
    [1.0, 0.7999..., 0.5]
    """
    precise = jnp.promote_types(dtype, jnp.float32)

    def per_channel(values: ArrayLike) -> jax.Array:
        return jnp.asarray(values, precise).reshape((1,) * (images.ndim - 1) + (-1,))

    pixels = images.astype(precise)
    if jnp.issubdtype(images.dtype, jnp.integer):
        pixels = pixels / 255
    return ((pixels - per_channel(mean)) / per_channel(std)).astype(dtype)


def _bits(keys: jax.Array) -> jax.Array:
    return _per_example(lambda key: jax.random.bits(key, dtype=jnp.uint32), keys.ndim)(keys)


def _within(positions: jax.Array, size: int) -> jax.Array:
    return (positions >= 0) & (positions < size)


def _per_example(function, num_axes: int):
    # Nested vmaps instead of a reshape: K micro-batches of a sharded batch stay where they are.
    for _ in range(num_axes):
        function = jax.vmap(function)
    return function
