"""Pooling against loops in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adabatch_jax.models.pooling import flatten, global_average, max_pool

CASES = {
    # image, size, stride, padding
    "2x2": ((4, 6), 2, None, 0),
    "2x2, a row and a column too many": ((5, 7), 2, None, 0),
    "3x3 stride 2": ((7, 9), 3, 2, 0),
    "3x3 stride 2, a row too many": ((8, 9), 3, 2, 0),
    "3x3 stride 2 padded, even": ((8, 6), 3, 2, 1),
    "3x3 stride 2 padded, odd": ((7, 7), 3, 2, 1),
}


def reference(images, size, stride, padding):
    """Maxima and, per output, the flat position of the first largest pixel."""
    edge = (padding, padding)
    images = np.pad(images, ((0, 0), edge, edge, (0, 0)), constant_values=-np.inf)
    batch, height, width, features = images.shape
    rows = range(0, height - size + 1, stride)
    columns = range(0, width - size + 1, stride)
    maxima = np.zeros((batch, len(rows), len(columns), features), images.dtype)
    gradient = np.zeros_like(images)
    for image in range(batch):
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                for feature in range(features):
                    window = images[image, row : row + size, column : column + size, feature]
                    maxima[image, i, j, feature] = window.max()
                    at = np.unravel_index(window.argmax(), window.shape)
                    # The cotangent of every output is its number.
                    gradient[image, row + at[0], column + at[1], feature] += i * 10 + j
    inner = slice(padding, height - padding), slice(padding, width - padding)
    return maxima, gradient[:, *inner]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("image", "size", "stride", "padding"), CASES.values(), ids=CASES)
def test_max_pool(image, size, stride, padding, dtype):
    # A permutation per image: no two pixels are equal, and bfloat16 holds them exactly.
    rng = np.random.default_rng(0)
    num_pixels = image[0] * image[1]
    flat = np.stack([rng.permutation(num_pixels) for _ in range(2 * 3)], -1) - 9
    images = flat.reshape(*image, 2, 3).transpose(2, 0, 1, 3).astype(np.float32)
    expected, gradient = reference(images, size, stride or size, padding)
    options = {"stride": stride, "padding": padding}
    got, pull = jax.vjp(lambda x: max_pool(x, size, **options), jnp.asarray(images, dtype))
    np.testing.assert_array_equal(got.astype(np.float32), expected)
    number = np.add.outer(np.arange(got.shape[1]) * 10, np.arange(got.shape[2]))
    cotangent = np.broadcast_to(number[None, :, :, None], got.shape)
    (got,) = pull(jnp.asarray(cotangent, dtype))
    np.testing.assert_array_equal(got.astype(np.float32), gradient)


def test_the_first_of_equal_pixels_gets_the_gradient():
    images = np.random.default_rng(0).integers(0, 3, (2, 9, 9, 3)).astype(np.float32)
    expected, gradient = reference(images, 3, 2, 1)
    got, pull = jax.vjp(lambda x: max_pool(x, 3, stride=2, padding=1), images)
    np.testing.assert_array_equal(got, expected)
    number = np.add.outer(np.arange(5) * 10, np.arange(5))[None, :, :, None]
    np.testing.assert_array_equal(pull(jnp.broadcast_to(number, got.shape) * 1.0)[0], gradient)


@pytest.mark.parametrize("stride", [None, 1])
def test_a_nan_is_the_maximum(stride):
    images = np.zeros((1, 4, 4, 1), np.float32)
    images[0, 1, 1] = np.nan
    pooled = np.asarray(max_pool(images, 2, stride=stride))
    assert np.isnan(pooled[0, 0, 0, 0])
    assert np.isnan(pooled).sum() == (1 if stride is None else 4)


def test_flatten_and_global_average():
    images = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    expected = [
        [image[i, j, c] for c in range(5) for i in range(3) for j in range(4)] for image in images
    ]
    np.testing.assert_array_equal(flatten(images), expected)
    np.testing.assert_allclose(global_average(images), images.mean((1, 2)), rtol=1e-6)
