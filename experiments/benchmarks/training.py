"""Short training runs of ResNet-20 on random 32x32 images, as `fit` performs them."""

from typing import Any

import numpy as np

from adabatch_jax import array_source, fit, make_plan, models
from adabatch_jax.data.sources import Source
from adabatch_jax.runs.fit import FitResult
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.training.train_state import TrainState
from experiments.benchmarks.networks import optimizer

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


class Run:
    """What training ResNet-20 needs beside a plan.

    Args:
      source: the training examples.
      group_size: of BatchNorm; None: the whole batch.
      dtype: to compute in.
    """

    def __init__(
        self,
        source: Source | None = None,
        group_size: int | None = GROUP_SIZE,
        dtype: str = "float32",
    ):
        self.source = random_images(4096) if source is None else source
        module = models.create(
            "resnet20_cifar", 10, (32, 32, 3), group_size=group_size, dtype=dtype
        )
        self.params, self.model_state, self.loss_fn, _ = models.functions(module)
        self.properties = models.loss_properties(module)
        self.tx = optimizer()

    def state(self) -> TrainState:
        """The state before the first update."""
        return TrainState.create(params=self.params, tx=self.tx, model_state=self.model_state)

    def plan(self, schedule: str | int, duration: str) -> BatchPlan:
        """A plan over the source."""
        return make_plan(schedule, len(self.source), duration)

    def fit(self, plan: BatchPlan, **options: Any) -> FitResult:
        """Trains along a plan, without evaluation."""
        options = self.properties | options
        return fit(self.loss_fn, self.tx, self.state(), self.source, plan, **options)
