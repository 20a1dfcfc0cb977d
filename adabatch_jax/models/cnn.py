"""A small convolutional network for small images, the digits above all."""

import jax
from flax import nnx

from adabatch_jax.errors import UsageError
from adabatch_jax.models.initialization import he_normal, initialize, torch_default
from adabatch_jax.models.layers import Conv, Dropout, Linear, max_pool


class CNN(nnx.Module):
    """Two convolutions, a pooling, dropout and a linear layer; no BatchNorm.

    Args:
      num_classes: number of logits.
      image_shape: (height, width, channels) of the images; height and width are even.
      seed: of the initial weights.
      dropout_rate: share of the pooled features that training drops, per example.

    Raises:
      UsageError: an odd height or width.
    """

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        seed: int,
        dropout_rate: float = 0.25,
    ):
        height, width, channels = image_shape
        if height % 2 or width % 2:
            raise UsageError(f"the CNN pools 2x2 pixels and takes no {height}x{width} images.")
        self.conv1 = Conv(channels, 16, 3)
        self.conv2 = Conv(16, 32, 3)
        self.dropout = Dropout(dropout_rate, number=1)
        self.head = Linear(height * width // 4 * 32, num_classes)
        initialize(self, seed, {Conv: he_normal, Linear: torch_default})

    def __call__(
        self,
        images: jax.Array,
        mask: jax.Array | None = None,
        keys: jax.Array | None = None,
        train: bool = True,
    ) -> jax.Array:
        """Returns logits (batch, num_classes).

        Args:
          images: floating-point (batch, height, width, channels).
          mask: not used, no example sees another one.
          keys: one typed key per example for dropout, or None for none.
          train: whether to drop anything.
        """
        del mask
        features = jax.nn.relu(self.conv1(images))
        features = max_pool(jax.nn.relu(self.conv2(features)), 2)
        features = self.dropout(features.reshape(len(features), -1), keys, train)
        return self.head(features)
