"""The plan: a schedule, a dataset size and a duration, become exact steps and samples.

Everything that needs a batch size reads it here; nothing else computes one.
"""

import bisect
import dataclasses
import hashlib
import json
import math
import operator
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from adabatch_jax.schedules.durations import Duration, Units, parse_duration, run_duration
from adabatch_jax.schedules.phases import Phase, Step
from adabatch_jax.schedules.plan_builder import build_phases
from adabatch_jax.schedules.schedule_text import AnySchedule, as_schedule
from adabatch_jax.schedules.strides import REMAINDERS, Remainder, Stride
from adabatch_jax.schedules.text_reader import positive_integer
from adabatch_jax.system.errors import UsageError, check_type, did_you_mean

_START_STEP = operator.attrgetter("start_step")
_START_SAMPLE = operator.attrgetter("start_sample")


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """Which step has which batch size and begins at which sample; made by `make_plan`.

    Look-ups take O(log(number of phases)), and no attribute takes more than O(phases).

    Attributes:
      phases: the stretches of one batch size, in order.
      num_examples: the length of an epoch; None for an endless stream.
      num_samples: the run's length in samples.
      remainder: "carry", "partial" or "drop".
      duration: the run's length as it was asked for.
      divisible_by: what every batch size was checked against.
      tokens_per_example: what durations in tokens were converted with; None where it isn't known.
      ends: the samples at which earlier ends of the run cut a batch short before `continued` went
        on: a step begins there, and not where the phase's own steps would have gone on.
      unreached: a sentence for each part of the schedule that the run never comes to; told when a
        plan is made, and no part of what it is.

    >>> plan = make_plan("100, 10ep: 400", num_examples=1000, duration="20ep")
    >>> plan.num_steps, plan.num_samples, plan.batch_sizes
    (125, 20000, (100, 400))
    >>> plan.batch_size_at(99), plan.samples_at(100), plan.step_at(10_400), plan.epoch_at(100)
    (100, 10000, 101, 10.0)
    """

    phases: tuple[Phase, ...]
    num_examples: int | None
    num_samples: int
    remainder: Remainder
    duration: Duration
    divisible_by: int = 1
    tokens_per_example: int | None = None
    ends: tuple[int, ...] = ()
    unreached: tuple[str, ...] = dataclasses.field(default=(), compare=False, repr=False)

    @property
    def num_steps(self) -> int:
        """The number of updates."""
        return self.phases[-1].stop_step

    @property
    def num_dropped(self) -> int:
        """How many positions of the run are not trained on (0 unless remainder is "drop")."""
        return self.num_samples - self.examples_at(self.num_steps)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The distinct batch sizes, in the order of their first use."""
        return tuple(dict.fromkeys(phase.batch_size for phase in self.phases))

    @property
    def has_partial_batches(self) -> bool:
        """Whether any step has fewer examples than its batch size."""
        return self.remainder != "drop" and any(
            p.num_steps * p.batch_size != p.stop_sample - p.start_sample for p in self.phases
        )

    @property
    def units(self) -> Units:
        """What converts durations to this run's samples or steps, exactly."""
        return Units(self.num_examples, self.tokens_per_example, self.duration, self.num_samples)

    def phase_at(self, step: int) -> Phase:
        """The phase of an update; raises an IndexError unless `0 <= step < num_steps`."""
        step = operator.index(step)  # an int32 array would overflow further down
        if not 0 <= step < self.num_steps:
            raise IndexError(f"step {step} is outside the plan's {self.num_steps} steps.")
        return self.phases[bisect.bisect_right(self.phases, step, key=_START_STEP) - 1]

    def batch_size_at(self, step: int) -> int:
        """The batch size of the update's phase, even where the batch is partial.

        Raises:
          IndexError: unless `0 <= step < num_steps`.
        """
        return self.phase_at(step).batch_size

    def samples_at(self, step: int) -> int:
        """Where an update begins, in samples; the run's length at `num_steps`.

        Raises:
          IndexError: unless `0 <= step <= num_steps`.
        """
        step = operator.index(step)
        if step == self.num_steps:
            return self.num_samples
        phase = self.phase_at(step)
        return stride_of(self, phase).begin(step - phase.start_step)

    def examples_at(self, step: int) -> int:
        """How many examples were trained on before an update: `samples_at`, less what was dropped.

        Raises:
          IndexError: unless `0 <= step <= num_steps`.
        """
        if self.remainder != "drop":
            return self.samples_at(step)
        step = _position(step, self.num_steps, "step")
        phases = (phase for phase in self.phases if phase.start_step < step)
        return sum((min(step, p.stop_step) - p.start_step) * p.batch_size for p in phases)

    def step_at(self, sample: int) -> int:
        """The s with `samples_at(s) <= sample < samples_at(s + 1)`; `num_steps` at the end.

        Raises:
          IndexError: unless `0 <= sample <= num_samples`.
        """
        sample = _position(sample, self.num_samples, "sample")
        if sample == self.num_samples:
            return self.num_steps
        phase = self.phases[bisect.bisect_right(self.phases, sample, key=_START_SAMPLE) - 1]
        begun = stride_of(self, phase).steps_before(sample + 1)
        return phase.start_step + min(begun, phase.num_steps) - 1

    def epoch_at(self, step: int) -> float:
        """The epochs before an update, `samples_at(step) / num_examples`.

        Raises:
          IndexError: unless `0 <= step <= num_steps`.
          UsageError: an endless stream has no epochs.
        """
        if self.num_examples is None:
            raise UsageError("an endless stream (num_examples=None) has no epochs.")
        return self.samples_at(step) / self.num_examples

    def sample_of(self, duration: str | int | Duration, after: int = 0) -> int:
        """The sample at which a duration ends that begins `after` a sample, exactly, rounded up.

        Steps are this plan's, from the first one that begins there or later; a percentage is of
        the run, in samples, or in steps where the run's own duration is in steps.

        Raises:
          UsageError: it can't be read, is in epochs of an endless stream, in tokens without
            `tokens_per_example`, or a difference that is below 0.
        """
        duration = parse_duration(duration)
        samples = self.units.in_samples(duration)
        steps = samples if samples is not None else self.units.in_steps(duration)
        if after + steps < 0:
            raise UsageError(f"the duration {str(duration)!r} ends before this run begins.")
        if samples is not None:
            return after + math.ceil(samples)
        step = first_step_from(self, after) + math.ceil(steps)
        if step <= self.num_steps:
            return self.samples_at(step)
        return stride_of(self, self.phases[-1]).begin(step - self.phases[-1].start_step)

    def steps(self, start_step: int = 0) -> Iterator[Step]:
        """Yields the updates from `start_step` on.

        Raises:
          IndexError: unless `0 <= start_step <= num_steps`.
        """
        start_step = _position(start_step, self.num_steps, "step")
        first = bisect.bisect_right(self.phases, start_step, key=_START_STEP) - 1
        for phase in map(self.phases.__getitem__, range(first, len(self.phases))):
            stride = stride_of(self, phase)
            for step in range(max(start_step, phase.start_step), phase.stop_step):
                k = step - phase.start_step
                begin, end = stride.begin(k), min(stride.end(k), phase.stop_sample)
                yield Step(step, phase.index, begin, phase.batch_size, end - begin)

    def continued(
        self, schedule: AnySchedule, from_sample: int, duration: str | int | Duration
    ) -> "BatchPlan":
        """Keeps the steps before `from_sample` and follows another schedule after it.

        Both `schedule` and `duration` count from the beginning of the run, as always.

        Args:
          schedule: anything that `make_plan` takes.
          from_sample: where a step of this plan begins, or its end.
          duration: of the whole run, not below `from_sample`.

        Raises:
          UsageError: as `make_plan`, no step begins at `from_sample`, or the duration ends before.

        Warns:
          UserWarning: as `make_plan`.

        >>> plan = make_plan("100", num_examples=1000, duration="2ep")
        >>> [p.batch_size for p in plan.continued("250", 1000, "4ep").phases]
        [100, 250]
        """
        return _warned(continued_plan(self, schedule, from_sample, duration))

    def fingerprint(self, until_sample: int | None = None) -> str:
        """Hashes the steps before `until_sample` (default: the whole run).

        Equal for two plans whose steps before `until_sample` are the same, whatever comes after
        and however it was written down.

        Raises:
          IndexError: unless `0 <= until_sample <= num_samples`.
        """
        cut = self.num_samples if until_sample is None else until_sample
        cut = _position(cut, self.num_samples, "sample")
        phases = [
            (p.start_step, p.start_sample, p.batch_size, min(p.stop_sample, cut))
            for p in self.phases
            if p.start_sample < cut
        ]
        # A cut inside a step is not the same as a cut at its end.
        last = next(self.steps(self.step_at(cut - 1)), None) if cut > 0 else None
        is_split = last is not None and last.start_sample + last.num_real > cut
        content = [self.num_examples, self.remainder, cut, is_split, phases]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values; `from_dict` gives it back."""
        content = {
            "num_examples": self.num_examples,
            "remainder": self.remainder,
            "divisible_by": self.divisible_by,
            "tokens_per_example": self.tokens_per_example,
            "duration": str(self.duration),
            "num_steps": self.num_steps,
            "num_samples": self.num_samples,
            "phases": [dict(vars(phase)) for phase in self.phases],
        }
        return content | {"ends": list(self.ends)} if self.ends else content

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "BatchPlan":
        """Makes the plan that `to_dict` described.

        Raises:
          UsageError: it described none.
        """
        try:
            same = ("num_examples", "num_samples", "remainder", "divisible_by")
            return cls(
                phases=tuple(Phase(**phase) for phase in content["phases"]),
                duration=parse_duration(content["duration"]),
                tokens_per_example=content.get("tokens_per_example"),
                ends=tuple(content.get("ends", ())),
                **{name: content[name] for name in same},
            )
        except (KeyError, TypeError) as error:
            raise UsageError(f"this is no plan as `to_dict` writes it: {error}.") from None


def make_plan(
    schedule: AnySchedule,
    num_examples: int | None,
    duration: str | int | Duration,
    remainder: Remainder = "carry",
    divisible_by: int = 1,
    tokens_per_example: int | None = None,
) -> BatchPlan:
    """Turns a schedule into exact steps and samples.

    A step's batch is that of the last threshold that is not after the samples before the step;
    a step is never split.

    Args:
      schedule: a schedule, its text, an int, or pairs of (duration, batch size).
      num_examples: examples per epoch; None for an endless stream.
      duration: the run's length, such as "100ep", "20000st", "2.5Msp", "300Btok", or an int of
        samples.
      remainder: what happens when a batch doesn't fit into the rest of an epoch. "carry": it
        straddles two epochs, and only the run's last batch can be partial; every example comes
        exactly once per epoch. "partial": the epoch's last batch is partial. "drop": the rest
        of the epoch is not trained on, as in the official code; the clock still counts it.
      divisible_by: a number that every batch size has to be a multiple of; only checked.
      tokens_per_example: the tokens of an example (a sequence's length), which durations in
        tokens (tok) are converted with, rounded up to whole samples.

    Raises:
      UsageError: thresholds out of order, a batch larger than the dataset or not divisible, a
        duration that can't be converted, or a plan without steps.

    Warns:
      UserWarning: a threshold at or behind the run's end, growth that the run is too short for, or
        a piece of a joined schedule that the next one cuts short.

    >>> plan = make_plan("128 x2 every 20ep max 2048", num_examples=50_000, duration="100ep")
    >>> plan.num_steps, [phase.start_sample for phase in plan.phases]
    (15138, [0, 1000064, 2000000, 3000448, 4000896])
    >>> gpt3 = make_plan("16, 2.4Btok: 320, 4.8Btok: 624", None, "300Btok", tokens_per_example=2048)
    >>> [phase.start_sample for phase in gpt3.phases]
    [0, 1171888, 2344048]
    """
    rules = remainder, divisible_by, tokens_per_example
    return _warned(untold_plan(schedule, num_examples, duration, *rules))


def untold_plan(
    schedule: AnySchedule,
    num_examples: int | None,
    duration: str | int | Duration,
    remainder: Remainder = "carry",
    divisible_by: int = 1,
    tokens_per_example: int | None = None,
    *,
    kept: Sequence[Phase] = (),
    ends: Sequence[int] = (),
) -> BatchPlan:
    """`make_plan` without its warnings, for callers that tell `unreached` themselves.

    It may stand behind phases that are `kept`; `ends` are where earlier ends cut a batch short.
    """
    if num_examples is not None:
        num_examples = positive_integer(num_examples, "num_examples")
    divisible_by = positive_integer(divisible_by, "divisible_by")
    if tokens_per_example is not None:
        tokens_per_example = positive_integer(tokens_per_example, "tokens_per_example")
    if remainder not in REMAINDERS:
        raise UsageError(
            f"`remainder` must be 'carry', 'partial' or 'drop', got {remainder!r}"
            f"{did_you_mean(str(remainder), REMAINDERS) or '.'}"
        )
    if num_examples is None and remainder != "carry":
        raise UsageError(
            f"an endless stream (num_examples=None) can only carry, got remainder={remainder!r}."
        )
    run = run_duration(duration, num_examples)
    units = Units(num_examples, tokens_per_example, run)
    phases, unreached = build_phases(as_schedule(schedule), units, remainder, divisible_by, kept)
    num_samples = phases[-1].stop_sample
    ends = tuple(end for end in ends if end < num_samples)
    rules = remainder, run, divisible_by, tokens_per_example
    return BatchPlan(phases, num_examples, num_samples, *rules, ends, unreached)


def continued_plan(
    plan: BatchPlan, schedule: AnySchedule, from_sample: int, duration: str | int | Duration
) -> BatchPlan:
    """`BatchPlan.continued` without its warnings."""
    from_sample = operator.index(from_sample)
    step = step_beginning_at(plan, from_sample, "from_sample")
    kept = [
        dataclasses.replace(
            phase,
            stop_step=min(phase.stop_step, step),
            stop_sample=min(phase.stop_sample, from_sample),
        )
        for phase in plan.phases
        if phase.start_step < step
    ]
    rules = plan.remainder, plan.divisible_by, plan.tokens_per_example
    ends = cut_ends(plan, from_sample)
    return untold_plan(schedule, plan.num_examples, duration, *rules, kept=kept, ends=ends)


def _warned(plan: BatchPlan) -> BatchPlan:
    """The plan, after its user's call was told what it never comes to."""
    for sentence in plan.unreached:
        warnings.warn(sentence, UserWarning, stacklevel=3)
    return plan


def _position(value: int, length: int, unit: str) -> int:
    """A step or sample of a plan, or its end, as an int; an array of int32 would overflow."""
    value = operator.index(value)
    if not 0 <= value <= length:
        raise IndexError(f"{unit} {value} is outside the plan's {length} {unit}s.")
    return value


def stride_of(plan: BatchPlan, phase: Phase) -> Stride:
    """The arithmetic of the steps in a phase."""
    return Stride(phase.start_sample, phase.batch_size, plan.num_examples, plan.remainder)


def first_step_from(plan: BatchPlan, sample: int) -> int:
    """The first update that begins at a sample or later; `num_steps` if none does."""
    sample = min(sample, plan.num_samples)
    step = plan.step_at(sample)
    return step if plan.samples_at(step) == sample else step + 1


def check_plan(plan: Any) -> None:
    """Raises a UsageError unless an argument `plan` is one."""
    check_type("plan", plan, BatchPlan, "`make_plan` makes one")


def step_beginning_at(plan: BatchPlan, sample: int, name: str) -> int:
    """The update that begins at a sample, or `num_steps` at the end; a UsageError if none does."""
    sample = operator.index(sample)
    if not 0 <= sample <= plan.num_samples:
        raise UsageError(f"`{name}`={sample} is outside the plan's {plan.num_samples} samples.")
    step = plan.step_at(sample)
    if plan.samples_at(step) != sample:
        raise UsageError(
            f"no step begins at {name}={sample}; the nearest ones begin at "
            f"{plan.samples_at(step)} and {plan.samples_at(step + 1)}."
        )
    return step


def cut_ends(plan: BatchPlan, until_sample: int) -> tuple[int, ...]:
    """Where ends of the run, the plan's own included, cut a batch short, up to a sample."""
    last = plan.phases[-1]
    stride = stride_of(plan, last)
    whole = stride.begin(last.num_steps), stride.end(last.num_steps - 1)
    ends = plan.ends if plan.num_samples in whole else (*plan.ends, plan.num_samples)
    return tuple(end for end in ends if end <= until_sample)


def fixed_batch_plan(plan: BatchPlan) -> BatchPlan:
    """The plan of the same samples with the first phase's batch throughout.

    >>> fixed_batch_plan(make_plan("100, 10ep: 400", num_examples=1000, duration="20ep")).num_steps
    200
    """
    first = plan.phases[0].batch_size
    rules = plan.remainder, 1, plan.tokens_per_example
    return make_plan(first, plan.num_examples, f"{plan.num_samples}sp", *rules)
