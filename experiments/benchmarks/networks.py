"""The paper's networks as train steps on random batches that lie on the device."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from adabatch_jax import models
from adabatch_jax.data.mesh import batch_sharding
from adabatch_jax.training.train_state import TrainState
from adabatch_jax.training.train_step import LossFn, TrainStep, make_train_step


def optimizer() -> optax.GradientTransformation:
    """The paper's: SGD with momentum 0.9 and weight decay 5e-4."""
    return optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.01, momentum=0.9))


@dataclasses.dataclass(frozen=True)
class Network:
    """A network, ready to be trained on images that are normalized already.

    Attributes:
      image_shape: (height, width, channels).
      num_classes: labels are below.
      dtype: of the images and of the computation, "float32" or "bfloat16".
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    dtype: str
    params: Any
    model_state: Any
    loss_fn: LossFn
    properties: dict[str, Any]

    @classmethod
    def create(
        cls,
        name: str,
        *,
        group_size: int | None = None,
        dtype: str = "float32",
        image_shape: tuple[int, int, int] = (32, 32, 3),
        num_classes: int = 100,
    ) -> "Network":
        """Builds a network by its name in `adabatch_jax.models`."""
        module = models.create(name, num_classes, image_shape, group_size=group_size, dtype=dtype)
        params, state, loss_fn, _ = models.functions(module, normalize=lambda images: images)
        properties = models.loss_properties(module)
        return cls(image_shape, num_classes, dtype, params, state, loss_fn, properties)

    def state(self, tx: optax.GradientTransformation) -> TrainState:
        """A new train state."""
        return TrainState.create(params=self.params, tx=tx, model_state=self.model_state)

    def step(
        self,
        microbatch_size: int | None = None,
        mesh: Mesh | None = None,
        tx: optax.GradientTransformation | None = None,
    ) -> "RunningStep":
        """A train step with its own state."""
        tx = optimizer() if tx is None else tx
        step = make_train_step(self.loss_fn, tx, mesh, microbatch_size, **self.properties)
        return RunningStep(step, step.place(self.state(tx)))

    def batch(self, *shape: int, mesh: Mesh | None = None) -> dict[str, jax.Array]:
        """A random batch on the device: (B,) or (K, m) examples."""
        sharding = None if mesh is None else batch_sharding(mesh, len(shape) == 2)
        return jax.device_put(self.host_batch(*shape), sharding)

    def abstract_batch(self, *shape: int) -> dict[str, jax.ShapeDtypeStruct]:
        """What `batch` would look like."""
        one = self.host_batch(*(1 for _ in shape))
        return {
            name: jax.ShapeDtypeStruct((*shape, *array.shape[len(shape) :]), array.dtype)
            for name, array in one.items()
        }

    def host_batch(self, *shape: int) -> dict[str, np.ndarray]:
        """A batch as numpy arrays; up to 256 random images, again and again."""
        num_examples = math.prod(shape)
        rng = np.random.default_rng(0)
        images = rng.standard_normal((min(num_examples, 256), *self.image_shape), np.float32)
        images = np.resize(images, (num_examples, *self.image_shape))
        return {
            "image": images.astype(jax.numpy.dtype(self.dtype)).reshape(*shape, *self.image_shape),
            "label": rng.integers(0, self.num_classes, shape, np.int32),
            "weight": np.ones(shape, np.float32),
            "index": np.zeros(shape, np.int32),
            "epoch": np.zeros(shape, np.int32),
        }


class RunningStep:
    """A train step and the state that it replaces at each call."""

    def __init__(self, step: TrainStep, state: TrainState):
        self.step, self.state = step, state
        self.rng = step.place(jax.random.key(0))

    def compile(self, batch: Mapping[str, jax.Array]) -> jax.stages.Compiled:
        """The program for batches like this one."""
        return self.step.lower(self.state, batch, self.rng).compile()

    def __call__(
        self, batch: Mapping[str, jax.Array], program: jax.stages.Compiled | None = None
    ) -> Any:
        """Performs one update; returns arrays to wait for."""
        if program is None:
            self.state, metrics = self.step(self.state, batch, self.rng)
        else:
            self.state, metrics = program(self.state, batch, self.rng, self.step.constants)
        # Metrics can be ready before the new parameters are.
        return metrics, self.state.params
