"""What is due when so many updates are finished: evaluations, checkpoints, rows, a planned stop."""

import dataclasses

from adabatch_jax.config.settings import NEXT
from adabatch_jax.schedules.periods import Period
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.system.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Due:
    """A function of the position alone, so that a resumed run does everything at the same places.

    At the plan's end everything is due that is due at all.

    Attributes:
      num_steps: updates of the plan.
      evaluations, checkpoints: how often; None: never.
      rows: how often a row of metrics is written; an evaluation makes one too.
      has_stop_rule: whether a rule may end the run, at evaluations or, without any, at rows.
      phase_stop: the first update of the phase that the run is asked to stop at; None: of none.
    """

    num_steps: int
    evaluations: Period | None
    checkpoints: Period | None
    rows: Period
    has_stop_rule: bool = False
    phase_stop: int | None = None

    def is_evaluation(self, finished: int) -> bool:
        """Whether to evaluate when `finished` updates are done, at least 1."""
        return self._is_due(self.evaluations, finished)

    def is_checkpoint(self, finished: int) -> bool:
        """Whether to save a checkpoint when `finished` updates are done, at least 1."""
        return self._is_due(self.checkpoints, finished)

    def is_stop(self, finished: int) -> bool:
        """Whether a rule may end the run when `finished` updates are done, at least 1."""
        return self._is_due(self._stops, finished)

    def next_stop(self, finished: int) -> int:
        """The first number of updates above `finished` where the state itself is looked at."""
        periods = (self.evaluations, self.checkpoints, self._stops)
        stops = [self._next(period, finished) for period in periods]
        if self.phase_stop is not None and self.phase_stop > finished:
            stops.append(self.phase_stop)
        return min(stops)

    def next_row(self, finished: int) -> int:
        """The first number of updates above `finished` after which a row is due."""
        return self._next(self.rows, finished)

    @property
    def _stops(self) -> Period | None:
        return (self.evaluations or self.rows) if self.has_stop_rule else None

    def _is_due(self, period: Period | None, finished: int) -> bool:
        return period is not None and (finished == self.num_steps or period.is_due(finished))

    def _next(self, period: Period | None, finished: int) -> int:
        return self.num_steps if period is None else min(period.next(finished), self.num_steps)


def phase_stop(asked: int | str | None, plan: BatchPlan, start_step: int) -> int | None:
    """The update before which a run that begins with `start_step` is asked to stop; None: none.

    That is the run's own first one where it stands before the phase already; behind the last phase
    there is no next one.

    Raises:
      UsageError: there is no such phase, or the run is behind its beginning.

    >>> from adabatch_jax import make_plan
    >>> plan = make_plan("2, 6sp: 4, 14sp: 8", num_examples=30, duration="1ep")
    >>> [phase.start_step for phase in plan.phases]
    [0, 3, 5]
    >>> [phase_stop(2, plan, step) for step in (0, 2, 3)], phase_stop(3, plan, 4)
    ([3, 3, 3], 5)
    >>> [phase_stop("next", plan, step) for step in (0, 2, 3, 4, 5)]
    [3, 3, 5, 5, None]
    >>> phase_stop(2, plan, 4)
    Traceback (most recent call last):
    adabatch_jax.system.errors.UsageError: stop_at_phase: phase 2 began with update 3, and the run ...
    """
    if asked is None:
        return None
    if asked == NEXT:
        following = plan.phase_at(min(start_step, plan.num_steps - 1)).index + 1
        return plan.phases[following].start_step if following < len(plan.phases) else None
    if asked > len(plan.phases):
        raise UsageError(
            f"stop_at_phase: there is no phase {asked}, the plan has {len(plan.phases)}; leave it "
            "out to train to the plan's end."
        )
    step = plan.phases[asked - 1].start_step
    if step < start_step:
        raise UsageError(
            f"stop_at_phase: phase {asked} began with update {step:,}, and the run has {start_step:,} "
            "updates behind it; name a later phase, or next, or leave it out."
        )
    return step
