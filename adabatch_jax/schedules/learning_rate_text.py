"""The learning rate as a text: what training at the reference batch size would use."""

import dataclasses
from fractions import Fraction

from adabatch_jax.schedules.durations import Duration
from adabatch_jax.schedules.schedule_text import read_boundaries, read_duration
from adabatch_jax.schedules.text_reader import Reader, decimal_text, exact
from adabatch_jax.system.errors import UsageError, did_you_mean

Boundaries = tuple[tuple[Duration, Fraction], ...]

_SHAPES = ("constant", "linear", "cosine", "sqrt", "rsqrt")
_LAST = "over the last"


@dataclasses.dataclass(frozen=True)
class RatePart:
    """A stretch of a learning rate, which begins where the part before it ends.

    Attributes:
      shape: "constant"; "decay", by `decay_rate` after each `decay_every`; "linear", "cosine" or
        "sqrt" (1 - sqrt), which fall to `end_value`; or "rsqrt", which is divided by the square
        root of 1 + (samples since its beginning) / `scale`.
      init_value: the rate at its beginning; None: what the part before it has at its end.
      scale: None: as long as from sample 0 to its beginning, so that the rate goes with
        1 / sqrt(position), as T5's and PaLM's.
      length: None: it lasts until the next part begins, or the plan ends.
      measured: how `length` says where it is: "over" (from its beginning), "until" (from sample 0)
        or "over the last" (it ends with the plan, and begins so long before).
    """

    shape: str = "constant"
    init_value: Fraction | None = None
    end_value: Fraction | None = None
    decay_rate: Fraction | None = None
    decay_every: Duration | None = None
    scale: Duration | None = None
    length: Duration | None = None
    measured: str = "over"

    @property
    def ends_the_run(self) -> bool:
        """Whether it says where it begins, before the plan's end."""
        return self.length is not None and self.measured == _LAST

    def __str__(self) -> str:
        words = [] if self.init_value is None else [decimal_text(self.init_value)]
        if self.shape == "decay":
            words.append(f"x{decimal_text(self.decay_rate)} every {self.decay_every}")
        elif self.shape != "constant" or not words:
            words.append(self.shape)
        if self.end_value or self.shape == "linear":
            words.append(f"to {decimal_text(self.end_value)}")
        if self.scale is not None:
            words.append(f"scale {self.scale}")
        if self.length is not None:
            words.append(f"{self.measured} {self.length}")
        return " ".join(words)


@dataclasses.dataclass(frozen=True)
class LearningRate:
    """A learning rate before it meets a plan; made by `parse_learning_rate`.

    Attributes:
      init_value: the rate at the start, behind any warm-up.
      boundaries: (duration, rate from there on), listed one by one.
      parts: what it does instead, one after the other; none: it is constant.
      warmup: how long the rate climbs linearly to what it would be; None without warm-up.
      warmup_from: the actual rate at sample 0 of a warm-up; the coupling doesn't scale it.
      begins_after_warmup: whether the first part begins at the warm-up's end, not at sample 0.
      factor: what the rate is multiplied by, as by the coupling, at the start.
      factor_boundaries: (duration, factor from there on).

    >>> rate = parse_learning_rate("0.1 x0.375 every 20ep warmup 5ep")
    >>> rate.init_value, str(rate.warmup), str(rate)
    (Fraction(1, 10), '5ep', '0.1 x0.375 every 20ep warmup 5ep')
    """

    init_value: Fraction
    boundaries: Boundaries = ()
    parts: tuple[RatePart, ...] = ()
    warmup: Duration | None = None
    warmup_from: Fraction = Fraction(0)
    begins_after_warmup: bool = False
    factor: Fraction = Fraction(1)
    factor_boundaries: Boundaries = ()

    def __str__(self) -> str:
        parts = " then ".join(map(str, self.parts))
        text = decimal_text(self.init_value) + _boundaries_text(self.boundaries)
        if parts and not self.begins_after_warmup:
            text += f" {parts}"
        if self.warmup is not None:
            text += f" warmup {self.warmup}"
            if self.warmup_from:
                text += f" from {decimal_text(self.warmup_from)}"
        if parts and self.begins_after_warmup:
            text += f" then {parts}"
        if self.factor != 1 or self.factor_boundaries:
            text += f" times {decimal_text(self.factor)}{_boundaries_text(self.factor_boundaries)}"
        return text

    def times(self, factor: Fraction) -> "LearningRate":
        """All rates, the warm-up's first one included, multiplied by a factor."""

        def scaled(rate: Fraction | None) -> Fraction | None:
            return None if rate is None else rate * factor

        return dataclasses.replace(
            self,
            init_value=scaled(self.init_value),
            boundaries=tuple((duration, scaled(rate)) for duration, rate in self.boundaries),
            parts=tuple(
                dataclasses.replace(
                    part, init_value=scaled(part.init_value), end_value=scaled(part.end_value)
                )
                for part in self.parts
            ),
            warmup_from=scaled(self.warmup_from),
        )


def _boundaries_text(boundaries: Boundaries) -> str:
    return "".join(f", {duration}: {decimal_text(value)}" for duration, value in boundaries)


