"""Durations: a length of training in epochs, steps, samples, tokens or percent of the run."""

import dataclasses
import operator
import re
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any, Literal, TypeVar

from adabatch_jax.schedules.text_reader import decimal_text, excerpt
from adabatch_jax.system.errors import UsageError, did_you_mean

_FORM = re.compile(r"(\d[\d_]*(?:\.\d+|/\d+)?|\.\d+)\s*([KMBT]?)(.*)", re.DOTALL)
_SHARE = re.compile(r"(\d{1,9})/(\d{1,9})(?:\s+of\s+the\s+run)?")
_TERM = re.compile(r"(?<=[a-z%])(?=[+-])")
_MULTIPLES = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_UNITS = {"ep": "epochs", "st": "steps", "sp": "samples", "tok": "tokens", "%": "of the run"}
Unit = Literal["ep", "st", "sp", "tok", "%"]
TOKENS_OR_SAMPLES = "tok or sp"  # Megatron-LM's, whatever it knows; whole samples, rounded down
_UNITS_TEXT = "ep (epochs), st (steps), sp (samples), tok (tokens) and % (of the run)"
_LONG_NAMES = {
    "e": "ep", "epoch": "ep", "epochs": "ep",
    "s": "st", "step": "st", "steps": "st", "ba": "st",
    "sample": "sp", "samples": "sp", "ex": "sp", "examples": "sp",
    "token": "tok", "tokens": "tok", "percent": "%", "pc": "%",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Duration:
    """An exact length of training; the plan turns it into samples, once.

    Attributes:
      value: the number.
      unit: "ep" (epochs), "st" (steps), "sp" (samples), "tok" (tokens) or "%" (of the whole run).
      spelling: the text it was read from, so that `str` gives it back.
      source: what it is a multiple of, as that was spelled, for errors to quote.
      plus: what is added in other units, where one isn't enough; may be below 0.

    >>> parse_duration("2.5Msp") == Duration(Fraction(2_500_000), "sp")
    True
    """

    value: Fraction
    unit: str
    spelling: str = dataclasses.field(default="", compare=False, repr=False)
    source: str = dataclasses.field(default="", compare=False, repr=False)
    plus: "tuple[Duration, ...]" = dataclasses.field(default=(), repr=False)

    def __str__(self) -> str:
        if self.spelling:
            return self.spelling
        texts = [f"{decimal_text(term.value)}{term.unit}" for term in (self, *self.plus)]
        return "+".join(texts).replace("+-", "-")

    @property
    def terms(self) -> "tuple[Duration, ...]":
        """What it is the sum of, each in one unit."""
        return (Duration(self.value, self.unit, source=self.source or str(self)), *self.plus)

    def times(self, factor: Fraction | int) -> "Duration":
        """So many times as long."""
        plus = tuple(term.times(factor) for term in self.plus)
        return Duration(self.value * factor, self.unit, source=self.source or str(self), plus=plus)


def short_duration(value: int, unit: Unit) -> Duration:
    """A whole number of units, spelled as short as it can be.

    >>> str(short_duration(15_000_000_000, "tok")), str(short_duration(12_207_032, "sp"))
    ('15Btok', '12207032sp')
    """
    multiples = [("", 1), *_MULTIPLES.items()]
    texts = [f"{decimal_text(Fraction(value, multiple))}{name}" for name, multiple in multiples]
    return Duration(Fraction(value), unit, spelling=min(texts, key=len) + unit)


def parse_duration(text: str | int | Duration) -> Duration:
    """Reads a duration such as `"20ep"`, `"1500st"`, `"2.5Msp"`, `"469Btok"` or `"30%"`.

    Suffixes K, M, B and T stand for powers of 1000: thousands to (American) trillions. An int
    means samples; a number in a text needs its unit. A fraction up to 1 without one, `"1/3"` or
    `"1/3 of the run"`, can only be of the run, and is. Several may be added, without spaces.

    Raises:
      UsageError: no unit or none of these, a negative number, or a fraction of a step.

    >>> parse_duration("2.5Msp").value
    Fraction(2500000, 1)
    >>> str(parse_duration("20ep")), str(parse_duration(50_000))
    ('20ep', '50000sp')
    >>> parse_duration("1/3") == parse_duration("1/3 of the run") == parse_duration("100/3%")
    True
    >>> str(parse_duration("100%-5Ksp"))
    '100%-5Ksp'
    >>> parse_duration("20 epochs")
    Traceback (most recent call last):
    adabatch_jax.system.errors.UsageError: unknown unit 'epochs' in the duration '20 epochs'; ...
    """
    if isinstance(text, Duration):
        return text
    if not isinstance(text, str):
        return _samples(text)
    first, *others = _TERM.split(text.strip())
    if others:
        plus = (parse_duration(term[1:]).times(-1 if term[0] == "-" else 1) for term in others)
        first = parse_duration(first)
        return Duration(first.value, first.unit, spelling="".join(text.split()), plus=tuple(plus))
    share = _SHARE.fullmatch(text.strip())
    if share and 0 < int(share[1]) <= int(share[2]):
        percent = Fraction(100 * int(share[1]), int(share[2]))
        return Duration(percent, "%", spelling=" ".join(text.split()))
    match = _FORM.fullmatch(text.strip())
    if not match:
        raise UsageError(
            f"can't read the duration {text!r}: write a positive number and a unit, "
            'such as "20ep", "1500st", "2.5Msp", "469Btok" or "30%".'
        )
    number, multiple, unit = match.groups()
    unit = unit.strip()
    if not unit:
        raise UsageError(f"the duration {text!r} has no unit; units are {_UNITS_TEXT}.")
    if unit not in _UNITS:
        raise UsageError(
            f"unknown unit {unit!r} in the duration {text!r}{_nearest(unit) or ';'} units are "
            f"{_UNITS_TEXT}."
        )
    try:
        value = Fraction(number) if not multiple else Fraction(number) * _MULTIPLES[multiple]
    except ZeroDivisionError:
        raise UsageError(f"the duration {text!r} divides by zero.") from None
    except ValueError:  # two underscores, or more digits than Python reads
        raise UsageError(f"the duration {text!r} begins with no number.") from None
    if unit in ("st", "sp", "tok") and value.denominator != 1:
        raise UsageError(f"the duration {text!r} is no whole number of {_UNITS[unit]}.")
    return Duration(value, unit, spelling="".join(text.split()))


def _nearest(unit: str) -> str:
    """A hint at the unit that was meant, with its suffix where it begins with a small one."""
    suffix, rest = unit[:1].upper(), unit[1:]
    if suffix in _MULTIPLES and rest in _UNITS:
        return f"; did you mean {suffix + rest!r}?"
    nearest = _LONG_NAMES.get(unit.lower())
    return f"; did you mean {nearest!r}?" if nearest else did_you_mean(unit, _UNITS)


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


Value = TypeVar("Value")
# A mapping isn't covariant in its keys: one of `str | int` would be no dict of texts.
Thresholds = Mapping[Any, Value] | Iterable[tuple[str | int | Duration, Value]]


def read_thresholds(pairs: Thresholds[Value], what: str) -> list[tuple[Duration, Value]]:
    """Reads a mapping of durations, or anything that yields pairs with one.

    Raises:
      UsageError: it is none, and isn't `what` it says; or a duration can't be read.

    >>> read_thresholds({"20ep": 256}, "`sizes` are pairs of (duration, size)")
    [(Duration(value=Fraction(20, 1), unit='ep'), 256)]
    """
    listed: Any = pairs.items() if isinstance(pairs, Mapping) else pairs
    if isinstance(listed, str) or not isinstance(listed, Iterable):
        listed = [listed]  # which is no pair
    read = []
    for pair in listed:
        try:
            duration, value = () if isinstance(pair, str) else pair
        except (TypeError, ValueError):
            raise UsageError(f"{what}, got {excerpt(repr(pair))}.") from None
        read.append((parse_duration(duration), value))
    return read


def check_unit(unit: Unit) -> Unit:
    """Returns a unit of durations; raises a UsageError for any other text."""
    if unit not in _UNITS:
        raise UsageError(
            f"unknown unit {unit!r}{_nearest(str(unit)) or ';'} units are {_UNITS_TEXT}."
        )
    return unit


def positive_duration(text: str | int | Duration, what: str = "a duration") -> Duration:
    """Reads a duration; raises a UsageError, which says `what` it is, unless it is above 0."""
    duration = parse_duration(text)
    if duration.value <= 0:
        raise UsageError(f"{what} must be longer than nothing, got {str(text)!r}.")
    return duration


def period_duration(text: str | int | Duration) -> Duration:
    """Reads how often something happens."""
    return positive_duration(text, "a period")


def run_duration(duration: str | int | Duration, num_examples: int | None = None) -> Duration:
    """Reads the length of a whole run: no share, and no epochs whose unit was forgotten."""
    run = positive_duration(duration, "a run's duration")
    if run.unit == "%":
        raise UsageError(f"a run's duration can't be a share of itself, got {str(run)!r}.")
    is_bare = not isinstance(duration, str | Duration)
    if is_bare and num_examples is not None and run.value < num_examples:
        raise UsageError(
            f"the duration {duration} has no unit, and as samples it is less than one epoch of "
            f'{num_examples}; write "{duration}ep" for epochs or "{duration}sp" for samples.'
        )
    return run


@dataclasses.dataclass(frozen=True)
class Units:
    """What units of durations are in samples, or in steps, for one run.

    Attributes:
      num_examples: the length of an epoch; None for an endless stream.
      tokens_per_example: None where it isn't known.
      run: the run's duration.
      num_samples: the run's length in samples; None while that isn't known.
    """

    num_examples: int | None
    tokens_per_example: int | None
    run: Duration
    num_samples: int | None = None

    def in_samples(self, duration: Duration, what: str = "") -> Fraction | None:
        """The exact length in samples; None for what is counted in steps.

        Errors call it `what`, by default as its user wrote it.

        A percentage is of the run in samples, or in steps where the run's duration is in steps.

        Raises:
          UsageError: epochs of an endless stream, or tokens where `tokens_per_example` is None.
        """
        if duration.plus:
            parts = [self.in_samples(term, what) for term in duration.terms]
            if None not in parts:
                return sum(parts, Fraction(0))
            if any(part is not None for part in parts):
                raise UsageError(
                    f"the duration {str(duration)!r} adds steps, or percent of a run in steps, to "
                    "other units, which have no common measure; give all, and the run's duration, "
                    "in epochs (ep), samples (sp) or tokens (tok)."
                )
            return None
        if duration.unit == "st" or (duration.unit == "%" and self.run.unit == "st"):
            return None
        if duration.unit == "sp":
            return duration.value
        if duration.unit == TOKENS_OR_SAMPLES:
            return Fraction(duration.value // (self.tokens_per_example or 1))
        what = what or f"the duration {duration.source or str(duration)!r}"
        if duration.unit == "%":
            return duration.value * self.num_samples / 100
        if duration.unit == "tok":
            if self.tokens_per_example is None:
                raise UsageError(
                    f"{what} is in tokens; give `tokens_per_example`, the tokens of an example, such "
                    "as 2048."
                )
            return duration.value / self.tokens_per_example
        if self.num_examples is None:
            raise UsageError(
                f"{what} is in epochs, which an endless stream (num_examples=None) doesn't have; "
                "give samples (sp), tokens (tok) or steps (st)."
            )
        return duration.value * self.num_examples

    def in_steps(self, duration: Duration) -> Fraction:
        """The exact length in steps of what `in_samples` can't convert."""
        shares = {"%": self.run.value / 100}
        return sum((t.value * shares.get(t.unit, 1) for t in duration.terms), Fraction(0))
