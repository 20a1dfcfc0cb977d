"""VGG for CIFAR and for ImageNet (Simonyan and Zisserman 2014), with and without BatchNorm.

Attributes have PyTorch's names: `features_3` is `features.3` of the official code's VGG and of
torchvision's.
"""

import jax
from jax import Array

from adabatch_jax.models.initialization import he_normal, narrow_normal
from adabatch_jax.models.layers import Conv, Dropout, Layers, Linear
from adabatch_jax.models.network import ImageShape, Network, PerExample, pad_to_32x32
from adabatch_jax.models.pooling import flatten, max_pool

_WIDTHS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = {  # Per depth, how many there are of each width before a pooling.
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class _Features(Network):
    """3x3 convolutions, each with BatchNorm or without and ReLU, in five pooled stages.

    Args:
      depth: 11, 13, 16 or 19.
      batchnorm: whether a BatchNorm follows each convolution (which has a bias nevertheless).
    """

    rules = {Conv: he_normal, Linear: narrow_normal}

    def __init__(self, depth: int, batchnorm: bool, channels: int, layers: Layers):
        self.batchnorm = batchnorm
        # PyTorch counts ReLU and pooling as layers, too.
        index, stages = 0, []
        for width, num_convolutions in zip(_WIDTHS, _CONVOLUTIONS[depth], strict=True):
            stages.append([])
            for _ in range(num_convolutions):
                setattr(self, f"features_{index}", layers.conv(channels, width, 3))
                if batchnorm:
                    setattr(self, f"features_{index + 1}", layers.norm(width))
                stages[-1].append(index)
                index += 3 if batchnorm else 2
                channels = width
            index += 1
        self.stages = tuple(map(tuple, stages))

    def features(self, images: Array, mask: Array | None, train: bool) -> Array:
        """Returns the rows (batch, features) that the classifier takes."""
        for stage in self.stages:
            for index in stage:
                images = getattr(self, f"features_{index}")(images)
                if self.batchnorm:
                    images = getattr(self, f"features_{index + 1}")(images, mask, train)
                images = jax.nn.relu(images)
            images = max_pool(images, 2)
        return flatten(images)


class CifarVGG(_Features):
    """The official code's VGG for 32x32 images; one linear layer, no dropout."""

    def __init__(
        self, depth: int, batchnorm: bool, num_classes: int, image_shape: ImageShape, layers: Layers
    ):
        super().__init__(depth, batchnorm, image_shape[2], layers)
        self.classifier = Linear(512, num_classes)

    def logits(self, images: Array, mask: PerExample, keys: PerExample, train: bool) -> Array:
        return self.classifier(self.features(pad_to_32x32(images), mask, train))


class VGG(_Features):
    """torchvision's VGG for 224x224 images.

    Its adaptive average pooling to 7x7 is left out: at 224x224 there is nothing to average.
    """

    def __init__(
        self, depth: int, batchnorm: bool, num_classes: int, image_shape: ImageShape, layers: Layers
    ):
        super().__init__(depth, batchnorm, image_shape[2], layers)
        self.classifier_0 = layers.linear(512 * 7 * 7, 4096)
        self.classifier_2 = Dropout(0.5, number=1)
        self.classifier_3 = layers.linear(4096, 4096)
        self.classifier_5 = Dropout(0.5, number=2)
        self.classifier_6 = Linear(4096, num_classes)

    def logits(self, images: Array, mask: PerExample, keys: PerExample, train: bool) -> Array:
        features = self.features(images, mask, train)
        features = self.classifier_2(jax.nn.relu(self.classifier_0(features)), keys, train)
        features = self.classifier_5(jax.nn.relu(self.classifier_3(features)), keys, train)
        return self.classifier_6(features)
