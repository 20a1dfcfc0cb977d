"""What the texts of single settings mean."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

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

    >>> parse_nan_policy("skip:3")
    NanPolicy(kind='skip', limit=3)
    """
    match = re.fullmatch(r"stop|rollback|skip:([1-9]\d{0,17})", text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not stop, skip:N (leave out up to N updates) or rollback.")
    return NanPolicy("skip", int(match[1])) if match[1] else NanPolicy(match[0])


@dataclasses.dataclass(frozen=True)
class Score:
    """A figure of the evaluation to choose by: a key of the rows, and whether less is better."""

    metric: str
    is_loss: bool

    def of(self, row: Mapping[str, Any]) -> float | None:
        """The row's score, larger is better; None where it has none that is finite.

        >>> parse_score("min test_loss").of({"step": 9, "test_loss": 0.25})
        -0.25
        """
        value = row.get(self.metric)
        if value is None or not math.isfinite(value):
            return None  # NaN would compare as the best, or as nothing
        return -float(value) if self.is_loss else float(value)


def parse_score(text: str) -> Score:
    """Reads "max test_accuracy" or "min test_loss"."""
    match = re.fullmatch(r"(max|min)\s+(\S+)", text.strip())
    if match is None:
        raise UsageError(f"{text!r} is no score, write it as 'max test_accuracy'.")
    return Score(match[2], match[1] == "min")


def parse_profiled(text: str) -> tuple[int, int]:
    """Reads a range of updates such as "10:20", the second one excluded."""
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
