"""Choosing the layout of a run and compiling its programs, before the first update."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from adabatch_jax.byte_sizes import bytes_text
from adabatch_jax.data.feeds import Feed, open_feed
from adabatch_jax.data.layout import MANY_PROGRAMS, batch_layout
from adabatch_jax.data.resident import example_types
from adabatch_jax.data.sources import Source
from adabatch_jax.errors import UsageError
from adabatch_jax.reporting.progress import Progress
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.training.dispatch import Dispatch, FusedDispatch, SplitDispatch, sizes_from
from adabatch_jax.training.loss_functions import LossFn, group_rows
from adabatch_jax.training.memory import device_memory_bytes
from adabatch_jax.training.microbatch import (
    automatic_microbatch_size,
    steps_per_dispatch,
    update_flops,
)
from adabatch_jax.training.programs import Program, program_of
from adabatch_jax.training.slow_loops import slow_convolutions
from adabatch_jax.training.state import TrainState
from adabatch_jax.training.step import TrainStep, make_train_step

ACCUMULATIONS = ("fused", "split")
AUTO = "auto"


@dataclasses.dataclass(frozen=True)
class LayoutOptions:
    """How to lay a run out on its devices; `fit` describes the fields."""

    microbatch_size: int | str | None = None
    steps_per_dispatch: int | str = 1
    accumulation: str = "fused"
    input: str = "auto"
    shard_params: bool = False
    device_memory_bytes: int | None = None

    def __post_init__(self):
        for name in ("microbatch_size", "steps_per_dispatch"):
            value = getattr(self, name)
            is_number = type(value) is int and value >= 1
            if not is_number and value != "auto" and not (value is None and name[0] == "m"):
                raise UsageError(f"{name}: must be at least 1, or 'auto', got {value!r}.")
        if self.accumulation not in ACCUMULATIONS:
            raise UsageError(
                f"accumulation: must be one of {', '.join(ACCUMULATIONS)}, got "
                f"{self.accumulation!r}."
            )
        if self.accumulation == "split" and self.microbatch_size in (None, "auto"):
            raise UsageError(
                "accumulation: 'split' dispatches one micro-batch at a time, so it needs a number "
                "as microbatch_size."
            )


@dataclasses.dataclass
class Setup:
    """What makes a run ready to go.

    Attributes:
      train_step: performs an update.
      feed: gives the inputs.
      dispatch: performs the plan's updates; its first and its largest program are compiled.
      layout: what the bits of the result depend on beside the settings, as JSON values.
    """

    train_step: TrainStep
    feed: Feed
    dispatch: Dispatch
    layout: dict[str, Any]

    def compile_first_and_largest(self, plan: BatchPlan, start_step: int) -> Program:
        """Compiles what the first update and the one with the most rows need; the largest."""
        sizes = sizes_from(plan, start_step)
        names = (*self.dispatch.names(sizes[0]), *self.dispatch.names(max(sizes)))
        programs = [self.dispatch.programs.get(name) for name in dict.fromkeys(names)]
        return max(programs, key=lambda program: program.num_bytes)

    def close(self) -> None:
        """Ends what goes on in the background."""
        self.feed.close()
        self.dispatch.programs.close()


def set_up(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    state: TrainState,
    rng: jax.Array,
    source: Source,
    plan: BatchPlan,
    start_step: int,
    seed: int,
    mesh: Mesh | None,
    options: LayoutOptions,
    saved_layout: Mapping[str, Any],
    progress: Progress,
    reserved_bytes: int = 0,
) -> Setup:
    """Chooses what is "auto", compiles the first program and the one with the most rows.

    Args:
      state: lies where updates want it.
      start_step: the update to begin with.
      saved_layout: that of the run that goes on, whose choices stay; or nothing.
      reserved_bytes: memory of each device that something else takes.

    Raises:
      UsageError: a program doesn't fit into the devices' memory.
    """
    run = _Run(loss_fn, tx, state, rng, source, plan, start_step, seed, mesh, options)
    limit = run.limit_bytes(reserved_bytes)
    number = options.steps_per_dispatch
    if number == AUTO:
        number = saved_layout.get("steps_per_dispatch") or run.steps_per_dispatch()
    setups: list[Setup] = []

    def compiled(size: int | None) -> Program:
        for tried in setups:
            tried.close()
        setups.append(run.with_layout(size, number, limit))
        return setups[-1].compile_first_and_largest(plan, start_step)

    largest, size = max(sizes_from(plan, start_step)), options.microbatch_size
    if size == AUTO and "microbatch_size" not in saved_layout:
        rows, devices = group_rows(loss_fn), run.devices
        weight_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
        size = automatic_microbatch_size(
            largest,
            rows,
            len(devices),
            devices[0].platform,
            limit,
            weight_bytes,
            run.probe,
            compiled,
        )
        if len(setups) > 1 and rows is None:
            progress.message(
                f"the batch of {largest} doesn't fit into {bytes_text(limit)}: it is computed in "
                f"micro-batches of {size}, which BatchNorm without a group normalizes over"
            )
    else:
        size = saved_layout["microbatch_size"] if size == AUTO else size
        check_memory(plan, largest, size, compiled(size), limit)
    progress.message(_described(setups[-1]))
    _warn(setups[-1], progress)
    return setups[-1]


def check_memory(
    plan: BatchPlan, batch_size: int, size: int | None, program: Program, limit: int | None
) -> None:
    """Raises a UsageError if the program of this batch and micro-batch doesn't fit."""
    if limit is None or program.num_bytes <= limit:
        return
    phase = next(phase.index for phase in plan.phases if phase.batch_size == batch_size)
    raise UsageError(
        f"phase {phase} (batch {batch_size}, micro-batch {min(size or batch_size, batch_size)}) "
        f"needs {program.num_bytes:,} bytes on each device, and {limit:,} are free "
        "(device_memory); let microbatch_size be 'auto', or smaller."
    )


