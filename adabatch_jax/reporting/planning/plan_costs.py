"""What a configuration's plan costs on this machine: micro-batch, memory, measured seconds."""

import dataclasses
import functools

import jax

from adabatch_jax.config.settings import AUTO, TrainConfig
from adabatch_jax.data.abstract_arrays import tree_bytes
from adabatch_jax.data.row_layout import BatchLayout, Layouts
from adabatch_jax.reporting.planning.memory_by_layout import UpdateMemory, update_memory
from adabatch_jax.reporting.planning.microbatch_comparison import (
    MicrobatchComparison,
    microbatch_candidates,
)
from adabatch_jax.reporting.planning.schedule_suggestion import sizes_to_try
from adabatch_jax.reporting.planning.timed_updates import Updates, configured_updates
from adabatch_jax.schedules.batch_size_schedules import ExponentialGrowth
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.quantities import bytes_text, parse_bytes
from adabatch_jax.training.choose_layout import (
    Choice,
    Circumstances,
    Need,
    automatic_choice,
    check_memory,
)
from adabatch_jax.training.compiled_programs import Program
from adabatch_jax.training.step_timing import measure_sizes, seconds_per_update
from adabatch_jax.training.time_prediction import Prediction, predict

SIZES_SECONDS = 20.0
MICROBATCHES_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class PlanCosts:
    """What a plan costs.

    Attributes:
      device: the kind of device that it was found out on.
      num_devices: how many of them the batches are laid out on.
      num_used_devices: how many of them computed here.
      limit_bytes: memory of each device; infinite where that isn't known.
      microbatch_size: examples over all devices, None for the whole batch: what was asked for,
        or what "auto" will be.
      memory: of each batch size.
      prediction: of the time; None if nothing was measured.
      microbatches: a comparison of micro-batches; None if there was nothing to compare.
      has_free_microbatch: whether micro-batches are known not to change the numbers.
      checkpoint_bytes: what a checkpoint takes on disk.
    """

    device: str
    num_devices: int
    num_used_devices: int
    limit_bytes: float
    microbatch_size: int | None
    memory: dict[int, UpdateMemory]
    prediction: Prediction | None
    microbatches: MicrobatchComparison | None
    has_free_microbatch: bool
    checkpoint_bytes: int


def plan_costs(
    config: TrainConfig, plan: BatchPlan, num_devices: int, has_seconds: bool
) -> PlanCosts:
    """Finds out what a plan costs.

    Args:
      config: the settings.
      plan: its plan.
      num_devices: devices to lay batches out on.
      has_seconds: whether to measure; else a few programs are compiled, and nothing runs.

    Raises:
      UsageError: a phase doesn't fit into the memory that the settings name, or not even the
        smallest micro-batch into the memory there is.
    """
    updates = configured_updates(config, num_devices)
    limit = _limit_bytes(config, updates)
    size = resolved_microbatch_size(config, updates, max(plan.batch_sizes), limit)
    layouts = {b: Layouts(size, num_devices).of(b) for b in plan.batch_sizes}
    prediction = microbatches = None
    if has_seconds:
        compiled = updates.compiled(layouts.values())
        memory = {b: UpdateMemory(compiled[layout].num_bytes) for b, layout in layouts.items()}
    else:
        by_layout = update_memory(
            layouts.values(),
            lambda some: {layout: p.num_bytes for layout, p in updates.compiled(some).items()},
        )
        memory = {b: by_layout[layout] for b, layout in layouts.items()}
    if config.device_memory is not None:
        for b, layout in layouts.items():
            check_memory(layout, memory[b].num_bytes, limit)
    if has_seconds:
        seconds = measured_seconds(updates, list(layouts.values()), limit)
        prediction = predict(plan, seconds)
        microbatches = compare_microbatches(updates, size, seconds)
    return PlanCosts(
        device=jax.devices()[0].device_kind,
        num_devices=num_devices,
        num_used_devices=updates.num_used_devices,
        limit_bytes=limit,
        microbatch_size=size,
        memory=memory,
        prediction=prediction,
        microbatches=microbatches,
        has_free_microbatch=updates.update.independent_groups is not None,
        checkpoint_bytes=updates.checkpoint_bytes,
    )


