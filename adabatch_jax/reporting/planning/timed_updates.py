"""The update of a configuration on batches of any size, without its data."""

import dataclasses
import os
from collections.abc import Callable, Hashable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adabatch_jax.config.own_functions import is_reference
from adabatch_jax.config.settings import TrainConfig
from adabatch_jax.data.abstract_arrays import Types, abstract_batch, example_types
from adabatch_jax.data.datasets.known_datasets import DatasetSpec
from adabatch_jax.data.example_reading import SourceReader
from adabatch_jax.data.mesh import data_mesh
from adabatch_jax.data.row_layout import BatchLayout
from adabatch_jax.data.sources import ArraySource, array_source
from adabatch_jax.runs.checkpoints.disk_space import checkpoint_bytes
from adabatch_jax.runs.configured_data import describe_data, is_own, open_data
from adabatch_jax.runs.configured_model import configured_model
from adabatch_jax.runs.configured_optimizer import make_optimizer
from adabatch_jax.schedules.plan import make_plan
from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.quantities import parse_bytes
from adabatch_jax.training.compiled_programs import Program, program_of
from adabatch_jax.training.device_memory import device_memory_bytes
from adabatch_jax.training.program_names import program_names
from adabatch_jax.training.step_timing import wait_for_all
from adabatch_jax.training.train_state import TrainState
from adabatch_jax.training.train_step import TrainStep
from adabatch_jax.training.update import Update

# Weights must move, or there would be nothing to compute, and stay finite on random labels.
_LEARNING_RATE = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Updates:
    """The updates of one network on some devices; `configured_updates` makes them.

    Where this machine has fewer devices, one of them computes a device's share of the rows; what
    devices tell each other comes on top.

    Attributes:
      update: an update on the devices that compute here, whole batches.
      num_devices: the devices that a batch is laid out on.
      machine_bytes: memory of each device that computes here; infinite where that isn't known.
      limit_bytes: memory of each device by the settings, or else the same.
      example: the first example where a user's own loss takes it, as nobody but the loss knows
        which random ones would do; else None.
    """

    update: Update
    params: Any
    model_state: Any
    image_shape: tuple[int, int, int] | None
    num_classes: int | None
    num_devices: int
    machine_bytes: float
    limit_bytes: float
    example: ArraySource | None = None
    _programs: dict[Hashable, Program] = dataclasses.field(default_factory=dict)

    @property
    def num_used_devices(self) -> int:
        """The devices that compute here: all, or one that stands for each."""
        return 1 if self.update.mesh is None else self.update.mesh.num_shards

    @property
    def device_kind(self) -> str:
        """The devices' name."""
        return jax.devices()[0].device_kind

    @property
    def checkpoint_bytes(self) -> int:
        """What a checkpoint takes on disk."""
        return checkpoint_bytes(jax.eval_shape(self._new_state))

    def compiled(self, layouts: Iterable[BatchLayout]) -> dict[BatchLayout, Program]:
        """Compiles the updates on batches of these layouts at the same time, each shape once."""
        by_layout = {layout: program_names(layout, split=False) for layout in layouts}
        missing = {name: layout for layout, name in by_layout.items() if name not in self._programs}
        # Compilers don't hold the interpreter's lock.
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            programs = threads.map(lambda layout: program_of(self._lower(layout)), missing.values())
            self._programs.update(zip(missing, programs, strict=True))
        return {layout: self._programs[name] for layout, name in by_layout.items()}

    def arguments(self, layout: BatchLayout) -> tuple[Any, ...]:
        """What the compiled update is called with: state, random batch, key, step's constants."""
        random = np.random.default_rng(0)
        bounds = {"image": 256, "label": self.num_classes}
        given = {} if self.example is None else self.example.arrays
        batch = {
            name: jax.tree.map(_repeated, leaf, given[name])
            if name in given
            else random.integers(bounds[name], size=leaf.shape, dtype=leaf.dtype)
            if name in bounds
            else np.ones(leaf.shape, leaf.dtype)
            for name, leaf in self._abstract_batch(layout).items()
        }
        mesh, place = self.update.mesh, self.update.place
        is_stacked = layout.num_microbatches > 1
        batch = jax.device_put(batch, mesh and mesh.of_batch(batch, int(is_stacked)))
        return place(self._new_state()), batch, place(jax.random.key(0)), self.update.constants

    def prepared(self, layout: BatchLayout) -> Callable[[int], None]:
        """Puts a state and a batch on the devices; returns what performs updates and waits."""
        program = self.compiled([layout])[layout].compiled
        state, *others = self.arguments(layout)

        def metrics_of_next() -> Any:
            nonlocal state
            state, metrics = program(state, *others)
            return metrics

        def run(number: int) -> None:
            wait_for_all(metrics_of_next() for _ in range(number))
            jax.block_until_ready(state)  # metrics can be ready before

        return run

    def fitting_together(
        self, programs: Mapping[BatchLayout, Program], limit_bytes: float
    ) -> list[BatchLayout]:
        """The layouts, small batches first, that run in turns while the others' arrays stay."""
        held, fitting = 0, []
        for layout, program in sorted(programs.items(), key=lambda item: item[1].num_bytes):
            if held + program.num_bytes <= limit_bytes:
                fitting.append(layout)
                held += program.num_bytes - program.temporary_bytes
        return fitting

    def _lower(self, layout: BatchLayout) -> jax.stages.Lowered:
        batch = self._abstract_batch(layout)
        size = batch["weight"].shape[-1] if layout.num_microbatches > 1 else None
        step = TrainStep(dataclasses.replace(self.update, microbatch_size=size))
        state, key = jax.eval_shape(lambda: (self._new_state(), jax.random.key(0)))
        return step.lower(state, batch, key)

    def _new_state(self) -> TrainState:
        return TrainState.create(
            params=self.params, tx=self.update.tx, model_state=self.model_state
        )

    def _abstract_batch(self, layout: BatchLayout) -> dict[str, jax.ShapeDtypeStruct]:
        shape = (layout.rows_per_device * self.num_used_devices,)
        if layout.num_microbatches > 1:
            shape = (layout.num_microbatches, *shape)
        return abstract_batch(self._types, shape)

    @property
    def _types(self) -> Types:
        if self.example is not None:
            return example_types(self.example)
        return {
            "image": jax.ShapeDtypeStruct(self.image_shape, jnp.uint8),
            "label": jax.ShapeDtypeStruct((), jnp.int32),
        }


