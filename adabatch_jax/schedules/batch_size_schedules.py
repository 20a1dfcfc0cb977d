"""Schedules: what the batch size should be, before any dataset is known."""

import abc
import dataclasses
import decimal
import math
from collections.abc import Callable, Iterator
from fractions import Fraction

from adabatch_jax.schedules.durations import (
    Duration,
    Thresholds,
    positive_duration,
    read_thresholds,
)
from adabatch_jax.schedules.text_reader import decimal_text, exact, positive_integer
from adabatch_jax.system.errors import UsageError


def round_half_up(value: Fraction, multiple_of: int = 1) -> int:
    return math.floor(value / multiple_of + Fraction(1, 2)) * multiple_of


def rounded_growth(init_value: int, factor: Fraction, k: int, multiple_of: int) -> int:
    """`init_value * factor**k` rounded half up to a multiple, exactly.

    Powers of a fraction have k times its digits, so 60 digits decide wherever they can.
    """
    if k * max(factor.numerator.bit_length(), factor.denominator.bit_length()) > 4096:
        with decimal.localcontext(prec=60):
            ratio = decimal.Decimal(factor.numerator) / factor.denominator
            value = init_value * ratio**k / multiple_of
            nearest = value.to_integral_value(decimal.ROUND_HALF_UP)
            if abs(abs(value - nearest) - decimal.Decimal("0.5")) > decimal.Decimal("1e-30"):
                return int(nearest) * multiple_of
    return round_half_up(init_value * factor**k, multiple_of)


class Schedule(abc.ABC):
    """Base class: a schedule tells its sizes; `str` gives its text.

    Attributes:
      has_text: whether `parse_schedule` reads its text.
      is_listed: whether its thresholds are written down one by one, and can be out of order.

    >>> [(str(duration), size) for duration, size in piecewise_constant(8, {"2ep": 16}).sizes()]
    [('0sp', 8), ('2ep', 16)]
    """

    has_text = True
    is_listed = False

    @abc.abstractmethod
    def sizes(self) -> Iterator[tuple[Duration, "Size"]]:
        """Yields (duration since the start, batch size from there on), beginning at 0.

        Instead of a size there may be a schedule, which begins anew there, or a function that
        makes the size of `position_in(unit)`, the exact position there. The sequence may be
        endless; the plan stops asking at the end of the run.
        """

    def behind(self, num_begun: int) -> list[str]:
        """What its text names of the sizes behind the first `num_begun`, where there are some."""
        return []


Size = int | Schedule | Callable[[Callable[[str], Fraction]], int]
START = Duration(Fraction(0), "sp")


@dataclasses.dataclass(frozen=True)
class PiecewiseConstant(Schedule):
    """Sizes that are listed one by one; see `piecewise_constant`."""

    init_value: int
    boundaries: tuple[tuple[Duration, int], ...] = ()

    is_listed = True

    def sizes(self) -> Iterator[tuple[Duration, int]]:
        yield START, self.init_value
        yield from self.boundaries

    def behind(self, num_begun: int) -> list[str]:
        return [f"{duration}: {size}" for duration, size in self.boundaries[num_begun - 1 :]]

    def __str__(self) -> str:
        return ", ".join([str(self.init_value), *self.behind(1)])


@dataclasses.dataclass(frozen=True)
class ExponentialGrowth(Schedule):
    """A size that is multiplied at regular intervals; see `exponential_growth`."""

    init_value: int
    growth_factor: Fraction
    every: Duration
    end_value: int | None = None
    multiple_of: int = 1

    def sizes(self) -> Iterator[tuple[Duration, int]]:
        k, size = 0, self._size_after(0)
        yield START, size
        while size not in (self.end_value, 0) and self.growth_factor != 1:
            k, size = self._next_change(k, size)
            yield self.every.times(k), size

    def behind(self, num_begun: int) -> list[str]:
        # Growth has no end that a run should reach, but it should begin.
        return [f"x{decimal_text(self.growth_factor)} every {self.every}"] * (num_begun == 1)

    def _next_change(self, k: int, size: int) -> tuple[int, int]:
        """The first interval after k with another size: slow growth has many without."""
        same, step = k, 1
        while self._size_after(same + step) == size:
            same, step = same + step, 2 * step
        changed = same + step
        while changed - same > 1:
            middle = (same + changed) // 2
            if self._size_after(middle) == size:
                same = middle
            else:
                changed = middle
        return changed, self._size_after(changed)

    def _size_after(self, k: int) -> int:
        size = rounded_growth(self.init_value, self.growth_factor, k, self.multiple_of)
        if self.end_value is None:
            return size
        bound = min if self.growth_factor >= 1 else max
        return bound(size, self.end_value)

    def __str__(self) -> str:
        text = f"{self.init_value} x{decimal_text(self.growth_factor)} every {self.every}"
        if self.end_value is not None:
            text += f" {'max' if self.growth_factor >= 1 else 'min'} {self.end_value}"
        return text + (f" multiple {self.multiple_of}" if self.multiple_of != 1 else "")


@dataclasses.dataclass(frozen=True)
class LinearRamp(Schedule):
    """Evenly spaced sizes over a duration; see `linear_ramp`."""

    init_value: int
    end_value: int
    over: Duration
    num_stages: int

    def sizes(self) -> Iterator[tuple[Duration, int]]:
        for k in range(self.num_stages):
            share = Fraction(k, self.num_stages - 1)
            size = self.init_value + (self.end_value - self.init_value) * share
            yield self.over.times(share), round_half_up(size)

    def behind(self, num_begun: int) -> list[str]:
        return [f"{self.end_value} over {self.over}"]

    def __str__(self) -> str:
        return f"{self.init_value} to {self.end_value} over {self.over} in {self.num_stages}"


