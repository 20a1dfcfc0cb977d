"""Residual networks for CIFAR and for ImageNet (He et al. 2015), as the paper trains them.

Attributes have PyTorch's names: `layer1_0.downsample_0` is `layer1.0.downsample.0` of the
official code's ResNet and of torchvision's.
"""

import jax
from flax import nnx
from jax import Array

from adabatch_jax.models.initialization import he_normal, torch_default
from adabatch_jax.models.layers import Conv, Layers, Linear
from adabatch_jax.models.network import ImageShape, Network, PerExample, pad_to_32x32
from adabatch_jax.models.pooling import global_average, max_pool
from adabatch_jax.system.errors import UsageError


class _Block(nnx.Module):
    """What both blocks share: a shortcut, projected where the shape changes ("option B")."""

    expansion: int

    def __init__(self, in_features: int, width: int, stride: int, layers: Layers):
        out_features = width * self.expansion
        self.projected = stride != 1 or in_features != out_features
        if self.projected:
            options = {"stride": stride, "use_bias": False}
            self.downsample_0 = layers.conv(in_features, out_features, 1, **options)
            self.downsample_1 = layers.norm(out_features)

    def __call__(self, images: Array, mask: Array | None, train: bool) -> Array:
        features = self.residual(images, mask, train)
        if self.projected:
            images = self.downsample_1(self.downsample_0(images), mask, train)
        return jax.nn.relu(features + images)


class BasicBlock(_Block):
    """Two 3x3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, in_features: int, width: int, stride: int, layers: Layers):
        super().__init__(in_features, width, stride, layers)
        self.conv1 = layers.conv(in_features, width, 3, stride=stride, use_bias=False)
        self.bn1 = layers.norm(width)
        self.conv2 = layers.conv(width, width, 3, use_bias=False)
        self.bn2 = layers.norm(width)

    def residual(self, images: Array, mask: Array | None, train: bool) -> Array:
        features = jax.nn.relu(self.bn1(self.conv1(images), mask, train))
        return self.bn2(self.conv2(features), mask, train)


class Bottleneck(_Block):
    """A 3x3 convolution, which has the stride, between two of 1x1, beside a shortcut."""

    expansion = 4

    def __init__(self, in_features: int, width: int, stride: int, layers: Layers):
        super().__init__(in_features, width, stride, layers)
        self.conv1 = layers.conv(in_features, width, 1, use_bias=False)
        self.bn1 = layers.norm(width)
        self.conv2 = layers.conv(width, width, 3, stride=stride, use_bias=False)
        self.bn2 = layers.norm(width)
        self.conv3 = layers.conv(width, width * self.expansion, 1, use_bias=False)
        self.bn3 = layers.norm(width * self.expansion)

    def residual(self, images: Array, mask: Array | None, train: bool) -> Array:
        features = jax.nn.relu(self.bn1(self.conv1(images), mask, train))
        features = jax.nn.relu(self.bn2(self.conv2(features), mask, train))
        return self.bn3(self.conv3(features), mask, train)


class _Stages(Network):
    """Stages of blocks, each with twice the features on half the height and width."""

    rules = {Conv: he_normal, Linear: torch_default}

    def __init__(
        self, block: type[_Block], num_blocks: tuple[int, ...], width: int, layers: Layers
    ):
        in_features, names = width, []
        for stage, num in enumerate(num_blocks):
            for index in range(num):
                stride = 2 if stage > 0 and index == 0 else 1
                # Named attributes instead of a list: parameters get text as keys at every level.
                names.append(f"layer{stage + 1}_{index}")
                setattr(self, names[-1], block(in_features, width * 2**stage, stride, layers))
                in_features = width * 2**stage * block.expansion
        self.block_names = tuple(names)
        self.out_features = in_features

    def stages(self, images: Array, mask: Array | None, train: bool) -> Array:
        for name in self.block_names:
            images = getattr(self, name)(images, mask, train)
        return images


class CifarResNet(_Stages):
    """The official code's ResNet for 32x32 images, `depth` = 6n + 2.

    Three stages of 16, 32 and 64 features with n = (depth - 2) / 6 blocks each: basic blocks
    below a depth of 44, bottlenecks from there on. The official code divides by 6 for
    bottlenecks as well, although they have three convolutions, and so does this: its "ResNet-110"
    has 18 bottlenecks per stage, that is 164 layers.
    """

    def __init__(self, depth: int, num_classes: int, image_shape: ImageShape, layers: Layers):
        if depth < 8 or (depth - 2) % 6:
            raise UsageError(f"a CIFAR ResNet's depth is 6n + 2, such as 20 or 32, got {depth}.")
        block = Bottleneck if depth >= 44 else BasicBlock
        super().__init__(block, ((depth - 2) // 6,) * 3, 16, layers)
        self.conv1 = layers.conv(image_shape[2], 16, 3, use_bias=False)
        self.bn1 = layers.norm(16)
        self.fc = Linear(self.out_features, num_classes)

    def logits(self, images: Array, mask: PerExample, keys: PerExample, train: bool) -> Array:
        features = jax.nn.relu(self.bn1(self.conv1(pad_to_32x32(images)), mask, train))
        return self.fc(global_average(self.stages(features, mask, train)))


_IMAGENET_BLOCKS = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class ResNet(_Stages):
    """torchvision's ResNet for 224x224 images; a depth of 18, 34, 50, 101 or 152."""

    def __init__(self, depth: int, num_classes: int, image_shape: ImageShape, layers: Layers):
        super().__init__(*_IMAGENET_BLOCKS[depth], 64, layers)
        self.conv1 = layers.conv(image_shape[2], 64, 7, stride=2, use_bias=False)
        self.bn1 = layers.norm(64)
        self.fc = Linear(self.out_features, num_classes)

    def logits(self, images: Array, mask: PerExample, keys: PerExample, train: bool) -> Array:
        features = jax.nn.relu(self.bn1(self.conv1(images), mask, train))
        features = max_pool(features, 3, stride=2, padding=1)
        return self.fc(global_average(self.stages(features, mask, train)))
