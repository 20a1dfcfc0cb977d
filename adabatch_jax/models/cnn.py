"""Small convolutional networks for small images, fast on a CPU."""

import jax
from jax import Array

from adabatch_jax.models.initialization import he_normal, torch_default
from adabatch_jax.models.layers import Conv, Dropout, Layers, Linear
from adabatch_jax.models.network import ImageShape, Network, PerExample
from adabatch_jax.models.pooling import flatten, max_pool
from adabatch_jax.system.errors import UsageError

_RULES = {Conv: he_normal, Linear: torch_default}


class DigitsCNN(Network):
    """Two convolutions, a pooling, dropout and a linear layer; no BatchNorm."""

    rules = _RULES

    def __init__(self, num_classes: int, image_shape: ImageShape, layers: Layers):
        height, width, channels = image_shape
        if height % 2 or width % 2:
            raise UsageError(f"cnn_digits pools 2x2 pixels and takes no {height}x{width} images.")
        self.conv1 = layers.conv(channels, 16, 3)
        self.conv2 = layers.conv(16, 32, 3)
        self.dropout = Dropout(0.25, number=1)
        self.head = Linear(height * width // 4 * 32, num_classes)

    def logits(self, images: Array, mask: PerExample, keys: PerExample, train: bool) -> Array:
        features = jax.nn.relu(self.conv1(images))
        features = max_pool(jax.nn.relu(self.conv2(features)), 2)
        features = self.dropout(features.reshape(len(features), -1), keys, train)
        return self.head(features)


class FashionCNN(Network):
    """Two convolutions with BatchNorm and a linear layer, for 28x28 images on a CPU.

    The first convolution has a stride of 2, so that an epoch of Fashion-MNIST takes seconds on
    two cores; BatchNorm makes it a fair stand-in for the paper's networks.
    """

    rules = _RULES

    def __init__(self, num_classes: int, image_shape: ImageShape, layers: Layers):
        height, width, channels = image_shape
        if height % 4 or width % 4:
            raise UsageError(
                "cnn_fashion takes images whose height and width are multiples of 4, "
                f"got {height}x{width}."
            )
        self.conv1 = layers.conv(channels, 16, 5, stride=2, use_bias=False)
        self.bn1 = layers.norm(16)
        self.conv2 = layers.conv(16, 32, 3, use_bias=False)
        self.bn2 = layers.norm(32)
        self.fc = Linear(height // 4 * (width // 4) * 32, num_classes)

    def logits(self, images: Array, mask: PerExample, keys: PerExample, train: bool) -> Array:
        features = max_pool(jax.nn.relu(self.bn1(self.conv1(images), mask, train)), 2)
        features = jax.nn.relu(self.bn2(self.conv2(features), mask, train))
        return self.fc(flatten(features))
