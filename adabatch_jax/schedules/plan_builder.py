"""Building a plan: a schedule's thresholds meet the sample clock, from left to right."""

import dataclasses
import operator
from typing import Any

from adabatch_jax.schedules.batch_size_schedules import PiecewiseConstant, Schedule
from adabatch_jax.schedules.durations import Duration, parse_duration
from adabatch_jax.schedules.plan import BatchPlan, Phase, sample_count, step_count
from adabatch_jax.schedules.schedule_text import as_schedule
from adabatch_jax.schedules.strides import REMAINDERS, Stride
from adabatch_jax.schedules.text_reader import positive_integer
from adabatch_jax.system.errors import UsageError, did_you_mean


def make_plan(
    schedule: Any,
    num_examples: int | None,
    duration: str | int | Duration,
    remainder: str = "carry",
    divisible_by: int = 1,
) -> BatchPlan:
    """Turns a schedule into exact steps and samples.

    A step's batch is that of the last threshold that is not after the samples before the step;
    a step is never split.

    Args:
      schedule: a schedule, its text, an int, or pairs of (duration, batch size).
      num_examples: examples per epoch; None for an endless stream.
      duration: the run's length, such as "100ep", "20000st", "2.5Msp", or an int of samples.
      remainder: what happens when a batch doesn't fit into the rest of an epoch. "carry": it
        straddles two epochs, and only the run's last batch can be partial; every example comes
        exactly once per epoch. "partial": the epoch's last batch is partial. "drop": the rest
        of the epoch is not trained on, as in the official code; the clock still counts it.
      divisible_by: a number that every batch size has to be a multiple of; only checked.

    Raises:
      UsageError: thresholds out of order, a batch larger than the dataset or not divisible, a
        duration that can't be converted, or a plan without steps.

    >>> plan = make_plan("128 x2 every 20ep max 2048", num_examples=50_000, duration="100ep")
    >>> plan.num_steps, [phase.start_sample for phase in plan.phases]
    (15138, [0, 1000064, 2000000, 3000448, 4000896])
    """
    if num_examples is not None:
        num_examples = positive_integer(num_examples, "num_examples")
    divisible_by = positive_integer(divisible_by, "divisible_by")
    if remainder not in REMAINDERS:
        raise UsageError(
            f"`remainder` must be 'carry', 'partial' or 'drop', got {remainder!r}"
            f"{did_you_mean(str(remainder), REMAINDERS) or '.'}"
        )
    if num_examples is None and remainder != "carry":
        raise UsageError(
            f"an endless stream (num_examples=None) can only carry, got remainder={remainder!r}."
        )
    schedule = as_schedule(schedule)
    run = _run_duration(duration, num_examples)
    builder = _Builder(schedule, num_examples, remainder, run)
    return builder.build(divisible_by)


def continue_plan(
    plan: BatchPlan, schedule: Any, from_sample: int, duration: str | int | Duration
) -> BatchPlan:
    """Implements `BatchPlan.continued`."""
    from_sample = operator.index(from_sample)
    step = plan.step_beginning_at(from_sample, "from_sample")
    run = _run_duration(duration, plan.num_examples)
    builder = _Builder(as_schedule(schedule), plan.num_examples, plan.remainder, run, plan)
    builder.keep(step, from_sample)
    return builder.build(plan.divisible_by)


def fixed_batch_plan(plan: BatchPlan) -> BatchPlan:
    """The plan of the same samples with the first phase's batch throughout.

    >>> fixed_batch_plan(make_plan("100, 10ep: 400", num_examples=1000, duration="20ep")).num_steps
    200
    """
    first = plan.phases[0].batch_size
    return make_plan(first, plan.num_examples, f"{plan.num_samples}sp", plan.remainder)


def _run_duration(duration: str | int | Duration, num_examples: int | None) -> Duration:
    run = parse_duration(duration)
    if run.unit == "%":
        raise UsageError(f"a run's duration can't be a share of itself, got {str(run)!r}.")
    if run.value <= 0:
        raise UsageError(f"a run's duration must be longer than nothing, got {str(run)!r}.")
    bare = not isinstance(duration, Duration) and not str(duration).endswith(("sp", "st", "ep"))
    if bare and num_examples is not None and run.value < num_examples:
        raise UsageError(
            f"the duration {duration} has no unit, and as samples it is less than one epoch of "
            f'{num_examples}; write "{duration}ep" for epochs or "{duration}sp" for samples.'
        )
    return run


