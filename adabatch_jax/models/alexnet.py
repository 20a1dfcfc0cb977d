"""AlexNet for CIFAR and for ImageNet (Krizhevsky 2014), as the paper trains it.

Attributes have PyTorch's names: `features_3` is `features.3` of the official code's AlexNet and
of torchvision's.
"""

import jax
from jax import Array

from adabatch_jax.models.initialization import torch_default
from adabatch_jax.models.layers import Conv, Dropout, Layers, Linear
from adabatch_jax.models.network import ImageShape, Network, PerExample, pad_to_32x32
from adabatch_jax.models.pooling import flatten, max_pool


class _Features(Network):
    """Five convolutions with ReLU; the first, the second and the last are pooled."""

    rules = {Conv: torch_default, Linear: torch_default}

    def __init__(self, channels: int, layers: Layers, padding: int, pool_size: int):
        self.pool_size = pool_size
        self.features_0 = layers.conv(channels, 64, 11, stride=4, padding=padding)
        self.features_3 = layers.conv(64, 192, 5)
        self.features_6 = layers.conv(192, 384, 3)
        self.features_8 = layers.conv(384, 256, 3)
        self.features_10 = layers.conv(256, 256, 3)

    def features(self, images: Array) -> Array:
        """Returns the rows (batch, features) that the classifier takes."""
        images = self._pool(jax.nn.relu(self.features_0(images)))
        images = self._pool(jax.nn.relu(self.features_3(images)))
        images = jax.nn.relu(self.features_6(images))
        images = jax.nn.relu(self.features_8(images))
        return flatten(self._pool(jax.nn.relu(self.features_10(images))))

    def _pool(self, images: Array) -> Array:
        return max_pool(images, self.pool_size, stride=2)


class CifarAlexNet(_Features):
    """The official code's AlexNet for 32x32 images; one linear layer, no dropout."""

    def __init__(self, num_classes: int, image_shape: ImageShape, layers: Layers):
        super().__init__(image_shape[2], layers, padding=5, pool_size=2)
        self.classifier = Linear(256, num_classes)

    def logits(self, images: Array, mask: PerExample, keys: PerExample, train: bool) -> Array:
        return self.classifier(self.features(pad_to_32x32(images)))


class AlexNet(_Features):
    """torchvision's AlexNet for 224x224 images.

    Its adaptive average pooling to 6x6 is left out: at 224x224 there is nothing to average.
    """

    def __init__(self, num_classes: int, image_shape: ImageShape, layers: Layers):
        super().__init__(image_shape[2], layers, padding=2, pool_size=3)
        self.classifier_0 = Dropout(0.5, number=1)
        self.classifier_1 = layers.linear(256 * 6 * 6, 4096)
        self.classifier_3 = Dropout(0.5, number=2)
        self.classifier_4 = layers.linear(4096, 4096)
        self.classifier_6 = Linear(4096, num_classes)

    def logits(self, images: Array, mask: PerExample, keys: PerExample, train: bool) -> Array:
        features = self.classifier_0(self.features(images), keys, train)
        features = self.classifier_3(jax.nn.relu(self.classifier_1(features)), keys, train)
        return self.classifier_6(jax.nn.relu(self.classifier_4(features)))
