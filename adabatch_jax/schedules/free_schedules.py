"""Schedules of any shape: a function that is asked, and schedules one after the other."""

import dataclasses
from collections.abc import Callable, Iterator
from fractions import Fraction

from adabatch_jax.schedules.batch_size_schedules import Schedule, Size
from adabatch_jax.schedules.durations import Duration, Unit, check_unit, positive_duration
from adabatch_jax.schedules.text_reader import positive_integer
from adabatch_jax.system.errors import UsageError

_MAX_PERIODS = 1_000_000

# Who asks at whole positions alone may write a function of ints.
SizeFn = Callable[[float], int] | Callable[[int], int]


@dataclasses.dataclass(frozen=True)
class Sampled(Schedule):
    """A function that is asked again and again; see `sampled`."""

    fn: SizeFn
    every: Duration
    unit: Unit

    has_text = False

    def sizes(self) -> Iterator[tuple[Duration, Size]]:
        for k in range(_MAX_PERIODS):
            yield self.every.times(k), self._size
        raise UsageError(
            f"the schedule {str(self)!r} would be asked more than {_MAX_PERIODS:,} times; ask it "
            "less often."
        )

    def _size(self, position_in: Callable[[str], Fraction]) -> int:
        exact = position_in(self.unit)
        position = exact.numerator if exact.denominator == 1 else float(exact)
        name = f"batch size at {position}{self.unit} of {self}"
        return positive_integer(self.fn(position), name)

    def __str__(self) -> str:
        name = getattr(self.fn, "__qualname__", None) or repr(self.fn)
        return f"sampled({name}, every='{self.every}', unit={self.unit!r})"


def sampled(fn: SizeFn, every: str | int | Duration, unit: Unit = "ep") -> Sampled:
    """Takes batch sizes from a function of the position, asked once a period.

    The plan asks when it is made, in order, once at the start of each period within the run; the
    size stays until the next one. Equal sizes make one phase. A function has no text, so such a
    schedule can't stand in a `TrainConfig`; a run's identity are the phases of its plan.

    Args:
      fn: position -> batch size, a whole number >= 1. The position is the period's start, counted
        in `unit`: an int where it is whole, a float elsewhere.
      every: the period.
      unit: "ep", "st", "sp", "tok" or "%" (of the run). Where `every` is in steps and this is not,
        the position is where such a step begins; where this is in steps, it is the first step
        that begins at the period's start or later.

    Raises:
      UsageError: no such unit, or `every` isn't longer than nothing; and when a plan is made, a
        size that is no whole number >= 1, or more than 1,000,000 periods.

    >>> from adabatch_jax import make_plan
    >>> schedule = sampled(lambda epoch: int(32 * 1.5**epoch), every="1ep", unit="ep")
    >>> make_plan(schedule, num_examples=1000, duration="4ep").batch_sizes
    (32, 48, 72, 108)
    """
    if not callable(fn):
        raise UsageError(f"`fn` must be a function of the position, got {fn!r}.")
    return Sampled(fn, positive_duration(every, "`every`"), check_unit(unit))


@dataclasses.dataclass(frozen=True)
class Joined(Schedule):
    """Schedules one after the other; see `joined`."""

    pieces: tuple[tuple[Duration, Schedule], ...]

    is_listed = True

    @property
    def has_text(self) -> bool:
        return all(schedule.has_text for _, schedule in self.pieces)

    def sizes(self) -> Iterator[tuple[Duration, Size]]:
        yield from self.pieces

    def behind(self, num_begun: int) -> list[str]:
        return [_piece_text(*piece) for piece in self.pieces[num_begun:]]

    def __str__(self) -> str:
        texts = [_nested(self.pieces[0][1]), *(_piece_text(*piece) for piece in self.pieces[1:])]
        return " then ".join(texts)


def _piece_text(start: Duration, schedule: Schedule) -> str:
    return f"{start}: {_nested(schedule)}"


def _nested(schedule: Schedule) -> str:
    return f"({schedule})" if isinstance(schedule, Joined) else str(schedule)
