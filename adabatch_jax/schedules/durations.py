"""Durations: a length of training in epochs, steps, samples or percent of the run."""

import dataclasses
import math
import operator
import re
from fractions import Fraction

from adabatch_jax.schedules.text_reader import decimal_text
from adabatch_jax.system.errors import UsageError, did_you_mean

_FORM = re.compile(r"(\d[\d_]*(?:\.\d+|/\d+)?|\.\d+)\s*([KMB]?)(.*)", re.DOTALL)
_MULTIPLES = {"K": 10**3, "M": 10**6, "B": 10**9}
_UNITS = ("ep", "st", "sp", "%")
_LONG_NAMES = {
    "e": "ep", "epoch": "ep", "epochs": "ep",
    "s": "st", "step": "st", "steps": "st", "ba": "st",
    "sample": "sp", "samples": "sp", "ex": "sp", "examples": "sp",
    "percent": "%", "pc": "%",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Duration:
    """An exact length of training; the plan turns it into samples, once.

    Attributes:
      value: the number.
      unit: "ep" (epochs), "st" (steps), "sp" (samples) or "%" (of the whole run).
      spelling: the text it was read from, so that `str` gives it back.
    """

    value: Fraction
    unit: str
    spelling: str = dataclasses.field(default="", compare=False, repr=False)

    def __str__(self) -> str:
        return self.spelling or f"{decimal_text(self.value)}{self.unit}"

    def times(self, factor: Fraction | int) -> "Duration":
        return Duration(self.value * factor, self.unit)


def parse_duration(text: str | int | Duration) -> Duration:
    """Reads a duration such as `"20ep"`, `"1500st"`, `"2.5Msp"`, `"30%"`; an int means samples.

    Suffixes K, M and B stand for thousands, millions and (American) billions.

    Raises:
      UsageError: no such unit, a negative number, or a fraction of a step.

    >>> parse_duration("2.5Msp").value
    Fraction(2500000, 1)
    >>> str(parse_duration("20ep")), str(parse_duration(50_000))
    ('20ep', '50000sp')
    >>> parse_duration("20 epochs")
    Traceback (most recent call last):
    adabatch_jax.system.errors.UsageError: unknown unit 'epochs' in the duration '20 epochs'; ...
    """
    if isinstance(text, Duration):
        return text
    if not isinstance(text, str):
        return _samples(text)
    match = _FORM.fullmatch(text.strip())
    if not match:
        raise UsageError(
            f"can't read the duration {text!r}: write a positive number and a unit, "
            'such as "20ep", "1500st", "2.5Msp" or "30%".'
        )
    number, multiple, unit = match.groups()
    unit = unit.strip()
    if unit not in (*_UNITS, ""):
        nearest = _LONG_NAMES.get(unit.lower())
        hint = f"; did you mean {nearest!r}?" if nearest else did_you_mean(unit, _UNITS)
        raise UsageError(
            f"unknown unit {unit!r} in the duration {text!r}{hint or ';'} units are ep (epochs), "
            "st (steps), sp (samples) and % (of the run)."
        )
    try:
        value = Fraction(number) if not multiple else Fraction(number) * _MULTIPLES[multiple]
    except ZeroDivisionError:
        raise UsageError(f"the duration {text!r} divides by zero.") from None
    except ValueError:  # two underscores, or more digits than Python reads
        raise UsageError(f"the duration {text!r} begins with no number.") from None
    if unit in ("st", "sp", "") and value.denominator != 1:
        raise UsageError(f"the duration {text!r} is no whole number of steps or samples.")
    return Duration(value, unit or "sp", spelling="".join(text.split()))


def _samples(value: int) -> Duration:
    try:
        if isinstance(value, bool):
            raise TypeError
        count = operator.index(value)
    except TypeError:
        raise UsageError(
            f"a duration is a text with a unit or a whole number of samples, got {value!r}; "
            'write for example "20ep".'
        ) from None
    if count < 0:
        raise UsageError(f"a duration can't be negative, got {count}.")
    return Duration(Fraction(count), "sp")


def positive_duration(text: str | int | Duration, what: str = "a duration") -> Duration:
    """Reads a duration; raises a UsageError, which says `what` it is, unless it is above 0."""
    duration = parse_duration(text)
    if duration.value <= 0:
        raise UsageError(f"{what} must be longer than nothing, got {str(duration)!r}.")
    return duration


def period_duration(text: str | int | Duration) -> Duration:
    """Reads how often something happens: in a text with its unit."""
    duration = positive_duration(text, "a period")
    if isinstance(text, str) and not text.rstrip().endswith(_UNITS):
        raise UsageError(
            f"the period {text!r} has no unit; units are ep (epochs), st (steps), sp (samples) and "
            "% (of the run)."
        )
    return duration


def run_duration(duration: str | int | Duration, num_examples: int | None) -> Duration:
    """Reads the length of a whole run: no share, and no epochs whose unit was forgotten."""
    run = positive_duration(duration, "a run's duration")
    if run.unit == "%":
        raise UsageError(f"a run's duration can't be a share of itself, got {str(run)!r}.")
    bare = not isinstance(duration, Duration) and not str(duration).endswith(("sp", "st", "ep"))
    if bare and num_examples is not None and run.value < num_examples:
        raise UsageError(
            f"the duration {duration} has no unit, and as samples it is less than one epoch of "
            f'{num_examples}; write "{duration}ep" for epochs or "{duration}sp" for samples.'
        )
    return run


def sample_count(
    duration: Duration, num_examples: int | None, num_samples: int | None, run: Duration
) -> int | None:
    """Converts to samples, rounded up, what needs no plan; None for a number of steps.

    A percentage is of `num_samples`, which is None while `run` itself is converted; where that is
    in steps, so is the percentage.
    """
    if duration.unit == "st" or (duration.unit == "%" and run.unit == "st"):
        return None
    if duration.unit == "sp":
        return math.ceil(duration.value)
    if duration.unit == "%":
        return math.ceil(duration.value * num_samples / 100)
    if num_examples is None:
        raise UsageError(
            f"the duration {str(duration)!r} is in epochs, which an endless stream "
            "(num_examples=None) doesn't have; give samples (sp) or steps (st)."
        )
    return math.ceil(duration.value * num_examples)


def step_count(duration: Duration, run: Duration) -> int:
    """Converts to steps, rounded up, what `sample_count` can't convert."""
    if duration.unit == "%":
        return math.ceil(duration.value * run.value / 100)
    return math.ceil(duration.value)
