"""A schedule that grows as long as growth pays."""

import dataclasses

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


def suggested_schedule(rule: ExponentialGrowth, seconds_by_size: dict[int, float]) -> Schedule:
    """The rule, bounded where growth stops paying; constant where it never does.

    >>> rule = exponential_growth(64, 2, "20%")
    >>> str(suggested_schedule(rule, {64: 0.10, 128: 0.11, 256: 0.21}))
    '64 x2 every 20% max 128'
    """
    size = largest_paying_size(seconds_by_size)
    if size == rule.init_value:
        return constant(size)
    return dataclasses.replace(rule, end_value=size)


def suggestion_table(
    rule: ExponentialGrowth, seconds_by_size: dict[int, float], left_out: list[int]
) -> tuple[list[list[str]], str]:
    """What was measured, as a table with a header, and in a sentence why growth ends there.

    >>> rule = exponential_growth(64, 2, "20%")
    >>> suggestion_table(rule, {64: 0.10, 128: 0.11}, [])[1]
    'Up to 128, the largest that this run can reach, each doubling gains 5 % or more.'
    """
    table = [["batch", "update", "examples/s", "gain"]]
    before = None
    for size, seconds in seconds_by_size.items():
        rate = size / seconds
        gain = "" if before is None else f"{100 * (rate / before - 1):+.0f} %"
        table.append([str(size), seconds_text(seconds), f"{rate:,.0f}", gain])
        before = rate
    best, last = largest_paying_size(seconds_by_size), max(seconds_by_size)
    if best < last:
        why = f"Above {best} no doubling that was tried gains 5 % or more"
        if best == rule.init_value:
            why += ": on this machine growth doesn't pay"
    elif len(seconds_by_size) == 1:
        why = f"{last} is the only batch that this run can reach: there is nothing to compare"
    elif left_out:
        why = f"Up to {last} growth pays; larger updates would take too long or too much memory"
    else:
        why = f"Up to {last}, the largest that this run can reach, each doubling gains 5 % or more"
    return table, f"{why}."
