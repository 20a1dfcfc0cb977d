"""The networks by name. Importing this loads neither jax nor flax."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from adabatch_jax.errors import UsageError, did_you_mean

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
        None for the paper's way, one momentum per group.

    Returns:
      A module that is called as `module(images, mask=weight, keys=None, train=True)`.

    Raises:
      UsageError: an unknown name or type, or images that the network can't take.

    >>> create("cnn_digits", image_shape=(8, 8, 1)).head.kernel[...].shape
    (512, 10)
    """
    builders = _builders()
    if num_classes < 1:
        raise UsageError(f"`num_classes` must be at least 1, got {num_classes}.")
    if name not in builders:
        raise UsageError(f"there is no model {name!r}{did_you_mean(name, builders) or '.'}")
    from adabatch_jax.models.layers import Layers

    layers = Layers(dtype, group_size, batchnorm_reference_size)
    return builders[name](num_classes, tuple(image_shape), seed, layers)


def _builders() -> dict[str, Callable[..., "nnx.Module"]]:
    resnets = {
        f"resnet{depth}_cifar": functools.partial(_cifar_resnet, depth)
        for depth in (20, 32, 44, 56, 110)
    }
    return {"cnn_digits": _cnn_digits, "cnn_fashion": _cnn_fashion, **resnets}


def _cnn_digits(*arguments):
    from adabatch_jax.models.cnn import DigitsCNN

    return DigitsCNN(*arguments)


def _cnn_fashion(*arguments):
    from adabatch_jax.models.cnn import FashionCNN

    return FashionCNN(*arguments)


def _cifar_resnet(*arguments):
    from adabatch_jax.models.resnet import ResNet

    return ResNet(*arguments)
