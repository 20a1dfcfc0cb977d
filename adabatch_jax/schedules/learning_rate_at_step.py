"""A learning rate that has met a plan: tables of steps and rates, evaluated with numpy or JAX.

The tables are made on the host with exact integers and fractions; what is left for each step is
a look-up and, for smooth shapes and warm-up, float64 arithmetic on integer positions.
"""

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from types import ModuleType
from typing import Any

import numpy as np

from adabatch_jax.schedules.learning_rate_text import LearningRate, coupling_power
from adabatch_jax.schedules.plan import BatchPlan, first_step_from
from adabatch_jax.schedules.strides import Stride
from adabatch_jax.schedules.text_reader import excerpt, positive_integer
from adabatch_jax.system.errors import UsageError

Coupling = str | float | Callable[[float], float]

_MAX_PIECES = 100_000
_MAX_EXACT_DECAYS = 400


def coupling_factors(
    plan: BatchPlan, coupling: Coupling, reference_batch_size: int | None
) -> list[Fraction]:
    """The factor on the base learning rate in each phase of the plan."""
    reference = plan.phases[0].batch_size if reference_batch_size is None else reference_batch_size
    reference = positive_integer(reference, "reference_batch_size")
    ratios = [Fraction(phase.batch_size, reference) for phase in plan.phases]
    if callable(coupling):
        return [Fraction(float(coupling(float(ratio)))) for ratio in ratios]
    power = coupling_power(coupling)
    if power.denominator == 1:
        return [ratio ** int(power) for ratio in ratios]
    return [Fraction(float(ratio) ** float(power)) for ratio in ratios]


@dataclasses.dataclass(frozen=True, eq=False)
class StepClock:
    """A plan's positions as arrays (phases,) of int64, for NumPy and JAX."""

    start_steps: np.ndarray
    start_samples: np.ndarray
    batch_sizes: np.ndarray
    num_examples: int | None
    remainder: str
    last_step: int

    @classmethod
    def of(cls, plan: BatchPlan) -> "StepClock":
        """Makes the arrays; raises a UsageError for 2**31 steps or more."""
        if plan.num_steps >= 2**31:
            raise UsageError(
                f"the plan has {plan.num_steps:,} steps, and optax counts updates in int32; "
                "make it fewer than 2**31 with larger batches."
            )
        columns = [(p.start_step, p.start_sample, p.batch_size) for p in plan.phases]
        tables = np.array(columns, dtype=np.int64).T
        return cls(*tables, plan.num_examples, plan.remainder, plan.num_steps - 1)

    def phase_and_sample(self, xp: ModuleType, count: Any) -> tuple[Any, Any]:
        """The index of update `count`'s phase, and `BatchPlan.samples_at`."""
        phase = xp.searchsorted(xp.asarray(self.start_steps), count, side="right") - 1
        step, sample, size = (
            xp.asarray(table)[phase]
            for table in (self.start_steps, self.start_samples, self.batch_sizes)
        )
        return phase, Stride(sample, size, self.num_examples, self.remainder).begin(count - step)


@dataclasses.dataclass(frozen=True, eq=False)
class ResolvedRate:
    """A described learning rate on a plan, in pieces of one base rate and one factor."""

    clock: StepClock
    num_samples: int
    piece_steps: np.ndarray  # int64 (pieces,): where they begin
    piece_rates: np.ndarray  # float64 (pieces,): base x coupling
    shape: str
    end_rates: np.ndarray  # float64 (pieces,): of a linear shape at the plan's end
    warmup_samples: int
    warmup_from: float

    def __call__(self, xp: ModuleType, count: Any) -> Any:
        """The float64 rate of update `count` (an integer or int64 array)."""
        count = xp.minimum(xp.asarray(count, dtype=np.int64), self.clock.last_step)
        piece = xp.searchsorted(xp.asarray(self.piece_steps), count, side="right") - 1
        rate = xp.asarray(self.piece_rates)[piece]
        if self.shape == "constant" and not self.warmup_samples:
            return rate
        _, sample = self.clock.phase_and_sample(xp, count)
        if self.shape == "cosine":
            rate = rate * (1 + xp.cos(np.pi * (sample / self.num_samples))) / 2
        if self.shape == "linear":
            end_rate = xp.asarray(self.end_rates)[piece]
            rate = rate + (end_rate - rate) * (sample / self.num_samples)
        if self.warmup_samples:
            climb = sample / self.warmup_samples
            warm = self.warmup_from + (rate - self.warmup_from) * climb
            rate = xp.where(sample < self.warmup_samples, warm, rate)
        return rate

    def at(self, step: int) -> float:
        """The rate of an update, as the optimizer gets it (float32)."""
        return float(np.float32(self(np, step)))


def resolve(
    plan: BatchPlan,
    base: LearningRate,
    coupling: Coupling = "linear",
    reference_batch_size: int | None = None,
) -> ResolvedRate:
    """Turns a described learning rate and a plan into tables."""
    factors = coupling_factors(plan, coupling, reference_batch_size)
    pieces = _base_pieces(plan, base)
    starts = sorted({0, *(p.start_step for p in plan.phases), *(step for step, _ in pieces)})
    starts = [step for step in starts if step < plan.num_steps]
    rates, end_rates, piece = [], [], 0
    for step in starts:
        while piece + 1 < len(pieces) and pieces[piece + 1][0] <= step:
            piece += 1
        factor = factors[plan.phase_at(step).index]
        rates.append(float(pieces[piece][1] * factor))
        end_rates.append(float((base.end_value or 0) * factor))
    return ResolvedRate(
        clock=StepClock.of(plan),
        num_samples=plan.num_samples,
        piece_steps=np.array(starts, dtype=np.int64),
        piece_rates=np.array(rates, dtype=np.float64),
        shape=base.shape,
        end_rates=np.array(end_rates, dtype=np.float64),
        warmup_samples=0 if base.warmup is None else plan.sample_of(base.warmup),
        warmup_from=float(base.warmup_from),
    )


def _base_pieces(plan: BatchPlan, base: LearningRate) -> list[tuple[int, Fraction]]:
    """(first step, base rate) of the pieces of a piecewise constant rate."""
    pieces, before = [(0, base.init_value)], 0
    for duration, rate in base.boundaries:
        sample = plan.sample_of(duration)
        if sample <= before:
            raise UsageError(
                f"the thresholds of the learning rate {excerpt(str(base))!r} must increase, but {duration} "
                f"is at sample {sample:,} and the one before it at sample {before:,}."
            )
        before = sample
        pieces.append((first_step_from(plan, sample), rate))
    if base.decay_rate is None:
        return pieces
    rate, k = base.init_value, 0
    while True:
        k += 1
        step = first_step_from(plan, plan.sample_of(base.decay_every.times(k)))
        if step >= plan.num_steps:
            return pieces
        if k > _MAX_PIECES:
            raise UsageError(
                f"the learning rate {str(base)!r} changes more than {_MAX_PIECES:,} times in this "
                "run; decay less often by a smaller factor."
            )
        rate *= base.decay_rate
        if k > _MAX_EXACT_DECAYS:
            rate = Fraction(float(rate))  # exact fractions grow with every factor
        pieces.append((step, rate))
