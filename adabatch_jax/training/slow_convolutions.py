"""Convolutions that XLA computes many times slower on CPU where they lie in a loop."""

import jax
from jax.extend.core import ClosedJaxpr


def has_slow_convolutions(jaxpr: ClosedJaxpr) -> bool:
    """Whether a traced function has convolutions that miss XLA's fast CPU kernels in a loop.

    Outside of loops XLA rearranges a convolution until a fast kernel takes it. In the body of a
    loop (`lax.scan`, `lax.fori_loop`) or a branch it doesn't: what isn't written as (NHWC, HWIO)
    -> NHWC there takes 18 to 40 times as long, as do the gradients of `lax.conv_general_dilated`.
    See `models.convolution.conv2d` for one that is fast.

    >>> from jax import lax
    >>> def convolved(x, kernel):
    ...     return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", None, None,
    ...                                     ("NHWC", "HWIO", "NHWC")).sum()
    >>> arrays = jax.numpy.ones((4, 4, 4, 2)), jax.numpy.ones((3, 3, 2, 2))
    >>> [has_slow_convolutions(jax.make_jaxpr(f)(*arrays)) for f in (convolved, jax.grad(convolved))]
    [False, True]
    """
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            rows, kernel, out = equation.params["dimension_numbers"]
            space = range(1, len(rows) - 1)
            channels_last = (0, len(rows) - 1, *space)
            if rows != channels_last or out != channels_last:
                return True
            if kernel != (len(rows) - 1, len(rows) - 2, *(axis - 1 for axis in space)):
                return True
        parts = jax.tree.leaves(equation.params, is_leaf=lambda part: hasattr(part, "eqns"))
        if any(has_slow_convolutions(part) for part in parts if hasattr(part, "eqns")):
            return True
    return False
