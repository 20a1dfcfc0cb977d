"""What is due when so many updates are finished: evaluations, checkpoints, rows of metrics."""

import dataclasses

from adabatch_jax.schedules.periods import Period


@dataclasses.dataclass(frozen=True)
class Due:
    """A function of the position alone, so that a resumed run does everything at the same places.

    At the plan's end everything is due that is due at all.

    Attributes:
      num_steps: updates of the plan.
      evaluations, checkpoints: how often; None: never.
      rows: how often a row of metrics is written; an evaluation makes one too.
      has_stop_rule: whether a rule may end the run, at evaluations or, without any, at rows.
    """

    num_steps: int
    evaluations: Period | None
    checkpoints: Period | None
    rows: Period
    has_stop_rule: bool = False

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
        return min(self._next(period, finished) for period in periods)

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
