"""Choosing the layout of a run and compiling its programs, before the first update."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from adabatch_jax.config.settings import AUTO, Layout
from adabatch_jax.data.feeds import Feed, open_feed
from adabatch_jax.data.resident_examples import example_types
from adabatch_jax.data.row_layout import MANY_PROGRAMS, batch_layout
from adabatch_jax.data.sources import Source
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.system.errors import UsageError
from adabatch_jax.training.automatic_layout import (
    automatic_microbatch_size,
    steps_per_dispatch,
    update_flops,
)
from adabatch_jax.training.compiled_programs import Program, Programs, program_of
from adabatch_jax.training.device_memory import device_memory_bytes
from adabatch_jax.training.dispatch import Dispatch, FusedDispatch, SplitDispatch, sizes_from
from adabatch_jax.training.evaluation import Evaluator
from adabatch_jax.training.loss_functions import LossFn, group_rows
from adabatch_jax.training.slow_loops import slow_convolutions
from adabatch_jax.training.train_state import TrainState
from adabatch_jax.training.train_step import TrainStep, make_train_step


@dataclasses.dataclass
class Setup:
    """What makes a run ready to go.

    Attributes:
      train_step: performs an update.
      feed: gives the inputs.
      dispatch: performs the plan's updates; its first and its largest program are compiled.
      layout: what the bits of the result depend on beside the settings, as JSON values.
      limit_bytes: memory of each device, where it is known.
      taken_bytes: what updates and evaluations need of it.
    """

    train_step: TrainStep
    feed: Feed
    dispatch: Dispatch
    layout: dict[str, Any]
    limit_bytes: int | None
    taken_bytes: int = 0

    def compile_first_and_largest(self, plan: BatchPlan, start_step: int) -> Program:
        """Compiles what the first update and the one with the most rows need; the largest."""
        sizes = sizes_from(plan, start_step)
        names = (*self.dispatch.names(sizes[0]), *self.dispatch.names(max(sizes)))
        programs = [self.dispatch.programs.get(name) for name in dict.fromkeys(names)]
        largest = max(programs, key=lambda program: program.num_bytes)
        self.taken_bytes = largest.num_bytes
        return largest

    def has_room_for(self, num_bytes: int) -> bool:
        """Whether each device has so much memory beside what updates and evaluations need."""
        return self.taken_bytes + num_bytes <= _or_infinite(self.limit_bytes)

    def close(self) -> None:
        """Ends what goes on in the background, and frees the examples on the devices."""
        self.feed.close()
        self.feed.tables.clear()
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
    options: Layout,
    saved_layout: Mapping[str, Any],
    say: Callable[[str], None],
    evaluators: Sequence[Evaluator] = (),
    skip_nonfinite: bool = False,
) -> Setup:
    """Chooses what is "auto", compiles the first program and the one with the most rows.

    Args:
      state: lies where updates want it.
      start_step: the update to begin with.
      saved_layout: that of the run that goes on, whose choices stay; or nothing.
      say: takes a line for the user.
      evaluators: keep examples on the devices, unless memory is short.
      skip_nonfinite: as in `make_train_step`.

    Raises:
      UsageError: a program doesn't fit into the devices' memory.
    """
    search = _Search(
        loss_fn, tx, state, rng, source, plan, start_step, seed, mesh, options, skip_nonfinite,
        evaluators,
    )  # fmt: skip
    try:
        setup = search.run(saved_layout, say)
    except BaseException:
        search.close()
        raise
    introduce(setup.layout, setup.feed.reason, setup.dispatch.programs, say)
    return setup


def check_memory(
    plan: BatchPlan, batch_size: int, size: int | None, program: Program, limit: int | None
) -> None:
    """Raises a UsageError if the program of this batch and micro-batch doesn't fit."""
    if limit is None or program.num_bytes <= limit:
        return
    phase = next(phase.index for phase in plan.phases if phase.batch_size == batch_size)
    raise UsageError(
        f"phase {phase} (batch {batch_size}, micro-batch {min(size or batch_size, batch_size)}) "
        f"needs {program.num_bytes:,} bytes on each device, resident input included, and there "
        f"are {limit:,} (device_memory); let microbatch_size be 'auto', or smaller."
    )


