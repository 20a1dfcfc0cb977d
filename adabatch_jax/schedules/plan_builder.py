"""Where a plan's phases begin: a schedule's thresholds meet the sample clock, left to right."""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

from adabatch_jax.schedules.batch_size_schedules import Schedule, Size
from adabatch_jax.schedules.durations import Duration, Units
from adabatch_jax.schedules.phases import Phase
from adabatch_jax.schedules.strides import Stride
from adabatch_jax.schedules.text_reader import excerpt
from adabatch_jax.schedules.thresholds import Level, Place, Threshold, check_listed
from adabatch_jax.system.errors import UsageError


def build_phases(
    schedule: Schedule,
    units: Units,
    remainder: str,
    divisible_by: int,
    kept: Sequence[Phase] = (),
) -> tuple[tuple[Phase, ...], tuple[str, ...]]:
    """Walks along a schedule to the end of a run, behind phases that keep their starts.

    Returns:
      The phases, and a sentence for each part of the schedule that is never reached.
    """
    builder = _Builder(schedule, units, remainder, kept)
    phases = builder.build()
    _check_divisible(phases[len(kept) :], divisible_by)
    return phases, tuple(builder.unreached)


class _Start(NamedTuple):
    step: int
    sample: int
    batch_size: int


class _Builder:
    """Walks along the thresholds; `step` and `sample` are where the next step would begin."""

    def __init__(
        self,
        schedule: Schedule,
        units: Units,
        remainder: str,
        kept: Sequence[Phase],
    ):
        self.num_examples, self.remainder, self.run = units.num_examples, remainder, units.run
        samples = units.in_samples(self.run)
        self.num_samples = None if samples is None else math.ceil(samples)
        self.num_steps = math.ceil(units.in_steps(self.run)) if samples is None else None
        self.units = dataclasses.replace(units, num_samples=self.num_samples)
        self.starts = [_Start(p.start_step, p.start_sample, p.batch_size) for p in kept]
        self.step, self.sample = (kept[-1].stop_step, kept[-1].stop_sample) if kept else (0, 0)
        self._check_length()
        self.unreached: list[str] = []
        self._levels: list[Level] = []
        self._size, self._from = 0, 0
        self._follow(schedule, Place(0, 0))

    def build(self) -> tuple[Phase, ...]:
        while not self._ended():
            self._pass_thresholds()
            self._check_size()
            if not self._skip_to_fitting_epoch():
                self._add_phase()
        self._check_rest()
        self._leave(0, f"the run ends at {self.run} (sample {self.sample:,})")
        if not self.starts:
            raise UsageError(
                f"the plan has no step: batch size {self._size} doesn't fit into the run's "
                f"{self.num_samples} samples with remainder={self.remainder!r}."
            )
        end = self.sample if self.num_samples is None else self.num_samples
        pairs = itertools.pairwise([*self.starts, _Start(self.step, end, 0)])
        return tuple(
            Phase(index, start.step, stop.step, start.sample, stop.sample, start.batch_size)
            for index, (start, stop) in enumerate(pairs)
        )

    def _ended(self) -> bool:
        if self.num_steps is not None:
            return self.step >= self.num_steps
        return self.sample >= self.num_samples

    def _check_length(self) -> None:
        length, begun = self.num_samples, self.sample
        if length is None:
            length, begun = self.num_steps, self.step
        if length < begun:
            raise UsageError(
                f"the duration {str(self.run)!r} ends before sample {self.sample}, up to which the "
                "plan is to be kept."
            )

    def _follow(self, schedule: Schedule, origin: Place) -> None:
        """Begins a schedule, or a piece of one, at a place."""
        thresholds: Iterator[Threshold] = (
            self._convert(duration, size, origin) for duration, size in schedule.sizes()
        )
        if schedule.is_listed:
            listed = [*thresholds]
            check_listed(schedule, origin, listed[1:])
            thresholds = iter(listed)
        self._levels.append(Level(schedule, origin, thresholds))
        self._take(self._levels[-1])

    def _convert(self, duration: Duration, size: Size, origin: Place) -> Threshold:
        samples = self.units.in_samples(duration)
        if samples is None:
            step = origin.step + math.ceil(self.units.in_steps(duration))
            return Threshold(duration, None, step, size)
        return Threshold(duration, origin.sample + samples, None, size)

    def _take(self, level: Level) -> None:
        """Goes on to the level's next size."""
        threshold = level.take()
        size = threshold.size
        if isinstance(size, Schedule):
            self._follow(size, self._place(threshold))
        elif callable(size):
            self._size = size(lambda unit: self._position(threshold, level.origin, unit))
        else:
            self._size = size

    def _place(self, threshold: Threshold) -> Place:
        if threshold.step is not None:
            return Place(threshold.step, self._end_before(threshold.step))
        return Place(self._first_step(math.ceil(threshold.sample)), threshold.sample)

    def _position(self, threshold: Threshold, origin: Place, unit: str) -> Fraction:
        """Where a threshold is, counted from an origin in a unit."""
        if threshold.duration.unit == unit and not threshold.duration.plus:
            return threshold.duration.value
        place, one = self._place(threshold), Duration(Fraction(1), unit)
        samples = self.units.in_samples(one, what=f"`unit`={unit!r} of `sampled`")
        if samples is None:
            return (place.step - origin.step) / self.units.in_steps(one)
        return (place.sample - origin.sample) / samples

    def _reached(self, threshold: Threshold) -> bool:
        if threshold.step is not None:
            return threshold.step <= self.step
        return threshold.sample <= self.sample

    def _pass_thresholds(self) -> None:
        while True:
            depths = range(len(self._levels))
            reached = (d for d in depths if (n := self._levels[d].next) and self._reached(n))
            depth = next(reached, None)  # the outermost ends those inside of it
            if depth is None:
                return
            level = self._levels[depth]
            self._check_increase(level.next)
            self._leave(depth + 1, f"what follows begins at {level.next.duration}")
            self._take(level)

    def _check_increase(self, threshold: Threshold) -> None:
        sample = math.ceil(self._place(threshold).sample)
        if sample <= self._from:
            raise UsageError(
                f"the thresholds of a schedule must increase, but {threshold.duration} is at "
                f"sample {sample:,} and the one before it at sample {self._from:,}."
            )
        self._from = sample

    def _leave(self, depth: int, why: str) -> None:
        """Ends the levels from a depth on, and notes what they didn't come to."""
        for level in self._levels[depth:]:
            if level.next and (behind := level.schedule.behind(level.num_begun)):
                parts = excerpt(" and ".join(map(repr, behind)))
                self.unreached.append(f"the batch schedule never reaches {parts}: {why}.")
        del self._levels[depth:]

    def _first_step(self, sample: int) -> int:
        """The first step at a sample that was passed, or later."""
        index = bisect.bisect_left(self.starts, sample, key=lambda start: start.sample) - 1
        if index < 0:
            return 0
        start = self.starts[index]
        following = self.starts[index + 1 : index + 2]
        count = self._stride(start.sample, start.batch_size).steps_before(sample)
        return min(start.step + count, following[0].step if following else self.step)

    def _end_before(self, step: int) -> int:
        """Where the step before one that was walked past ended.

        Under "drop" the step itself may have begun later.
        """
        index = bisect.bisect_left(self.starts, (step,)) - 1
        if index < 0:
            return 0
        start = self.starts[index]
        end = self._stride(start.sample, start.batch_size).end(step - start.step - 1)
        following = self.starts[index + 1 : index + 2]
        # A run's end may have cut it short.
        return min(end, following[0].sample if following else self.sample)

    def _stride(self, start_sample: int, batch_size: int) -> Stride:
        return Stride(start_sample, batch_size, self.num_examples, self.remainder)

    def _check_size(self) -> None:
        size, num_examples = self._size, self.num_examples
        if size >= 1 and (num_examples is None or size <= num_examples):
            return
        place = f"phase {len(self.starts) + 1}, which begins at sample {self.sample:,}"
        if num_examples is not None:
            place += f" (epoch {self.sample / num_examples:g})"
        if size < 1:
            raise UsageError(
                f"the batch size falls to {size} in {place}; bound it with `min` (end_value)."
            )
        raise UsageError(
            f"batch size {size} of {place} exceeds num_examples={num_examples}; cap it with "
            f"`max {num_examples}` (end_value) or below."
        )

    def _skip_to_fitting_epoch(self) -> bool:
        """Leaves, under "drop", an epoch that the size that is due doesn't fit in."""
        num_examples = self.num_examples
        if self.remainder != "drop" or self.sample % num_examples + self._size <= num_examples:
            return False
        self.sample = (self.sample // num_examples + 1) * num_examples
        return True

    def _add_phase(self) -> None:
        stride = self._stride(self.sample, self._size)
        count = self._steps_until_end(stride)
        for level in self._levels:
            if level.next is not None and level.next.step is not None:
                count = min(count, level.next.step - self.step)
            elif level.next is not None:
                count = min(count, stride.steps_before(math.ceil(level.next.sample)))
        if count > 0 and not self._goes_on():
            self.starts.append(_Start(self.step, self.sample, self._size))
        self.step += count
        # Without a step (under "drop", where it would pass the run's end) the run is over.
        self.sample = stride.end(count - 1) if count else self.num_samples
        if self.num_samples is not None:
            self.sample = min(self.sample, self.num_samples)

    def _steps_until_end(self, stride: Stride) -> int:
        if self.num_steps is not None:
            return self.num_steps - self.step
        count = stride.steps_before(self.num_samples)
        if self.remainder == "drop" and count and stride.end(count - 1) > self.num_samples:
            count -= 1
        return count

    def _goes_on(self) -> bool:
        """Whether the steps from here on only prolong the phase before."""
        if not self.starts or self.starts[-1].batch_size != self._size:
            return False
        start = self.starts[-1]
        return self._stride(start.sample, self._size).begin(self.step - start.step) == self.sample

    def _check_rest(self) -> None:
        """Complains about thresholds within the run that no step came to, out of order."""
        for level in self._levels:
            late = None
            for threshold in level.rest() if level.schedule.is_listed else ():
                if not self._reached(threshold):
                    late = late or threshold
                elif late is None:
                    self._check_increase(threshold)
                else:
                    raise UsageError(
                        f"the thresholds of a schedule must increase, but {threshold.duration} "
                        f"stands behind {late.duration}, which comes after the end of the run."
                    )


def _check_divisible(phases: Sequence[Phase], divisible_by: int) -> None:
    for phase in phases:
        below = phase.batch_size - phase.batch_size % divisible_by
        if below == phase.batch_size:
            continue
        legal = [str(size) for size in (below, below + divisible_by) if size > 0]
        raise UsageError(
            f"batch size {phase.batch_size} of phase {phase.index + 1} (from sample "
            f"{phase.start_sample:,}) is not divisible by {divisible_by}; the nearest legal "
            f"{'size is' if len(legal) == 1 else 'sizes are'} {' and '.join(legal)}."
        )
