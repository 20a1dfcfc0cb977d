"""The sections that `python -m experiments.reproduce` knows, and the arms of an experiment."""

import dataclasses
import importlib
from typing import Any

from adabatch_jax.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Section:
    """Experiments that are run and reported together.

    Attributes:
      title: the heading of its pages.
      source: where the arms come from.
      experiments: by network, the modules of this package that define `arms`.
      outcome: what the arms are compared by, a name in `reproduction.outcomes.OUTCOMES`.
      holdout_percent: of the training data, kept out of training to choose by.
      data_from: how a user comes by the data, where no command of ours prepares them.
      findings: sentences on what others found, for and against, with their sources.
    """

    title: str
    source: str
    experiments: dict[str, str]
    outcome: str = "error"
    holdout_percent: int = 10
    data_from: str = ""
    findings: tuple[str, ...] = ()


def _section(title: str, source: str, prefix: str, networks: str, **more: Any) -> Section:
    return Section(title, source, {name: f"{prefix}_{name}" for name in networks.split()}, **more)


_NETWORKS = "vgg19_bn resnet20 alexnet"
_PAPER = "arXiv:1712.02029, section"
_ON_LANGUAGE_MODELS = (
    "Ours here: the rate follows the root of the batch in all arms that grow; for the late switch "
    "nobody published how it did.",
    "For: Seesaw reached the loss of a cosine at a constant batch in 36 % less time, for models of "
    "up to 600M, as long as the batch was below the critical one (arXiv:2510.14717).",
    "For: a batch that doubled as its critical size grew took 43 % fewer steps to the same loss, at 1B "
    "(arXiv:2505.23971); a switch at 75 % of the tokens did better than an early one and than a "
    "constant batch, at 1.1B and 1T tokens (arXiv:2602.14208).",
    "Against: by its report Qwen3.8-Next (section 3.2; read in notes of others, not in the report) "
    "tried a ramp from 6.3M to 25.2M tokens with two rates: a loss 0.00025 and 0.00035 higher than with "
    "the constant batch, for 18.8 % more steps, and as stable. It was trained with a constant one.",
    "Against: nanochat's log (karpathy/nanochat) tried a ramp twice, found a small gain, and dropped "
    "it; Kimi K2 and Nemotron-H have constant batches on purpose.",
    "Against measuring it: where a batch of 2M tokens or more did best, the gradient noise scale said "
    '0.3M to 0.5M ("When Bigger is Better", a submission to NeurIPS 2025 without names).',
)
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
    "language_model": _section(
        "A small language model",
        "arXiv:2510.14717, arXiv:2602.14208",
        "language_model",
        "gpt",
        outcome="bits_per_byte",
        holdout_percent=2,
        data_from="`bible -f gen1:1-rev22:21 > kjv.txt` makes it where Debian's package bible-kjv-text "
        "is, and --dataset text:FILE takes any other",
        findings=_ON_LANGUAGE_MODELS,
    ),
}


def load_arms(experiment: str) -> dict[str, TrainConfig]:
    """Returns the arms of an experiment by name, in the order to show them.

    >>> [*load_arms("digits_cnn")][:3]
    ['fixed_small', 'fixed_large', 'adaptive']
    """
    return dict(importlib.import_module(f"experiments.{experiment}").arms)
