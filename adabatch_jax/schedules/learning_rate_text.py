"""The learning rate as a text: what training at the reference batch size would use."""

import dataclasses
from fractions import Fraction

from adabatch_jax.schedules.durations import Duration
from adabatch_jax.schedules.schedule_text import read_boundaries, read_duration
from adabatch_jax.schedules.text_reader import Reader, decimal_text, exact
from adabatch_jax.system.errors import UsageError, did_you_mean


@dataclasses.dataclass(frozen=True)
class LearningRate:
    """A learning rate before it meets a plan; made by `parse_learning_rate`.

    Attributes:
      init_value: the rate at the start, behind any warm-up.
      decay_rate: factor per `decay_every`; None without such a decay.
      decay_every: the interval of `decay_rate`.
      boundaries: (duration, rate from there on), listed one by one.
      shape: "constant" (with the attributes above), "cosine" (to 0 at the plan's end) or "linear"
        (to `end_value` at the plan's end).
      end_value: where "linear" ends.
      warmup: how long the rate climbs linearly to what it would be; None without warm-up.
      warmup_from: the actual rate at sample 0 of a warm-up; the coupling doesn't scale it.
    """

    init_value: Fraction
    decay_rate: Fraction | None = None
    decay_every: Duration | None = None
    boundaries: tuple[tuple[Duration, Fraction], ...] = ()
    shape: str = "constant"
    end_value: Fraction | None = None
    warmup: Duration | None = None
    warmup_from: Fraction = Fraction(0)

    def __str__(self) -> str:
        text = decimal_text(self.init_value)
        if self.decay_rate is not None:
            text += f" x{decimal_text(self.decay_rate)} every {self.decay_every}"
        text += "".join(f", {d}: {decimal_text(rate)}" for d, rate in self.boundaries)
        if self.shape == "cosine":
            text += " cosine"
        if self.shape == "linear":
            text += f" linear to {decimal_text(self.end_value)}"
        if self.warmup is not None:
            text += f" warmup {self.warmup}"
            if self.warmup_from:
                text += f" from {decimal_text(self.warmup_from)}"
        return text


def parse_learning_rate(text: str) -> LearningRate:
    """Reads a learning rate.

    The forms: `"0.1"`, `"0.1 x0.375 every 20ep"`, `"0.1, 30ep: 0.01, 60ep: 0.001"`,
    `"0.1 cosine"`, `"0.1 linear to 0.001"`, each optionally followed by `warmup W [from X]`.
    Decays count from sample 0 and cosine and linear end with the plan, warm-up or not.

    Raises:
      UsageError: the text can't be read; names the place.

    >>> str(parse_learning_rate("0.1 x0.375 every 20ep warmup 5ep"))
    '0.1 x0.375 every 20ep warmup 5ep'
    >>> parse_learning_rate("0.1 cosin")
    Traceback (most recent call last):
    adabatch_jax.system.errors.UsageError: can't read the learning rate '0.1 cosin' at 'cosin' ...
    """
    reader = Reader(text, "learning rate")
    fields: dict = {"init_value": _rate(reader)}
    if reader.peek.startswith("x"):
        place = reader.place
        fields["decay_rate"] = reader.number("a decay such as x0.1", prefix="x")
        if fields["decay_rate"] <= 0:
            raise reader.error("a decay above 0", place)
        reader.require("every")
        fields["decay_every"] = read_duration(reader)
    elif reader.peek == ",":
        fields["boundaries"] = read_boundaries(reader, lambda: _rate(reader))
    elif reader.take_if("cosine"):
        fields["shape"] = "cosine"
    elif reader.take_if("linear"):
        reader.require("to")
        fields |= {"shape": "linear", "end_value": _rate(reader)}
    if reader.take_if("warmup"):
        fields["warmup"] = read_duration(reader)
        if reader.take_if("from"):
            fields["warmup_from"] = _rate(reader)
    reader.finish(
        "'x0.1 every ...', ', 30ep: ...', 'cosine', 'linear to ...', 'warmup ...' or nothing more"
        if len(fields) == 1
        else "'warmup ...' or nothing more"
        if "warmup" not in fields
        else "nothing more"
    )
    return LearningRate(**fields)


def _rate(reader: Reader) -> Fraction:
    place = reader.place
    rate = reader.number("a learning rate such as 0.1")
    if rate < 0:
        raise reader.error("a learning rate that is not negative", place)
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
