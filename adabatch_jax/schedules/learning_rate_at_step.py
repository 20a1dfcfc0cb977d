"""A learning rate that has met a plan: tables of steps and rates, evaluated with numpy or JAX.

The tables are made on the host with exact integers and fractions; what is left for each step is
a look-up and, for smooth shapes and warm-up, float64 arithmetic on integer positions.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from types import ModuleType
from typing import Any, Literal

import numpy as np

from adabatch_jax.schedules.learning_rate_pieces import CURVES, base_pieces, changes, curve_at
from adabatch_jax.schedules.learning_rate_text import LearningRate, coupling_power
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.schedules.strides import Stride
from adabatch_jax.schedules.text_reader import positive_integer
from adabatch_jax.system.errors import UsageError

Coupling = Literal["none", "linear", "sqrt"] | float | Callable[[float], float]


def reference_size(plan: BatchPlan, reference_batch_size: int | None) -> int:
    """The batch size that a learning rate is meant for: by default the plan's first."""
    if reference_batch_size is None:
        return plan.phases[0].batch_size
    return positive_integer(reference_batch_size, "reference_batch_size")


def coupling_factors(
    plan: BatchPlan, coupling: Coupling, reference_batch_size: int | None
) -> list[Fraction]:
    """The factor on the base learning rate in each phase of the plan."""
    reference = reference_size(plan, reference_batch_size)
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
    """A described learning rate on a plan, in pieces of one base rate and one factor.

    The columns are arrays (pieces,): int64 steps and samples, float64 rates, factors included.
    """

    clock: StepClock
    steps: np.ndarray  # where the pieces begin
    rates: np.ndarray
    curves: np.ndarray  # indices into CURVES; -1: constant
    end_rates: np.ndarray  # what the curves fall to
    samples: np.ndarray  # where the curves begin
    lengths: np.ndarray  # after which the rate keeps its value
    scales: np.ndarray  # samples that are 1 to a curve
    warmup_samples: int
    warmup_from: float

    def __call__(self, xp: ModuleType, count: Any) -> Any:
        """The float64 rate of update `count` (an integer or int64 array)."""
        count = xp.minimum(xp.asarray(count, dtype=np.int64), self.clock.last_step)
        piece = xp.searchsorted(xp.asarray(self.steps), count, side="right") - 1
        rate = xp.asarray(self.rates)[piece]
        if (self.curves < 0).all() and not self.warmup_samples:
            return rate
        _, sample = self.clock.phase_and_sample(xp, count)
        rate = self._along_curves(xp, piece, rate, sample)
        if self.warmup_samples:
            climb = sample / self.warmup_samples
            warm = self.warmup_from + (rate - self.warmup_from) * climb
            rate = xp.where(sample < self.warmup_samples, warm, rate)
        return rate

    def _along_curves(self, xp: ModuleType, piece: Any, rate: Any, sample: Any) -> Any:
        columns = self.curves, self.end_rates, self.samples, self.lengths, self.scales
        curve, end_rate, begin, length, scale = (xp.asarray(column)[piece] for column in columns)
        share = xp.clip(sample - begin, 0, length) / scale
        start = rate
        for index in np.unique(self.curves[self.curves >= 0]).tolist():
            left = curve_at(xp, CURVES[index], share)
            rate = xp.where(curve == index, end_rate + (start - end_rate) * left, rate)
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
    pieces = base_pieces(plan, base)
    couplings = coupling_factors(plan, coupling, reference_batch_size)
    coupled = [(phase.start_step, factor) for phase, factor in zip(plan.phases, couplings)]
    factors = [(0, base.factor), *changes(plan, base, base.factor_boundaries)]
    starts = sorted({step for step, *_ in (*pieces, *coupled, *factors) if step < plan.num_steps})
    columns: list[tuple] = []
    for step, piece, (_, coupled_by), (_, factor) in zip(
        starts, *(_in_force(starts, entries) for entries in (pieces, coupled, factors))
    ):
        factor = factor * coupled_by
        curve = CURVES.index(piece.curve) if piece.curve in CURVES else -1
        rates = float(piece.rate * factor), curve, float(piece.end_rate * factor)
        columns.append((step, *rates, piece.sample, piece.length, piece.scale))
    return ResolvedRate(
        StepClock.of(plan),
        *(np.array(column) for column in zip(*columns)),
        warmup_samples=0 if base.warmup is None else plan.sample_of(base.warmup),
        warmup_from=float(base.warmup_from),
    )


def _in_force(starts: Sequence[int], entries: Sequence[tuple]) -> Iterator[tuple]:
    """For each step, the last of the entries (first step, ...) that begin there or before."""
    index = 0
    for step in starts:
        while index + 1 < len(entries) and entries[index + 1][0] <= step:
            index += 1
        yield entries[index]
