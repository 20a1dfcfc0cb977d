"""A convolution whose gradients keep their speed inside loops on CPU."""

import functools
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax import lax

_CANONICAL = ("NHWC", "HWIO", "NHWC")

Padding = tuple[tuple[int, int], tuple[int, int]]


def conv2d(
    images: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Padding
) -> jax.Array:
    """Convolves images (batch, height, width, in_features) with a kernel of canonical layout.

    On CPU the gradient has a rule of its own, equal to JAX's, so it can't be
    differentiated in forward mode (`jax.jvp`) there. Without it, gradients inside `lax.scan`,
    that is with micro-batches, take 18 to 40 times as long: XLA's fast kernels are only used
    inside loops where the operands lie in the order (NHWC, HWIO) -> NHWC.

    >>> import jax.numpy as jnp
    >>> conv2d(jnp.ones((1, 5, 5, 1)), jnp.ones((3, 3, 1, 4)), (2, 2), ((1, 1), (1, 1))).shape
    (1, 3, 3, 4)
    """
    strides, padding = tuple(strides), tuple(map(tuple, padding))
    if jax.default_backend() == "cpu":
        return canonical_conv2d(images, kernel, strides, padding)
    return lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=_CANONICAL)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def canonical_conv2d(
    images: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding
) -> jax.Array:
    """`conv2d` with the gradient that is written in canonical layout, on any backend."""
    return _conv(images, kernel, padding, strides=strides)


def _forward(images, kernel, strides, padding):
    return _conv(images, kernel, padding, strides=strides), (images, kernel)


def _backward(strides, padding, residuals, cotangent):
    images, kernel = residuals
    of_images, of_output = images.shape[1:3], cotangent.shape[1:3]
    axes = zip(kernel.shape[:2], padding, of_images, of_output, strides, strict=True)
    sizes = [
        # Along one axis: where the last window begins, counted from the image's first row.
        (k, before, size, (n - 1) * stride - before)
        for k, (before, _), size, n, stride in axes
    ]
    images_grad = _conv(
        cotangent,
        kernel[::-1, ::-1].transpose(0, 1, 3, 2),
        [(k - 1 - before, size - 1 - last) for k, before, size, last in sizes],
        lhs_dilation=strides,
    )
    kernel_grad = _conv(
        images.transpose(3, 1, 2, 0),
        cotangent.transpose(1, 2, 0, 3),
        [(before, last + k - size) for k, before, size, last in sizes],
        rhs_dilation=strides,
    )
    return images_grad, kernel_grad.transpose(1, 2, 0, 3)


canonical_conv2d.defvjp(_forward, _backward)


def _conv(lhs, rhs, padding, strides=(1, 1), lhs_dilation=(1, 1), rhs_dilation=(1, 1)):
    dilated = [(n - 1) * d + 1 for n, d in zip(lhs.shape[1:3], lhs_dilation, strict=True)]
    if math.prod(dilated) < math.prod(rhs.shape[:2]):
        # XLA exchanges an image and a kernel that is larger, and then leaves its fast kernels: a
        # 3x3 convolution of 2x2 pixels took 40 times as long. The barrier keeps it from folding
        # the padding back into the convolution.
        edges = [(*pad, dilation - 1) for pad, dilation in zip(padding, lhs_dilation, strict=True)]
        zero = np.zeros((), lhs.dtype)
        lhs = lax.optimization_barrier(lax.pad(lhs, zero, [(0, 0, 0), *edges, (0, 0, 0)]))
        padding, lhs_dilation = ((0, 0), (0, 0)), (1, 1)
    return lax.conv_general_dilated(
        lhs, rhs, strides, padding, lhs_dilation, rhs_dilation, _CANONICAL
    )