@dataclasses.dataclass(frozen=True)
class _Threshold:
    """From a sample, or from a step, on."""

    text: str
    sample: int | None
    step: int | None
    batch_size: int


class _Builder:
    """Walks along the thresholds; `step` and `sample` are where the next step would begin."""

    def __init__(
        self,
        schedule: Schedule,
        num_examples: int | None,
        remainder: str,
        run: Duration,
        past: BatchPlan | None = None,
    ):
        self.num_examples, self.remainder, self.run = num_examples, remainder, run
        self.num_samples = sample_count(run, num_examples, None, run)
        self.num_steps = step_count(run, run) if self.num_samples is None else None
        self.step, self.sample = 0, 0
        self.starts: list[tuple[int, int, int]] = []  # (start_step, start_sample, batch_size)
        self.num_kept = 0
        self._past, self._kept_steps = past, -1
        self._thresholds = (self._convert(d, size) for d, size in schedule.sizes())
        first = next(self._thresholds)
        self._size, self._from = first.batch_size, 0
        self._next = next(self._thresholds, None)
        self._is_listed = isinstance(schedule, PiecewiseConstant)
        if self._is_listed:
            self._check_listed(schedule)

    def keep(self, step: int, sample: int) -> None:
        """Begins with the past plan's phases up to a step of it."""
        kept = [p for p in self._past.phases if p.start_step < step]
        self.starts = [(p.start_step, p.start_sample, p.batch_size) for p in kept]
        self.num_kept, self.step, self.sample = len(kept), step, sample
        self._kept_steps = step
        if self._length_known_and_below(sample):
            raise UsageError(
                f"the duration {str(self.run)!r} ends before sample {sample}, up to which the "
                "plan is to be kept."
            )

    def build(self, divisible_by: int) -> BatchPlan:
        """Walks to the end of the run."""
        while not self._ended():
            self._pass_thresholds()
            if self._skip_to_fitting_epoch():
                continue
            self._add_phase()
        self._pass_thresholds()
        self._check_rest()
        if not self.starts:
            raise UsageError(
                f"the plan has no step: batch size {self._size} doesn't fit into the run's "
                f"{self.num_samples} samples with remainder={self.remainder!r}."
            )
        plan = self._finish(divisible_by)
        _check_divisible(plan, plan.phases[self.num_kept :])
        return plan

    def _ended(self) -> bool:
        if self.num_steps is not None:
            return self.step >= self.num_steps
        return self.sample >= self.num_samples

    def _length_known_and_below(self, sample: int) -> bool:
        if self.num_samples is None:
            return self.num_steps < self.step
        return self.num_samples < sample

    def _convert(self, duration: Duration, batch_size: int) -> _Threshold:
        sample = sample_count(duration, self.num_examples, self.num_samples, self.run)
        step = step_count(duration, self.run) if sample is None else None
        return _Threshold(str(duration), sample, step, batch_size)

    def _reached(self, threshold: _Threshold) -> bool:
        if threshold.step is not None:
            return threshold.step <= self.step
        return threshold.sample <= self.sample

    def _pass_thresholds(self) -> None:
        while self._next is not None and self._reached(self._next):
            sample = self._next.sample
            if sample is None:
                sample = self._sample_of_step(self._next.step)
            if sample <= self._from:
                raise _out_of_order(self._next.text, sample, self._from)
            self._size, self._from = self._next.batch_size, sample
            self._next = next(self._thresholds, None)

    def _sample_of_step(self, step: int) -> int:
        """Where a step began that may have been some steps ago."""
        if step <= self._kept_steps:
            return self._past.samples_at(step)
        for start_step, start_sample, size in reversed(self.starts):
            if start_step < step:
                # The end of the step before: under "drop" the step itself may begin later.
                return self._stride(start_sample, size).end(step - start_step - 1)
        return 0

    def _stride(self, start_sample: int, batch_size: int) -> Stride:
        return Stride(start_sample, batch_size, self.num_examples, self.remainder)

    def _skip_to_fitting_epoch(self) -> bool:
        """Checks the size that is due, and under "drop" leaves an epoch that it doesn't fit in."""
        size, num_examples = self._size, self.num_examples
        place = f"phase {len(self.starts)}, which begins at sample {self.sample:,}"
        if num_examples is not None:
            place += f" (epoch {self.sample / num_examples:g})"
        if size < 1:
            raise UsageError(
                f"the batch size falls to {size} in {place}; bound it with `min` (end_value)."
            )
        if num_examples is not None and size > num_examples:
            raise UsageError(
                f"batch size {size} of {place} exceeds num_examples={num_examples}; cap it with "
                f"`max {num_examples}` (end_value) or below."
            )
        if self.remainder != "drop" or self.sample % num_examples + size <= num_examples:
            return False
        self.sample = (self.sample // num_examples + 1) * num_examples
        return True

    def _add_phase(self) -> None:
        stride = self._stride(self.sample, self._size)
        limits = [self._steps_until_end(stride)]
        if self._next is not None:
            limits.append(
                stride.steps_before(self._next.sample)
                if self._next.step is None
                else self._next.step - self.step
            )
        count = min(limits)
        if count > 0 and not self._goes_on(self.sample):
            self.starts.append((self.step, self.sample, self._size))
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

    def _goes_on(self, sample: int) -> bool:
        """Whether the steps from `sample` on only prolong the phase before."""
        if not self.starts or self.starts[-1][2] != self._size:
            return False
        start_step, start_sample, size = self.starts[-1]
        return self._stride(start_sample, size).begin(self.step - start_step) == sample

    def _finish(self, divisible_by: int) -> BatchPlan:
        num_samples = self.sample if self.num_samples is None else self.num_samples
        stops = [(step, sample) for step, sample, _ in self.starts[1:]] + [(self.step, num_samples)]
        phases = tuple(
            Phase(index, start_step, stop_step, start_sample, stop_sample, size)
            for index, ((start_step, start_sample, size), (stop_step, stop_sample)) in enumerate(
                zip(self.starts, stops, strict=True)
            )
        )
        return BatchPlan(
            phases, self.num_examples, num_samples, self.remainder, self.run, divisible_by
        )

    def _check_listed(self, schedule: PiecewiseConstant) -> None:
        """Checks a listed schedule to its end, also behind the end of the run."""
        before: dict[str, tuple[int, str]] = {"sample": (0, "the start"), "step": (0, "the start")}
        for duration, size in schedule.boundaries:
            threshold = self._convert(duration, size)
            unit = "sample" if threshold.step is None else "step"
            place = getattr(threshold, unit)
            if place <= before[unit][0]:
                raise UsageError(
                    f"the thresholds of the schedule {str(schedule)!r} must increase, but "
                    f"{threshold.text} ({unit} {place:,}) doesn't come after {before[unit][1]} "
                    f"({unit} {before[unit][0]:,})."
                )
            before[unit] = (place, threshold.text)

    def _check_rest(self) -> None:
        """Complains about a threshold within the run that stands behind one after its end."""
        for threshold in self._thresholds if self._is_listed else ():
            if self._reached(threshold):
                raise UsageError(
                    f"the thresholds of a schedule must increase, but {threshold.text} stands "
                    f"behind {self._next.text}, which comes after the end of the run."
                )


def _out_of_order(text: str, sample: int, before: int) -> UsageError:
    return UsageError(
        f"the thresholds of a schedule must increase, but {text} is at sample {sample:,} and the "
        f"one before it at sample {before:,}."
    )


def _check_divisible(plan: BatchPlan, phases: tuple[Phase, ...]) -> None:
    for phase in phases:
        below = phase.batch_size - phase.batch_size % plan.divisible_by
        if below == phase.batch_size:
            continue
        legal = [str(size) for size in (below, below + plan.divisible_by) if size > 0]
        raise UsageError(
            f"batch size {phase.batch_size} of phase {phase.index} (from sample "
            f"{phase.start_sample:,}) is not divisible by {plan.divisible_by}; the nearest legal "
            f"{'size is' if len(legal) == 1 else 'sizes are'} {' and '.join(legal)}."
        )
