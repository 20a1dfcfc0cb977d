"""What makes a run ready to go: its layout is chosen, and its first programs are compiled."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from adabatch_jax.config.layout import LayoutOptions
from adabatch_jax.data.abstract_arrays import abstract_batch, example_types, tree_bytes
from adabatch_jax.data.feeds import Feed
from adabatch_jax.data.row_layout import Layouts
from adabatch_jax.data.sources import Source
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.training.choose_layout import (
    Choice,
    Circumstances,
    Need,
    choose_layout,
    choose_steps_per_dispatch,
)
from adabatch_jax.training.compiled_programs import Program, program_of
from adabatch_jax.training.device_memory import device_memory_bytes
from adabatch_jax.training.dispatch import Dispatch, FusedDispatch, SplitDispatch, sizes_from
from adabatch_jax.training.evaluation import Evaluator
from adabatch_jax.training.program_names import MANY_PROGRAMS
from adabatch_jax.training.slow_convolutions import has_slow_convolutions
from adabatch_jax.training.train_state import TrainState
from adabatch_jax.training.train_step import TrainStep
from adabatch_jax.training.update import Update


@dataclasses.dataclass(frozen=True)
class Setup:
    """What makes a run ready to go.

    Attributes:
      update: what is performed.
      feed: gives the inputs.
      dispatch: performs the plan's updates; its first and its largest program are compiled.
      layout: what the bits of the result depend on beside the settings, as JSON values.
      limit_bytes: memory of each device; infinite where that isn't known.
      largest: the largest of the compiled programs.
    """

    update: Update
    feed: Feed
    dispatch: Dispatch
    layout: dict[str, Any]
    limit_bytes: float
    largest: Program

    @property
    def free_bytes(self) -> float:
        """Memory of each device that updates leave."""
        return self.limit_bytes - self.largest.num_bytes

    def close(self) -> None:
        """Ends what goes on in the background, and frees the examples on the devices."""
        self.feed.close()
        self.feed.tables.clear()
        self.dispatch.programs.close()


def set_up(
    update: Update,
    state: TrainState,
    rng: jax.Array,
    source: Source,
    plan: BatchPlan,
    start_step: int,
    seed: int,
    options: LayoutOptions,
    saved_layout: Mapping[str, Any],
    say: Callable[[str], None],
) -> Setup:
    """Chooses what is "auto", compiles the first program and the one with the most rows.

    Args:
      update: what to perform; its micro-batch is chosen here.
      state: lies where updates want it.
      start_step: the update to begin with.
      options: what the user wants.
      saved_layout: that of the run that goes on, whose choices stay; or nothing.
      say: takes a line for the user.

    Raises:
      UsageError: a program doesn't fit into the devices' memory.
    """
    devices = list(
        jax.tree.leaves(state)[0].devices() if update.mesh is None else update.mesh.devices.flat
    )
    limit = options.device_memory
    if limit is None:
        here = jax.process_index()
        limit = device_memory_bytes([d for d in devices if d.process_index == here])
    sizes = sizes_from(plan, start_step)
    rows = Layouts(num_devices=len(devices)).of(sizes[0]).rows_per_device
    alone = _Alone(update, state, rng, source)
    number = choose_steps_per_dispatch(
        options.steps_per_dispatch,
        options.accumulation,
        saved_layout,
        # Each weight is used at least once per example, forward and twice backward; that settles
        # most networks without tracing them.
        6.0 * sum(leaf.size for leaf in jax.tree.leaves(state.params)) * rows,
        devices[0].platform,
        lambda: (alone.flops(rows), alone.is_slow_in_loops(rows)),
    )
    circumstances = Circumstances(
        batch_size=max(sizes),
        group_rows=update.independent_groups,
        num_devices=len(devices),
        platform=devices[0].platform,
        limit_bytes=limit,
        weight_bytes=tree_bytes(state.params),
    )

    def build(choice: Choice) -> Setup:
        size, is_split = choice.microbatch_size, options.accumulation == "split"
        laid_out = dataclasses.replace(update, microbatch_size=size)
        feed = Feed(
            source,
            plan,
            seed,
            mesh=update.mesh,
            microbatch_size=size,
            steps_per_dispatch=number,
            kind=choice.input,
            available_bytes=limit,
            split=is_split,
        )
        arguments = (laid_out, feed, plan, start_step, state, rng)
        dispatch = (
            SplitDispatch(*arguments)
            if is_split
            else FusedDispatch(*arguments, steps_per_dispatch=number)
        )
        layout = {
            "devices": len(devices),
            "microbatch_size": size,
            "steps_per_dispatch": number,
            "accumulation": options.accumulation,
            "shard_params": update.shard_params,
        }
        names = (*dispatch.names(sizes[0]), *dispatch.names(max(sizes)))
        programs = [dispatch.programs.get(name) for name in dict.fromkeys(names)]
        largest = max(programs, key=lambda program: program.num_bytes)
        return Setup(laid_out, feed, dispatch, layout, limit, largest)

    tried = _Tried(build)
    try:
        choice, notes = choose_layout(
            options.microbatch_size,
            options.input,
            saved_layout,
            circumstances,
            alone.temporary_bytes,
            tried.needs,
        )
        setup = tried.setup(choice)
    except BaseException:
        tried.close()
        raise
    for note in notes:
        say(note)
    _introduce(setup, say)
    return setup


class _Tried:
    """The setup of the choice that was tried last; devices have no room for two of them."""

    def __init__(self, build: Callable[[Choice], Setup]):
        self._build = build
        self._last: tuple[Choice, Setup] | None = None

    def needs(self, choice: Choice) -> Need:
        """What updates of a choice need on each device."""
        setup = self.setup(choice)
        is_resident = setup.feed.kind == "resident"
        return Need(setup.largest.num_bytes, setup.largest.temporary_bytes, is_resident)

    def setup(self, choice: Choice) -> Setup:
        """Builds the setup of a choice, unless it was tried last."""
        if self._last is None or self._last[0] != choice:
            self.close()
            self._last = choice, self._build(choice)
        return self._last[1]

    def close(self) -> None:
        """Gives up what was tried last."""
        if self._last is not None:
            self._last[1].close()
            self._last = None


class _Alone:
    """The update of so many rows on one device: what it computes, and what it takes.

    The arguments are those of `set_up`.
    """

    def __init__(self, update: Update, state: TrainState, rng: jax.Array, source: Source):
        self._update = dataclasses.replace(
            update, mesh=None, microbatch_size=None, shard_params=False
        )
        self._state, self._rng, self._examples = state, rng, example_types(source)

    def flops(self, rows: int) -> float:
        """Its floating-point operations."""
        return float((self._lowered(rows).cost_analysis() or {}).get("flops", 0.0))

    def temporary_bytes(self, rows: int) -> int:
        """Memory beside its arguments and results."""
        return program_of(self._lowered(rows)).temporary_bytes

    def is_slow_in_loops(self, rows: int) -> bool:
        """Whether it has convolutions that are slow in loops on CPU."""
        arguments = self._arguments(rows)
        return has_slow_convolutions(
            jax.make_jaxpr(self._update)(*arguments, self._update.constants)
        )

    def _lowered(self, rows: int) -> jax.stages.Lowered:
        return TrainStep(self._update).lower(*self._arguments(rows))

    def _arguments(self, rows: int) -> tuple[Any, ...]:
        arguments = self._state, abstract_batch(self._examples, (rows,)), self._rng
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)


def keep_what_fits(evaluators: Iterable[Evaluator], free_bytes: float) -> float:
    """Lets evaluators keep examples on the devices if all of them fit, else none.

    Returns:
      The memory that is left on each device.
    """
    evaluators = list(evaluators)
    num_bytes = sum(evaluator.num_bytes for evaluator in evaluators)
    if num_bytes <= free_bytes:
        return free_bytes - num_bytes
    for evaluator in evaluators:
        evaluator.keep_nothing()
    return free_bytes


def _introduce(setup: Setup, say: Callable[[str], None]) -> None:
    """Says how the run is laid out, and what takes long."""
    size, number = setup.layout["microbatch_size"], setup.layout["steps_per_dispatch"]
    rows = "whole batches" if size is None else f"micro-batches of {size}"
    updates = f"; {number} updates per dispatch" if number > 1 else ""
    if setup.layout["accumulation"] == "split":
        updates = ", one per dispatch"
    say(f"input {setup.feed.reason}; {rows}{updates}")
    num_programs = len(setup.dispatch.programs.names)
    if num_programs > MANY_PROGRAMS:
        say(
            f"warning: {num_programs} programs have to be compiled, one per batch size; with "
            "accumulation 'split' and a microbatch_size all sizes share one"
        )
