"""Whether a run ends before its plan does, as a function of its rows of metrics."""

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from adabatch_jax.config.stop_rules import Patience, StopRule, parse_stop_rules
from adabatch_jax.runs.due import Due
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.system.errors import UsageError, did_you_mean

StopWhen = str | Callable[[Mapping[str, Any]], bool]


class EarlyStop:
    """Looks at a run's rows in their order, those from before a restart first.

    Nothing is kept beside the rows, so a resumed run ends where an uninterrupted one does: at the
    first evaluation at or behind the row that met a rule, or without evaluations at that row.

    Args:
      stop_when: as in `fit`.
      plan: the run's, in whose epochs or samples patience is counted.
      due: says where a run may end.

    Attributes:
      met: the rule that a row met first, and that row's step, as JSON values; None: none did.
    """

    def __init__(self, stop_when: StopWhen | None, plan: BatchPlan, due: Due):
        self._due, self._metrics = due, set()
        self._rules: list[tuple[str, Callable[[Mapping[str, Any]], bool]]] = []
        self._seen: dict[str, None] = {}  # figures, in their order
        self.met: dict[str, Any] | None = None
        if isinstance(stop_when, str):
            try:
                rules = parse_stop_rules(stop_when)
                self._rules = [(str(rule), _asked(rule, plan)) for rule in rules]
            except UsageError as error:
                raise UsageError(f"stop_when: {error}") from None
            self._metrics = {rule.metrics for rule in rules}
        elif callable(stop_when):
            self._rules = [(getattr(stop_when, "__name__", repr(stop_when)), stop_when)]
        elif stop_when is not None:
            raise UsageError(
                f"`stop_when` must be a text such as 'test_accuracy >= 0.99' or a function of a "
                f"row, got {stop_when!r}."
            )

    @property
    def has_rules(self) -> bool:
        """Whether anything may end the run early: else rows needn't be seen."""
        return bool(self._rules)

    def see(self, row: Mapping[str, Any]) -> None:
        """Looks at the next row."""
        self._seen |= dict.fromkeys(row)
        if self.met is None:
            # All are asked: each knows the rows so far.
            met = [text for text, is_met in self._rules if is_met(dict(row))]
            if met:
                self.met = {"rule": met[0], "step": row["step"]}

    def ends_at(self, finished: int) -> bool:
        """Whether the run ends when so many updates are done, whose row was seen."""
        return self.met is not None and finished > 0 and self._due.is_stop(finished)

    def check_figures(self) -> None:
        """Raises a UsageError where a rule is about a figure that no row so far has."""
        for metrics in sorted(self._metrics):
            if self._seen.keys() & set(metrics):
                continue
            figures = [key for key in self._seen if "_" in key and not key.endswith(_NO_FIGURES)]
            raise UsageError(
                f"stop_when: no row has a figure {' or '.join(map(repr, metrics))}; they have "
                f"{', '.join(figures)}{did_you_mean(metrics[0], figures) or '.'}"
            )


# What rows hold beside figures.
_NO_FIGURES = ("batch_size", "_digest", "_seconds", "_per_second", "learning_rate")


def _asked(rule: StopRule, plan: BatchPlan) -> Callable[[Mapping[str, Any]], bool]:
    return _Waiting(rule, plan) if isinstance(rule, Patience) else rule.is_met


class _Waiting:
    """Patience over the rows that it was called with."""

    def __init__(self, rule: Patience, plan: BatchPlan):
        samples = plan.units.in_samples(rule.duration)
        self._length: Fraction = plan.units.in_steps(rule.duration) if samples is None else samples
        self._position = int if samples is None else plan.samples_at
        self._score = rule.score
        self._best: float | None = None
        self._since = 0

    def __call__(self, row: Mapping[str, Any]) -> bool:
        score = self._score.of(row)
        if score is None:
            return False
        if self._best is None or score > self._best:
            # From where the update began that reached the best: evaluations come at the first
            # update that reaches an epoch's end, so two of them may lie a bit closer than that.
            self._best, self._since = score, self._position(row["step"] - 1)
        return self._position(row["step"]) - self._since > self._length
