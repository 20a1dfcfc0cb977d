"""Rules that end a run early, as texts."""

import dataclasses
import math
import operator
import re
from collections.abc import Mapping
from typing import Any

from adabatch_jax.config.value_texts import BY_WHAT_IS_MEASURED, Score, parse_score
from adabatch_jax.schedules.durations import Duration, period_duration
from adabatch_jax.system.errors import UsageError

_COMPARISONS = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
_THRESHOLD = re.compile(r"(?P<metric>[^\s<>=]+)\s*(?P<sign>>=|<=|>|<)\s*(?P<value>\S+)")
_PATIENCE = re.compile(
    r"no (better result|(?P<better>higher|lower) (?P<metric>\S+)) for (?P<duration>.+)"
)


@dataclasses.dataclass(frozen=True)
class Threshold:
    """A figure of the rows of metrics that reaches a value."""

    metric: str
    sign: str
    value: float

    @property
    def metrics(self) -> tuple[str, ...]:
        """The figure alone."""
        return (self.metric,)

    def is_met(self, row: Mapping[str, Any]) -> bool:
        """Whether a row has the figure, and it has reached the value.

        >>> parse_stop_rules("test_accuracy >= 99%")[0].is_met({"test_accuracy": 0.995})
        True
        """
        figure = row.get(self.metric)
        return figure is not None and _COMPARISONS[self.sign](float(figure), self.value)

    def __str__(self) -> str:
        return f"{self.metric} {self.sign} {self.value:g}"


@dataclasses.dataclass(frozen=True)
class Patience:
    """A figure of the rows of metrics that hasn't become better than its best for so long.

    "no better result" is by what the best checkpoint is chosen by where nobody says.
    """

    score: Score
    duration: Duration

    @property
    def metrics(self) -> tuple[str, ...]:
        """Which figure, or which one of several."""
        return self.score.metrics

    def __str__(self) -> str:
        if self.score == parse_score(BY_WHAT_IS_MEASURED):
            return f"no better result for {self.duration}"
        better = "lower" if self.score.is_loss else "higher"
        return f"no {better} {self.score.metric} for {self.duration}"


StopRule = Threshold | Patience


def parse_stop_rules(text: str) -> tuple[StopRule, ...]:
    """Reads one rule, or several with "or" between them, any of which ends the run.

    >>> [str(rule) for rule in parse_stop_rules("test_loss<0.1 or no higher test_accuracy for 5ep")]
    ['test_loss < 0.1', 'no higher test_accuracy for 5ep']
    >>> parse_stop_rules("test_accuracy = 0.99")
    Traceback (most recent call last):
    adabatch_jax.system.errors.UsageError: 'test_accuracy = 0.99' is no rule to stop by; write it ...
    """
    return tuple(map(_parsed, re.split(r"\s+or\s+", " ".join(text.split()))))


def _parsed(text: str) -> StopRule:
    if match := _PATIENCE.fullmatch(text):
        score = parse_score(BY_WHAT_IS_MEASURED)
        if match["better"] is not None:
            score = Score(match["metric"], match["better"] == "lower")
        return Patience(score, period_duration(match["duration"]))
    match = _THRESHOLD.fullmatch(text)
    value = _number(match["value"]) if match else None
    if value is None:
        raise UsageError(
            f"{text!r} is no rule to stop by; write it as 'test_accuracy >= 0.99' or 'no lower "
            "test_loss for 5ep', with 'or' between several."
        )
    if match["metric"].endswith("accuracy") and value > 1:
        raise UsageError(f"{text!r} is never met: accuracies are at most 1; write 0.99 or 99%.")
    return Threshold(match["metric"], match["sign"], value)


def _number(text: str) -> float | None:
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def patience_text(patience: str, keep_best: str | None) -> str:
    """The rule of `--patience`: it watches the figure that the best checkpoint is chosen by.

    Where none is chosen, it is the loss on the test set.

    >>> patience_text("5ep", "max test_accuracy"), patience_text("5ep", None)
    ('no higher test_accuracy for 5ep', 'no lower test_loss for 5ep')
    >>> patience_text("5ep", "auto")
    'no better result for 5ep'
    """
    score = parse_score("min test_loss" if keep_best is None else keep_best)
    return str(Patience(score, period_duration(patience)))
