"""The text form of schedules, both ways: `parse_schedule(str(s)) == s`."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from adabatch_jax.schedules.batch_size_schedules import (
    ExponentialGrowth,
    LinearRamp,
    Schedule,
    constant,
    exponential_growth,
    items,
    linear_ramp,
    piecewise_constant,
)
from adabatch_jax.schedules.durations import Duration, parse_duration, positive_duration
from adabatch_jax.schedules.text_reader import Reader, excerpt
from adabatch_jax.system.errors import UsageError

T = TypeVar("T")

_DURATION = 'a duration such as "20ep", "1500st", "2.5Msp", "469Btok", "30%" or "1/3"'


def read_duration(reader: Reader) -> Duration:
    """Reads a duration above 0; raises a UsageError that points at a word that is none."""
    place = reader.place
    word = reader.take(_DURATION)
    if reader.peek == "of":
        for other in ("of", "the", "run"):
            reader.require(other)
        word += " of the run"
    try:
        return positive_duration(word)
    except UsageError as error:
        pointing = str(reader.error(_DURATION, place)).removesuffix(".")
        raise UsageError(f"{pointing}; {error}") from None


def read_boundaries(reader: Reader, read_value: Callable[[], T]) -> tuple[tuple[Duration, T], ...]:
    """Reads ", 20ep: VALUE, 40ep: VALUE"."""
    boundaries = []
    while reader.take_if(","):
        duration = read_duration(reader)
        reader.require(":")
        boundaries.append((duration, read_value()))
    return tuple(boundaries)


def parse_schedule(text: str) -> Schedule:
    """Reads a batch-size schedule.

    The forms: `"128"`, `"128 x2 every 20ep max 2048"`, `"100 x1.5 every 10ep max 800 multiple
    8"`, `"2048 x0.5 every 10ep min 128"`, `"128, 20ep: 256, 40ep: 512"`, and `"128 to 2048 over
    50% in 16"`.

    Raises:
      UsageError: the text can't be read (names the place), or makes no schedule.

    >>> parse_schedule("128 x2 every 20ep max 2048").end_value
    2048
    >>> parse_schedule("128 x2 evry 20ep")
    Traceback (most recent call last):
    adabatch_jax.system.errors.UsageError: can't read the batch schedule '128 x2 evry 20ep' at 'evry' ...
    """
    reader = Reader(text, "batch schedule")
    init_value = reader.whole('a whole batch size, as in "128 x2 every 20ep"')
    if not reader.peek:
        return constant(init_value)
    if reader.peek == ",":
        boundaries = read_boundaries(reader, lambda: reader.whole("a whole batch size"))
        reader.finish()
        return piecewise_constant(init_value, boundaries)
    if reader.take_if("to"):
        return _read_ramp(reader, init_value)
    if reader.peek.startswith("x"):
        return _read_growth(reader, init_value)
    raise reader.error("'x2 every ...', 'to ...', ', 20ep: ...' or nothing more")


def _read_ramp(reader: Reader, init_value: int) -> LinearRamp:
    end_value = reader.whole("a whole batch size")
    reader.require("over")
    over = read_duration(reader)
    reader.require("in")
    num_stages = reader.whole("a number of stages")
    reader.finish()
    return linear_ramp(init_value, end_value, over, num_stages)


def _read_growth(reader: Reader, init_value: int) -> ExponentialGrowth:
    factor = reader.number("a growth factor such as x2 or x1.5", prefix="x")
    reader.require("every")
    every = read_duration(reader)
    bound = "max" if factor >= 1 else "min"
    options: dict[str, int] = {}
    while reader.peek:
        if reader.peek not in (bound, "multiple") or reader.peek in options:
            raise reader.error(
                f"{bound!r}, 'multiple' or nothing more (a batch that "
                f"{'grows' if factor >= 1 else 'shrinks'} is bounded by {bound!r})"
            )
        word = reader.take(bound)
        options[word] = reader.whole("a whole number")
    return exponential_growth(
        init_value, factor, every, options.get(bound), options.get("multiple", 1)
    )


def as_schedule(
    schedule: int | str | Schedule | Iterable[tuple[str | int | Duration, int]],
) -> Schedule:
    """Makes a schedule of an int, a text, or an iterable of (duration, size) that begins at 0.

    >>> str(as_schedule([(0, 64), ("10ep", 128)]))
    '64, 10ep: 128'
    """
    if isinstance(schedule, Schedule):
        return schedule
    if isinstance(schedule, str):
        return parse_schedule(schedule)
    if hasattr(schedule, "__index__"):
        return constant(schedule)
    try:
        pairs = [(parse_duration(duration), size) for duration, size in items(schedule)]
    except TypeError:
        raise UsageError(
            "a batch-size schedule is an int, a text, a schedule or pairs of (duration, size), "
            f"got {schedule!r}."
        ) from None
    if not pairs or pairs[0][0].value != 0:
        raise UsageError(
            f"the first pair of a schedule must begin at 0, got {excerpt(repr(schedule))}."
        )
    return piecewise_constant(pairs[0][1], pairs[1:])
