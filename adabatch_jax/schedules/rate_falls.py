"""Where a learning rate has fallen by a factor, before it meets a plan."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import NamedTuple

from adabatch_jax.schedules.durations import Duration
from adabatch_jax.schedules.learning_rate_text import LearningRate, RatePart, parse_learning_rate
from adabatch_jax.schedules.text_reader import exact, excerpt
from adabatch_jax.system.errors import UsageError

# Of its first value: what a rate is followed down to. Below, it moves no weight.
_SMALLEST = Fraction(1, 1000)

_RUN, _NOTHING = Duration(Fraction(100), "%"), Duration(Fraction(0), "sp")


class Fall(NamedTuple):
    """Where a rate is lower than before, and by how many whole factors it has been cut by then."""

    duration: Duration
    rate: Fraction
    num_factors: int


def as_learning_rate(rate: str | float | LearningRate) -> LearningRate:
    """A learning rate from its text or a number; raises a UsageError for anything else.

    >>> str(as_learning_rate("0.1 cosine"))
    '0.1 cosine'
    """
    if isinstance(rate, LearningRate):
        return rate
    if isinstance(rate, str):
        return parse_learning_rate(rate)
    if callable(rate):
        raise UsageError(
            "`rate` is a function, which doesn't say where it falls; write it as a text, such as "
            "'3e-4 warmup 2000st then cosine to 3e-5'."
        )
    return LearningRate(exact(rate, "rate"))


def steps_as_samples(rate: LearningRate, batch_size: int) -> LearningRate:
    """The same rate of a run with one batch size, with nothing in it counted in steps.

    >>> str(steps_as_samples(parse_learning_rate("0.1 warmup 100st then cosine"), 32))
    '0.1 warmup 3200sp then cosine'
    """

    def in_samples(duration: Duration | None) -> Duration | None:
        if duration is None or all(term.unit != "st" for term in duration.terms):
            return duration
        terms = duration.terms
        return _sum(*(Duration(t.value * batch_size, "sp") if t.unit == "st" else t for t in terms))

    def listed(boundaries: tuple) -> tuple:
        return tuple((in_samples(duration), value) for duration, value in boundaries)

    names = ("decay_every", "scale", "length")
    return dataclasses.replace(
        rate,
        boundaries=listed(rate.boundaries),
        parts=tuple(
            dataclasses.replace(part, **{name: in_samples(getattr(part, name)) for name in names})
            for part in rate.parts
        ),
        warmup=in_samples(rate.warmup),
        factor_boundaries=listed(rate.factor_boundaries),
    )


def has_curves(rate: LearningRate) -> bool:
    """Whether it falls anywhere without a jump."""
    return any(part.shape not in ("constant", "decay") for part in rate.parts)


def falls(rate: LearningRate, factor: Fraction) -> Iterator[Fall]:
    """Yields each jump of a rate, and each place where a curve has fallen by another `factor`.

    A cut is counted where it has fallen by a factor, or several, since the cut before. What it is
    multiplied by (`times`), and a warm-up, are no part of it. Below a thousandth of its first value
    it isn't followed.

    Raises:
      UsageError: it rises, begins with 0, or has parts whose order can't be told before there is
        a plan.

    >>> found = falls(parse_learning_rate("0.1 cosine to 0.02"), Fraction(2))
    >>> [(str(fall.duration), float(fall.rate)) for fall in found]
    [('58.0430623255%', 0.05), ('83.913875349%', 0.025)]
    """
    if rate.init_value <= 0:
        raise UsageError(f"a learning rate that falls begins above 0, got {str(rate)!r}.")
    num_factors, before, cut = 0, rate.init_value, rate.init_value
    for duration, value in _values(rate, lambda: cut / factor):
        if value > before:
            raise UsageError(
                f"the batch can only follow a rate that falls, but {excerpt(str(rate))!r} rises "
                f"to {float(value):g} at {duration}."
            )
        if value == before:
            continue
        passed = num_factors
        while value > 0 and value * factor ** (num_factors - passed + 1) <= cut:
            num_factors += 1
        cut = value if num_factors > passed else cut
        before = value
        yield Fall(_whole(duration), value, num_factors)


def _values(
    rate: LearningRate, next_cut: Callable[[], Fraction]
) -> Iterator[tuple[Duration, Fraction]]:
    """Yields (duration since the start, rate from there on); on a curve, where it is `next_cut`."""
    yield from rate.boundaries
    level, end = rate.init_value, _NOTHING
    if rate.begins_after_warmup:
        end = rate.warmup
    for index, part in enumerate(rate.parts):
        following = rate.parts[index + 1] if index + 1 < len(rate.parts) else None
        begin, end = _extent(part, following, end)
        level = level if part.init_value is None else part.init_value
        yield begin, level
        stretch = _Stretch(rate, part, begin, end, level, is_last=following is None)
        yield from stretch.decays() if part.shape == "decay" else stretch.curve(next_cut)
        if following is not None and following.init_value is None:
            level = stretch.end_value()


def _extent(
    part: RatePart, following: RatePart | None, after: Duration
) -> tuple[Duration, Duration]:
    """Where a part begins and ends, as `learning_rate_pieces` finds it on a plan."""
    if part.ends_the_run:
        return _sum(_RUN, part.length.times(-1)), _RUN
    if part.length is not None:
        return after, _sum(after, part.length) if part.measured == "over" else part.length
    return after, _RUN if following is None else _sum(_RUN, following.length.times(-1))


@dataclasses.dataclass(frozen=True)
class _Stretch:
    """A part of a rate that begins with a value at a place."""

    rate: LearningRate
    part: RatePart
    begin: Duration
    end: Duration
    init_value: Fraction
    is_last: bool

    def decays(self) -> Iterator[tuple[Duration, Fraction]]:
        part, value, k = self.part, self.init_value, 0
        while part.decay_rate != 1:
            k, value = k + 1, value * part.decay_rate
            duration = _sum(self.begin, part.decay_every.times(k))
            if not self._has(duration):
                return
            if value < self.rate.init_value * _SMALLEST:
                if not self.is_last:
                    raise self._order_unknown()
                return
            yield duration, value

    def curve(self, next_cut: Callable[[], Fraction]) -> Iterator[tuple[Duration, Fraction]]:
        end_value = self.part.end_value or Fraction(0)
        if self.part.shape == "constant":
            return
        if end_value > self.init_value:
            yield self.end, end_value  # which is refused
        lowest = max(end_value, self.rate.init_value * _SMALLEST)
        while (level := next_cut()) >= lowest:
            duration = self._where(level, end_value)
            if not self._has(duration):
                break
            yield duration, level
        if self.part.shape != "rsqrt" and self.end != _RUN:
            yield self.end, end_value

    def _where(self, level: Fraction, end_value: Fraction) -> Duration:
        if self.part.shape == "rsqrt":
            return _sum(self.begin, self._scale.times((self.init_value / level) ** 2 - 1))
        share = _share(self.part.shape, (level - end_value) / (self.init_value - end_value))
        return _sum(self.begin.times(1 - share), self.end.times(share))

    @property
    def _scale(self) -> Duration:
        scale = self.begin if self.part.scale is None else self.part.scale
        if not scale.value:
            raise UsageError(
                f"the part {str(self.part)!r} of the learning rate {excerpt(str(self.rate))!r} "
                "begins at sample 0, so it needs a time scale: write 'rsqrt scale 10000st'."
            )
        return scale

    def end_value(self) -> Fraction:
        """What the next part begins with."""
        if self.part.shape == "rsqrt":
            length = _sum(self.end, self.begin.times(-1))
            if length.plus or self._scale.plus or length.unit != self._scale.unit:
                raise self._order_unknown()
            ratio = length.value / self._scale.value
            return Fraction(float(self.init_value) / math.sqrt(1 + ratio))
        if self.part.shape == "decay":
            *_, last = [(None, self.init_value), *self.decays()]
            return last[1]
        return self.init_value if self.part.shape == "constant" else self.part.end_value

    def _has(self, duration: Duration) -> bool:
        """Whether a place is in front of its end, as far as that can be told."""
        rest = _sum(self.end, duration.times(-1))
        signs = {term.value > 0 for term in rest.terms}
        if len(signs) == 1:
            return signs == {True}
        if not self.is_last:
            raise self._order_unknown()
        return True  # the plan's end is somewhere

    def _order_unknown(self) -> UsageError:
        return UsageError(
            f"where the part {str(self.part)!r} of the learning rate {excerpt(str(self.rate))!r} "
            "ends can't be told before there is a plan; give all of its durations in one unit."
        )


def _share(shape: str, left: Fraction) -> Fraction:
    """The share of a curve after which so much of its way is left."""
    if shape == "linear":
        return 1 - left
    if shape == "sqrt":
        return (1 - left) ** 2
    exact_share = {Fraction(3, 4): Fraction(1, 3), Fraction(1, 4): Fraction(2, 3)}.get(left)
    # All others are irrational, but for 0, 1/2 and 1: twelve digits are an example in a trillion.
    return exact_share or Fraction(f"{math.acos(float(2 * left - 1)) / math.pi:.12f}")


def _whole(duration: Duration) -> Duration:
    """The same place with whole samples and tokens, rounded up as a plan would."""
    rounded = (
        term if term.unit in ("ep", "%") else Duration(Fraction(math.ceil(term.value)), term.unit)
        for term in duration.terms
    )
    return _sum(*rounded)


def _sum(*durations: Duration) -> Duration:
    """The sum of durations, in as few units as it has.

    >>> str(_sum(_RUN, Duration(Fraction(-20), "%"), Duration(Fraction(5), "ep")))
    '80%+5ep'
    """
    values: dict[str, Fraction] = {}
    for term in (term for duration in durations for term in duration.terms):
        values[term.unit] = values.get(term.unit, Fraction(0)) + term.value
    terms = [Duration(value, unit) for unit, value in values.items() if value] or [_NOTHING]
    terms.sort(key=lambda term: term.value < 0)  # a text can't begin with a minus
    return Duration(terms[0].value, terms[0].unit, plus=tuple(terms[1:]))