@dataclasses.dataclass(frozen=True)
class SeesawGrowth(Schedule):
    """A size that follows a learning rate which isn't known yet; see `schedule_and_rate`."""

    init_value: int
    growth_factor: Fraction
    end_value: int | None = None

    def __post_init__(self):
        positive_integer(self.init_value, "init_value")
        if self.growth_factor <= 1:
            text = decimal_text(self.growth_factor)
            raise UsageError(f"`factor` must be above 1, got {text}.")
        if self.end_value is not None:
            if positive_integer(self.end_value, "end_value") < self.init_value:
                raise UsageError(
                    f"`end_value` (max) must be at least init_value={self.init_value}, got "
                    f"{self.end_value}."
                )

    def sizes(self) -> Iterator[tuple[Duration, Size]]:
        raise UsageError(
            f"the schedule {str(self)!r} grows where a learning rate falls, so it needs one: a "
            f"command takes its own where this is the whole of --batch-schedule, and ab.seesaw("
            f"{self.init_value}, rate, {decimal_text(self.growth_factor)}, {self.end_value}) makes "
            "both."
        )

    def __str__(self) -> str:
        text = f"{self.init_value} x{decimal_text(self.growth_factor)} seesaw"
        return text if self.end_value is None else f"{text} max {self.end_value}"


def constant(batch_size: int) -> PiecewiseConstant:
    """The same batch size for the whole run.

    Raises:
      UsageError: `batch_size` is no whole number, or < 1.

    >>> str(constant(128))
    '128'
    """
    return PiecewiseConstant(positive_integer(batch_size, "batch_size"))


def exponential_growth(
    init_value: int,
    growth_factor: int | float | str | Fraction,
    every: str | int | Duration,
    end_value: int | None = None,
    multiple_of: int = 1,
) -> ExponentialGrowth:
    """Multiplies the batch size by a factor at regular intervals (arXiv:1712.02029, section 3).

    After k intervals the size is `init_value * growth_factor**k`, with the factor taken as the
    exact decimal that it prints as, rounded half up to a multiple of `multiple_of`, and then
    clipped to `end_value`.

    Args:
      init_value: the first batch size, in examples.
      growth_factor: above 1 to grow, below 1 to shrink.
      every: the interval.
      end_value: the largest size (the smallest, for a shrinking batch); None for no bound.
      multiple_of: sizes are multiples of this number, but for a bound that isn't one.

    Raises:
      UsageError: `init_value`, `end_value` or `multiple_of` < 1, `growth_factor` <= 0, `every`
        isn't longer than nothing, or `end_value` lies on the wrong side of `init_value`.

    >>> str(exponential_growth(128, growth_factor=2, every="20ep", end_value=2048))
    '128 x2 every 20ep max 2048'
    """
    init_value = positive_integer(init_value, "init_value")
    factor = exact(growth_factor, "growth_factor")
    if factor <= 0:
        raise UsageError(f"`growth_factor` must be above 0, got {growth_factor}.")
    if end_value is not None:
        end_value = positive_integer(end_value, "end_value")
        if end_value < init_value and factor >= 1:
            raise UsageError(
                f"`end_value` (max) must be at least init_value={init_value} for a growing "
                f"batch, got {end_value}."
            )
        if end_value > init_value and factor < 1:
            raise UsageError(
                f"`end_value` (min) must be at most init_value={init_value} for a shrinking "
                f"batch, got {end_value}."
            )
    return ExponentialGrowth(
        init_value,
        factor,
        positive_duration(every, "`every`"),
        end_value,
        positive_integer(multiple_of, "multiple_of"),
    )


def piecewise_constant(init_value: int, boundaries_and_sizes: Thresholds[int]) -> PiecewiseConstant:
    """Batch sizes listed one by one.

    Args:
      init_value: the first batch size.
      boundaries_and_sizes: duration since the start of the run -> batch size from there on; a
        mapping, or pairs.

    Raises:
      UsageError: a size < 1, what is no pair, or a duration that can't be read.

    >>> str(piecewise_constant(128, {"20ep": 256, "40ep": 512}))
    '128, 20ep: 256, 40ep: 512'
    """
    what = "`boundaries_and_sizes` are a mapping or pairs of (duration, batch size)"
    boundaries = [
        (duration, positive_integer(size, f"batch size from {duration}"))
        for duration, size in read_thresholds(boundaries_and_sizes, what)
    ]
    return PiecewiseConstant(positive_integer(init_value, "init_value"), tuple(boundaries))


def linear_ramp(
    init_value: int, end_value: int, over: str | int | Duration, num_stages: int
) -> LinearRamp:
    """Goes from one batch size to another in equal steps.

    There are `num_stages` sizes, both ends included, evenly spaced and rounded half up; size k
    starts at k / (num_stages - 1) of `over`.

    Raises:
      UsageError: `init_value` or `end_value` < 1, `num_stages` < 2, or `over` isn't longer than
        nothing.

    >>> [size for _, size in linear_ramp(128, 512, over="50%", num_stages=4).sizes()]
    [128, 256, 384, 512]
    """
    if positive_integer(num_stages, "num_stages") < 2:
        raise UsageError(f"`num_stages` must be at least 2, got {num_stages}.")
    return LinearRamp(
        positive_integer(init_value, "init_value"),
        positive_integer(end_value, "end_value"),
        positive_duration(over, "`over`"),
        num_stages,
    )
