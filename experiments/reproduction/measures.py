"""What follows from the runs and the settings of an arm."""

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction

from adabatch_jax.schedules.learning_rate_at_step import resolve
from adabatch_jax.schedules.plan import BatchPlan, first_step_from
from experiments.reproduction.provenance import machine
from experiments.reproduction.results import ArmResult, SeedResult

# Of fewer, a point for each would say little.
_FEWEST_EPOCHS = 3


@dataclasses.dataclass(frozen=True)
class SettingsAt:
    """The batch size and learning rate of the first update from some point on, in epochs."""

    epoch: Fraction
    batch_size: int
    learning_rate: float


def schedule_points(arm: ArmResult) -> tuple[SettingsAt, ...]:
    """Batch size and learning rate at the first update that begins in each part of the run.

    A part is an epoch, or of runs of less than 3 a hundredth of the run. Computed from the
    settings, not read from the runs. A part in which no update begins is left out; nothing is
    known while no run has begun.
    """
    plan, config = arm.plan, arm.config
    if plan is None:
        return ()
    rate = resolve(plan, config.learning_rate, config.coupling, config.reference_batch_size)
    epochs = Fraction(plan.num_samples, plan.num_examples)
    part = Fraction(1) if epochs >= _FEWEST_EPOCHS else epochs / 100
    settings = []
    for number in range(math.ceil(epochs / part)):
        begin, end = (math.ceil(k * part * plan.num_examples) for k in (number, number + 1))
        step = first_step_from(plan, begin)
        if step < plan.num_steps and plan.samples_at(step) < end:
            at = SettingsAt(number * part, plan.batch_size_at(step), rate.at(step))
            settings.append(at)
    return tuple(settings)


def speedups(
    arm: ArmResult, reference: ArmResult, kinds: Sequence[str] = ("step", "input")
) -> list[float]:
    """How many times as fast an arm was as the reference, seed by seed.

    Runs of a seed are made next to each other, so that their ratio is free of slow drifts. Where
    the two were made on different machines or with other versions, there is no ratio.

    Args:
      arm: the arm.
      reference: what it is compared with.
      kinds: the kinds of seconds that count; by default those of training.
    """
    own, others = (
        {
            run.seed: (machine(run), sum(run.seconds[kind] for kind in kinds))
            for run in side.finished
        }
        for side in (arm, reference)
    )
    return [
        others[seed][1] / seconds
        for seed, (made_with, seconds) in own.items()
        if seed in others and others[seed][0] == made_with
    ]


def epoch_seconds(arm: ArmResult) -> dict[int, list[float]]:
    """Training seconds per epoch by batch size, for each finished run its mean."""
    by_size: dict[int, list[float]] = {}
    for run in arm.finished:
        for batch_size, seconds in _epoch_seconds(run, arm.plan).items():
            by_size.setdefault(batch_size, []).append(seconds)
    return by_size


def _epoch_seconds(run: SeedResult, plan: BatchPlan) -> dict[int, float]:
    totals: dict[int, tuple[float, float]] = {}
    step, epoch, seconds = 0, 0.0, 0.0
    for evaluation in run.evaluations:
        if evaluation.training_seconds is None or evaluation.epoch <= epoch:
            continue
        size = plan.batch_size_at(step)
        epochs, spent = totals.get(size, (0.0, 0.0))
        spent += evaluation.training_seconds - seconds
        totals[size] = epochs + evaluation.epoch - epoch, spent
        step, epoch, seconds = evaluation.step, evaluation.epoch, evaluation.training_seconds
    return {size: spent / epochs for size, (epochs, spent) in totals.items()}
