"""How long a plan will take, phase by phase, from the seconds of a few updates."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from adabatch_jax.costs.model import UpdateCost, fit_update_cost, largest_paying_size
from adabatch_jax.errors import UsageError
from adabatch_jax.schedules.building import make_plan
from adabatch_jax.schedules.plan import BatchPlan


@dataclasses.dataclass(frozen=True)
class PhaseCost:
    """What a phase takes.

    Attributes:
      phase: its number, from 0.
      batch_size: examples per update.
      num_updates: its updates. A partial batch is padded to the phase's size and takes as long.
      update_seconds: the time of one update.
      is_measured: whether that was measured, else it comes from the fit.
    """

    phase: int
    batch_size: int
    num_updates: int
    update_seconds: float
    is_measured: bool

    @property
    def seconds(self) -> float:
        """The time of the phase's updates."""
        return self.num_updates * self.update_seconds

    @property
    def examples_per_second(self) -> float:
        """The pace of full batches."""
        return self.batch_size / self.update_seconds


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a plan's updates will take, and what its growth gains; `predict` makes it.

    Everything is about updates: compilation, evaluation, checkpoints, and input that doesn't
    keep up come on top.

    Attributes:
      phases: the cost of each phase, in order.
      cost: the fitted T(B) = a + b B.
      fixed_seconds: the time of the same samples with the first phase's batch throughout.
    """

    phases: tuple[PhaseCost, ...]
    cost: UpdateCost
    fixed_seconds: float

    @property
    def total_seconds(self) -> float:
        """The time of all updates."""
        return sum(phase.seconds for phase in self.phases)

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
        """What `from_dict` makes the prediction of, as JSON values.

        Keys of times end in `_seconds`; what is computed from them is not written.
        """
        return {
            "total_seconds": self.total_seconds,
            "fixed_seconds": self.fixed_seconds,
            **dataclasses.asdict(self.cost),
            "phases": [
                {**dataclasses.asdict(phase), "phase_seconds": phase.seconds}
                for phase in self.phases
            ],
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Prediction":
        """Makes the prediction that `to_dict` described.

        Raises:
          UsageError: it is none.
        """
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
    jump is real. The fit T(B) = a + b B fills in the others, inside and outside of the range.

    Args:
      plan: the plan.
      seconds_by_size: batch size -> measured seconds per update, padding included; at least one
        size, and any that the plan doesn't have.

    Raises:
      UsageError: nothing was measured, or a time isn't above 0.

    >>> plan = make_plan("100, 10ep: 400", num_examples=1000, duration="20ep")
    >>> prediction = predict(plan, {100: 0.5, 400: 0.8})
    >>> [round(phase.seconds, 6) for phase in prediction.phases], prediction.fixed_seconds
    ([50.0, 20.0], 100.0)
    >>> round(prediction.speedup, 3)
    1.429
    """
    cost = fit_update_cost(seconds_by_size)

    def update_seconds(batch_size: int) -> float:
        return seconds_by_size.get(batch_size) or cost.update_seconds(batch_size)

    phases = tuple(
        PhaseCost(
            phase=phase.index,
            batch_size=phase.batch_size,
            num_updates=phase.num_steps,
            update_seconds=float(update_seconds(phase.batch_size)),
            is_measured=phase.batch_size in seconds_by_size,
        )
        for phase in plan.phases
    )
    first = phases[0]
    fixed = make_plan(first.batch_size, plan.num_examples, f"{plan.num_samples}sp", plan.remainder)
    return Prediction(phases, cost, fixed.num_steps * first.update_seconds)
