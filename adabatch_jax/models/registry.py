"""The networks by name. Importing this loads neither jax nor flax."""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from adabatch_jax.system.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from flax import nnx


def names() -> tuple[str, ...]:
    """Returns the names that `create` knows.

    >>> names()[:2]
    ('cnn_digits', 'cnn_fashion')
    """
    return tuple(_builders())


def create(
    name: str,
    num_classes: int = 10,
    image_shape: tuple[int, int, int] = (32, 32, 3),
    seed: int = 0,
    group_size: int | None = None,
    dtype: str = "float32",
    batchnorm_reference_size: int | None = None,
) -> "nnx.Module":
    """Builds a network with its initial weights.

    Args:
      name: one of `names()`.
      num_classes: number of logits.
      image_shape: (height, width, channels) of the images.
      seed: of the initial weights.
      group_size: rows that BatchNorm normalizes together, None for the whole (micro-)batch;
        it means nothing to a network without BatchNorm.
      dtype: the type of the computation, "float32" or "bfloat16". Parameters, BatchNorm's
        statistics and the logits are float32 in any case.
      batchnorm_reference_size: examples after which BatchNorm's running statistics have moved
        by one momentum, so that their half-life is constant in examples while the batch grows;
        None for one momentum per group, as in the official code.

    Returns:
      A module that is called as `module(images, mask=None, keys=None, train=True)` and returns
      float32 logits (batch, num_classes). `images` are floating-point (batch, height, width,
      channels), `mask` (batch,) is 1 for a real example and 0 for padding, None if all are real,
      and `keys` are one typed key per example for dropout, None for no dropout. `train` is
      whether there is dropout and BatchNorm uses, and collects, the batch's own statistics.

    Raises:
      UsageError: if `name` or `dtype` is unknown, `num_classes` < 1, or the network can't take
        images of `image_shape`.

    >>> create("cnn_digits", image_shape=(8, 8, 1)).head.kernel[...].shape
    (512, 10)
    """
    builders = _builders()
    if num_classes < 1:
        raise UsageError(f"`num_classes` must be at least 1, got {num_classes}.")
    if name not in builders:
        # Without its "_cifar" a name is nearer to one for ImageNet.
        raise UsageError(f"there is no model {name!r}{did_you_mean(name, builders) or '.'}")
    from adabatch_jax.models.layers import Layers

    layers = Layers(dtype, group_size, batchnorm_reference_size)
    return builders[name](num_classes, tuple(image_shape), seed, layers)


def _builders() -> dict[str, Callable[..., "nnx.Module"]]:
    """Returns what builds each network from (num_classes, image_shape, seed, layers)."""
    vggs = [(depth, batchnorm) for depth in (11, 13, 16, 19) for batchnorm in (False, True)]
    return {
        "cnn_digits": _network("cnn", "DigitsCNN"),
        "cnn_fashion": _network("cnn", "FashionCNN"),
        "alexnet_cifar": _network("alexnet", "CifarAlexNet"),
        **{
            f"vgg{depth}{'_bn' * batchnorm}_cifar": _network("vgg", "CifarVGG", depth, batchnorm)
            for depth, batchnorm in vggs
        },
        **{
            f"resnet{depth}_cifar": _network("resnet", "CifarResNet", depth)
            for depth in (20, 32, 44, 56, 110)
        },
        "alexnet": _network("alexnet", "AlexNet"),
        **{
            f"vgg{depth}{'_bn' * batchnorm}": _network("vgg", "VGG", depth, batchnorm)
            for depth, batchnorm in vggs
        },
        **{
            f"resnet{depth}": _network("resnet", "ResNet", depth)
            for depth in (18, 34, 50, 101, 152)
        },
    }


def _network(module: str, name: str, *options: int) -> Callable[..., "nnx.Module"]:
    def build(*arguments):
        family = importlib.import_module(f"adabatch_jax.models.{module}")
        return getattr(family, name)(*options, *arguments)

    return build