def configured_updates(config: TrainConfig, num_devices: int = 1) -> Updates:
    """The updates of a configuration's network and optimizer.

    Raises:
      UsageError: there is no such network, it can't take the data, or the images' size isn't known.
    """
    spec, example = image_data(config), None
    network = configured_model(config, spec)
    # Batches that nobody but their source knows.
    if network.probabilities is None and (spec.text is not None or is_own(config)):
        example = array_source(SourceReader(open_data(config).train).example())
    devices = jax.local_devices()
    devices = devices[: num_devices if num_devices <= len(devices) else 1]
    mesh = data_mesh(devices) if len(devices) > 1 else None
    update = Update(
        network.loss_fn,
        # Of any plan: it takes as long.
        make_optimizer(
            config, lambda count: jnp.float32(_LEARNING_RATE), make_plan(1, None, "1st")
        ),
        mesh,
        shard_params=config.shard_params is True and mesh is not None,
        **network.properties,
    )
    machine = device_memory_bytes(devices)
    limit = machine if config.device_memory is None else parse_bytes(config.device_memory)
    return Updates(
        update, network.params, network.model_state, spec.image_shape, spec.num_classes,
        num_devices, machine, limit, example,
    )  # fmt: skip


def _repeated(leaf: jax.ShapeDtypeStruct, row: np.ndarray) -> np.ndarray:
    return np.broadcast_to(row[0], leaf.shape).astype(leaf.dtype)


def image_data(config: TrainConfig) -> DatasetSpec:
    """What is known of the dataset, the shape of its images too."""
    spec = describe_data(config)
    is_known = spec.image_shape is not None or spec.text is not None
    if not is_known and not is_reference(config.dataset):
        raise UsageError(
            f"the images of {config.dataset} differ in size; give --data.image-size, or "
            "--no-memory for a table without memory."
        )
    return spec
