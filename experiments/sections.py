"""The sections that `python -m experiments.reproduce` knows, and the arms of an experiment."""

import dataclasses
import importlib

from adabatch_jax.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Section:
    """Experiments that are run and reported together.

    Attributes:
      title: the heading of its pages.
      source: where the arms come from.
      experiments: by network, the modules of this package that define `arms`.
    """

    title: str
    source: str
    experiments: dict[str, str]


def _section(title: str, source: str, prefix: str, networks: str) -> Section:
    return Section(title, source, {name: f"{prefix}_{name}" for name in networks.split()})


_NETWORKS = "vgg19_bn resnet20 alexnet"
_PAPER = "arXiv:1712.02029, section"
SECTIONS = {
    "digits": _section("Handwritten digits", f"{_PAPER} 4.1, in small", "digits", "cnn"),
    "fashion_mnist_cpu": _section(
        "Fashion-MNIST with a small CNN", f"{_PAPER} 4.1, in small", "fashion_mnist", "cnn"
    ),
    "fashion_mnist": _section(
        "Fashion-MNIST, single device", f"{_PAPER} 4.1", "fashion_mnist", _NETWORKS
    ),
    "cifar10": _section("CIFAR-10, single device", f"{_PAPER} 4.1", "cifar10", _NETWORKS),
    "cifar100": _section("CIFAR-100, single device", f"{_PAPER} 4.1", "cifar100", _NETWORKS),
    "cifar100_four_devices": _section(
        "CIFAR-100, four devices",
        f"{_PAPER} 4.2",
        "cifar100_four_devices",
        "vgg19_bn resnet20",
    ),
    "imagenet": _section("ImageNet", f"{_PAPER} 4.3", "imagenet", "alexnet resnet50 vgg19_bn"),
}


def load_arms(experiment: str) -> dict[str, TrainConfig]:
    """Returns the arms of an experiment by name, in the order to show them.

    >>> [*load_arms("digits_cnn")][:3]
    ['fixed_small', 'fixed_large', 'adaptive']
    """
    return dict(importlib.import_module(f"experiments.{experiment}").arms)
