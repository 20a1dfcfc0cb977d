"""Measuring things in turns, and ratios of what was measured."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A ratio of two times that were measured in the same rounds.

    Attributes:
      value: the median of the rounds' ratios. What slows a whole round down, such as another
        process, cancels out in each.
      low: their lower quartile.
      high: their upper quartile.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """The ratio of two things that were measured once in each round.

    >>> print(ratio([2.0, 4.0, 6.6], [1.0, 2.0, 3.0]))
    2 (2 to 2.1)
    """
    return spread([n / d for n, d in zip(numerators, denominators, strict=True)])


def spread(ratios: Sequence[float]) -> Ratio:
    """The median and the quartiles of each round's ratio."""
    if len(ratios) == 1:
        return Ratio(ratios[0], ratios[0], ratios[0])
    low, value, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(value, low, high)


def alternate(
    measures: Mapping[str, Callable[[], float]],
    rounds: int,
    warmups: int = 1,
    limit_seconds: float = math.inf,
) -> dict[str, list[float]]:
    """Measures several things in turns, so that the machine's moods meet all alike.

    Args:
      measures: by name, what performs something and returns the seconds it took.
      rounds: how often. Every other round goes through them backwards, so that none always
        follows the same one.
      warmups: rounds before, which don't count.
      limit_seconds: no further round after so long, if there were three.

    Returns:
      By name, the seconds of each round.

    >>> alternate({"a": lambda: 1.0, "b": lambda: 2.0}, rounds=2)
    {'a': [1.0, 1.0], 'b': [2.0, 2.0]}
    """
    seconds: dict[str, list[float]] = {name: [] for name in measures}
    end = time.monotonic() + limit_seconds
    for number in range(-warmups, rounds):
        if number >= 3 and time.monotonic() > end:
            break
        for name in list(measures) if number % 2 == 0 else reversed(measures):
            taken = measures[name]()
            if number >= 0:
                seconds[name].append(taken)
    return seconds


def timed(function: Callable[[], Any]) -> Callable[[], float]:
    """Returns what calls `function`, waits for the arrays it returns, and tells the seconds."""

    def measure() -> float:
        start = time.perf_counter()
        jax.block_until_ready(function())
        return time.perf_counter() - start

    return measure
