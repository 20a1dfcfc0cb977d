"""A schedule that grows as long as growth pays."""

import dataclasses
from collections.abc import Mapping, Sequence

from adabatch_jax.reporting.planning.repeated_timing import (
    Timing,
    possible_ends,
    spread_text,
)
from adabatch_jax.schedules.batch_size_schedules import (
    ExponentialGrowth,
    Schedule,
    constant,
    exponential_growth,
)
from adabatch_jax.schedules.plan import BatchPlan, untold_plan
from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.number_texts import seconds_text
from adabatch_jax.training.time_prediction import largest_paying_size

# The paper's CIFAR runs double four times in five equal parts (arXiv:1712.02029, section 4).
PAPER_FACTOR, PAPER_INTERVAL = 2, "20%"


def growth_rule(schedule: Schedule, plan: BatchPlan) -> ExponentialGrowth:
    """The schedule without its bound if it grows by a factor, else the paper's doubling.

    >>> from adabatch_jax import make_plan, parse_schedule
    >>> schedule = parse_schedule("64, 5ep: 100")
    >>> str(growth_rule(schedule, make_plan(schedule, 1000, "10ep")))
    '64 x2 every 20%'
    """
    if isinstance(schedule, ExponentialGrowth) and schedule.growth_factor > 1:
        return dataclasses.replace(schedule, end_value=None)
    first = plan.phases[0].batch_size
    return exponential_growth(first, PAPER_FACTOR, PAPER_INTERVAL)


def sizes_to_try(rule: ExponentialGrowth, plan: BatchPlan, max_batch: int | None) -> list[int]:
    """The doublings of the first batch that the rule can reach within the run of a plan.

    Raises:
      UsageError: the first batch is larger than allowed.

    >>> from adabatch_jax import make_plan
    >>> plan = make_plan("64", 1000, "10ep")
    >>> sizes_to_try(exponential_growth(64, 2, "2ep"), plan, max_batch=600)
    [64, 128, 256, 512]
    """
    if max_batch is not None and max_batch < rule.init_value:
        raise UsageError(
            f"--max-batch: must be at least the first batch, {rule.init_value}, got {max_batch}."
        )
    limits = [limit for limit in (max_batch, plan.num_examples) if limit is not None]
    bounded = dataclasses.replace(rule, end_value=min(limits, default=None))
    rules = plan.remainder, 1, plan.tokens_per_example
    reached = max(untold_plan(bounded, plan.num_examples, plan.duration, *rules).batch_sizes)
    sizes = [rule.init_value]
    while 2 * sizes[-1] <= reached:
        sizes.append(2 * sizes[-1])
    return sizes


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """A schedule that ends where growth stops paying; `suggest` makes it.

    Attributes:
      schedule: the rule, bounded there, or constant where growth never pays; None where the
        machine is too busy to tell.
      ends: the sizes that could be its last, within the spread of the times.
      why: in a sentence or two.
    """

    schedule: Schedule | None
    ends: tuple[int, ...]
    why: str


def suggest(
    rule: ExponentialGrowth, timings: Mapping[int, Timing], left_out: Sequence[int] = ()
) -> Suggestion:
    """Bounds a rule by the times of its updates, as far as these can tell.

    Args:
      rule: how the batch grows.
      timings: by batch size.
      left_out: larger sizes that took too long or too much memory.

    >>> rule = exponential_growth(64, 2, "20%")
    >>> times = {64: Timing(0.10, 0.01), 128: Timing(0.11, 0.01), 256: Timing(0.22, 0.01)}
    >>> str(suggest(rule, times).schedule)
    '64 x2 every 20% max 128'
    >>> suggest(rule, {64: Timing(0.10, 0.4), 128: Timing(0.18, 0.4)}).why
    'This machine is too busy to tell: repeated times agree only within 40.0 %, so growth could ...'
    """
    ends = possible_ends(timings)
    could_end = " or ".join(map(str, ends))
    if len(ends) > 1 and not all(timing.is_sure for timing in timings.values()):
        why = (
            f"This machine is too busy to tell: repeated times agree only "
            f"{spread_text(timings.values())}, so growth could end at {could_end}. Ask again when "
            "nothing else runs."
        )
        return Suggestion(None, tuple(ends), why)
    size = largest_paying_size({size: timing.seconds for size, timing in timings.items()})
    schedule = dataclasses.replace(rule, end_value=size)
    if size == rule.init_value:
        schedule = constant(size)
    why = _reason(size, rule, timings, left_out)
    if len(ends) > 1:
        why += (
            f" That is close: {spread_text(timings.values())} of the times it could be {could_end}."
        )
    return Suggestion(schedule, tuple(ends), why)


def timing_table(timings: Mapping[int, Timing]) -> list[list[str]]:
    """What was measured, as a table with a header."""
    table, before = [["batch", "update", "spread", "examples/s", "gain"]], None
    for size, timing in timings.items():
        rate = size / timing.seconds
        gain = "" if before is None else f"{100 * (rate / before - 1):+.0f} %"
        spread = f"±{100 * timing.spread:.1f} %"
        table.append([str(size), seconds_text(timing.seconds), spread, f"{rate:,.0f}", gain])
        before = rate
    return table


def _reason(
    best: int, rule: ExponentialGrowth, timings: Mapping[int, Timing], left_out: Sequence[int]
) -> str:
    last = max(timings)
    if best < last:
        why = f"Above {best} no doubling that was tried gains 5 % or more"
        if best == rule.init_value:
            why += ": on this machine growth doesn't pay"
    elif len(timings) == 1:
        why = f"{last} is the only batch that this run can reach: there is nothing to compare"
    elif left_out:
        why = f"Up to {last} growth pays; larger updates would take too long or too much memory"
    else:
        why = f"Up to {last}, the largest that this run can reach, each doubling gains 5 % or more"
    return f"{why}."