def timed_doublings(
    config: TrainConfig,
    plan: BatchPlan,
    rule: ExponentialGrowth,
    max_batch: int | None,
    num_devices: int,
) -> tuple[dict[int, float], list[int]]:
    """Times the sizes that a rule of growth could reach.

    Returns:
      Seconds per update by batch size, and the sizes that time or memory left out: this
      machine's memory, and that of the settings.

    Raises:
      UsageError: not even the first size fits.
    """
    updates = configured_updates(config, num_devices)
    limit = _limit_bytes(config, updates)
    sizes = sizes_to_try(rule, plan, max_batch)
    size = resolved_microbatch_size(config, updates, max(sizes), limit)
    layouts = [Layouts(size, num_devices).of(b) for b in sizes]
    seconds = measured_seconds(updates, layouts, limit)
    return seconds, [b for b in sizes if b not in seconds]


def resolved_microbatch_size(
    config: TrainConfig, updates: Updates, batch_size: int, limit: float
) -> int | None:
    """The micro-batch of a run whose largest batch is this one; "auto" is decided.

    Raises:
      UsageError: not even the smallest micro-batch fits.
    """
    if config.microbatch_size != AUTO:
        return config.microbatch_size
    num_devices = updates.num_devices

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
        limit_bytes=limit,
        weight_bytes=tree_bytes(updates.params),
    )
    choice = automatic_choice(
        AUTO, circumstances, lambda rows: program(rows * num_devices, None).temporary_bytes, needs
    )
    return choice.microbatch_size


def _limit_bytes(config: TrainConfig, updates: Updates) -> float:
    """Memory of each device: what the settings say, else what this machine's devices have."""
    if config.device_memory is not None:
        return parse_bytes(config.device_memory)
    return updates.device_memory_bytes


def _bytes(number: int) -> str:
    return f"{bytes_text(number)} ({number:,} bytes)" if number >= 2**20 else bytes_text(number)


def measured_seconds(
    updates: Updates,
    layouts: list[BatchLayout],
    limit: float,
    budget_seconds: float = SIZES_SECONDS,
) -> dict[int, float]:
    """Times updates, by batch size, as far as budget and memory allow.

    Args:
      updates: the network's updates.
      layouts: one for each batch size.
      limit: memory of each device that is to be used; this machine's own limits it too.
      budget_seconds: for all, compilation left out.

    Raises:
      UsageError: not even the smallest fits.
    """
    limit = min(limit, updates.device_memory_bytes)
    compiled = updates.compiled(layouts)
    fitting = {
        layout.batch_size: functools.partial(updates.prepared, layout)
        for layout, program in compiled.items()
        if program.num_bytes <= limit
    }
    if not fitting:
        least = min(program.num_bytes for program in compiled.values())
        raise UsageError(
            f"nothing can be measured here: an update needs {_bytes(least)} at least, and there "
            f"are {_bytes(limit)}."
        )
    return measure_sizes(fitting, budget_seconds)


def compare_microbatches(
    updates: Updates,
    microbatch_size: int | None,
    seconds_by_size: dict[int, float],
    budget_seconds: float = MICROBATCHES_SECONDS,
) -> MicrobatchComparison | None:
    """Times one of the measured batches in several micro-batches.

    Args:
      updates: those that were measured.
      microbatch_size: the micro-batch that they were measured with.
      seconds_by_size: what was measured.
      budget_seconds: decides which batch is taken: the largest that leaves time for all.

    Returns:
      None where the network doesn't say that micro-batches leave its numbers alone, or the
      batches are too small to be cut.
    """
    rows = updates.update.independent_groups
    if rows is None:
        return None
    measured = {
        size: Layouts(microbatch_size, updates.num_devices).of(size).microbatch_size
        for size in sorted(seconds_by_size)
    }

    def others(size: int) -> list[int]:
        cut = microbatch_candidates(size, rows, updates.num_devices)
        return [m for m in (*cut, size) if m != measured[size]]

    sizes = [size for size in measured if others(size)]
    if not sizes:
        return None
    affordable = [s for s in sizes if 3 * len(others(s)) * seconds_by_size[s] < budget_seconds]
    size = max(affordable, default=sizes[0])
    layouts = [Layouts(m, updates.num_devices).of(size) for m in others(size)]
    seconds = {measured[size]: seconds_by_size[size]}
    for layout, program in updates.compiled(layouts).items():
        if program.num_bytes <= updates.device_memory_bytes:
            run = updates.prepared(layout)
            seconds[layout.microbatch_size] = seconds_per_update(run, budget_seconds / len(layouts))
    return MicrobatchComparison(size, seconds)
