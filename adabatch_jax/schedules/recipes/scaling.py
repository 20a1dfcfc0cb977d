"""Schedules and rates of one run as those of another: other sizes, and the same shares of it."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from fractions import Fraction

from adabatch_jax.schedules.batch_size_schedules import (
    ExponentialGrowth,
    LinearRamp,
    PiecewiseConstant,
    Schedule,
    SeesawGrowth,
    piecewise_constant,
)
from adabatch_jax.schedules.durations import TOKENS_OR_SAMPLES, Duration, short_duration
from adabatch_jax.schedules.learning_rate_text import LearningRate, RatePart
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.system.errors import UsageError

Stretch = Callable[[Duration], Duration]


def share_of(plan: BatchPlan) -> Stretch:
    """What makes shares of a plan of durations that count from its beginning, exactly.

    Of tokens in a plan that is as long as so many tokens the share is theirs; of steps, that of the
    samples before them.
    """

    def share(duration: Duration) -> Duration:
        length = plan.duration
        if duration.unit == "%":
            return duration
        if duration.unit == length.unit != "st":
            ratio = duration.value / length.value
        elif duration.unit == "st":
            ratio = Fraction(plan.sample_of(duration), plan.num_samples)
        else:
            ratio = plan.units.in_samples(duration) / plan.num_samples
        return Duration(100 * ratio, "%")

    return share


def stretched_schedule(schedule: Schedule, stretch: Stretch) -> Schedule:
    """The schedule with other durations."""
    if isinstance(schedule, PiecewiseConstant):
        boundaries = tuple((stretch(at), size) for at, size in schedule.boundaries)
        return dataclasses.replace(schedule, boundaries=boundaries)
    if isinstance(schedule, LinearRamp):
        return dataclasses.replace(schedule, over=stretch(schedule.over))
    return dataclasses.replace(schedule, every=stretch(schedule.every))


def stretched_rate(rate: LearningRate, stretch: Stretch) -> LearningRate:
    """The learning rate with other durations."""

    def other(duration: Duration | None) -> Duration | None:
        return None if duration is None else stretch(duration)

    def part(part: RatePart) -> RatePart:
        durations = (part.decay_every, part.scale, part.length)
        names = ("decay_every", "scale", "length")
        return dataclasses.replace(part, **dict(zip(names, map(other, durations))))

    return dataclasses.replace(
        rate,
        boundaries=tuple((stretch(at), value) for at, value in rate.boundaries),
        parts=tuple(map(part, rate.parts)),
        warmup=other(rate.warmup),
        factor_boundaries=tuple((stretch(at), value) for at, value in rate.factor_boundaries),
    )


def scaled_schedule(schedule: Schedule, factor: Fraction) -> tuple[Schedule, list[str]]:
    """The schedule with its sizes multiplied, rounded half up; and each that was rounded, told.

    Raises:
      UsageError: a size that rounds to 0.
    """
    rounded: list[str] = []

    def scaled(size: int | None) -> int | None:
        if size is None:
            return None
        exact = size * factor
        whole = math.floor(exact + Fraction(1, 2))
        if whole < 1:
            raise UsageError(f"a batch of {float(exact):.4g} examples has none; scale by more.")
        if whole != exact and (text := f"{float(exact):.7g} to {whole}") not in rounded:
            rounded.append(text)
        return whole

    if isinstance(schedule, PiecewiseConstant):
        first = scaled(schedule.init_value)
        boundaries = tuple((at, scaled(size)) for at, size in schedule.boundaries)
        return dataclasses.replace(schedule, init_value=first, boundaries=boundaries), rounded
    ends = {"init_value": scaled(schedule.init_value), "end_value": scaled(schedule.end_value)}
    return dataclasses.replace(schedule, **ends), rounded


def with_equal_updates(ramp: LinearRamp) -> PiecewiseConstant:
    """A ramp's sizes with equally many updates of each before the last one, not equally many samples.

    >>> from adabatch_jax import linear_ramp
    >>> str(with_equal_updates(linear_ramp(100, 300, "900tok", 3)))
    '100, 300tok: 200, 900tok: 300'
    """
    sizes = [size for _, size in ramp.sizes()]
    before = [0, *itertools.accumulate(sizes[:-1])]
    starts = (math.ceil(ramp.over.value * sum_ / before[-1]) for sum_ in before[1:])
    boundaries = (
        (short_duration(start, ramp.over.unit), size) for start, size in zip(starts, sizes[1:])
    )
    return piecewise_constant(sizes[0], boundaries)


def open_end(schedule: Schedule, tokens_per_example: int | None = None) -> Duration | None:
    """1.25 times the last threshold, to show a schedule up to where nobody said how long a run is.

    >>> from adabatch_jax import parse_schedule
    >>> str(open_end(parse_schedule("16, 2.4Btok: 320, 12Btok: 1536")))
    '15Btok'
    """
    last = last_threshold(schedule)
    if last is None or last.unit == "%":
        return None
    unit = last.unit
    if unit == TOKENS_OR_SAMPLES:
        unit = "sp" if tokens_per_example is None else "tok"
    return short_duration(math.ceil(last.value * Fraction(5, 4)), unit)


def last_threshold(schedule: Schedule) -> Duration | None:
    """Where a schedule changes for the last time; None where it never does, or always."""
    if isinstance(schedule, ExponentialGrowth | SeesawGrowth):
        return None
    if isinstance(schedule, LinearRamp):
        return schedule.over
    return schedule.boundaries[-1][0] if schedule.boundaries else None
