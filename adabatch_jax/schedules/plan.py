"""The plan: a schedule, a dataset size and a duration, become exact steps and samples.

Everything that needs a batch size reads it here; nothing else computes one.
"""

import bisect
import dataclasses
import hashlib
import json
import math
import operator
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

from adabatch_jax.schedules.durations import Duration, parse_duration
from adabatch_jax.schedules.strides import Stride
from adabatch_jax.system.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of the run with one batch size.

    Steps `start_step <= s < stop_step` begin at samples `start_sample <= c < stop_sample`, and
    `stop_sample` is where the next phase starts.
    """

    index: int
    start_step: int
    stop_step: int
    start_sample: int
    stop_sample: int
    batch_size: int

    @property
    def num_steps(self) -> int:
        return self.stop_step - self.start_step


class Step(NamedTuple):
    """One update: `num_real` examples, `num_real <= batch_size`, from `start_sample` on."""

    index: int
    phase: int
    start_sample: int
    batch_size: int
    num_real: int


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
    """

    phases: tuple[Phase, ...]
    num_examples: int | None
    num_samples: int
    remainder: str
    duration: Duration
    divisible_by: int = 1

    @cached_property
    def _start_steps(self) -> list[int]:
        return [phase.start_step for phase in self.phases]

    @cached_property
    def _start_samples(self) -> list[int]:
        return [phase.start_sample for phase in self.phases]

    def stride(self, phase: Phase) -> Stride:
        """The arithmetic of the steps in `phase`."""
        return Stride(phase.start_sample, phase.batch_size, self.num_examples, self.remainder)

    @property
    def num_steps(self) -> int:
        """The number of updates."""
        return self.phases[-1].stop_step

    @property
    def num_dropped(self) -> int:
        """How many positions of the run are not trained on (0 unless remainder is "drop")."""
        if self.remainder != "drop":
            return 0
        return self.num_samples - sum(p.num_steps * p.batch_size for p in self.phases)

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

    def phase_at(self, step: int) -> Phase:
        """The phase of an update, `0 <= step < num_steps`; an IndexError outside."""
        step = operator.index(step)  # an int32 array would overflow further down
        if not 0 <= step < self.num_steps:
            raise IndexError(f"step {step} is outside the plan's {self.num_steps} steps.")
        return self.phases[bisect.bisect_right(self._start_steps, step) - 1]

    def batch_size_at(self, step: int) -> int:
        """The batch size of the update's phase, even where the batch is partial."""
        return self.phase_at(step).batch_size

    def samples_at(self, step: int) -> int:
        """Where an update begins, in samples; the run's length at `num_steps`."""
        step = operator.index(step)
        if step == self.num_steps:
            return self.num_samples
        phase = self.phase_at(step)
        return self.stride(phase).begin(step - phase.start_step)

    def step_at(self, sample: int) -> int:
        """The s with `samples_at(s) <= sample < samples_at(s + 1)`; `num_steps` at the end."""
        sample = operator.index(sample)
        if not 0 <= sample <= self.num_samples:
            raise IndexError(f"sample {sample} is outside the plan's {self.num_samples} samples.")
        if sample == self.num_samples:
            return self.num_steps
        phase = self.phases[bisect.bisect_right(self._start_samples, sample) - 1]
        begun = self.stride(phase).steps_before(sample + 1)
        return phase.start_step + min(begun, phase.num_steps) - 1

    def first_step_from(self, sample: int) -> int:
        """The first update that begins at `sample` or later; `num_steps` if none does."""
        sample = operator.index(sample)
        if sample >= self.num_samples:
            return self.num_steps
        step = self.step_at(sample)
        return step if self.samples_at(step) == sample else step + 1

    def step_beginning_at(self, sample: int, name: str) -> int:
        """The update that begins at `sample`, or `num_steps` at the end.

        Raises:
          UsageError: none does; the sentence calls the sample `name`.
        """
        sample = operator.index(sample)
        if not 0 <= sample <= self.num_samples:
            raise UsageError(f"`{name}`={sample} is outside the plan's {self.num_samples} samples.")
        step = self.step_at(sample)
        if self.samples_at(step) != sample:
            raise UsageError(
                f"no step begins at {name}={sample}; the nearest ones begin at "
                f"{self.samples_at(step)} and {self.samples_at(step + 1)}."
            )
        return step

    def epoch_at(self, step: int) -> float:
        """The epochs before an update, `samples_at(step) / num_examples`."""
        if self.num_examples is None:
            raise UsageError("an endless stream (num_examples=None) has no epochs.")
        return self.samples_at(step) / self.num_examples

    def sample_of(self, duration: str | int | Duration) -> int:
        """Converts a duration to samples from the run's start, exactly, rounded up.

        Steps are this plan's; a percentage is of the run, in samples, or in steps where the
        run's own duration is in steps.
        """
        duration = parse_duration(duration)
        sample = sample_count(duration, self.num_examples, self.num_samples, self.duration)
        if sample is not None:
            return sample
        step = step_count(duration, self.duration)
        if step <= self.num_steps:
            return self.samples_at(step)
        return self.stride(self.phases[-1]).begin(step - self.phases[-1].start_step)

    def steps(self, start_step: int = 0) -> Iterator[Step]:
        """Yields the updates from `start_step` on."""
        start_step = operator.index(start_step)
        if not 0 <= start_step <= self.num_steps:
            raise IndexError(f"step {start_step} is outside the plan's {self.num_steps} steps.")
        for phase in self.phases:
            stride = self.stride(phase)
            for step in range(max(start_step, phase.start_step), phase.stop_step):
                k = step - phase.start_step
                begin, end = stride.begin(k), min(stride.end(k), phase.stop_sample)
                yield Step(step, phase.index, begin, phase.batch_size, end - begin)

    def irregular_ends(self) -> list[int]:
        """Where phases end that a run's end, at the time, cut short: before `continued` went on.

        The next step begins there, and not where the phase's own steps would have gone on.
        """
        ends = []
        for phase in self.phases:
            stride = self.stride(phase)
            begin, end = stride.begin(phase.num_steps), stride.end(phase.num_steps - 1)
            if phase.stop_sample not in (begin, end):
                # Under "drop" the run ended somewhere before the next phase could begin.
                ends.append(min(phase.stop_sample, begin + phase.batch_size - 1))
        return ends

    def continued(
        self, schedule: Any, from_sample: int, duration: str | int | Duration
    ) -> "BatchPlan":
        """Keeps the steps before `from_sample` and follows another schedule after it.

        Both `schedule` and `duration` count from the beginning of the run, as always.

        Args:
          schedule: anything that `make_plan` takes.
          from_sample: where a step of this plan begins, or its end.
          duration: of the whole run, not below `from_sample`.

        Raises:
          UsageError: as `make_plan`, or no step begins at `from_sample`.

        >>> from adabatch_jax import make_plan
        >>> plan = make_plan("100", num_examples=1000, duration="2ep")
        >>> [p.batch_size for p in plan.continued("250", 1000, "4ep").phases]
        [100, 250]
        """
        from adabatch_jax.schedules.plan_builder import continue_plan

        return continue_plan(self, schedule, from_sample, duration)

    def fingerprint(self, until_sample: int | None = None) -> str:
        """Hashes the steps before `until_sample` (default: the whole run).

        Equal for two plans whose steps before `until_sample` are the same, whatever comes after
        and however it was written down.
        """
        cut = self.num_samples if until_sample is None else operator.index(until_sample)
        if not 0 <= cut <= self.num_samples:
            raise IndexError(f"sample {cut} is outside the plan's {self.num_samples} samples.")
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
        return {
            "num_examples": self.num_examples,
            "remainder": self.remainder,
            "divisible_by": self.divisible_by,
            "duration": str(self.duration),
            "num_steps": self.num_steps,
            "num_samples": self.num_samples,
            "phases": [dataclasses.asdict(phase) for phase in self.phases],
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "BatchPlan":
        """Makes the plan that `to_dict` described."""
        try:
            return cls(
                phases=tuple(Phase(**phase) for phase in content["phases"]),
                num_examples=content["num_examples"],
                num_samples=content["num_samples"],
                remainder=content["remainder"],
                duration=parse_duration(content["duration"]),
                divisible_by=content["divisible_by"],
            )
        except (KeyError, TypeError) as error:
            raise UsageError(f"this is no plan as `to_dict` writes it: {error}.") from None


def sample_count(
    duration: Duration, num_examples: int | None, num_samples: int | None, run: Duration
) -> int | None:
    """Converts to samples what can be converted without a plan; None for a number of steps."""
    if duration.unit == "st" or (duration.unit == "%" and run.unit == "st"):
        return None
    if duration.unit == "sp":
        return math.ceil(duration.value)
    if duration.unit == "%":
        return math.ceil(duration.value * num_samples / 100)
    if num_examples is None:
        raise UsageError(
            f"the duration {str(duration)!r} is in epochs, which an endless stream "
            "(num_examples=None) doesn't have; give samples (sp) or steps (st)."
        )
    return math.ceil(duration.value * num_examples)


def step_count(duration: Duration, run: Duration) -> int:
    """Converts to steps what `sample_count` can't convert."""
    if duration.unit == "%":
        return math.ceil(duration.value * run.value / 100)
    return math.ceil(duration.value)
