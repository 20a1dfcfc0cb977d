"""The plan as a table: one row per phase, and what a reader should know about the whole."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from adabatch_jax.config.settings import AUTO, TrainConfig
from adabatch_jax.data.row_layout import Layouts
from adabatch_jax.schedules.learning_rate_at_step import resolve
from adabatch_jax.schedules.plan import BatchPlan, Phase, fixed_batch_plan
from adabatch_jax.system.number_texts import seconds_text
from adabatch_jax.system.quantities import bytes_text
from adabatch_jax.training.program_names import MANY_PROGRAMS, num_programs

if TYPE_CHECKING:
    from adabatch_jax.reporting.planning.plan_costs import PlanCosts

MAX_PADDING_SHARE = 0.05


@dataclasses.dataclass(frozen=True)
class PlanRow:
    """A phase of a plan on a number of devices.

    Attributes:
      phase: its number, from 0.
      start_step: its first update.
      num_steps: its updates.
      start_sample: where it begins.
      num_samples: its length in samples.
      start_epoch: where it begins, in epochs.
      batch_size: examples per update.
      rows_per_device: rows of a micro-batch on each device, padding included.
      microbatch_size: examples per micro-batch over all devices.
      num_microbatches: micro-batches per update.
      padding_share: share of the rows that are padding.
      learning_rate: at its first update.
      learning_rate_per_example: the learning rate divided by the batch size.
      memory_bytes: of the compiled update, per device; None where it was not asked for.
      memory_is_interpolated: whether that lies between two updates that were compiled.
      update_seconds: of one update; None, as the following, where nothing was measured.
      update_is_measured: whether this batch size was measured, else its time is fitted.
      examples_per_second: of full batches.
      phase_seconds: of all updates of the phase.
      speedup: its examples per second over those of the first phase.
    """

    phase: int
    start_step: int
    num_steps: int
    start_sample: int
    num_samples: int
    start_epoch: float
    batch_size: int
    rows_per_device: int
    microbatch_size: int
    num_microbatches: int
    padding_share: float
    learning_rate: float
    learning_rate_per_example: float
    memory_bytes: int | None = None
    memory_is_interpolated: bool | None = None
    update_seconds: float | None = None
    update_is_measured: bool | None = None
    examples_per_second: float | None = None
    phase_seconds: float | None = None
    speedup: float | None = None


def plan_rows(
    config: TrainConfig, plan: BatchPlan, num_devices: int, costs: "PlanCosts | None" = None
) -> list[PlanRow]:
    """The rows of the table; without `costs` an automatic micro-batch isn't known yet."""
    microbatch_size = config.microbatch_size if config.microbatch_size != AUTO else None
    if costs is not None:
        microbatch_size = costs.microbatch_size
    rate = resolve(plan, config.learning_rate, config.coupling, config.reference_batch_size)
    starts = np.array([phase.start_step for phase in plan.phases])
    learning_rates = rate(np, starts).astype(np.float32)
    layouts, rows = Layouts(microbatch_size, num_devices), []
    for phase, learning_rate in zip(plan.phases, learning_rates.tolist(), strict=True):
        layout = layouts.of(phase.batch_size)
        rows.append(
            PlanRow(
                phase=phase.index,
                start_step=phase.start_step,
                num_steps=phase.num_steps,
                start_sample=phase.start_sample,
                num_samples=phase.stop_sample - phase.start_sample,
                start_epoch=plan.epoch_at(phase.start_step),
                batch_size=phase.batch_size,
                rows_per_device=layout.rows_per_device,
                microbatch_size=layout.microbatch_size,
                num_microbatches=layout.num_microbatches,
                padding_share=layout.padding_share,
                learning_rate=learning_rate,
                learning_rate_per_example=learning_rate / phase.batch_size,
                **_costs_of_phase(phase, costs),
            )
        )
    return rows


def _costs_of_phase(phase: Phase, costs: "PlanCosts | None") -> dict[str, Any]:
    if costs is None:
        return {}
    memory = costs.memory[phase.batch_size]
    found = {
        "memory_bytes": memory.num_bytes,
        "memory_is_interpolated": memory.is_interpolated,
    }
    if costs.prediction is None:
        return found
    cost = costs.prediction.phases[phase.index]
    return found | {
        "update_seconds": cost.update_seconds,
        "update_is_measured": cost.is_measured,
        "examples_per_second": cost.examples_per_second,
        "phase_seconds": cost.seconds,
        "speedup": costs.prediction.phase_speedup(cost),
    }


