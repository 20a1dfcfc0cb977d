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
    ('cnn_digits', 'resnet20_cifar')
    """
    return tuple(_builders())


def create(
    name: str,
    num_classes: int = 10,
    image_shape: tuple[int, int, int] = (32, 32, 3),
    seed: int = 0,
    group_size: int | None = None,
) -> "nnx.Module":
    """Builds a network with its initial weights.

    Args:
      name: one of `names()`.
      num_classes: number of logits.
      image_shape: (height, width, channels) of the images.
      seed: of the initial weights.
      group_size: rows that BatchNorm normalizes together, None for the whole (micro-)batch;
        it means nothing to a network without BatchNorm.

    Returns:
      A module that is called as `module(images, mask=weight, keys=None, train=True)`.

    Raises:
      UsageError: an unknown name, or images that the network can't take.

    >>> create("cnn_digits", image_shape=(8, 8, 1)).head.kernel[...].shape
    (512, 10)
    """
    builders = _builders()
    if num_classes < 1:
        raise UsageError(f"`num_classes` must be at least 1, got {num_classes}.")
    if name not in builders:
        raise UsageError(f"there is no model {name!r}{did_you_mean(name, builders) or '.'}")
    return builders[name](num_classes, tuple(image_shape), seed, group_size)


def _builders() -> dict[str, Callable[..., "nnx.Module"]]:
    resnets = {
        f"resnet{depth}_cifar": functools.partial(_cifar_resnet, depth)
        for depth in (20, 32, 44, 56, 110)
    }
    return {"cnn_digits": _cnn, **resnets}


def _cnn(num_classes, image_shape, seed, group_size):
    from adabatch_jax.models.cnn import CNN

    del group_size
    return CNN(num_classes, image_shape, seed)


def _cifar_resnet(depth, num_classes, image_shape, seed, group_size):
    from adabatch_jax.models.resnet import ResNet

    return ResNet(depth, num_classes, image_shape, seed, group_size)
