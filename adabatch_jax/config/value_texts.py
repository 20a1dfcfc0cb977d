"""What the texts of single settings mean; no third-party import."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from adabatch_jax.schedules.durations import Duration, parse_duration
from adabatch_jax.system.errors import UsageError


@dataclasses.dataclass(frozen=True)
class NanPolicy:
    """What follows an update whose loss or gradients aren't finite.

    Attributes:
      kind: "stop" ends the run; "skip" leaves the update out; "rollback" takes the weights of the
        newest checkpoint.
      limit: how many updates a run may leave out; None where it leaves out none.
    """

    kind: str
    limit: int | None = None


def parse_nan_policy(text: str) -> NanPolicy:
    """Reads "stop", "skip:N" or "rollback".

    Raises:
      UsageError: it is none of these.

    >>> parse_nan_policy("skip:3")
    NanPolicy(kind='skip', limit=3)
    """
    text = text.strip()
    if text in ("stop", "rollback"):
        return NanPolicy(text)
    match = re.fullmatch(r"skip:([1-9]\d{0,17})", text)
    if match is None:
        raise UsageError(f"{text!r} is not stop, skip:N (leave out up to N updates) or rollback.")
    return NanPolicy("skip", int(match[1]))


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


def parse_period(text: str | int) -> Duration:
    """Reads how often something happens, such as "1ep", longer than nothing.

    Raises:
      UsageError: it is no duration, or nothing.
    """
    period = parse_duration(text)
    if period.value <= 0:
        raise UsageError(f"must be longer than nothing, got {text!r}.")
    return period


def parse_profiled(text: str) -> tuple[int, int]:
    """Reads a range of updates such as "10:20", the second one excluded.

    Raises:
      UsageError: it is none.

    >>> parse_profiled("10:20")
    (10, 20)
    """
    start, _, stop = text.partition(":")
    if not (start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
        raise UsageError(
            f"{text!r} is no range of updates, the first and the one behind the last; write it "
            "as '10:20'."
        )
    return int(start), int(stop)


def check_name(name: str) -> None:
    """Raises a UsageError unless a folder may be called so on any system."""
    if not re.fullmatch(r"[\w][\w.+=-]*", name):
        raise UsageError(f"{name!r} can't be a folder's name; use letters, digits, '_' and '-'.")


def check_path(path: str) -> None:
    """Raises a UsageError where no file can have this path."""
    if "\0" in path:
        raise UsageError(f"{path!r} can't be a file's name.")
