"""Short training runs of ResNet-20 on random 32x32 images, as `fit` performs them."""

from typing import Any

import numpy as np

from adabatch_jax import array_source, fit, make_plan, models
from adabatch_jax.data.sources import Source
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.training.fit import FitResult
from adabatch_jax.training.state import TrainState
from experiments.benchmarks.networks import optimizer

GROUP_SIZE = 8
"""BatchNorm's group, so that a CPU may compute few examples at a time."""


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
    """What training a network needs beside a plan.

    Args:
      model: the network's name.
      source: the training examples.
      seed: of the order of the examples.
    """

    def __init__(self, model: str = "resnet20_cifar", source: Source | None = None, seed: int = 0):
        self.source = random_images(4096) if source is None else source
        module = models.create(model, 10, (32, 32, 3), group_size=GROUP_SIZE)
        self.params, self.model_state, self.loss_fn, _ = models.functions(module, seed=seed)
        self.tx, self.seed = optimizer(), seed

    def state(self) -> TrainState:
        """The state before the first update."""
        return TrainState.create(params=self.params, tx=self.tx, model_state=self.model_state)

    def plan(self, schedule: str | int, duration: str) -> BatchPlan:
        """A plan over the source."""
        return make_plan(schedule, len(self.source), duration)

    def fit(self, plan: BatchPlan, **options: Any) -> FitResult:
        """Trains along a plan, without evaluation; few examples at a time, as a CPU likes it."""
        options = {"microbatch_size": "auto", "seed": self.seed} | options
        return fit(self.loss_fn, self.tx, self.state(), self.source, plan, **options)