@dataclasses.dataclass
class _Search:
    """The search for a layout that fits; the fields are the arguments of `set_up`."""

    loss_fn: LossFn
    tx: optax.GradientTransformation
    state: TrainState
    rng: jax.Array
    source: Source
    plan: BatchPlan
    start_step: int
    seed: int
    mesh: Mesh | None
    options: Layout
    skip_nonfinite: bool
    evaluators: Sequence[Evaluator]

    def __post_init__(self):
        self._input, self._setup = self.options.input, None
        self._number = self.options.steps_per_dispatch
        self._limit = self.options.device_memory
        if self._limit is None:
            here = jax.process_index()
            self._limit = device_memory_bytes([d for d in self.devices if d.process_index == here])

    def run(self, saved_layout: Mapping[str, Any], say: Callable[[str], None]) -> Setup:
        """Chooses, and compiles what is needed first."""
        if self._number == AUTO and self.options.accumulation == "split":
            self._number = 1
        elif self._number == AUTO:
            self._number = saved_layout.get("steps_per_dispatch") or self.steps_per_dispatch()
        size, largest = self.options.microbatch_size, max(sizes_from(self.plan, self.start_step))
        if size != AUTO:
            check_memory(self.plan, largest, size, self.compiled(size), self._limit)
        elif not self._fits_as_before(saved_layout, say):
            size = self.automatic_microbatch_size(largest)
            if size is not None and group_rows(self.loss_fn) is None:
                say(
                    f"the batch of {largest} doesn't fit into memory: it is computed in "
                    f"micro-batches of {size}, which is what BatchNorm without a group then "
                    "normalizes over, if there is any"
                )
        is_free = (
            self.options.steps_per_dispatch == AUTO and "steps_per_dispatch" not in saved_layout
        )
        if is_free and self._number > 1 and num_slow_convolutions(self._setup.dispatch.programs):
            self._number = 1  # in a loop over updates they would lose more than dispatches cost
            self.compiled(self._setup.layout["microbatch_size"])
        return self._setup

    def _fits_as_before(self, saved_layout: Mapping[str, Any], say: Callable[[str], None]) -> bool:
        """Takes the micro-batch that the run was begun with, if there is one and it fits."""
        if "microbatch_size" not in saved_layout:
            return False
        size = saved_layout["microbatch_size"]
        if self.compiled(size).num_bytes <= _or_infinite(self._limit):
            return True
        before = "whole batches" if size is None else f"micro-batches of {size}"
        say(f"the run was begun with {before}, which don't fit into this memory: chosen anew")
        return False

    def automatic_microbatch_size(self, batch_size: int) -> int | None:
        weight_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.state.params))
        return automatic_microbatch_size(
            batch_size,
            group_rows(self.loss_fn),
            len(self.devices),
            self.devices[0].platform,
            self._limit,
            weight_bytes,
            probe=lambda rows: program_of(self._lowered(rows)),
            compiled=self.compiled,
        )

    def compiled(self, size: int | None) -> Program:
        """Compiles what the first update and the one with the most rows need.

        Where examples on the devices leave too little room, they are streamed instead, unless
        the user wants them there.

        Returns:
          The largest program.
        """
        self.close()
        self._setup = self.with_layout(size)
        program = self._setup.compile_first_and_largest(self.plan, self.start_step)
        limit = _or_infinite(self._limit)
        if program.num_bytes + sum(e.num_bytes for e in self.evaluators) > limit:
            for evaluator in self.evaluators:
                evaluator.num_bytes = 0  # it keeps nothing then
        self._setup.taken_bytes += sum(evaluator.num_bytes for evaluator in self.evaluators)
        is_resident = self._setup.feed.kind == "resident"
        if program.num_bytes > limit and self._input == AUTO and is_resident:
            self._input = "streaming"
            return self.compiled(size)
        return program

    def close(self) -> None:
        """Gives up what was tried last."""
        if self._setup is not None:
            self._setup.close()
            self._setup = None

    @property
    def devices(self) -> list[jax.Device]:
        if self.mesh is not None:
            return list(self.mesh.devices.flat)
        return list(jax.tree.leaves(self.state)[0].devices())

    def train_step(self, microbatch_size: int | None) -> TrainStep:
        shard_params = self.options.shard_params
        return make_train_step(
            self.loss_fn,
            self.tx,
            self.mesh,
            microbatch_size,
            shard_params=shard_params,
            skip_nonfinite=self.skip_nonfinite,
        )

    def with_layout(self, size: int | None) -> Setup:
        """Everything for a micro-batch size."""
        number = self._number
        is_split = self.options.accumulation == "split"
        train_step = self.train_step(size)
        feed = open_feed(
            self.source,
            self.plan,
            self.seed,
            mesh=self.mesh,
            microbatch_size=size,
            steps_per_dispatch=number,
            kind=self._input,
            available_bytes=self._limit,
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
        return Setup(train_step, feed, dispatch, layout, self._limit)

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


def _or_infinite(limit: int | None) -> float:
    return math.inf if limit is None else limit


def introduce(
    layout: Mapping[str, Any], input_reason: str, programs: Programs, say: Callable[[str], None]
) -> None:
    """Says how the run is laid out, and what will make it slow.

    Args:
      layout: as in `Setup.layout`.
      input_reason: the kind of input and why.
      programs: the run's; those that are compiled already are looked at.
      say: takes a line for the user.
    """
    size, number = layout["microbatch_size"], layout["steps_per_dispatch"]
    rows = "whole batches" if size is None else f"micro-batches of {size}"
    updates = f"; {number} updates per dispatch" if number > 1 else ""
    if layout["accumulation"] == "split":
        updates = ", one per dispatch"
    say(f"input {input_reason}; {rows}{updates}")
    if len(programs.names) > MANY_PROGRAMS:
        say(
            f"warning: {len(programs.names)} programs have to be compiled, one per batch size; "
            "with accumulation 'split' and a microbatch_size all sizes share one"
        )
    if slow := num_slow_convolutions(programs):
        say(
            f"warning: {slow} convolutions (or their gradients) lie in a loop, where XLA is 18 to "
            "40 times slower on CPU; use adabatch_jax.models.convolution.conv2d, or no "
            "micro-batches and one update per dispatch"
        )


def num_slow_convolutions(programs: Programs) -> int:
    """Convolutions that a CPU computes slowly, of the programs that are compiled; else 0."""
    if jax.default_backend() != "cpu":
        return 0
    ready = [programs.get(name) for name in programs.names if programs.is_ready(name)]
    return max(slow_convolutions(program.compiled.as_text()) for program in ready)
