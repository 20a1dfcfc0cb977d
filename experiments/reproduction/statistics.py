"""What a few seeds allow to be said: intervals, differences, and equivalence within a margin.

Where nothing can be said, with one run or with runs that are all equal, the figure is None: an
interval of no width would claim a certainty that nobody has.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

EQUIVALENT, NOT_SHOWN, DIFFERENT = "equivalent", "not shown", "different"

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The mean of independent measurements.

    Attributes:
      n: how many there are.
      mean: None where there are none.
      sd: the sample standard deviation (n - 1); None below two measurements.
      interval: Student's t-interval of the mean; None below two measurements, and where all
        are equal.
    """

    n: int
    mean: float | None
    sd: float | None
    interval: Interval | None


@dataclasses.dataclass(frozen=True)
class Difference:
    """A mean minus the mean of a reference, by Welch's method.

    Attributes:
      n: the number of measurements.
      reference_n: that of the reference.
      mean: the difference; None where one side has no measurement.
      interval: its interval; None where one side has fewer than two measurements, and where
        neither side varies.
      p: of the two-sided test of no difference; None where there is no interval.
    """

    n: int
    reference_n: int
    mean: float | None
    interval: Interval | None
    p: float | None


@dataclasses.dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests (TOST) of whether a difference is smaller than a margin.

    Attributes:
      margin: the largest difference that counts as none, in the measurements' unit.
      p: the larger of the two p values; None where the difference has no interval.
      interval: the interval at 1 - 2 alpha, inside the margin exactly where p < alpha.
      verdict: "equivalent" where p < alpha; otherwise "different" where the difference is
        significant at alpha, else "not shown".
    """

    margin: float
    p: float | None
    interval: Interval | None
    verdict: str


def estimate(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """The mean of `values` with its standard deviation and t-interval.

    >>> estimate([8.0, 9.0, 10.0])
    Estimate(n=3, mean=9.0, sd=1.0, interval=(6.515..., 11.484...))
    >>> estimate([8.0])
    Estimate(n=1, mean=8.0, sd=None, interval=None)
    """
    n = len(values)
    if n == 0:
        return Estimate(0, None, None, None)
    mean = float(np.mean(values))
    if n == 1:
        return Estimate(1, mean, None, None)
    if _is_constant(values):
        return Estimate(n, mean, 0.0, None)
    sd = float(np.std(values, ddof=1))
    return Estimate(n, mean, sd, _interval(mean, sd / math.sqrt(n), n - 1, confidence))


def difference(
    values: Sequence[float], reference: Sequence[float], confidence: float = 0.95
) -> Difference:
    """The mean of `values` minus that of `reference`, with Welch's interval and test.

    >>> result = difference([8.0, 9.0, 10.0], [7.0, 9.0, 8.0])
    >>> result.mean, round(result.p, 3)
    (1.0, 0.288)
    """
    sizes = len(values), len(reference)
    if 0 in sizes:
        return Difference(*sizes, None, None, None)
    mean = float(np.mean(values) - np.mean(reference))
    spread = _welch(values, reference)
    if spread is None:
        return Difference(*sizes, mean, None, None)
    error, dof = spread
    p = float(2 * stats.t.sf(abs(mean) / error, dof))
    return Difference(*sizes, mean, _interval(mean, error, dof, confidence), p)


def equivalence(
    values: Sequence[float], reference: Sequence[float], margin: float, alpha: float = 0.05
) -> Equivalence:
    """Whether two means differ by less than `margin`: two one-sided tests, by Welch's method.

    Args:
      values: measurements.
      reference: measurements to compare with.
      margin: the largest difference that counts as none, above 0.
      alpha: the risk of calling equivalent what isn't.

    >>> equivalence([8.0, 8.2, 8.1], [8.1, 8.0, 8.0], margin=1.0).verdict
    'equivalent'
    """
    if not margin > 0:
        raise ValueError(f"`margin` must be above 0, got {margin}.")
    spread = _welch(values, reference)
    if spread is None:
        return Equivalence(margin, None, None, NOT_SHOWN)
    error, dof = spread
    mean = float(np.mean(values) - np.mean(reference))
    p = float(stats.t.sf((margin - abs(mean)) / error, dof))
    interval = _interval(mean, error, dof, 1 - 2 * alpha)
    if p < alpha:
        verdict = EQUIVALENT
    elif 2 * stats.t.sf(abs(mean) / error, dof) < alpha:
        verdict = DIFFERENT
    else:
        verdict = NOT_SHOWN
    return Equivalence(margin, p, interval, verdict)


def _welch(values: Sequence[float], reference: Sequence[float]) -> tuple[float, float] | None:
    """The standard error of a difference and its degrees of freedom (Welch, Satterthwaite)."""
    sides = values, reference
    if min(map(len, sides)) < 2 or all(map(_is_constant, sides)):
        return None
    parts = [0.0 if _is_constant(side) else np.var(side, ddof=1) / len(side) for side in sides]
    shares = sum(part**2 / (len(side) - 1) for part, side in zip(parts, sides, strict=True))
    return math.sqrt(sum(parts)), float(sum(parts) ** 2 / shares)


def _interval(mean: float, error: float, dof: float, confidence: float) -> Interval:
    reach = float(stats.t.isf((1 - confidence) / 2, dof)) * error
    return mean - reach, mean + reach


def _is_constant(values: Sequence[float]) -> bool:
    # The variance of equal floats need not come out as zero.
    return min(values) == max(values)
