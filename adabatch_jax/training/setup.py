"""What makes a run ready to go: its layout is chosen, and its first programs are compiled."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from adabatch_jax.config.settings import AUTO, Layout
from adabatch_jax.data.abstract_arrays import (
    Types,
    abstract,
    abstract_batch,
    example_types,
    laid_out,
    tree_bytes,
)
from adabatch_jax.data.feeds import Feed
from adabatch_jax.data.row_layout import Layouts
from adabatch_jax.data.sources import Source
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.schedules.update_sizes import first_updates_by_size
from adabatch_jax.training.automatic_layout import (
    Choice,
    Circumstances,
    Need,
    choose_layout,
    choose_steps_per_dispatch,
    microbatches_text,
)
from adabatch_jax.training.compiled_programs import Program, program_of
from adabatch_jax.training.device_memory import device_memory_bytes
from adabatch_jax.training.dispatch import Dispatch, FusedDispatch, SplitDispatch
from adabatch_jax.training.evaluation import Evaluator
from adabatch_jax.training.padding_check import PaddingTrial, padding_trial
from adabatch_jax.training.program_names import MANY_PROGRAMS
from adabatch_jax.training.slow_convolutions import has_slow_convolutions
from adabatch_jax.training.train_state import TrainState
from adabatch_jax.training.update import Update


@dataclasses.dataclass(frozen=True)
class Setup:
    """What makes a run ready to go.

    Attributes:
      dispatch: performs the plan's updates; its first and its largest program are compiled.
      layout: what the bits of the result depend on beside the settings, as JSON values.
      limit_bytes: memory of each device; infinite where that isn't known.
      largest: the largest of the compiled programs.
      padding_trial: tries the loss before its first update, where any row will be padding; or None.
    """

    update: Update
    feed: Feed
    dispatch: Dispatch
    layout: dict[str, Any]
    limit_bytes: float
    largest: Program
    padding_trial: PaddingTrial | None

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
    options: Layout,
    saved_layout: Mapping[str, Any],
    say: Callable[[str], None],
) -> Setup:
    """Chooses what is "auto", compiles the first program and the one with the most rows.

    Of a run that goes on, the choices of `saved_layout` stay; `options` are what `kept_layout.kept`
    returns. `say` takes a line for the user.

    Raises:
      UsageError: a program doesn't fit into the devices' memory.
    """
    mesh = update.mesh
    devices = list(jax.tree.leaves(state)[0].devices() if mesh is None else mesh.mesh.devices.flat)
    num_shards = 1 if mesh is None else mesh.num_shards
    limit = options.device_memory
    if limit is None:
        here = jax.process_index()
        limit = device_memory_bytes([d for d in devices if d.process_index == here])
    sizes = list(first_updates_by_size(plan, start_step))
    platform, weights = devices[0].platform, jax.tree.leaves(state.params)
    examples = example_types(source)
    update = dataclasses.replace(update, may_weigh_nothing="weight" in examples)
    traced_whole = functools.partial(_traced_whole, update, state, rng, examples)
    number = options.steps_per_dispatch
    if number == AUTO:
        number = 1 if options.accumulation == "split" else saved_layout.get("steps_per_dispatch")
    if number is None:
        rows = Layouts(num_devices=num_shards).of(sizes[0]).rows_per_device
        # Each weight is used at least once per example, forward and twice backward; that settles
        # most networks without tracing them.
        least_flops = 6.0 * sum(leaf.size for leaf in weights) * rows * num_shards / len(devices)
        number = choose_steps_per_dispatch(
            least_flops, platform, lambda: _flops_and_slowness(traced_whole(rows), len(devices))
        )
    options = dataclasses.replace(options, steps_per_dispatch=number)
    setups: list[Setup] = []

    def needs(choice: Choice) -> Need:
        while setups:  # devices have no room for two of them
            setups.pop().close()
        setup = _build(update, state, rng, source, plan, start_step, seed, options, choice, limit)
        setups.append(setup)
        is_resident = setup.feed.kind == "resident"
        return Need(setup.largest.num_bytes, setup.largest.temporary_bytes, is_resident)

    try:
        choice, notes = choose_layout(
            options.microbatch_size,
            options.input,
            saved_layout,
            Circumstances(
                max(sizes), update.independent_groups, num_shards, platform, limit,
                tree_bytes(weights),
            ),
            lambda rows: program_of(traced_whole(rows).lower()).temporary_bytes,
            needs,
        )  # fmt: skip
    except BaseException:
        while setups:
            setups.pop().close()
        raise
    for note in notes:
        say(note)
    _introduce(setups[0], say)
    return setups[0]


def _build(
    update: Update,
    state: TrainState,
    rng: jax.Array,
    source: Source,
    plan: BatchPlan,
    start_step: int,
    seed: int,
    options: Layout,
    choice: Choice,
    limit_bytes: float,
) -> Setup:
    """Builds what was chosen, and compiles the first and the largest program."""
    is_split, number = options.accumulation == "split", options.steps_per_dispatch
    update = dataclasses.replace(update, microbatch_size=choice.microbatch_size)
    feed = Feed(
        source, plan, seed, mesh=update.mesh, microbatch_size=choice.microbatch_size,
        steps_per_dispatch=number, kind=choice.input, available_bytes=limit_bytes, split=is_split,
    )  # fmt: skip
    layout = {
        "devices": 1 if update.mesh is None else update.mesh.mesh.size,
        "batch_shards": feed.layouts.num_devices,
        "microbatch_size": choice.microbatch_size,
        "steps_per_dispatch": number,
        "accumulation": options.accumulation,
        "shard_params": update.shard_params,
    }
    arguments = (update, feed, plan, start_step, state, rng)
    if is_split:
        dispatch = SplitDispatch(*arguments)
    else:
        dispatch = FusedDispatch(*arguments, steps_per_dispatch=number)
    sizes = list(first_updates_by_size(plan, start_step))
    names = dict.fromkeys((*dispatch.names(sizes[0]), *dispatch.names(max(sizes))))
    largest = max(map(dispatch.programs.get, names), key=lambda program: program.num_bytes)
    trial = padding_trial(update, feed, plan, start_step, rng, is_split)
    return Setup(update, feed, dispatch, layout, limit_bytes, largest, trial)


def _traced_whole(
    update: Update, state: TrainState, rng: jax.Array, examples: Types, rows: int
) -> jax.stages.Traced:
    """The update of so many rows on each device, in one piece.

    On the run's own mesh: a loss function may say where its arrays lie.
    """
    update = dataclasses.replace(update, microbatch_size=None)
    if update.mesh is None:
        batch = abstract_batch(examples, (rows,))
    else:
        batch = abstract_batch(examples, (rows * update.mesh.num_shards,))
        batch = laid_out(batch, update.batch_shardings(batch))
    arguments = abstract(state), batch, abstract(rng), update.constants
    return jax.jit(lambda *arguments: update(*arguments)[:2], donate_argnums=0).trace(*arguments)


def _flops_and_slowness(traced: jax.stages.Traced, num_devices: int) -> tuple[float, bool]:
    """Each device's floating-point operations, and whether a loop would slow them down on a CPU."""
    costs = traced.lower().cost_analysis() or {}
    return float(costs.get("flops", 0.0)) / num_devices, has_slow_convolutions(traced.jaxpr)


def keep_what_fits(evaluators: Iterable[Evaluator], free_bytes: float) -> float:
    """Lets evaluators keep all examples on the devices, or none; returns what memory is left."""
    evaluators = list(evaluators)
    num_bytes = sum(evaluator.num_bytes for evaluator in evaluators)
    if num_bytes <= free_bytes:
        return free_bytes - num_bytes
    for evaluator in evaluators:
        evaluator.keep_nothing()
    return free_bytes


def _introduce(setup: Setup, say: Callable[[str], None]) -> None:
    """Says how the run is laid out, and what takes long."""
    rows = microbatches_text(setup.layout["microbatch_size"])
    number = setup.layout["steps_per_dispatch"]
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
