"""Batch sizes that grow where a learning rate would decay."""

import dataclasses
import itertools
from fractions import Fraction

from adabatch_jax.schedules.batch_size_schedules import (
    PiecewiseConstant,
    Schedule,
    SeesawGrowth,
    exponential_growth,
    piecewise_constant,
    round_half_up,
    rounded_growth,
)
from adabatch_jax.schedules.durations import Duration, Thresholds, read_thresholds
from adabatch_jax.schedules.learning_rate_text import LearningRate
from adabatch_jax.schedules.rate_falls import (
    as_learning_rate,
    falls,
    has_curves,
    steps_as_samples,
)
from adabatch_jax.schedules.text_reader import exact, positive_integer
from adabatch_jax.system.errors import UsageError


def growth_from_decay(
    init_value: int,
    boundaries_and_decays: Thresholds[float] | str | LearningRate,
    power: float = 1.0,
    end_value: int | None = None,
    factor: int | float | str | Fraction = 2,
) -> PiecewiseConstant:
    """Grows the batch where a learning rate would decay (arXiv:1711.00489).

    The size is `init_value * (product of the decays so far) ** -power`, rounded half up and
    clipped to `end_value`. Keep the same decays in the base learning rate: the coupling leaves
    in it what the batch didn't take, the rest above `end_value` included. Power 1 with linear
    coupling is Smith et al.'s "don't decay the learning rate", for SGD; power 1 with sqrt is
    `seesaw`, for Adam, which a larger power makes unstable.

    Args:
      init_value: the first batch size.
      boundaries_and_decays: duration since the start of the run -> factor of the rate there; a
        mapping, or pairs. Or a learning rate, such as "3e-4 warmup 2000st then cosine to 3e-5",
        whose steps are those of a run with `init_value` throughout.
      power: how much of a decay the batch takes.
      end_value: the largest size; None for no bound.
      factor: how far the curve of a learning rate falls between two sizes.

    Raises:
      UsageError: a decay <= 0, `init_value` or `end_value` < 1, a size that rounds to 0, what is
        no pair, a duration that can't be read, `factor` <= 1, or a learning rate that rises.

    >>> str(growth_from_decay(128, {"30ep": 0.1, "60ep": 0.1}, end_value=8192))
    '128, 30ep: 1280, 60ep: 8192'
    >>> wsd = "3e-4 warmup 2000st then constant then linear to 0 over the last 20%"
    >>> str(growth_from_decay(128, wsd, end_value=512))
    '128, 90%: 256, 95%: 512'
    """
    init_value = positive_integer(init_value, "init_value")
    bound = None if end_value is None else positive_integer(end_value, "end_value")
    exponent = exact(power, "power")
    is_rate = isinstance(boundaries_and_decays, str | LearningRate)
    if is_rate:
        decayed = _decayed_rate(init_value, boundaries_and_decays, _factor(factor))
    else:
        decayed = _decayed(boundaries_and_decays)
    boundaries: list[tuple[Duration, int]] = []
    for duration, product in decayed:
        if exponent.denominator == 1:
            size = round_half_up(init_value * product ** -int(exponent))
        else:
            size = round_half_up(Fraction(init_value * float(product) ** -float(exponent)))
        boundaries.append((duration, size if bound is None else min(size, bound)))
        if is_rate and boundaries[-1][1] == bound:
            break  # what is left of a curve needn't be listed
    return piecewise_constant(init_value, boundaries)


def _decayed(boundaries_and_decays: Thresholds[float]) -> list[tuple[Duration, Fraction]]:
    """The listed decays, multiplied up."""
    what = "`boundaries_and_decays` are a learning rate, a mapping or pairs of (duration, decay)"
    product, decayed = Fraction(1), []
    for duration, decay in read_thresholds(boundaries_and_decays, what):
        factor = exact(decay, f"decay at {duration}")
        if factor <= 0:
            raise UsageError(f"the decay at {duration} must be above 0, got {decay}.")
        product *= factor
        decayed.append((duration, product))
    return decayed


def _decayed_rate(
    init_value: int, rate: str | LearningRate, factor: Fraction
) -> list[tuple[Duration, Fraction]]:
    base = steps_as_samples(as_learning_rate(rate), init_value)
    found = falls(base, factor)
    return [(fall.duration, fall.rate / base.init_value) for fall in found if fall.rate > 0]


