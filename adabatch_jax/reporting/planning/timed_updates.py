"""The update of a configuration on batches of any size, without its data."""

import dataclasses
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adabatch_jax.config.train_config import TrainConfig
from adabatch_jax.data.datasets.dataset_specs import dataset_spec
from adabatch_jax.data.mesh import batch_sharding, data_mesh
from adabatch_jax.data.row_layout import BatchLayout
from adabatch_jax.runs.checkpoints.disk_space import checkpoint_bytes
from adabatch_jax.runs.configured_run import make_optimizer, network
from adabatch_jax.system.errors import UsageError
from adabatch_jax.training.compiled_programs import Program, program_of
from adabatch_jax.training.loss_functions import LossFn
from adabatch_jax.training.train_state import TrainState
from adabatch_jax.training.train_step import TrainStep, make_train_step

# Weights must move, or there would be nothing to compute, and stay finite on random labels.
_LEARNING_RATE = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Updates:
    """The updates of one network on some devices; `configured_updates` makes them.

    Where this machine has fewer devices, one of them computes a device's share of the rows; what
    devices tell each other comes on top.

    Attributes:
      loss_fn: as `make_train_step` takes it.
      tx: the optimizer.
      params: initial weights.
      model_state: the rest of the network's initial state.
      image_shape: (height, width, channels).
      num_classes: labels are below it.
      num_devices: the devices that a batch is laid out on.
      shard_params: whether parameters and optimizer state are spread over them.
    """

    loss_fn: LossFn
    tx: optax.GradientTransformation
    params: Any
    model_state: Any
    image_shape: tuple[int, int, int]
    num_classes: int
    num_devices: int
    shard_params: bool = False
    _compiled: dict[BatchLayout, "CompiledUpdate"] = dataclasses.field(default_factory=dict)

    def compiled(self, layouts: Iterable[BatchLayout]) -> dict[BatchLayout, "CompiledUpdate"]:
        """Compiles the updates on batches of these layouts, all at the same time, each once."""
        layouts = list(dict.fromkeys(layouts))
        missing = [layout for layout in layouts if layout not in self._compiled]
        # Compilers don't hold the interpreter's lock.
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            programs = threads.map(lambda layout: program_of(self._lower(layout)), missing)
            for layout, program in zip(missing, programs, strict=True):
                self._compiled[layout] = CompiledUpdate(self, layout, program)
        return {layout: self._compiled[layout] for layout in layouts}

    def _lower(self, layout: BatchLayout) -> jax.stages.Lowered:
        state = jax.eval_shape(self._new_state)
        key = jax.eval_shape(lambda: jax.random.key(0))
        return self._step(layout).lower(state, self._abstract_batch(layout), key)

    def arguments(self, layout: BatchLayout) -> tuple[Any, ...]:
        """What the compiled update is called with: state, batch, key, and the step's constants.

        The images are random, and the weights as they begin.
        """
        step = self._step(layout)
        random = np.random.default_rng(0)
        bounds = {"image": 256, "label": self.num_classes}
        batch = {
            name: random.integers(bounds[name], size=leaf.shape, dtype=leaf.dtype)
            if name in bounds
            else np.ones(leaf.shape, leaf.dtype)
            for name, leaf in self._abstract_batch(layout).items()
        }
        sharding = None
        if step.mesh is not None:
            sharding = batch_sharding(step.mesh, step.microbatch_size is not None)
        batch = jax.device_put(batch, sharding)
        return step.place(self._new_state()), batch, step.place(jax.random.key(0)), step.constants

    def _new_state(self) -> TrainState:
        return TrainState.create(params=self.params, tx=self.tx, model_state=self.model_state)

    @property
    def checkpoint_bytes(self) -> int:
        """What a checkpoint takes on disk."""
        return checkpoint_bytes(jax.eval_shape(self._new_state))

    @property
    def num_used_devices(self) -> int:
        """The devices that compute here: all, or one that stands for each of them."""
        return self.num_devices if self.num_devices <= jax.local_device_count() else 1

    def _step(self, layout: BatchLayout) -> TrainStep:
        mesh = None
        if self.num_used_devices > 1:
            mesh = data_mesh(jax.local_devices()[: self.num_devices])
        microbatch_size = self._rows(layout) if layout.num_microbatches > 1 else None
        shard_params = self.shard_params and mesh is not None
        return make_train_step(
            self.loss_fn, self.tx, mesh, microbatch_size, shard_params=shard_params
        )

    def _rows(self, layout: BatchLayout) -> int:
        """Rows of a micro-batch on the devices that compute here."""
        return layout.padded_size * self.num_used_devices // self.num_devices

    def _abstract_batch(self, layout: BatchLayout) -> dict[str, jax.ShapeDtypeStruct]:
        rows = (self._rows(layout),)
        if layout.num_microbatches > 1:
            rows = (layout.num_microbatches, *rows)
        return {
            name: jax.ShapeDtypeStruct((*rows, *shape), dtype)
            for name, shape, dtype in (
                ("image", self.image_shape, jnp.uint8),
                ("label", (), jnp.int32),
                ("index", (), jnp.int32),
                ("epoch", (), jnp.int32),
                ("weight", (), jnp.float32),
            )
        }


@dataclasses.dataclass(frozen=True, eq=False)
class CompiledUpdate:
    """A compiled update of `Updates`.

    Attributes:
      updates: those that it is one of.
      layout: of its batches.
      program: the program, and what it needs.
    """

    updates: Updates
    layout: BatchLayout
    program: Program

    @property
    def num_bytes(self) -> int:
        """Memory on each device: state, batch, and temporaries."""
        return self.program.num_bytes

    def prepared(self) -> Callable[[int], None]:
        """Puts a state and a batch on the devices; returns what performs updates and waits."""
        state, *others = self.updates.arguments(self.layout)

        def run(number: int) -> None:
            nonlocal state
            before = None
            for _ in range(number):
                state, metrics = self.program.compiled(state, *others)
                # XLA deadlocks on several CPU devices where dozens of updates are in flight.
                jax.block_until_ready(before)
                before = metrics
            jax.block_until_ready((state, metrics))

        return run


def configured_updates(config: TrainConfig, num_devices: int = 1) -> Updates:
    """The updates of a configuration's network and optimizer.

    Raises:
      UsageError: there is no such network, or the images' size isn't known.
    """
    spec, shape = dataset_spec(config.dataset, config.data.dir), image_shape(config)
    params, model_state, loss_fn, _ = network(config, spec, shape)
    tx = make_optimizer(config, lambda count: jnp.float32(_LEARNING_RATE))
    of_network = loss_fn, tx, params, model_state, shape, spec.num_classes
    return Updates(*of_network, num_devices, config.shard_params)


def image_shape(config: TrainConfig) -> tuple[int, int, int]:
    """(height, width, channels) of the images that the network gets."""
    shape, size = dataset_spec(config.dataset, config.data.dir).image_shape, config.data.image_size
    if size is not None:
        return (size, size, 3 if shape is None else shape[-1])
    if shape is None:
        raise UsageError(
            f"the images of {config.dataset} differ in size; give --data.image-size, or "
            "--no-memory for a table without memory."
        )
    return shape
