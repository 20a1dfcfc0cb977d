"""The residual networks for CIFAR that the paper trains (section 4.1: ResNet-20)."""

import jax
import jax.numpy as jnp
from flax import nnx

from adabatch_jax.errors import UsageError
from adabatch_jax.models.initialization import he_normal, initialize, torch_default
from adabatch_jax.models.layers import Conv, Layers, Linear


class BasicBlock(nnx.Module):
    """Two convolutions beside a shortcut, which is projected where the shape changes."""

    def __init__(self, in_features: int, out_features: int, stride: int, layers: Layers):
        def conv(in_features: int, kernel_size: int, stride: int) -> Conv:
            return layers.conv(
                in_features, out_features, kernel_size, stride=stride, use_bias=False
            )

        def norm() -> nnx.Module:
            return layers.norm(out_features)

        self.conv1, self.norm1 = conv(in_features, 3, stride), norm()
        self.conv2, self.norm2 = conv(out_features, 3, 1), norm()
        self.projected = stride > 1 or in_features != out_features
        if self.projected:
            self.shortcut_conv, self.shortcut_norm = conv(in_features, 1, stride), norm()

    def __call__(self, images: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
        features = jax.nn.relu(self.norm1(self.conv1(images), mask, train))
        features = self.norm2(self.conv2(features), mask, train)
        if self.projected:
            images = self.shortcut_norm(self.shortcut_conv(images), mask, train)
        return jax.nn.relu(features + images)


class ResNet(nnx.Module):
    """A residual network of `depth` layers for 32x32 images (He et al. 2015, section 4.2).

    Three stages of 16, 32 and 64 features, with (depth - 2) / 6 basic blocks each. Images of
    28x28 are padded with zeros to 32x32.

    Args:
      depth: 20, 32, 44, 56, 110, ...
      num_classes: number of logits.
      image_shape: (height, width, channels) of the images.
      seed: of the initial weights.
      layers: makes the layers, with the compute type and BatchNorm's options.

    Raises:
      UsageError: images that aren't 28x28 or 32x32, or a depth that isn't 6n + 2.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int,
        image_shape: tuple[int, int, int],
        seed: int,
        layers: Layers,
    ):
        height, width, channels = image_shape
        if (height, width) not in ((28, 28), (32, 32)):
            raise UsageError(f"ResNet-{depth} takes 32x32 or 28x28 images, got {height}x{width}.")
        if depth < 8 or (depth - 2) % 6:
            raise UsageError(f"a CIFAR ResNet's depth is 6n + 2, such as 20 or 32, got {depth}.")
        self.padding = (32 - height) // 2
        self.conv = layers.conv(channels, 16, 3, use_bias=False)
        self.norm = layers.norm(16)
        # Named attributes instead of a list: parameters get text as keys at every level.
        self.block_names = []
        in_features = 16
        for stage, out_features in enumerate((16, 32, 64), start=1):
            for block in range((depth - 2) // 6):
                stride = 2 if stage > 1 and block == 0 else 1
                name = f"stage{stage}_block{block}"
                setattr(self, name, BasicBlock(in_features, out_features, stride, layers))
                self.block_names.append(name)
                in_features = out_features
        self.block_names = tuple(self.block_names)
        self.head = Linear(64, num_classes)
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
          mask: (batch,), 1 for a real example and 0 for padding; None if all are real.
          keys: not used, this network has no dropout.
          train: whether BatchNorm uses the batch's statistics.
        """
        del keys
        edge = (self.padding, self.padding)
        images = jnp.pad(images, ((0, 0), edge, edge, (0, 0)))
        features = jax.nn.relu(self.norm(self.conv(images), mask, train))
        for name in self.block_names:
            features = getattr(self, name)(features, mask, train)
        return self.head(features.mean((1, 2)))
