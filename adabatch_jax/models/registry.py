"""The networks by name. Importing this loads neither jax nor flax."""

import importlib
import itertools
from typing import TYPE_CHECKING, Any

from adabatch_jax.system.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from flax import nnx


# By what they differ from `GPTShape`'s defaults; the last one is GPT-2's smallest.
_OF_TOKENS: dict[str, dict[str, Any]] = {
    "gpt_nano": {"width": 64, "num_layers": 4, "num_heads": 4},
    "gpt_micro": {"width": 128, "num_layers": 4, "num_heads": 4},
    "gpt_124m": {
        "width": 768, "num_layers": 12, "num_heads": 12, "norm": "layer", "positions": "learned",
        "num_positions": 1024, "tied": True, "bias": True,
    },
}  # fmt: skip


def names() -> tuple[str, ...]:
    """Returns the names that `create` knows.

    >>> names()[:2]
    ('cnn_digits', 'cnn_fashion')
    """
    return (*_networks(), *_OF_TOKENS)


def is_of_tokens(name: str) -> bool:
    """Whether a network of this name is here that predicts tokens, and no classes of images.

    >>> is_of_tokens("gpt_nano"), is_of_tokens("cnn_digits"), is_of_tokens("mynet:build")
    (True, False, False)
    """
    return name in _OF_TOKENS


def create(
    name: str,
    num_classes: int = 10,
    image_shape: tuple[int, int, int] = (32, 32, 3),
    seed: int = 0,
    group_size: int | None = None,
    dtype: str = "float32",
    batchnorm_reference_size: int | None = None,
    **shape: Any,
) -> "nnx.Module":
    """Builds a network with its initial weights.

    Args:
      name: one of `names()`.
      num_classes: number of logits; of a network of tokens the vocabulary's size.
      image_shape: (height, width, channels) of the images; it means nothing to a network of tokens.
      seed: of the initial weights, from 0 to `2**32 - 1`.
      group_size: rows that BatchNorm normalizes together, None for the whole (micro-)batch;
        it means nothing to a network without BatchNorm.
      dtype: the type of the computation, "float32" or "bfloat16". Parameters, BatchNorm's
        statistics and the logits are float32 in any case.
      batchnorm_reference_size: examples after which BatchNorm's running statistics have moved
        by one momentum, so that their half-life is constant in examples while the batch grows;
        None for one momentum per group, as in the official code.
      shape: of a network of tokens what is to be other than its name says, such as `tied=True`,
        see `adabatch_jax.models.gpt.GPTShape`.

    Returns:
      A module that is called as `module(images, mask=None, keys=None, train=True)` and returns
      float32 logits (batch, num_classes). `images` are floating-point (batch, height, width,
      channels), `mask` (batch,) is 1 for a real example and 0 for padding, None if all are real,
      and `keys` are one typed key per example for dropout, None for no dropout. `train` is
      whether there is dropout and BatchNorm uses, and collects, the batch's own statistics.
      One of tokens is called as `module(tokens, positions=None, segments=None)` and returns float32
      logits (batch, length, num_classes) of what follows each token.

    Raises:
      UsageError: if `name` or `dtype` is unknown, `num_classes` < 1, or the network can't take
        images of `image_shape` or be of this `shape`.

    >>> create("cnn_digits", image_shape=(8, 8, 1)).head.kernel[...].shape
    (512, 10)
    >>> create("gpt_nano", num_classes=256, tied=True).wte.embedding[...].shape
    (256, 64)
    """
    if num_classes < 1:
        raise UsageError(f"`num_classes` must be at least 1, got {num_classes}.")
    check_known(name, tuple(image_shape))
    from adabatch_jax.models.gpt import GPT, GPTShape
    from adabatch_jax.models.initialization import initialize
    from adabatch_jax.models.layers import Layers

    if is_of_tokens(name):
        network = GPT(GPTShape(num_classes, dtype=dtype, **(_OF_TOKENS[name] | shape)))
    elif shape:
        raise UsageError(f"gpt.{next(iter(shape))}: {name} is no GPT, and built as it is.")
    else:
        _, module, class_name, *options = _networks()[name]
        family = getattr(importlib.import_module(f"adabatch_jax.models.{module}"), class_name)
        layers = Layers(dtype, group_size, batchnorm_reference_size)
        network = family(*options, num_classes, tuple(image_shape), layers)
    initialize(network, seed)
    return network


def check_known(name: str, image_shape: tuple[int, int, int] | None) -> None:
    """Raises a UsageError unless there is a network of this name for images of this size.

    Networks without a size of their own, `cnn_digits` and `cnn_fashion`, look at it themselves;
    those of tokens take no images, and it means nothing to them.
    """
    if name not in names():
        # Without its "_cifar" a name is nearer to one for ImageNet.
        hint = did_you_mean(name, names()) or "."
        raise UsageError(f"there is no model {name!r}; there are {', '.join(names())}{hint}")
    sizes = () if is_of_tokens(name) else _networks()[name][0]
    if sizes and image_shape is not None and image_shape[:2] not in [(n, n) for n in sizes]:
        raise UsageError(
            f"{name} takes {' or '.join(f'{size}x{size}' for size in sizes)} images, got "
            f"{image_shape[0]}x{image_shape[1]}."
        )


def _networks() -> dict[str, tuple]:
    """Each network's heights and widths of images, its module, class and first arguments."""
    networks = {"cnn_digits": ((), "cnn", "DigitsCNN"), "cnn_fashion": ((), "cnn", "FashionCNN")}
    for suffix, prefix, sizes, resnet_depths in (
        ("_cifar", "Cifar", (32, 28), (20, 32, 44, 56, 110)),
        ("", "", (224,), (18, 34, 50, 101, 152)),
    ):
        networks[f"alexnet{suffix}"] = (sizes, "alexnet", f"{prefix}AlexNet")
        for depth, norm in itertools.product((11, 13, 16, 19), (False, True)):
            name = f"vgg{depth}{'_bn' * norm}{suffix}"
            networks[name] = (sizes, "vgg", f"{prefix}VGG", depth, norm)
        for depth in resnet_depths:
            networks[f"resnet{depth}{suffix}"] = (sizes, "resnet", f"{prefix}ResNet", depth)
    return networks
