"""The text form of schedules, both ways: `parse_schedule(str(s)) == s`."""

from collections.abc import Callable
from typing import Any, SupportsIndex, TypeVar

from adabatch_jax.schedules.batch_size_schedules import (
    START,
    ExponentialGrowth,
    LinearRamp,
    Schedule,
    SeesawGrowth,
    constant,
    exponential_growth,
    linear_ramp,
    piecewise_constant,
)
from adabatch_jax.schedules.dialect_reading import (
    MEGATRON,
    Dialect,
    MegatronSteps,
    read_dialect,
    read_megatron_steps,
)
from adabatch_jax.schedules.durations import (
    Duration,
    Thresholds,
    positive_duration,
    read_thresholds,
)
from adabatch_jax.schedules.free_schedules import Joined
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


def parse_schedule(text: str, dialect: Dialect | None = None) -> Schedule:
    """Reads a batch-size schedule.

    The forms: `"128"`, `"128 x2 every 20ep max 2048"`, `"100 x1.5 every 10ep max 800 multiple
    8"`, `"2048 x0.5 every 10ep min 128"`, `"128, 20ep: 256, 40ep: 512"`, `"128 to 2048 over 50%
    in 16"`, `"128 x2 seesaw max 2048"` (where a command's learning rate falls), and these one after the other as in `"128 x2 every 5ep then 20ep: 512"`; see `joined`.

    Args:
      text: the schedule.
      dialect: whose way to write it: None for ours. "megatron": the value of Megatron-LM's
        `--step-batch-size-schedule`, whose thresholds are in tokens where a plan knows the tokens of
        an example and in samples elsewhere, or its flags `--rampup-batch-size` and
        `--global-batch-size`. "levanter": the YAML of its `train_batch_size`. Sizes are then theirs
        at each step; ours of `"megatron 0:768 250B:1536"` too.

    Raises:
      UsageError: the text can't be read (names the place), or makes no schedule.

    >>> parse_schedule("128 x2 every 20ep max 2048").end_value
    2048
    >>> str(parse_schedule("0:768 250B:1536", dialect="megatron"))
    'megatron 0:768 250B:1536'
    >>> parse_schedule("128 x2 evry 20ep")
    Traceback (most recent call last):
    adabatch_jax.system.errors.UsageError: can't read the batch schedule '128 x2 evry 20ep' at 'evry' ...
    """
    if dialect is not None:
        return read_dialect(text, dialect)
    reader = Reader(text, "batch schedule")
    schedule = _read_joined(reader)
    reader.finish()
    return schedule


def _read_joined(reader: Reader) -> Schedule:
    pieces = [(START, _read_piece(reader))]
    while reader.take_if("then"):
        start = read_duration(reader)
        reader.require(":")
        pieces.append((start, _read_piece(reader)))
    return pieces[0][1] if len(pieces) == 1 else Joined(tuple(pieces))


def _read_piece(reader: Reader) -> Schedule:
    if reader.take_if("("):
        schedule = _read_joined(reader)
        reader.require(")")
        return schedule
    if reader.take_if(MEGATRON):
        return _read_megatron(reader)
    init_value = reader.whole('a whole batch size, as in "128 x2 every 20ep"')
    if _at_end(reader):
        return constant(init_value)
    if reader.peek == ",":
        boundaries = read_boundaries(reader, lambda: reader.whole("a whole batch size"))
        return _finished(reader, piecewise_constant(init_value, boundaries), "',' or nothing more")
    if reader.take_if("to"):
        return _finished(reader, _read_ramp(reader, init_value))
    if reader.peek.startswith("x"):
        return _read_growth(reader, init_value)
    raise reader.error("'x2 every ...', 'to ...', ', 20ep: ...' or nothing more")


def _read_megatron(reader: Reader) -> MegatronSteps:
    entries = []
    while not _at_end(reader):
        threshold = reader.take("a threshold such as 250B")
        reader.require(":")
        entries.append(f"{threshold}:{reader.take('a batch size')}")
    return read_megatron_steps(" ".join(entries))


def _at_end(reader: Reader) -> bool:
    """Whether a piece is over: what may come then is the next one, or nothing."""
    return reader.peek in ("", "then", ")")


def _finished(reader: Reader, schedule: Schedule, expected: str = "nothing more") -> Schedule:
    if not _at_end(reader):
        raise reader.error(expected)
    return schedule


def _read_ramp(reader: Reader, init_value: int) -> LinearRamp:
    end_value = reader.whole("a whole batch size")
    reader.require("over")
    over = read_duration(reader)
    reader.require("in")
    return linear_ramp(init_value, end_value, over, reader.whole("a number of stages"))


def _read_growth(reader: Reader, init_value: int) -> ExponentialGrowth | SeesawGrowth:
    factor = reader.number("a growth factor such as x2 or x1.5", prefix="x")
    if reader.take_if("seesaw"):
        end_value = reader.whole("a whole batch size") if reader.take_if("max") else None
        return _finished(reader, SeesawGrowth(init_value, factor, end_value))
    if not reader.take_if("every"):
        raise reader.error("'every' or 'seesaw'")
    every = read_duration(reader)
    bound = "max" if factor >= 1 else "min"
    options: dict[str, int] = {}
    while not _at_end(reader):
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


AnySchedule = Schedule | str | SupportsIndex | Thresholds[int]


def as_schedule(schedule: AnySchedule) -> Schedule:
    """Makes a schedule of an int, a text, or pairs of (duration, size) that begin at 0.

    >>> str(as_schedule([(0, 64), ("10ep", 128)]))
    '64, 10ep: 128'
    """
    if isinstance(schedule, Schedule):
        return schedule
    if isinstance(schedule, str):
        return parse_schedule(schedule)
    if hasattr(schedule, "__index__"):
        return constant(schedule)
    what = "a batch-size schedule is an int, a text, a schedule or pairs of (duration, size)"
    pairs = read_thresholds(schedule, what)
    if not pairs or pairs[0][0].value != 0:
        raise UsageError(
            f"the first pair of a schedule must begin at 0, got {excerpt(repr(schedule))}."
        )
    return piecewise_constant(pairs[0][1], pairs[1:])


def joined(pieces: Thresholds[Any]) -> Joined:
    """Follows schedules one after the other, each counting from its own start.

    The durations of a piece count from where it begins, until the next one begins; percentages
    are of the whole run.

    Args:
      pieces: duration since the start of the run, 0 for the first one -> a schedule, or anything
        that `make_plan` makes one of; a mapping, or pairs.

    Raises:
      UsageError: no piece at 0, what is no pair, or a duration or a schedule that can't be read;
        and when a plan is made, pieces out of order.

    >>> str(joined({"0ep": "128 x2 every 5ep max 512", "20ep": linear_ramp(64, 256, "10ep", 4)}))
    '128 x2 every 5ep max 512 then 20ep: 64 to 256 over 10ep in 4'
    """
    what = "`pieces` are a mapping or pairs of (duration, schedule)"
    read = [(start, as_schedule(schedule)) for start, schedule in read_thresholds(pieces, what)]
    if not read or read[0][0].value != 0:
        raise UsageError('the first piece of a joined schedule must begin at 0, as "0ep".')
    return Joined(((START, read[0][1]), *read[1:]))
