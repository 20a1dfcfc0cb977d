"""The gradient written by hand has the bits of JAX's own."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from adabatch_jax.models.convolution import canonical_conv2d, conv2d


def stock(x, w, strides, padding):
    return lax.conv_general_dilated(
        x, w, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def vjp(conv, x, w, strides, padding):
    @jax.jit
    def gradients(x, w):
        y, pull = jax.vjp(lambda x, w: conv(x, w, strides, padding), x, w)
        return y, pull(jnp.cos(y))

    return gradients(x, w)


CASES = {
    # kernel, strides, padding, image
    "1x1": ((1, 1), (1, 1), ((0, 0), (0, 0)), (8, 8)),
    "1x1 stride 2": ((1, 1), (2, 2), ((0, 0), (0, 0)), (8, 8)),
    "3x3": ((3, 3), (1, 1), ((1, 1), (1, 1)), (8, 8)),
    "3x3 stride 2, even": ((3, 3), (2, 2), ((1, 1), (1, 1)), (8, 8)),
    "3x3 stride 2, odd": ((3, 3), (2, 2), ((1, 1), (1, 1)), (9, 9)),
    "3x3 stride 2, image not square": ((3, 3), (2, 2), ((1, 1), (1, 1)), (8, 11)),
    "3x3 valid": ((3, 3), (1, 1), ((0, 0), (0, 0)), (6, 7)),
    "7x7 stride 2": ((7, 7), (2, 2), ((3, 3), (3, 3)), (16, 16)),
    "11x11 stride 4": ((11, 11), (4, 4), ((5, 5), (5, 5)), (32, 32)),
    "3x5, strides and padding per axis": ((3, 5), (2, 1), ((0, 1), (2, 1)), (9, 8)),
}


@pytest.mark.parametrize(("kernel", "strides", "padding", "image"), CASES.values(), ids=CASES)
def test_same_bits_as_autodiff(kernel, strides, padding, image):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, *image, 3)).astype(np.float32)
    w = rng.normal(size=(*kernel, 3, 8)).astype(np.float32)
    expected = vjp(stock, x, w, strides, padding)
    jax.tree.map(
        np.testing.assert_array_equal, vjp(canonical_conv2d, x, w, strides, padding), expected
    )
    jax.tree.map(np.testing.assert_array_equal, vjp(conv2d, x, w, strides, padding), expected)


SMALL = {
    # kernel, strides, padding, image
    "3x3 of 2x2": ((3, 3), (1, 1), ((1, 1), (1, 1)), (2, 2)),
    "3x3 of 1x1": ((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    "5x5 of 4x4": ((5, 5), (1, 1), ((2, 2), (2, 2)), (4, 4)),
    "3x3 stride 2 of 2x2": ((3, 3), (2, 2), ((1, 1), (1, 1)), (2, 2)),
    "5x5 stride 2 of 4x3": ((5, 5), (2, 2), ((2, 2), (2, 2)), (4, 3)),
    "3x3 stride 2 of 4x4, whose gradient is 2x2": ((3, 3), (2, 2), ((1, 1), (1, 1)), (4, 4)),
}


@pytest.mark.parametrize(("kernel", "strides", "padding", "image"), SMALL.values(), ids=SMALL)
def test_images_smaller_than_the_kernel(kernel, strides, padding, image):
    # Small whole numbers: sums are exact in any order, in bfloat16, too.
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-2, 3, (4, *image, 3)), jnp.bfloat16)
    w = jnp.asarray(rng.integers(-2, 3, (*kernel, 3, 8)), jnp.bfloat16)

    def outputs(conv):
        y, pull = jax.vjp(lambda x, w: conv(x, w, strides, padding), x, w)
        return y, *pull(jnp.sign(y))

    for got, expected in zip(outputs(conv2d), outputs(stock), strict=True):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_array_equal(got.astype(np.float32), expected.astype(np.float32))


def loop_convolutions(conv, image_size, dtype):
    """Returns the layouts of the convolutions in a compiled loop of gradients."""

    def loss(w, x):
        for strides in ((1, 1), (2, 2)):
            x = conv(x, w, strides, ((1, 1), (1, 1)))
        return (x**2).sum()

    def total(w, batches):
        def body(acc, x):
            return acc + jax.grad(loss)(w, x), None

        return lax.scan(body, jnp.zeros_like(w), batches)[0]

    shapes = (3, 3, 4, 4), (2, 4, image_size, image_size, 4)
    abstract = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    text = jax.jit(total).lower(*abstract).compile().as_text()
    return set(re.findall(r"dim_labels=(\S+?)[,\s]", text))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("image_size", [8, 2])
def test_the_loop_body_holds_canonical_convolutions_only(image_size, dtype):
    assert loop_convolutions(stock, image_size, dtype) - {"b01f_01io->b01f"}
    assert not loop_convolutions(conv2d, image_size, dtype) - {"b01f_01io->b01f"}