def plan_notes(config: TrainConfig, plan: BatchPlan, rows: Sequence[PlanRow]) -> list[str]:
    """Sentences below the table: totals first, then warnings."""
    first = plan.phases[0].batch_size
    notes = [f"{plan.num_steps:,} updates for {plan.num_samples:,} samples."]
    if len(plan.batch_sizes) > 1:
        notes = [
            f"{plan.num_steps:,} updates for {plan.num_samples:,} samples; with batch {first} "
            f"throughout it would be {fixed_batch_plan(plan).num_steps:,}."
        ]
    notes.append("lr and lr/batch are those of each phase's first update.")
    if plan.num_dropped:
        notes.append(f"{plan.num_dropped:,} positions are dropped at the ends of epochs.")
    programs = num_programs(rows, split=config.accumulation == "split")
    notes.append(f"{programs} program{'s' if programs > 1 else ''} to compile.")
    if programs > MANY_PROGRAMS:
        notes.append(
            f"warning: each of the {programs} batch sizes is compiled apart; with "
            "--accumulation split and a --microbatch-size all sizes share one program."
        )
    worst = max(rows, key=lambda row: row.padding_share)
    if worst.padding_share > MAX_PADDING_SHARE:
        notes.append(
            f"warning: {100 * worst.padding_share:.0f} % of the rows in phase {worst.phase + 1} are "
            "padding; a batch and a micro-batch that the devices divide waste nothing."
        )
    return notes


HEADER = (
    "phase", "from step", "steps", "from sample", "samples", "from epoch", "batch", "per device",
    "micro-batch", "padding", "lr", "lr/batch", "memory", "update", "examples/s", "phase time",
    "speed-up",
)  # fmt: skip


def table_cells(row: PlanRow) -> tuple[str, ...]:
    """A row as texts, under `HEADER`."""
    memory = update = pace = time = speedup = ""
    if row.memory_bytes is not None:
        memory = f"{'~' if row.memory_is_interpolated else ''}{bytes_text(row.memory_bytes)}"
    if row.update_seconds is not None:
        about = "" if row.update_is_measured else "~"
        update = about + seconds_text(row.update_seconds)
        pace = about + f"{row.examples_per_second:,.0f}"
        time = about + seconds_text(row.phase_seconds)
        speedup = about + f"{row.speedup:.2f}"
    return (
        str(row.phase + 1),
        f"{row.start_step:,}",
        f"{row.num_steps:,}",
        f"{row.start_sample:,}",
        f"{row.num_samples:,}",
        f"{row.start_epoch:.2f}",
        str(row.batch_size),
        str(row.rows_per_device),
        f"{row.microbatch_size} x {row.num_microbatches}",
        f"{100 * row.padding_share:.1f} %",
        f"{row.learning_rate:.6g}",
        f"{row.learning_rate_per_example:.4g}",
        memory,
        update,
        pace,
        time,
        speedup,
    )


def as_json(
    config: TrainConfig,
    plan: BatchPlan,
    rows: Sequence[PlanRow],
    num_devices: int,
    notes: Sequence[str],
    costs: "PlanCosts | None" = None,
) -> dict[str, Any]:
    """The plan, the table and the settings as JSON values; with costs what they say in all."""
    content = {
        **plan.to_dict(),
        "config": config.to_dict(),
        "num_dropped": plan.num_dropped,
        "num_devices": num_devices,
        "rows": [dataclasses.asdict(row) for row in rows],
        "notes": list(notes),
    }
    if costs is None:
        return content
    content["microbatch_size"] = costs.microbatch_size
    if costs.microbatches is not None:
        content["microbatches"] = {
            "batch_size": costs.microbatches.batch_size,
            "best": costs.microbatches.best,
            "rows": [
                {"microbatch_size": size, "update_seconds": seconds}
                for size, seconds in costs.microbatches.seconds.items()
            ],
        }
    if costs.prediction is not None:
        content["prediction"] = {
            **costs.prediction.to_dict(),
            "speedup": costs.prediction.speedup,
            "saturating_batch_size": costs.prediction.cost.saturating_batch_size,
            "largest_paying_size": costs.prediction.largest_paying_size,
        }
    return content
