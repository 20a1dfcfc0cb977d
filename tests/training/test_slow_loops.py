"""Slow convolutions are found in what XLA really compiles, and fast ones aren't suspected."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from adabatch_jax.models.convolution import canonical_conv2d
from adabatch_jax.training.slow_loops import slow_convolutions

PADDING = ((1, 1), (1, 1))


def stock(x, w):
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w, (1, 1), PADDING, dimension_numbers=layout)


def canonical(x, w):
    return canonical_conv2d(x, w, (1, 1), PADDING)


def plain(grad, w, xs):
    return grad(w, xs[0])


def scan(grad, w, xs):
    return lax.scan(lambda total, x: (jax.tree.map(jnp.add, total, grad(w, x)), None), w, xs)[0]


def nested(grad, w, xs):
    """A branch of a program that a loop's body calls."""
    inner = jax.jit(lambda w, x: lax.cond(x.sum() > 0, grad, lambda w, x: w, w, x))
    return lax.fori_loop(0, 3, lambda i, w: inner(w, xs[i]), w)


def cond(grad, w, xs):
    return lax.cond(xs.sum() > 0, lambda: grad(w, xs[0]), lambda: w)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about XLA's CPU kernels")
@pytest.mark.parametrize(
    ("convolve", "around", "expected"),
    [
        # Two convolutions: gradients of both kernels, and of the second one's input.
        (stock, plain, 0),
        (stock, scan, 3),
        (stock, cond, 3),
        (stock, nested, 3),
        (canonical, scan, 0),
        (canonical, nested, 0),
    ],
)
def test_slow_convolutions(convolve, around, expected):
    def loss(w, x):
        return (jax.nn.relu(convolve(convolve(x, w[0]), w[1])) ** 2).sum()

    shapes = [(3, 3, 4, 8), (3, 3, 8, 8)], (3, 4, 8, 8, 4)
    w, xs = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple) and isinstance(x[0], int),
    )
    program = jax.jit(lambda w, xs: around(jax.grad(loss), w, xs)).lower(w, xs).compile()
    assert slow_convolutions(program.as_text()) == expected
