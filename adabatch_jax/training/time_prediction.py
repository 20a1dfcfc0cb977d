"""Seconds per update as a function of the batch size, T(B) = a + b B, and what follows from it."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from adabatch_jax.schedules.phases import Phase
from adabatch_jax.schedules.plan import BatchPlan, fixed_batch_plan
from adabatch_jax.system.errors import UsageError

# Growth pays while each doubling of the batch adds this share to the examples per second.
WORTHWHILE_GAIN = 0.05
# b B is then 9 a: the examples take 90 % of the update's time.
_SATURATED_RATIO = 9


@dataclasses.dataclass(frozen=True)
class UpdateCost:
    """An update on B examples takes `overhead_seconds + B * example_seconds`, a + b B.

    >>> cost = UpdateCost(overhead_seconds=0.03, example_seconds=0.001)
    >>> round(cost.update_seconds(70), 6), cost.saturating_batch_size
    (0.1, 270)
    """

    overhead_seconds: float
    example_seconds: float

    def update_seconds(self, batch_size: int) -> float:
        """The time of one update."""
        return self.overhead_seconds + self.example_seconds * batch_size

    @property
    def saturating_batch_size(self) -> int | None:
        """The smallest batch whose examples per second reach 90 % of the limit 1 / b.

        B / (a + b B) >= 0.9 / b from B = 9 a / b on; doubling a batch of this size adds a last
        20/19, about 5 %. None where examples cost nothing (b = 0) and every growth pays.
        """
        if self.example_seconds == 0:
            return None
        return max(math.ceil(_SATURATED_RATIO * self.overhead_seconds / self.example_seconds), 1)


def fit_update_cost(seconds_by_size: Mapping[int, float]) -> UpdateCost:
    """Fits T(B) = a + b B with a, b >= 0 to measured seconds.

    Least squares of the relative errors, `(T(B) - t) / t`: a small batch counts as much as a
    large one. One size alone can't tell a from b; everything is put down to the examples then.

    >>> fit_update_cost({128: 0.2})
    UpdateCost(overhead_seconds=0.0, example_seconds=0.0015625)
    """
    sizes = np.array(list(seconds_by_size), float)
    seconds = np.array(list(seconds_by_size.values()), float)
    # Columns of a and b; the wanted value of each row is 1.
    overhead, example = 1 / seconds, sizes / seconds
    candidates = [(0.0, example.sum() / (example @ example))]
    if len(sizes) > 1:
        candidates.append((overhead.sum() / (overhead @ overhead), 0.0))
        free = np.linalg.lstsq(np.stack([overhead, example], 1), np.ones_like(seconds))[0]
        if min(free) >= 0:
            candidates.append(tuple(free))
    # The problem is convex: where the free optimum is not allowed, the best is on a boundary.
    best = min(candidates, key=lambda ab: np.sum((ab[0] * overhead + ab[1] * example - 1) ** 2))
    return UpdateCost(float(best[0]), float(best[1]))


def largest_paying_size(seconds_by_size: Mapping[int, float]) -> int:
    """The largest size that is worth growing to, by its examples per second.

    A size pays if it beats the fastest of the smaller sizes by at least 5 % for each doubling
    in between. The fastest and not the next smaller: one slow size in the row makes neither
    itself nor the size after it look good. The smallest if no growth pays.

    >>> largest_paying_size({64: 0.10, 128: 0.11, 256: 0.15, 512: 0.29, 1024: 0.57})
    256
    """
    sizes = sorted(seconds_by_size)
    fastest = paying = sizes[0]
    for size in sizes[1:]:
        gain = (size / seconds_by_size[size]) / (fastest / seconds_by_size[fastest])
        if gain >= (1 + WORTHWHILE_GAIN) ** math.log2(size / fastest):
            paying = size
        if gain > 1:
            fastest = size
    return paying


@dataclasses.dataclass(frozen=True)
class PhaseCost:
    """What a phase takes.

    Attributes:
      phase: its number, from 0.
      update_seconds: of an update with a full batch.
      is_measured: whether that was measured, else it comes from the fit.
      phase_seconds: of all its updates.
    """

    phase: int
    batch_size: int
    num_updates: int
    update_seconds: float
    is_measured: bool
    phase_seconds: float

    @property
    def examples_per_second(self) -> float:
        """The pace of full batches."""
        return self.batch_size / self.update_seconds


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a plan's updates will take, and what its growth gains; `predict` makes it.

    Everything is about updates: compilation, evaluation, checkpoints, and input that doesn't
    keep up come on top. `fixed_seconds` is the time of the same samples with the first phase's
    batch throughout.
    """

    phases: tuple[PhaseCost, ...]
    cost: UpdateCost
    fixed_seconds: float

    @property
    def total_seconds(self) -> float:
        """The time of all updates."""
        return sum(phase.phase_seconds for phase in self.phases)

    @property
    def speedup(self) -> float:
        """How many times as long the first phase's batch would take throughout."""
        return self.fixed_seconds / self.total_seconds

    def phase_speedup(self, phase: PhaseCost) -> float:
        """The examples per second of a phase over those of the first."""
        return phase.examples_per_second / self.phases[0].examples_per_second

    @property
    def largest_paying_size(self) -> int:
        """The largest planned batch that is worth growing to, see `largest_paying_size`."""
        return largest_paying_size({p.batch_size: p.update_seconds for p in self.phases})

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` makes the prediction of, as JSON values."""
        return {
            "total_seconds": self.total_seconds,
            "fixed_seconds": self.fixed_seconds,
            **dataclasses.asdict(self.cost),
            "phases": [dataclasses.asdict(phase) for phase in self.phases],
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Prediction":
        """Makes the prediction that `to_dict` described; a UsageError if it is none."""
        try:
            names = [field.name for field in dataclasses.fields(PhaseCost)]
            return cls(
                phases=tuple(
                    PhaseCost(**{n: phase[n] for n in names}) for phase in content["phases"]
                ),
                cost=UpdateCost(content["overhead_seconds"], content["example_seconds"]),
                fixed_seconds=content["fixed_seconds"],
            )
        except (KeyError, TypeError) as error:
            raise UsageError(f"this is no prediction as `to_dict` writes it: {error}.") from None


def predict(plan: BatchPlan, seconds_by_size: Mapping[int, float]) -> Prediction:
    """Predicts the time of a plan's updates.

    A size that was measured takes what was measured: memory and kernels make T(B) jump, and the
    jump is real. The fit T(B) = a + b B fills in the others, inside and outside of the range. A
    partial batch of r examples takes T(r) / T(B) of what its phase's full ones do.

    >>> from adabatch_jax import make_plan
    >>> plan = make_plan("100, 10ep: 400", num_examples=1000, duration="20ep")
    >>> prediction = predict(plan, {100: 0.5, 400: 0.8})
    >>> [round(phase.phase_seconds, 6) for phase in prediction.phases], prediction.fixed_seconds
    ([50.0, 20.0], 100.0)
    >>> round(prediction.speedup, 3)
    1.429
    """
    cost = fit_update_cost(seconds_by_size)

    def phase_cost(plan: BatchPlan, phase: Phase) -> PhaseCost:
        size, number = phase.batch_size, phase.num_steps
        full = seconds_by_size.get(size) or cost.update_seconds(size)
        missing = 0  # examples that partial batches lack
        if plan.remainder != "drop":
            missing = number * size - (phase.stop_sample - phase.start_sample)
        per_example = full * cost.example_seconds / cost.update_seconds(size)
        return PhaseCost(
            phase=phase.index,
            batch_size=size,
            num_updates=number,
            update_seconds=float(full),
            is_measured=size in seconds_by_size,
            phase_seconds=float(number * full - missing * per_example),
        )

    phases = tuple(phase_cost(plan, phase) for phase in plan.phases)
    fixed = fixed_batch_plan(plan)
    fixed_seconds = sum(phase_cost(fixed, phase).phase_seconds for phase in fixed.phases)
    return Prediction(phases, cost, fixed_seconds)
