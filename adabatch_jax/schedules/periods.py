"""Things that happen again and again: logging, evaluation, checkpoints."""

import dataclasses
import math
from fractions import Fraction

from adabatch_jax.schedules.durations import Duration, period_duration
from adabatch_jax.schedules.plan import BatchPlan, first_step_from


@dataclasses.dataclass(frozen=True)
class Period:
    """Says after which updates something is due; a function of the position alone.

    It is due after the first update that reaches each multiple of the period, so a resumed run
    does it at the same places as an uninterrupted one.
    """

    plan: BatchPlan
    length: Fraction
    counts_steps: bool

    def is_due(self, finished_steps: int) -> bool:
        """Whether it is due when `finished_steps` updates are done (at least 1)."""
        return self.is_passed(finished_steps - 1, finished_steps)

    def is_passed(self, after_steps: int, finished_steps: int) -> bool:
        """Whether it was due anywhere from update `after_steps` (exclusive) to `finished_steps`."""
        return self._count(finished_steps) > self._count(after_steps)

    def next(self, finished_steps: int) -> int:
        """The first number of updates above `finished_steps` when it is due; the plan's updates
        or more where it isn't any more.

        >>> from adabatch_jax import make_plan
        >>> period = every(make_plan("30", num_examples=100, duration="3ep"), "1ep")
        >>> [period.next(step) for step in (0, 3, 4, 7)]
        [4, 4, 7, 10]
        """
        reached = math.ceil((self._count(finished_steps) + 1) * self.length)
        return reached if self.counts_steps else first_step_from(self.plan, reached)

    def _count(self, step: int) -> int:
        position = step if self.counts_steps else self.plan.samples_at(step)
        return position * self.length.denominator // self.length.numerator


def every(plan: BatchPlan, duration: str | int | Duration) -> Period:
    """Makes a period from a duration, exact also where it is no whole number of samples.

    Raises:
      UsageError: it can't be read, isn't longer than nothing, is in epochs of an endless stream,
        or in tokens without `tokens_per_example`.

    >>> from adabatch_jax import make_plan
    >>> plan = make_plan("30", num_examples=100, duration="3ep")
    >>> [step for step in range(1, plan.num_steps + 1) if every(plan, "1ep").is_due(step)]
    [4, 7, 10]
    """
    duration = period_duration(duration)
    samples = plan.units.in_samples(duration)
    if samples is None:
        return Period(plan, plan.units.in_steps(duration), counts_steps=True)
    return Period(plan, samples, counts_steps=False)
