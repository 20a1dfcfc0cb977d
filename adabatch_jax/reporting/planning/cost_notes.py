"""Costs in words, for the lines below a table."""

from collections.abc import Collection
from typing import TYPE_CHECKING

from adabatch_jax.config.own_functions import is_reference
from adabatch_jax.config.settings import AUTO, TrainConfig
from adabatch_jax.reporting.planning.repeated_timing import Timing, spread_text
from adabatch_jax.system.number_texts import count_text, seconds_text
from adabatch_jax.system.quantities import bytes_text
from adabatch_jax.training.time_prediction import Prediction

if TYPE_CHECKING:
    from adabatch_jax.reporting.planning.plan_costs import PlanCosts


def cost_notes(config: TrainConfig, costs: "PlanCosts") -> list[str]:
    """Sentences about what a plan costs, warnings last."""
    notes, updates = [], costs.updates
    if config.microbatch_size == AUTO:
        size = costs.layouts.microbatch_size
        chosen = "the whole batch" if size is None else f"micro-batches of {size}"
        notes.append(f"--microbatch-size auto: {chosen} on this machine.")
    if any(memory.is_interpolated for memory in costs.memory.values()):
        notes.append("~ in memory: between two updates that were compiled.")
    if config.shard_params is True and updates.num_devices > updates.num_used_devices:
        notes.append(
            "memory: with whole parameters and optimizer state, --shard-params spreads them over "
            f"the {updates.num_devices} devices."
        )
    if costs.prediction is not None:
        machine = f"{updates.num_used_devices} {updates.device_kind} device"
        if updates.num_used_devices > 1:
            machine += "s"
        elif updates.num_devices > 1:
            machine += f" with its share of what {updates.num_devices} would do"
        notes += _prediction_notes(costs.prediction, machine)
        notes.append(certainty_note(costs.timings.values()))
        notes.append(_microbatch_note(config, costs))
    notes.append(checkpoint_note(config, updates.checkpoint_bytes))
    most = max(memory.num_bytes for memory in costs.memory.values())
    if most > updates.limit_bytes:
        notes.append(
            f"warning: the largest update needs {bytes_text(most)} on each device, and here are "
            f"{bytes_text(updates.limit_bytes)}."
        )
    return notes


def certainty_note(timings: Collection[Timing]) -> str:
    """How sure measured times are, and whether the machine was too busy for more.

    >>> certainty_note([Timing(0.5, 0.004)])
    'Timed until repeated updates agreed, within 0.4 %.'
    >>> certainty_note([Timing(0.5, 0.3)])
    'warning: this machine is too busy to tell, or its clock changes: repeated updates agree ...'
    """
    spread = spread_text(timings)
    if all(timing.is_sure for timing in timings):
        return f"Timed until repeated updates agreed, {spread}."
    return (
        "warning: this machine is too busy to tell, or its clock changes: repeated updates agree "
        f"only {spread}; measure again when nothing else runs."
    )


def checkpoint_note(config: TrainConfig, num_bytes: int) -> str:
    """What the checkpoints that are kept take on disk.

    >>> checkpoint_note(TrainConfig(keep_best=None), 2**20)
    'A checkpoint takes about 1.0 MiB; the newest 3 are kept, and one is written: 4.0 MiB.'
    """
    number, kept = config.keep_checkpoints, f"the newest {config.keep_checkpoints}"
    if config.keep_best is not None:
        number, kept = number + 1, f"{kept} and the best"
    more = "" if config.keep_every is None else f", and one every {config.keep_every} for good"
    return (
        f"A checkpoint takes about {bytes_text(num_bytes)}; {kept} are kept{more}, and one is "
        f"written: {bytes_text((number + 1) * num_bytes)}."
    )


def _prediction_notes(prediction: Prediction, machine: str) -> list[str]:
    """Time in all, speed-up and break-even."""
    total = f"{seconds_text(prediction.total_seconds)} of updates, as measured on {machine}"
    first = prediction.phases[0].batch_size
    if len(prediction.phases) > 1:
        total += (
            f"; with batch {first} throughout {seconds_text(prediction.fixed_seconds)}, "
            f"{prediction.speedup:.2f} times as long"
        )
    notes = [f"{total}. Compilation, evaluation, checkpoints and late input come on top."]
    if not all(phase.is_measured for phase in prediction.phases):
        notes.append(
            "~ in times: from the fit, because measuring would take too long or too much memory."
        )
    return [*notes, gain_text(prediction)]


def gain_text(prediction: Prediction) -> str:
    """The fit, where it flattens, and which of the planned sizes is the last that is worth it."""
    cost, sizes = prediction.cost, [phase.batch_size for phase in prediction.phases]
    fit = (
        f"An update takes about {1e3 * cost.overhead_seconds:.3g} ms + batch x "
        f"{1e3 * cost.example_seconds:.3g} ms: "
    )
    if cost.saturating_batch_size is None:
        fit += "examples cost nothing yet."
    else:
        limit, size = count_text(1 / cost.example_seconds), count_text(cost.saturating_batch_size)
        fit += f"90 % of the limit of {limit} examples/s at batch {size}."
    if len(set(sizes)) == 1:
        return f"{fit} The batch doesn't change."
    if prediction.largest_paying_size == max(sizes):
        return f"{fit} Each doubling that is planned gains 5 % or more."
    paying = prediction.largest_paying_size
    return f"{fit} Batches above {paying} gain less than 5 % for each doubling."


def _microbatch_note(config: TrainConfig, costs: "PlanCosts") -> str:
    """The times of all micro-batches that were compared, or why none was."""
    compared = costs.microbatches
    if compared is not None:
        best, timings = compared.best, compared.timings
        texts = {size: seconds_text(timings[size].seconds) for size in sorted(timings)}
        rest = "".join(f"; {size}: {text}" for size, text in texts.items() if size != best)
        return (
            f"Best micro-batch at batch {compared.batch_size}: {best} (an update takes "
            f"{texts[best]}{rest}; {spread_text(timings.values())})."
        )
    if costs.updates.update.independent_groups is not None:
        return "The batches are too small for micro-batches."
    kept = "that of --microbatch-size" if config.microbatch_size != AUTO else "the whole batch"
    if is_reference(config.model):
        return (
            f"Best micro-batch: {kept} is kept; whether smaller ones give the same numbers only "
            "your own network knows."
        )
    return (
        f"Best micro-batch: {kept} is kept, a smaller one would change what BatchNorm normalizes "
        "over; with --batchnorm-group-size others are compared."
    )
