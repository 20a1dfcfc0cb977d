"""Convolutions that would be slow in loops are found wherever they lie in a traced function."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from adabatch_jax.models.convolution import canonical_conv2d
from adabatch_jax.training.slow_convolutions import has_slow_convolutions

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
    """A branch of a function that a loop's body calls."""
    inner = jax.jit(lambda w, x: lax.cond(x.sum() > 0, grad, lambda w, x: w, w, x))
    return lax.fori_loop(0, 3, lambda i, w: inner(w, xs[i]), w)


def cond(grad, w, xs):
    return lax.cond(xs.sum() > 0, lambda: grad(w, xs[0]), lambda: w)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about XLA's CPU kernels")
@pytest.mark.parametrize(
    ("convolve", "around", "expected"),
    [
        (stock, plain, True),
        (stock, scan, True),
        (stock, cond, True),
        (stock, nested, True),
        (canonical, plain, False),
        (canonical, scan, False),
        (canonical, nested, False),
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
    jaxpr = jax.make_jaxpr(lambda w, xs: around(jax.grad(loss), w, xs))(w, xs)
    assert has_slow_convolutions(jaxpr) == expected
