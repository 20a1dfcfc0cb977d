"""A schedule that is followed: where it began, and its thresholds as samples or steps."""

import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

from adabatch_jax.schedules.batch_size_schedules import Schedule, Size
from adabatch_jax.schedules.durations import Duration
from adabatch_jax.schedules.text_reader import excerpt
from adabatch_jax.system.errors import UsageError


class Place(NamedTuple):
    step: int
    sample: Fraction | int


class Threshold(NamedTuple):
    """Where a size begins: at a sample or at a step, whichever it was given in."""

    duration: Duration
    sample: Fraction | None
    step: int | None
    size: Size


class Level:
    """A schedule that is being followed from `origin` on; in a joined one, a piece is another."""

    def __init__(self, schedule: Schedule, origin: Place, thresholds: Iterator[Threshold]):
        self.schedule, self.origin, self._thresholds = schedule, origin, thresholds
        self.next, self.num_begun = next(thresholds), 0

    def take(self) -> Threshold:
        """The next threshold, and moves on."""
        taken, self.next = self.next, next(self._thresholds, None)
        self.num_begun += 1
        return taken

    def rest(self) -> Iterator[Threshold]:
        """What wasn't taken."""
        return itertools.chain(filter(None, [self.next]), self._thresholds)


def check_listed(schedule: Schedule, origin: Place, thresholds: Sequence[Threshold]) -> None:
    """Checks a listed schedule to its end, also behind the end of the run."""
    start = {"sample": math.ceil(origin.sample), "step": origin.step}
    before = {unit: (place, "the start") for unit, place in start.items()}
    for threshold in thresholds:
        unit = "sample" if threshold.step is None else "step"
        place = math.ceil(threshold.sample) if threshold.step is None else threshold.step
        if place <= before[unit][0]:
            raise UsageError(
                f"the thresholds of the schedule {excerpt(str(schedule))!r} must increase, but "
                f"{threshold.duration} ({unit} {place:,}) doesn't come after {before[unit][1]} "
                f"({unit} {before[unit][0]:,})."
            )
        before[unit] = (place, threshold.duration)
