"""What a configuration's plan costs on this machine: micro-batch, memory, measured seconds."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import jax

from adabatch_jax.config.settings import AUTO, TrainConfig
from adabatch_jax.data.abstract_arrays import tree_bytes
from adabatch_jax.data.row_layout import BatchLayout, Layouts
from adabatch_jax.reporting.planning.devices_table import Measured
from adabatch_jax.reporting.planning.memory_by_layout import UpdateMemory, update_memory
from adabatch_jax.reporting.planning.microbatch_comparison import (
    MicrobatchComparison,
    compare_microbatches,
)
from adabatch_jax.reporting.planning.repeated_timing import Timing, repeated_timings
from adabatch_jax.reporting.planning.scaling_efficiency import rows_to_measure
from adabatch_jax.reporting.planning.schedule_suggestion import sizes_to_try
from adabatch_jax.reporting.planning.timed_updates import Updates, configured_updates
from adabatch_jax.schedules.batch_size_schedules import ExponentialGrowth
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.schedules.update_sizes import first_updates_by_size
from adabatch_jax.system.errors import UsageError
from adabatch_jax.training.automatic_layout import (
    Choice,
    Circumstances,
    Need,
    automatic_choice,
    check_memory,
)
from adabatch_jax.training.compiled_programs import Program
from adabatch_jax.training.time_prediction import Prediction, predict

_BUDGET_SECONDS = 20.0


@dataclasses.dataclass(frozen=True)
class PlanCosts:
    """What a plan costs.

    Attributes:
      updates: what it was found out with.
      layouts: of the micro-batch that was asked for, or that "auto" will be.
      memory: of each batch size's layout.
      timings: of updates that were measured, by batch size.
      prediction: of the time; None if nothing was measured.
      microbatches: None if there was nothing to compare.
    """

    updates: Updates
    layouts: Layouts
    memory: dict[BatchLayout, UpdateMemory]
    timings: dict[int, Timing] = dataclasses.field(default_factory=dict)
    prediction: Prediction | None = None
    microbatches: MicrobatchComparison | None = None


def plan_costs(
    config: TrainConfig, plan: BatchPlan, num_devices: int, has_seconds: bool
) -> PlanCosts:
    """Finds out what a plan costs; without seconds a few programs are compiled, and nothing runs.

    Raises:
      UsageError: a phase doesn't fit into the memory that the settings name, or not even the
        smallest micro-batch into the memory there is.
    """
    updates = configured_updates(config, num_devices)
    layouts = resolved_layouts(config, updates, max(first_updates_by_size(plan)))
    of_plan = [layouts.of(size) for size in plan.batch_sizes]

    def compiled_bytes(some: Iterable[BatchLayout]) -> dict[BatchLayout, int]:
        return {layout: program.num_bytes for layout, program in updates.compiled(some).items()}

    if has_seconds:  # which needs all of them compiled
        memory = {layout: UpdateMemory(n) for layout, n in compiled_bytes(of_plan).items()}
    else:
        memory = update_memory(of_plan, compiled_bytes)
    if config.device_memory is not None:
        for layout in of_plan:
            check_memory(layout, memory[layout].num_bytes, updates.limit_bytes)
    if not has_seconds:
        return PlanCosts(updates, layouts, memory)
    timings = measured_timings(updates, of_plan)
    seconds = {size: timing.seconds for size, timing in timings.items()}
    compared = compare_microbatches(updates, layouts, seconds)
    return PlanCosts(updates, layouts, memory, timings, predict(plan, seconds), compared)


def timed_doublings(
    config: TrainConfig,
    plan: BatchPlan,
    rule: ExponentialGrowth,
    max_batch: int | None,
    num_devices: int,
) -> tuple[dict[int, Timing], list[int]]:
    """Times of the updates that a rule of growth could reach, and the sizes that were left out.

    Raises:
      UsageError: not even the first size fits.
    """
    updates = configured_updates(config, num_devices)
    sizes = sizes_to_try(rule, plan, max_batch)
    layouts = resolved_layouts(config, updates, max(sizes))
    timings = measured_timings(updates, [layouts.of(size) for size in sizes])
    return timings, [size for size in sizes if size not in timings]


def timed_rows(config: TrainConfig, layouts: Sequence[BatchLayout]) -> Measured:
    """Times the updates on one device that these layouts, on any number of them, are made of.

    Raises:
      UsageError: not even the fewest rows fit.
    """
    updates = configured_updates(config)
    rows = rows_to_measure(layouts, updates.update.independent_groups)
    if config.microbatch_size == AUTO:
        on_one = resolved_layouts(config, updates, max(rows))
    else:
        on_one = Layouts()  # these are the rows of a micro-batch already
    timings = measured_timings(updates, [on_one.of(number) for number in rows])
    return Measured(timings, tree_bytes(updates.params), updates.device_kind)


def resolved_layouts(config: TrainConfig, updates: Updates, batch_size: int) -> Layouts:
    """The layouts of a run whose largest batch is this one; an "auto" micro-batch is decided.

    Raises:
      UsageError: not even the smallest micro-batch fits.
    """
    num_devices = updates.num_devices
    if config.microbatch_size != AUTO:
        return Layouts(config.microbatch_size, num_devices)

    def program(batch_size: int, microbatch_size: int | None) -> Program:
        layout = Layouts(microbatch_size, num_devices).of(batch_size)
        return updates.compiled([layout])[layout]

    def needs(choice: Choice) -> Need:
        tried = program(batch_size, choice.microbatch_size)
        return Need(tried.num_bytes, tried.temporary_bytes)

    circumstances = Circumstances(
        batch_size=batch_size,
        group_rows=updates.update.independent_groups,
        num_devices=num_devices,
        platform=jax.default_backend(),
        limit_bytes=updates.limit_bytes,
        weight_bytes=tree_bytes(updates.params),
    )
    choice = automatic_choice(
        AUTO, circumstances, lambda rows: program(rows * num_devices, None).temporary_bytes, needs
    )
    return Layouts(choice.microbatch_size, num_devices)


def measured_timings(updates: Updates, layouts: Iterable[BatchLayout]) -> dict[int, Timing]:
    """Times updates, by batch size, as far as time and memory allow.

    Raises:
      UsageError: not even the smallest fits.
    """
    limit = min(updates.limit_bytes, updates.machine_bytes)
    compiled = updates.compiled(layouts)
    fitting = updates.fitting_together(compiled, limit)
    if not fitting:
        least = min(program.num_bytes for program in compiled.values())
        raise UsageError(
            f"nothing can be measured here: an update needs {least:,} bytes at least, and "
            f"there are {limit:,.0f}."
        )
    runs = {layout.batch_size: functools.partial(updates.prepared, layout) for layout in fitting}
    return repeated_timings(runs, _BUDGET_SECONDS)