def parse_learning_rate(text: str) -> LearningRate:
    """Reads a learning rate.

    The forms: `"0.1"`, `"0.1 x0.375 every 20ep"`, `"0.1, 30ep: 0.01, 60ep: 0.001"`, `"0.1 cosine
    to 0.01"`, `"0.1 linear to 0.001 over 80%"`, `"0.1 sqrt"` (1 - sqrt), `"0.1 rsqrt scale
    10000st"`, each optionally followed by `warmup W [from X]`. They count from sample 0, warm-up
    or not, and fall to the plan's end if no length is given.

    In `"0.1 warmup W then ..."` what follows `then` counts from the warm-up's end: any of the forms
    but a list. More of them may follow, each behind another `then`: `over D` counts from a part's
    own beginning, `until D` from sample 0, and `over the last D` back from the plan's end.
    `times 1, 1/3: 1.52` at the end multiplies the rate by factors.

    Raises:
      UsageError: the text can't be read; names the place.

    >>> str(parse_learning_rate("0.1 x0.375 every 20ep warmup 5ep"))
    '0.1 x0.375 every 20ep warmup 5ep'
    >>> wsd = parse_learning_rate("3e-4 warmup 2000st then constant then sqrt over the last 20%")
    >>> [part.shape for part in wsd.parts]
    ['constant', 'sqrt']
    >>> parse_learning_rate("0.1 cosin")
    Traceback (most recent call last):
    adabatch_jax.system.errors.UsageError: can't read the learning rate '0.1 cosin' at 'cosin' ...
    """
    reader = Reader(text, "learning rate")
    fields: dict = {"init_value": _rate(reader)}
    if reader.sees(reader.peek == ",", "', 30ep: ...'"):
        fields["boundaries"] = read_boundaries(reader, lambda: _rate(reader))
    elif reader.peek not in ("", "warmup", "times"):
        fields["parts"] = _read_parts(reader, from_sample_0=True)
    if reader.take_if("warmup"):
        fields["warmup"] = read_duration(reader)
        if reader.take_if("from"):
            fields["warmup_from"] = _rate(reader)
        if len(fields.keys() & {"boundaries", "parts"}) == 0 and reader.take_if("then"):
            fields |= {"parts": _read_parts(reader), "begins_after_warmup": True}
    if reader.take_if("times"):
        fields["factor"] = _rate(reader, "a factor such as 1")
        fields["factor_boundaries"] = read_boundaries(
            reader, lambda: _rate(reader, "a factor such as 1.52")
        )
    reader.finish()
    return LearningRate(**fields)


def _read_parts(reader: Reader, from_sample_0: bool = False) -> tuple[RatePart, ...]:
    """Reads parts with `then` between them."""
    parts = [_read_part(reader, from_sample_0)]
    while not parts[-1].ends_the_run:
        then = reader.place
        if not reader.take_if("then"):
            break
        part = _read_part(reader)
        if parts[-1].length is None and not part.ends_the_run:
            raise reader.error(
                f"'over ...' or 'until ...' before it, as what follows begins nowhere by itself "
                f"({_LAST!r} would)",
                then,
            )
        parts.append(part)
    return tuple(parts)


def _read_part(reader: Reader, from_sample_0: bool = False) -> RatePart:
    fields: dict = {}
    if not from_sample_0 and reader.sees(reader.peek[:1] in tuple(".0123456789"), "a rate"):
        fields["init_value"] = _rate(reader)
    if reader.sees(reader.peek.startswith("x"), "'x0.1 every ...'"):
        fields |= {"shape": "decay"} | _read_decay(reader)
    else:
        shape = next(filter(reader.take_if, _SHAPES), None)
        if shape is None and "init_value" not in fields:
            others = ("'warmup'", "'times'", "nothing more") if from_sample_0 else ()
            raise reader.misfit(*others)
        fields |= {"shape": shape or "constant"} | _read_end(reader, shape, from_sample_0)
    if reader.take_if("over"):
        if reader.take_if("the"):
            reader.require("last")
            fields["measured"] = _LAST
        fields["length"] = read_duration(reader)
    elif reader.take_if("until"):
        fields |= {"measured": "until", "length": read_duration(reader)}
    return RatePart(**fields)


def _read_decay(reader: Reader) -> dict:
    place = reader.place
    decay_rate = reader.number("a decay such as x0.1", prefix="x")
    if decay_rate <= 0:
        raise reader.error("a decay above 0", place)
    reader.require("every")
    return {"decay_rate": decay_rate, "decay_every": read_duration(reader)}


def _read_end(reader: Reader, shape: str | None, from_sample_0: bool) -> dict:
    """Reads what a shape falls to, or on which scale."""
    if shape == "linear":
        reader.require("to")
        return {"end_value": _rate(reader)}
    if shape in ("cosine", "sqrt"):
        return {"end_value": _rate(reader) if reader.take_if("to") else Fraction(0)}
    if shape == "rsqrt":
        if from_sample_0:
            reader.require("scale")
        elif not reader.take_if("scale"):
            return {}
        return {"scale": read_duration(reader)}
    return {}


def _rate(reader: Reader, expected: str = "a learning rate such as 0.1") -> Fraction:
    place = reader.place
    rate = reader.number(expected)
    if rate < 0:
        raise reader.error(f"{expected.partition(' such')[0]} that is not negative", place)
    return rate


COUPLINGS = {"none": Fraction(0), "linear": Fraction(1), "sqrt": Fraction(1, 2)}
_LARGEST_POWER = 10


def coupling_power(coupling: str | float) -> Fraction:
    """The power of the batch ratio that a coupling stands for.

    >>> coupling_power("sqrt"), coupling_power(0.75)
    (Fraction(1, 2), Fraction(3, 4))
    """
    if isinstance(coupling, str) and coupling in COUPLINGS:
        return COUPLINGS[coupling]
    try:
        power = exact(coupling, "coupling")
        if abs(power) <= _LARGEST_POWER:
            return power
    except UsageError:
        pass
    hint = did_you_mean(coupling, COUPLINGS) if isinstance(coupling, str) else ""
    raise UsageError(
        f"unknown coupling {coupling!r}: it is none, linear, sqrt, or a power from "
        f"-{_LARGEST_POWER} to {_LARGEST_POWER}{hint or '.'}"
    )
