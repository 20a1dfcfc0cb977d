"""Initial weights, drawn with numpy on the host.

One program compiled per initializer is what makes building a network slow in JAX; numpy draws
ResNet-20's weights in milliseconds. Every layer has its own stream, keyed by the seed and the
layer's path, so that it begins with the same weights whatever other layers there are.
"""

import math
import zlib
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import nnx

from adabatch_jax.models.layers import Conv, Linear
from adabatch_jax.system.quantities import checked_seed

Initializer = Callable[[np.random.Generator, nnx.Module], None]


def he_normal(rng: np.random.Generator, layer: Conv) -> None:
    """Draws a kernel from N(0, 2 / (kernel area * out_features)); the bias is 0."""
    shape = layer.kernel[...].shape
    std = math.sqrt(2 / (shape[0] * shape[1] * shape[3]))
    layer.kernel[...] = _array(std * rng.standard_normal(shape, np.float32))
    if layer.bias is not None:
        layer.bias[...] = _array(np.zeros(shape[-1]))


def torch_default(rng: np.random.Generator, layer: Conv | Linear) -> None:
    """Draws kernel and bias from U(-b, b), b = 1 / sqrt(fan_in), as PyTorch does."""
    shape = layer.kernel[...].shape
    bound = 1 / math.sqrt(math.prod(shape[:-1]))
    layer.kernel[...] = _array(rng.uniform(-bound, bound, shape))
    if layer.bias is not None:
        layer.bias[...] = _array(rng.uniform(-bound, bound, shape[-1:]))


def narrow_normal(rng: np.random.Generator, layer: Linear) -> None:
    """Draws a kernel from N(0, 0.01**2); the bias is 0."""
    shape = layer.kernel[...].shape
    layer.kernel[...] = _array(np.float32(0.01) * rng.standard_normal(shape, np.float32))
    layer.bias[...] = _array(np.zeros(shape[-1]))


def normal(std: float) -> Initializer:
    """Returns what draws a matrix, a layer's kernel or an embedding, from N(0, std**2); a bias is 0."""

    def draw(rng: np.random.Generator, layer: nnx.Module) -> None:
        for variable in vars(layer).values():
            if isinstance(variable, nnx.Param):
                shape = variable[...].shape
                scale = np.float32(std if len(shape) == 2 else 0)
                variable[...] = _array(scale * rng.standard_normal(shape, np.float32))

    return draw


def initialize(network: nnx.Module, seed: int) -> None:
    """Draws the weights of each layer that the network's `rules` name; others stay as made."""
    seed = checked_seed(seed)
    for path, layer in nnx.iter_modules(network):
        if rule := network.rules.get(type(layer)):
            name = zlib.crc32("/".join(map(str, path)).encode())
            rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, name])))
            rule(rng, layer)


def _array(values: np.ndarray):
    return jnp.asarray(values.astype(np.float32))
