"""Durations: a length of training in epochs, steps, samples or percent of the run."""

import dataclasses
import operator
import re
from fractions import Fraction

from adabatch_jax.schedules.text_reader import decimal_text
from adabatch_jax.system.errors import UsageError, did_you_mean

_FORM = re.compile(r"(\d[\d_]*(?:\.\d+|/\d+)?|\.\d+)\s*([KMB]?)(.*)", re.DOTALL)
_MULTIPLES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}
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
      value: the number, exact.
      unit: "ep" (epochs), "st" (steps), "sp" (samples) or "%" (of the whole run).
      spelling: the text it was read from, so that `str` gives it back.
    """

    value: Fraction
    unit: str
    spelling: str = dataclasses.field(default="", compare=False, repr=False)

    def __str__(self) -> str:
        return self.spelling or f"{decimal_text(self.value)}{self.unit}"

    def times(self, factor: Fraction | int) -> "Duration":
        """Returns this duration `factor` times."""
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
        value = Fraction(number) * _MULTIPLES[multiple]
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
