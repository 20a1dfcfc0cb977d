"""The plan as a table: one row per phase, and what a reader should know about the whole."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from adabatch_jax.config.settings import TrainConfig
from adabatch_jax.data.row_layout import BatchLayout, Layouts
from adabatch_jax.schedules.learning_rate_at_step import resolve
from adabatch_jax.schedules.learning_rate_pieces import unreached
from adabatch_jax.schedules.plan import BatchPlan, Phase, fixed_batch_plan
from adabatch_jax.schedules.update_sizes import first_updates_by_size
from adabatch_jax.system.number_texts import count_text, seconds_text
from adabatch_jax.system.quantities import bytes_text
from adabatch_jax.training.program_names import MANY_PROGRAMS, num_programs

if TYPE_CHECKING:
    from adabatch_jax.reporting.planning.plan_costs import PlanCosts

MAX_PADDING_SHARE = 0.05
Row = dict[str, Any]


def plan_rows(
    config: TrainConfig, plan: BatchPlan, layouts: Layouts | None, costs: "PlanCosts | None" = None
) -> list[Row]:
    """A row for each phase, as `--json` prints it; None for what wasn't asked for.

    Without `layouts` the micro-batch is still to be chosen, and so is what follows from it.

    Learning rates are those of the phase's first update, bytes those of one device, seconds those
    of one update and of all, and the speed-up is of examples per second, over the first phase's.
    """
    rate = resolve(plan, config.learning_rate, config.coupling, config.reference_batch_size)
    starts = np.array([phase.start_step for phase in plan.phases])
    learning_rates = rate(np, starts).astype(np.float32)
    rows, tokens = [], plan.tokens_per_example
    for phase, learning_rate in zip(plan.phases, learning_rates.tolist(), strict=True):
        layout = None if layouts is None else layouts.of(phase.batch_size)
        row = {
            "phase": phase.index,
            "start_step": phase.start_step,
            "num_steps": phase.num_steps,
            "start_sample": phase.start_sample,
            "num_samples": phase.stop_sample - phase.start_sample,
            "num_tokens": tokens and tokens * (phase.stop_sample - phase.start_sample),
            "start_epoch": None if plan.num_examples is None else plan.epoch_at(phase.start_step),
            "start_token": tokens and tokens * phase.start_sample,
            "batch_size": phase.batch_size,
            "rows_per_device": layout and layout.rows_per_device,
            "microbatch_size": layout and layout.microbatch_size,
            "num_microbatches": layout and layout.num_microbatches,
            "padding_share": layout and layout.padding_share,
            "learning_rate": learning_rate,
            "learning_rate_per_example": learning_rate / phase.batch_size,
        }
        rows.append(row | _costs_of_phase(phase, layout, costs))
    return rows


def _costs_of_phase(phase: Phase, layout: BatchLayout | None, costs: "PlanCosts | None") -> Row:
    memory = None if costs is None else costs.memory[layout]
    prediction = None if costs is None else costs.prediction
    cost = None if prediction is None else prediction.phases[phase.index]
    timing = None if costs is None else costs.timings.get(phase.batch_size)
    return {
        "memory_bytes": memory and memory.num_bytes,
        "memory_is_interpolated": memory and memory.is_interpolated,
        "update_seconds": cost and cost.update_seconds,
        "update_spread": timing and timing.spread,
        "update_is_measured": cost and cost.is_measured,
        "examples_per_second": cost and cost.examples_per_second,
        "phase_seconds": cost and cost.phase_seconds,
        "speedup": cost and prediction.phase_speedup(cost),
    }


def plan_notes(config: TrainConfig, plan: BatchPlan, layouts: Layouts | None) -> list[str]:
    """Sentences below the table: totals first, then warnings."""
    totals = f"{plan.num_steps:,} updates for {plan.num_samples:,} samples"
    if plan.tokens_per_example is not None:
        totals += f", {plan.num_samples * plan.tokens_per_example:,} tokens"
    if len(plan.batch_sizes) > 1:
        first, fixed = plan.phases[0].batch_size, fixed_batch_plan(plan).num_steps
        totals += f"; with batch {first} throughout it would be {fixed:,}"
    notes = [f"{totals}.", "lr and lr/batch are those of each phase's first update."]
    behind = (*plan.unreached, *unreached(plan, config.learning_rate))
    notes += [f"note: {sentence}" for sentence in behind]
    notes += [f"warning: {sentence}" for sentence in config.coupling_warnings(plan)]
    if plan.num_dropped:
        notes.append(f"{plan.num_dropped:,} positions are dropped at the ends of epochs.")
    if layouts is None:
        notes.append(
            "--microbatch-size auto is chosen by --memory or when the run begins, and so are the "
            "rows per device, the padding and how many programs are compiled."
        )
        return notes
    sizes = first_updates_by_size(plan)
    programs = num_programs(map(layouts.of, sizes), split=config.accumulation == "split")
    notes.append(f"{programs} program{'s' if programs > 1 else ''} to compile.")
    if programs > MANY_PROGRAMS:
        notes.append(
            f"warning: each of {programs} sizes of a batch is compiled apart; with "
            "--accumulation split and a --microbatch-size all sizes share one program."
        )
    shares = [layouts.of(phase.batch_size).padding_share for phase in plan.phases]
    worst = max(shares)
    if worst > MAX_PADDING_SHARE:
        notes.append(
            f"warning: {100 * worst:.0f} % of the rows in phase {shares.index(worst) + 1} are "
            "padding; a batch and a micro-batch that the devices divide waste nothing."
        )
    return notes


def _row_texts(row: Mapping[str, Any]) -> dict[str, str]:
    """A row's texts by their columns' headers; ~ marks what was neither compiled nor timed."""
    texts = {
        "phase": str(row["phase"] + 1),
        "from step": f"{row['start_step']:,}",
        "steps": f"{row['num_steps']:,}",
        "from sample": f"{row['start_sample']:,}",
        "samples": f"{row['num_samples']:,}",
        "from epoch": "" if row["start_epoch"] is None else f"{row['start_epoch']:.2f}",
        "from token": "" if row["start_token"] is None else count_text(row["start_token"]),
        "batch": str(row["batch_size"]),
        "per device": "",
        "micro-batch": "",
        "padding": "",
        "lr": f"{row['learning_rate']:.6g}",
        "lr/batch": f"{row['learning_rate_per_example']:.4g}",
    }
    if row["microbatch_size"] is not None:
        texts["per device"] = str(row["rows_per_device"])
        texts["micro-batch"] = f"{row['microbatch_size']} x {row['num_microbatches']}"
        texts["padding"] = f"{100 * row['padding_share']:.1f} %"
    if row["memory_bytes"] is not None:
        about = "~" if row["memory_is_interpolated"] else ""
        texts["memory"] = about + bytes_text(row["memory_bytes"])
    if row["update_seconds"] is not None:
        about = "" if row["update_is_measured"] else "~"
        texts["update"] = about + seconds_text(row["update_seconds"])
        spread = row["update_spread"]
        texts["spread"] = "" if spread is None else f"±{100 * spread:.1f} %"
        texts["examples/s"] = about + f"{row['examples_per_second']:,.0f}"
        texts["phase time"] = about + seconds_text(row["phase_seconds"])
        texts["speed-up"] = about + f"{row['speedup']:.2f}"
    return texts


# What a narrow terminal does without, first to last: what follows from other columns goes first.
_DISPENSABLE = (
    "from sample", "samples", "lr/batch", "per device", "padding", "from step", "examples/s",
    "micro-batch", "from epoch", "from token", "memory", "spread", "phase time", "speed-up",
)  # fmt: skip


def plan_table(rows: Sequence[Row]) -> list[list[str]]:
    """The rows as texts below a header; columns without any value are left out."""
    texts = [_row_texts(row) for row in rows]
    names = [name for name in texts[0] if any(row[name] for row in texts)]
    return [names, *([row[name] for name in names] for row in texts)]


def narrowed(
    table: Sequence[Sequence[str]], width: int | None
) -> tuple[list[list[str]], list[str]]:
    """A table without the columns that it can do without, until its lines fit a width.

    Returns:
      The table, and the headers of what is left out.

    >>> narrowed([["phase", "samples", "batch"], ["1", "1,000", "64"]], 15)
    ([['phase', 'batch'], ['1', '64']], ['samples'])
    >>> narrowed([["phase", "samples", "batch"], ["1", "1,000", "64"]], None)[1]
    []
    """
    columns = {column[0]: column for column in zip(*table, strict=True)}
    shown = dict(columns)
    for name in _DISPENSABLE:
        needed = sum(max(map(len, column)) + 2 for column in shown.values()) - 2
        if width is None or needed <= width:
            break
        shown.pop(name, None)
    return [list(row) for row in zip(*shown.values(), strict=True)], [
        name for name in columns if name not in shown
    ]


def plan_as_json(
    config: TrainConfig,
    plan: BatchPlan,
    num_devices: int | Sequence[int],
    rows: Sequence[Row],
    notes: Sequence[str],
    costs: "PlanCosts | None",
) -> Row:
    """The plan, the table and the settings as JSON values; with costs what they say in all."""
    content = {
        **plan.to_dict(),
        "config": config.to_dict(),
        "num_dropped": plan.num_dropped,
        "num_devices": num_devices,
        "rows": rows,
        "notes": notes,
    }
    if costs is None:
        return content
    content["microbatch_size"] = costs.layouts.microbatch_size
    if costs.microbatches is not None:
        content["microbatches"] = {
            "batch_size": costs.microbatches.batch_size,
            "best": costs.microbatches.best,
            "rows": [
                {"microbatch_size": size, "update_seconds": t.seconds, "update_spread": t.spread}
                for size, t in costs.microbatches.timings.items()
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
