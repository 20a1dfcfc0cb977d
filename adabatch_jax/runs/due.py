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
    """

    num_steps: int
    evaluations: Period | None
    checkpoints: Period | None
    rows: Period

    def is_evaluation(self, finished: int) -> bool:
        """Whether to evaluate when `finished` updates are done, at least 1."""
        return self._is_due(self.evaluations, finished)

    def is_checkpoint(self, finished: int) -> bool:
        """Whether to save a checkpoint when `finished` updates are done, at least 1."""
        return self._is_due(self.checkpoints, finished)

    def next_stop(self, finished: int) -> int:
        """The first number of updates above `finished` where the state itself is looked at."""
        return min(self._next(period, finished) for period in (self.evaluations, self.checkpoints))

    def next_row(self, finished: int) -> int:
        """The first number of updates above `finished` after which a row is due."""
        return self._next(self.rows, finished)

    def _is_due(self, period: Period | None, finished: int) -> bool:
        return period is not None and (finished == self.num_steps or period.is_due(finished))

    def _next(self, period: Period | None, finished: int) -> int:
        return self.num_steps if period is None else min(period.next(finished), self.num_steps)
