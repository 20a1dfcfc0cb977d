"""Networks as train steps on random batches that lie on the device."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from adabatch_jax import models
from adabatch_jax.data.mesh import batch_sharding
from adabatch_jax.training.train_state import TrainState
from adabatch_jax.training.train_step import LossFn, TrainStep, make_train_step


def optimizer() -> optax.GradientTransformation:
    """The paper's: SGD with momentum 0.9 and weight decay 5e-4."""
    return optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.01, momentum=0.9))


def text_optimizer() -> optax.GradientTransformation:
    """nanoGPT's for GPT-2, at one rate: AdamW that decays matrices only, and clipping at 1."""

    def matrices(params):
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    adamw = optax.adamw(6e-4, 0.9, 0.95, weight_decay=0.1, mask=matrices)
    return optax.chain(optax.clip_by_global_norm(1.0), adamw)


@dataclasses.dataclass(frozen=True)
class Network:
    """A network, ready to be trained.

    Attributes:
      module: it is built from, with its initial weights.
      tx: the optimizer of its steps.
      examples: makes so many random examples, arrays by name.
    """

    module: nnx.Module
    tx: optax.GradientTransformation
    examples: Callable[[int], dict[str, np.ndarray]]
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
        """Builds a network of images, which are normalized already, by its name.

        `dtype`, "float32" or "bfloat16", is that of the images and of the computation.
        """
        module = models.create(name, num_classes, image_shape, group_size=group_size, dtype=dtype)
        images = functools.partial(_images, image_shape, num_classes, jax.numpy.dtype(dtype))
        return cls._of(module, optimizer(), images)

    @classmethod
    def of_tokens(
        cls,
        name: str,
        sequence_length: int,
        vocabulary_size: int,
        dtype: str = "float32",
        **shape: Any,
    ) -> "Network":
        """Builds a GPT by its name, with what is to be other than that says."""
        module = models.create(name, vocabulary_size, dtype=dtype, **shape)
        tokens = functools.partial(_tokens, sequence_length, vocabulary_size)
        return cls._of(module, text_optimizer(), tokens)

    @classmethod
    def _of(cls, module, tx, examples) -> "Network":
        params, state, loss_fn, _ = models.functions(module, normalize=lambda images: images)
        properties = models.loss_properties(module)
        return cls(module, tx, examples, params, state, loss_fn, properties)

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
        tx = self.tx if tx is None else tx
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
        """A batch as numpy arrays."""
        examples = self.examples(math.prod(shape))
        return {
            **{name: array.reshape(*shape, *array.shape[1:]) for name, array in examples.items()},
            "weight": np.ones(shape, np.float32),
            "index": np.zeros(shape, np.int32),
            "epoch": np.zeros(shape, np.int32),
        }


def _images(
    image_shape: tuple[int, int, int], num_classes: int, dtype: np.dtype, number: int
) -> dict[str, np.ndarray]:
    """Up to 256 random images, again and again, with labels below `num_classes`."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((min(number, 256), *image_shape), np.float32)
    images = np.resize(images, (number, *image_shape))
    labels = rng.integers(0, num_classes, number, np.int32)
    return {"image": images.astype(dtype), "label": labels}


def _tokens(sequence_length: int, vocabulary_size: int, number: int) -> dict[str, np.ndarray]:
    shape = (number, sequence_length + 1)
    return {"tokens": np.random.default_rng(0).integers(0, vocabulary_size, shape, np.int32)}


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
