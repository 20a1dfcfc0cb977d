"""What every network has in common: how it is made, and how it is called."""

import jax
from flax import nnx

ImageShape = tuple[int, int, int]
PerExample = jax.Array | None


class Network(nnx.Module):
    """A network with its initial weights; `adabatch_jax.models.create` makes one by name.

    Every network's constructor ends with the same arguments:
      num_classes: number of logits.
      image_shape: (height, width, channels). Those for CIFAR take 32x32 pixels, and 28x28, which
        are padded with zeros; those for ImageNet take 224x224.
      seed: of the initial weights.
      layers: makes the layers, with the compute type and BatchNorm's options.
    and raises a UsageError if `image_shape` has another size.
    """

    def __call__(
        self,
        images: jax.Array,
        mask: PerExample = None,
        keys: PerExample = None,
        train: bool = True,
    ) -> jax.Array:
        """Returns logits, see `adabatch_jax.models.create`."""
        return self.logits(images, mask, keys, train)

    def logits(
        self, images: jax.Array, mask: PerExample, keys: PerExample, train: bool
    ) -> jax.Array:
        """Returns logits; only with BatchNorm does `mask` matter, only with dropout do `keys`."""
        raise NotImplementedError
