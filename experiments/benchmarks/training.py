"""Short training runs on random images or tokens, as `fit` performs them."""

from pathlib import Path
from typing import Any

import numpy as np
import optax
from flax import nnx

from adabatch_jax import array_source, fit, make_plan, models, token_source
from adabatch_jax.data.sources import Source
from adabatch_jax.runs.fit import FitResult
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.training.train_state import TrainState
from experiments.benchmarks.networks import optimizer, text_optimizer

GROUP_SIZE = 8
"""BatchNorm's group on a CPU, so that it may compute few examples at a time."""


def random_images(num_examples: int, size: int = 32) -> Source:
    """Colour images of random bytes, with labels below 10."""
    rng = np.random.default_rng(0)
    return array_source(
        {
            "image": rng.integers(0, 256, (num_examples, size, size, 3), np.uint8),
            "label": rng.integers(0, 10, num_examples, np.int32),
        }
    )


def random_tokens(folder: Path, num_tokens: int, sequence_length: int) -> Source:
    """Sequences of random bytes from a file `tokens.bin`, as nanoGPT's, that is written anew."""
    path = folder / "tokens.bin"
    np.random.default_rng(0).integers(0, 256, num_tokens, np.uint16).tofile(path)
    return token_source(path, sequence_length, vocabulary_size=256)


class Run:
    """What training a network needs beside a plan.

    Args:
      source: the training examples.
      module: the network, with its initial weights.
      tx: the optimizer.
    """

    def __init__(self, source: Source, module: nnx.Module, tx: optax.GradientTransformation):
        self.source, self.tx = source, tx
        self.params, self.model_state, self.loss_fn, _ = models.functions(module)
        self.properties = models.loss_properties(module)

    def state(self) -> TrainState:
        """The state before the first update."""
        return TrainState.create(params=self.params, tx=self.tx, model_state=self.model_state)

    def plan(self, schedule: str | int, duration: str) -> BatchPlan:
        """A plan over the source."""
        length = getattr(self.source, "sequence_length", None)
        return make_plan(schedule, len(self.source), duration, tokens_per_example=length)

    def fit(self, plan: BatchPlan, **options: Any) -> FitResult:
        """Trains along a plan, without evaluation."""
        options = self.properties | options
        return fit(self.loss_fn, self.tx, self.state(), self.source, plan, **options)


def resnet20(
    source: Source | None = None, group_size: int | None = GROUP_SIZE, dtype: str = "float32"
) -> Run:
    """ResNet-20 on images, by default some random ones.

    Args:
      source: the training examples.
      group_size: of BatchNorm; None: the whole batch.
      dtype: to compute in.
    """
    module = models.create("resnet20_cifar", 10, (32, 32, 3), group_size=group_size, dtype=dtype)
    return Run(random_images(4096) if source is None else source, module, optimizer())


def gpt_nano(source: Source) -> Run:
    """The smallest GPT, 0.2 million parameters, on sequences of bytes."""
    return Run(source, models.create("gpt_nano", 256), text_optimizer())
