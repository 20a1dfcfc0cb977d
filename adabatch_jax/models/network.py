"""What every network has in common: how it is made, and how it is called."""

from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jax import Array

from adabatch_jax.models.initialization import Initializer

ImageShape = tuple[int, int, int]
PerExample = Array | None


class Network(nnx.Module):
    """A network; `adabatch_jax.models.create` makes one by name and draws its weights.

    Every constructor ends with the same arguments: num_classes, the number of logits;
    image_shape, (height, width, channels) of the images; layers, which makes the layers with the
    compute type and BatchNorm's options.

    Attributes:
      rules: for each class of layer how its weights are drawn.
    """

    rules: ClassVar[dict[type, Initializer]]

    def __call__(
        self,
        images: Array,
        mask: PerExample = None,
        keys: PerExample = None,
        train: bool = True,
    ) -> Array:
        """Returns logits, see `adabatch_jax.models.create`."""
        return self.logits(images, mask, keys, train)

    def logits(self, images: Array, mask: PerExample, keys: PerExample, train: bool) -> Array:
        """Returns logits; only with BatchNorm does `mask` matter, only with dropout do `keys`."""
        raise NotImplementedError


def pad_to_32x32(images: Array) -> Array:
    """Returns images (batch, 32, 32, channels), zeros around smaller ones.

    >>> pad_to_32x32(jnp.ones((1, 28, 28, 1))).sum((0, 2, 3))[:3].tolist()
    [0.0, 0.0, 28.0]
    """
    edges = [((32 - size) // 2, (32 - size) // 2) for size in images.shape[1:3]]
    return jnp.pad(images, ((0, 0), *edges, (0, 0)))
