"""Where the pieces of a described learning rate begin and end on a plan, in exact fractions."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from adabatch_jax.schedules.durations import Duration
from adabatch_jax.schedules.learning_rate_text import Boundaries, LearningRate, RatePart
from adabatch_jax.schedules.plan import BatchPlan, first_step_from
from adabatch_jax.schedules.text_reader import decimal_text, excerpt
from adabatch_jax.system.errors import UsageError

_MAX_PIECES = 100_000
_MAX_EXACT_DECAYS = 400


class Piece(NamedTuple):
    """A stretch of the base rate: from `rate` towards `end_rate` along a curve.

    Attributes:
      step: the first update in it.
      sample: where the curve begins.
      length: samples after which the rate keeps its value.
      scale: samples that are 1 to the curve.
    """

    step: int
    rate: Fraction
    curve: str = "constant"
    end_rate: Fraction = Fraction(0)
    sample: int = 0
    length: int = 1
    scale: int = 1


def base_pieces(plan: BatchPlan, base: LearningRate) -> list[Piece]:
    """The pieces of the base rate, in order, without warm-up and factors.

    Raises:
      UsageError: boundaries or parts out of order, or more than 100,000 decays.
    """
    pieces = [Piece(0, base.init_value)]
    pieces += [Piece(step, rate) for step, rate in changes(plan, base, base.boundaries)]
    rate = base.init_value
    for part, begin, end in _parts_in_run(plan, base):
        rate = rate if part.init_value is None else part.init_value
        if part.shape == "decay":
            pieces += _decays(plan, base, part, rate, begin, end)
        else:
            pieces.append(_curve(plan, base, part, rate, begin, end))
        rate = _rate_at_end(pieces[-1])
    return pieces


def _parts_in_run(plan: BatchPlan, base: LearningRate) -> Iterator[tuple[RatePart, int, int]]:
    """Yields the parts that begin before the run ends, and the samples where they begin and end."""
    end = plan.sample_of(base.warmup) if base.begins_after_warmup else 0
    for part, following in itertools.zip_longest(base.parts, base.parts[1:]):
        begin, end = _extent(plan, base, part, following, end)
        if begin >= plan.num_samples:
            return
        yield part, begin, end


def unreached(plan: BatchPlan, base: LearningRate) -> tuple[str, ...]:
    """Sentences that name what of a rate no update of the plan comes to.

    As of the batch schedule these are what is listed, and a law that never begins to work; and
    the end of a warm-up, or of a last part whose length was given.

    >>> from adabatch_jax import make_plan, parse_learning_rate
    >>> unreached(make_plan(10, 100, "3ep"), parse_learning_rate("0.1, 2ep: 0.01, 3ep: 0.001"))
    ("the learning rate never reaches '3ep: 0.001': the run ends at sample 300.",)
    """

    def is_late(sample: int) -> bool:
        return first_step_from(plan, sample) >= plan.num_steps

    behind = [
        f"{duration}: {decimal_text(value)}"
        for duration, value in (*base.boundaries, *base.factor_boundaries)
        if is_late(plan.sample_of(duration))
    ]
    sentences = []
    in_run = [extent for extent in _parts_in_run(plan, base) if not is_late(extent[1])]
    for part, begin, end in in_run:
        if part.shape == "decay":
            decays = _decays(plan, base, part, Fraction(1), begin, end)
            text = str(dataclasses.replace(part, init_value=None))
            if len([*itertools.islice(decays, 2)]) > 1:  # more than what it begins with
                continue
            if end < plan.num_samples:
                sentences.append(_never([text], f"it ends at sample {end:,}"))
            else:
                behind.append(text)
        elif part is base.parts[-1] and part.end_value is not None and end > plan.num_samples:
            behind.append(f"the end of its {part}")
    behind += map(str, base.parts[len(in_run) :])
    if base.warmup is not None and is_late(plan.sample_of(base.warmup)):
        behind.append(f"the end of its warmup {base.warmup}")
    if behind:
        sentences.append(_never(behind, f"the run ends at sample {plan.num_samples:,}"))
    return tuple(sentences)


def _never(names: Sequence[str], why: str) -> str:
    return f"the learning rate never reaches {excerpt(' and '.join(map(repr, names)))}: {why}."


def changes(
    plan: BatchPlan, base: LearningRate, boundaries: Boundaries
) -> Iterator[tuple[int, Fraction]]:
    """Yields (first step, value) of values that are listed one by one."""
    before = 0
    for duration, value in boundaries:
        sample = plan.sample_of(duration)
        if sample <= before:
            raise UsageError(
                f"the thresholds of the learning rate {excerpt(str(base))!r} must increase, but "
                f"{duration} is at sample {sample:,} and the one before it at sample {before:,}."
            )
        before = sample
        yield first_step_from(plan, sample), value


def _extent(
    plan: BatchPlan, base: LearningRate, part: RatePart, following: RatePart | None, after: int
) -> tuple[int, int]:
    """The samples at which a part begins, which it may say, and ends."""
    begin, end = after, plan.num_samples
    if part.ends_the_run:
        begin = _sample_before_end(plan, part.length)
    elif part.length is not None:
        end = plan.sample_of(part.length, after=begin if part.measured == "over" else 0)
    elif following is not None:
        end = max(begin, _sample_before_end(plan, following.length))
    if begin < after:
        place = f"at sample {begin:,}" if begin >= 0 else "before the run"
        raise UsageError(
            f"the part {str(part)!r} of the learning rate {excerpt(str(base))!r} would begin "
            f"{place}, but what is in front of it ends at sample {after:,}."
        )
    if end <= begin and part.measured == "until":
        raise UsageError(
            f"the part {str(part)!r} of the learning rate {excerpt(str(base))!r} would end at "
            f"sample {end:,}, but it begins at sample {begin:,}."
        )
    return begin, end


def _sample_before_end(plan: BatchPlan, duration: Duration) -> int:
    """Where the last stretch of a length begins, rounded up; below 0 if the run is shorter."""
    samples = plan.units.in_samples(duration)
    if samples is not None:
        return math.ceil(plan.num_samples - samples)
    step = math.ceil(plan.num_steps - plan.units.in_steps(duration))
    return plan.samples_at(step) if step >= 0 else -1


def _decays(
    plan: BatchPlan, base: LearningRate, part: RatePart, rate: Fraction, begin: int, end: int
) -> Iterator[Piece]:
    """Yields the piece that a decaying part begins with, and one for each decay in it."""
    yield Piece(first_step_from(plan, begin), rate)
    for k in itertools.count(1):
        sample = plan.sample_of(part.decay_every.times(k), after=begin)
        step = first_step_from(plan, sample)
        if sample >= end or step >= plan.num_steps:
            return
        if k > _MAX_PIECES:
            raise UsageError(
                f"the learning rate {str(base)!r} changes more than {_MAX_PIECES:,} times in this "
                "run; decay less often by a smaller factor."
            )
        rate *= part.decay_rate
        if k > _MAX_EXACT_DECAYS:
            rate = Fraction(float(rate))  # exact fractions grow with every factor
        yield Piece(step, rate)


def _curve(
    plan: BatchPlan, base: LearningRate, part: RatePart, rate: Fraction, begin: int, end: int
) -> Piece:
    scale = end - begin
    if part.shape == "rsqrt":
        scale = begin if part.scale is None else plan.sample_of(part.scale)
        if scale == 0:
            raise UsageError(
                f"the part {str(part)!r} of the learning rate {excerpt(str(base))!r} begins at "
                "sample 0, so it needs a time scale: write for example 'rsqrt scale 10000st'."
            )
    step, end_rate = first_step_from(plan, begin), part.end_value or Fraction(0)
    return Piece(step, rate, part.shape, end_rate, begin, end - begin, scale)


def _rate_at_end(piece: Piece) -> Fraction:
    """What a part that begins at the end of this one goes on from."""
    if piece.curve == "constant":
        return piece.rate
    if piece.curve == "rsqrt":
        return Fraction(float(piece.rate) * curve_at(math, "rsqrt", piece.length / piece.scale))
    return piece.end_rate


CURVES = ("linear", "cosine", "sqrt", "rsqrt")


def curve_at(xp: Any, curve: str, share: Any) -> Any:
    """What is left of the way to the end, from 1 at the beginning, with any module of functions.

    >>> [round(curve_at(math, curve, 0.25), 3) for curve in CURVES]
    [0.75, 0.854, 0.5, 0.894]
    """
    if curve == "linear":
        return 1 - share
    if curve == "cosine":
        return (1 + xp.cos(math.pi * share)) / 2
    if curve == "sqrt":
        return 1 - xp.sqrt(share)
    return 1 / xp.sqrt(1 + share)
