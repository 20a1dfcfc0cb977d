"""Which images the networks for CIFAR and for ImageNet take."""

import jax
import jax.numpy as jnp

from adabatch_jax.system.errors import UsageError


def check_cifar_images(name: str, image_shape: tuple[int, int, int]) -> None:
    """Raises a UsageError unless `pad_to_32x32` makes images of this shape fit."""
    height, width, _ = image_shape
    if (height, width) not in ((28, 28), (32, 32)):
        raise UsageError(f"{name} takes 32x32 or 28x28 images, got {height}x{width}.")


def check_imagenet_images(name: str, image_shape: tuple[int, int, int]) -> None:
    """Raises a UsageError unless images of this shape have 224x224 pixels."""
    height, width, _ = image_shape
    if (height, width) != (224, 224):
        raise UsageError(f"{name} takes 224x224 images, got {height}x{width}.")


def pad_to_32x32(images: jax.Array) -> jax.Array:
    """Returns images (batch, 32, 32, channels), zeros around smaller ones.

    >>> pad_to_32x32(jnp.ones((1, 28, 28, 1))).sum((0, 2, 3))[:3].tolist()
    [0.0, 0.0, 28.0]
    """
    edges = [((32 - size) // 2, (32 - size) // 2) for size in images.shape[1:3]]
    return jnp.pad(images, ((0, 0), *edges, (0, 0)))