@dataclasses.dataclass
class _Run:
    """What `set_up` is given."""

    loss_fn: LossFn
    tx: optax.GradientTransformation
    state: TrainState
    rng: jax.Array
    source: Source
    plan: BatchPlan
    start_step: int
    seed: int
    mesh: Mesh | None
    options: LayoutOptions

    @property
    def devices(self) -> list[jax.Device]:
        if self.mesh is not None:
            return list(self.mesh.devices.flat)
        return list(jax.tree.leaves(self.state)[0].devices())

    def limit_bytes(self, reserved_bytes: int) -> int | None:
        limit = self.options.device_memory_bytes
        if limit is None:
            here = jax.process_index()
            limit = device_memory_bytes([d for d in self.devices if d.process_index == here])
        return None if limit is None else max(limit - reserved_bytes, 0)

    def train_step(self, microbatch_size: int | None) -> TrainStep:
        shard_params = self.options.shard_params
        return make_train_step(
            self.loss_fn, self.tx, self.mesh, microbatch_size, shard_params=shard_params
        )

    def with_layout(self, size: int | None, number: int, limit: int | None) -> Setup:
        """Everything for a micro-batch size and a number of updates per dispatch."""
        is_split = self.options.accumulation == "split"
        train_step = self.train_step(size)
        feed = open_feed(
            self.source,
            self.plan,
            self.seed,
            mesh=self.mesh,
            microbatch_size=size,
            steps_per_dispatch=number,
            kind=self.options.input,
            available_bytes=limit,
            split=is_split,
        )
        arguments = (train_step, feed, self.plan, self.start_step, self.state, self.rng)
        dispatch = SplitDispatch(*arguments) if is_split else FusedDispatch(*arguments, number)
        layout = {
            "devices": len(self.devices),
            "microbatch_size": size,
            "steps_per_dispatch": number,
            "accumulation": self.options.accumulation,
            "shard_params": self.options.shard_params,
        }
        return Setup(train_step, feed, dispatch, layout)

    def steps_per_dispatch(self) -> int:
        """How many updates of the first batch size make a dispatch worth its while."""
        size = sizes_from(self.plan, self.start_step)[0]
        rows = batch_layout(size, None, len(self.devices)).padded_size // len(self.devices)
        num_parameters = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
        # Each weight is used at least once per example, forward and twice backward; that settles
        # most networks without tracing them.
        flops = 6.0 * num_parameters * rows
        platform = self.devices[0].platform
        if steps_per_dispatch(flops, platform) > 1:
            flops = max(flops, update_flops(self._lowered(rows)))
        return steps_per_dispatch(flops, platform)

    def probe(self, rows: int) -> Program:
        """The update of a batch of so many rows on one device."""
        return program_of(self._lowered(rows))

    def _lowered(self, rows: int) -> jax.stages.Lowered:
        """The update of a batch of so many rows on one device, lowered."""
        batch = example_types(self.source) | {
            "index": ((), "int32"), "epoch": ((), "int32"), "weight": ((), "float32"),
        }  # fmt: skip
        arguments = (
            self.state,
            {name: jax.ShapeDtypeStruct((rows, *s), dtype) for name, (s, dtype) in batch.items()},
            self.rng,
        )
        step = make_train_step(self.loss_fn, self.tx)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
        return step.lower(*shapes)


def _described(setup: Setup) -> str:
    """The layout in a line."""
    size, number = setup.layout["microbatch_size"], setup.layout["steps_per_dispatch"]
    rows = "whole batches" if size is None else f"micro-batches of {size}"
    updates = f"; {number} updates per dispatch" if number > 1 else ""
    if setup.layout["accumulation"] == "split":
        updates = ", one per dispatch"
    return f"input {setup.feed.reason}; {rows}{updates}"


def _warn(setup: Setup, progress: Progress) -> None:
    """Says what will make the run slow."""
    programs = setup.dispatch.programs
    if len(programs.names) > MANY_PROGRAMS:
        progress.message(
            f"warning: {len(programs.names)} programs have to be compiled, one per batch size; "
            "with accumulation 'split' and a microbatch_size all sizes share one"
        )
    if jax.default_backend() == "cpu" and setup.layout["accumulation"] == "fused":
        slow = slow_convolutions(programs.get(programs.names[0]).compiled.as_text())
        if slow:
            progress.message(
                f"warning: {slow} convolutions (or their gradients) lie in a loop, where XLA is "
                "18 to 40 times slower on CPU; use adabatch_jax.models.convolution.conv2d, or no "
                "micro-batches and one update per dispatch"
            )