def seesaw(
    init_value: int,
    rate: str | float | LearningRate,
    factor: int | float | str | Fraction = 2,
    end_value: int | None = None,
) -> tuple[Schedule, LearningRate]:
    """Grows the batch by what a learning rate would fall by, which then falls by its root.

    Seesaw (arXiv:2510.14717), for Adam and other normalized optimizers: a cut of the rate by
    alpha at a growth of the batch by beta follows the same path where alpha * sqrt(beta) is the
    same, and is stable where alpha >= sqrt(beta). With `coupling="sqrt"` the rate that is returned
    falls by the root of what the batch grows by, which is just stable; by all of it where
    `end_value` ends the growth; and what it falls by beyond a power of `factor` stays in it.

    Args:
      init_value: the first batch size.
      rate: the learning rate of a run with this batch size throughout, as a text or parsed; its
        steps are of that run, and become samples.
      factor: how much the batch grows at a time: where a curve has fallen by it, and where listed
        rates and decays have.
      end_value: the largest size; None for no bound.

    Returns:
      The batch-size schedule, and the base rate to couple by "sqrt": the same rate, where curves,
      and decays by less than `factor`, became cuts at those places, down to a thousandth of its
      first value.

    Raises:
      UsageError: `init_value` < 1, `end_value` < `init_value`, `factor` <= 1, or a rate that
        rises, is a function, can't be read, or mixes units so that its parts have no order.

    >>> from adabatch_jax import coupled_learning_rate, make_plan
    >>> schedule, rate = seesaw(64, "3e-4 cosine to 3e-5", end_value=256)
    >>> str(schedule), str(rate)
    ('64, 53.5440945602%: 128, 73.2279527199%: 256', '0.0003, 53.5440945602%: 0.00015, ...')
    >>> schedule, rate = seesaw(64, "0.1 x0.25 every 10ep", factor=4, end_value=1024)
    >>> plan = make_plan(schedule, num_examples=10_000, duration="40ep")
    >>> lr = coupled_learning_rate(plan, rate, coupling="sqrt", optimizer="adam")
    >>> [(phase.batch_size, round(float(lr(phase.start_step)), 4)) for phase in plan.phases]
    [(64, 0.1), (256, 0.05), (1024, 0.025)]
    """
    init_value, times = positive_integer(init_value, "init_value"), exact(factor, "factor")
    SeesawGrowth(init_value, times, end_value)  # checks what is given
    base = steps_as_samples(as_learning_rate(rate), init_value)
    regular = _of_regular_decays(init_value, base, times, end_value)
    if regular is not None:
        return regular, base
    found = [*falls(base, times)]
    sizes = [init_value]
    for fall in found:
        size = rounded_growth(init_value, times, fall.num_factors, 1)
        sizes.append(size if end_value is None else min(size, end_value))
    growing = [grown > before for before, grown in itertools.pairwise(sizes)]
    boundaries = [(f.duration, size) for f, size, grows in zip(found, sizes[1:], growing) if grows]
    last = max((index for index, grows in enumerate(growing) if grows), default=-1)
    if has_curves(base) or not all(growing[: last + 1]):
        # Until the last growth it is held between the cuts, and then it falls as it would.
        cuts = [
            (f.duration, f.rate)
            for index, (f, grows) in enumerate(zip(found, growing))
            if grows or index > last
        ]
        base = dataclasses.replace(
            base, boundaries=tuple(cuts), parts=(), begins_after_warmup=False
        )
    return piecewise_constant(init_value, boundaries), base


def schedule_and_rate(schedule: Schedule, rate: LearningRate) -> tuple[Schedule, LearningRate]:
    """What both are together: a schedule that is to follow the rate, does.

    >>> from adabatch_jax import parse_learning_rate, parse_schedule
    >>> both = parse_schedule("64 x2 seesaw max 256"), parse_learning_rate("0.1 x0.5 every 10ep")
    >>> [str(one) for one in schedule_and_rate(*both)]
    ['64 x2 every 10ep max 256', '0.1 x0.5 every 10ep']
    """
    if isinstance(schedule, SeesawGrowth):
        return seesaw(schedule.init_value, rate, schedule.growth_factor, schedule.end_value)
    return schedule, rate


def _of_regular_decays(
    init_value: int, rate: LearningRate, factor: Fraction, end_value: int | None
) -> Schedule | None:
    """The growth, which needn't be listed, of a rate that decays by at least `factor` each time."""
    if len(rate.parts) != 1 or rate.begins_after_warmup:
        return None
    part = rate.parts[0]
    if part.shape != "decay" or part.length is not None or part.decay_rate * factor > 1:
        return None
    growth = factor
    while growth * factor * part.decay_rate <= 1:
        growth *= factor
    return exponential_growth(init_value, growth, part.decay_every, end_value)


def _factor(factor: int | float | str | Fraction) -> Fraction:
    value = exact(factor, "factor")
    if value <= 1:
        raise UsageError(f"`factor` must be above 1, got {factor}.")
    return value
