"""Which checkpoint is the best one; no third-party import."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from adabatch_jax.errors import UsageError

_SCORE = re.compile(r"(max|min)\s+([^\s]+)")


@dataclasses.dataclass(frozen=True)
class Score:
    """A figure of the evaluation to choose by.

    Attributes:
      metric: its key in the rows of metrics.
      is_loss: whether smaller is better.
    """

    metric: str
    is_loss: bool

    def of(self, row: Mapping[str, Any]) -> float | None:
        """Returns the row's score, larger is better; None where it has none that is finite.

        >>> parse_score("min test_loss").of({"step": 9, "test_loss": 0.25})
        -0.25
        """
        value = row.get(self.metric)
        if value is None or not math.isfinite(value):
            return None  # NaN would compare as the best, or as nothing
        return -float(value) if self.is_loss else float(value)


def parse_score(text: str) -> Score:
    """Reads "max test_accuracy" or "min test_loss".

    Raises:
      UsageError: it is neither.

    >>> parse_score("max test_accuracy")
    Score(metric='test_accuracy', is_loss=False)
    """
    match = _SCORE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is no score, write it as 'max test_accuracy'.")
    return Score(match[2], match[1] == "min")
