"""Updates timed over and over, until their times agree or it is clear that they won't.

Other programs on a machine make an update slower now and then, and never faster. So an update's
time is the lower quartile of many short samples: up to three quarters of them may be disturbed.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from adabatch_jax.training.step_timing import Clock, Run
from adabatch_jax.training.time_prediction import fit_update_cost, largest_paying_size

SMALL_SPREAD = 0.01  # growth pays from 5 % on: two sizes known to 1 % can mostly be told apart
_QUARTILE = 0.25
_NORMAL_95 = 1.96

# A sample is this long, or one update: waiting for each short one would be timed too.
_SAMPLE_SECONDS = 0.01
_MAX_UPDATES = 100
# Agreement of fewer is luck; and a disturbance often lasts for seconds.
FEWEST_ROUNDS = 10
_FEWEST_SECONDS = 2.0
# What a size that takes long must leave time for.
_AFFORDABLE_ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class Timing:
    """How long an update takes, and how sure that is.

    Attributes:
      seconds: its time.
      spread: how far off `seconds` may be, as a share of it.
    """

    seconds: float
    spread: float

    @property
    def is_sure(self) -> bool:
        """Whether repeating it gave the same."""
        return self.spread <= SMALL_SPREAD


def timing_of(samples: Sequence[float]) -> Timing:
    """The lower quartile of times in the order in which they were taken, and its spread.

    The spread is the larger of two: half of the quartile's 95 % interval, which for any
    distribution lies between two of the sorted samples (those whose ranks are 1.96 standard
    deviations of the binomial distribution around n / 4), and half of what lies between the
    quartiles of the first and of the second half, which differ where the machine drifts.

    >>> timing_of([1.0] * 20 + [3.0] * 20)  # at first undisturbed, then never
    Timing(seconds=1.0, spread=1.0)
    >>> timing_of([1.0, 3.0] * 20)  # every second sample disturbed
    Timing(seconds=1.0, spread=0.0)
    """
    ordered, number = sorted(samples), len(samples)
    middle = number * _QUARTILE
    reach = _NORMAL_95 * math.sqrt(middle * (1 - _QUARTILE))
    low, high = math.floor(middle - reach), math.ceil(middle + reach)
    interval = ordered[min(high, number - 1)] - ordered[max(low, 0)]
    halves = samples[: number // 2], samples[number // 2 :]
    first, second = (_quartile(sorted(half)) if half else ordered[0] for half in halves)
    seconds = _quartile(ordered)
    return Timing(seconds, max(interval, abs(second - first)) / 2 / seconds)


def _quartile(ordered: Sequence[float]) -> float:
    return ordered[math.ceil(len(ordered) * _QUARTILE) - 1]


def repeated_timings(
    runs: Mapping[int, Callable[[], Run]],
    budget_seconds: float,
    clock: Clock = time.perf_counter,
    are_ordered: bool = True,
) -> dict[int, Timing]:
    """Times the updates of several sizes in turns, until all are sure or the time is over.

    In turns, because a machine that gets slower meanwhile then does so for all sizes. One whose
    updates, going by the sizes before it, would take too long is left out with all that are larger;
    the smallest is timed in any case, three times at least.

    Args:
      runs: what prepares the updates of each size.
      budget_seconds: after which no round is begun.
      clock: seconds.
      are_ordered: whether larger sizes take longer; if not, none is left out.
    """
    end = clock() + budget_seconds
    performs, counts, firsts = {}, {}, {}
    for size in sorted(runs):
        if firsts and are_ordered:
            expected = fit_update_cost(firsts).update_seconds(size)
            later_rounds = _AFFORDABLE_ROUNDS * (expected + sum(firsts.values()))
            if clock() + expected + later_rounds > end:
                break
        performs[size] = runs[size]()
        performs[size](1)  # a warm-up
        firsts[size] = _timed(performs[size], 1, clock)
        counts[size] = min(max(math.ceil(_SAMPLE_SECONDS / firsts[size]), 1), _MAX_UPDATES)
    samples: dict[int, list[float]] = {size: [] for size in performs}
    begin = clock()
    for finished in itertools.count(1):
        round_begin = clock()
        for size, perform in performs.items():
            samples[size].append(_timed(perform, counts[size], clock))
        now = clock()
        has_enough = finished >= FEWEST_ROUNDS and now - begin >= _FEWEST_SECONDS
        if has_enough and all(timing_of(taken).is_sure for taken in samples.values()):
            break
        if finished >= _AFFORDABLE_ROUNDS and now + (now - round_begin) > end:
            break
    return {size: timing_of(taken) for size, taken in samples.items()}


def _timed(perform: Run, number: int, clock: Clock) -> float:
    start = clock()
    perform(number)
    return max(clock() - start, 1e-9) / number


def possible_ends(timings: Mapping[int, Timing]) -> list[int]:
    """The sizes at which growth could stop paying, within the spread of the times.

    Of each two neighbours one is taken to be as fast and the other as slow as may be.

    >>> possible_ends({64: Timing(1.0, 0.01), 128: Timing(1.5, 0.01), 256: Timing(3.0, 0.01)})
    [128]
    >>> possible_ends({64: Timing(1.0, 0.2), 128: Timing(1.8, 0.2)})
    [64, 128]
    """
    seconds = {size: timing.seconds for size, timing in timings.items()}
    found = {largest_paying_size(seconds)}
    for small, large in itertools.pairwise(sorted(timings)):
        low, high = (seconds[size] * (1 + timings[size].spread) for size in (small, large))
        fast_small, fast_large = seconds[small] ** 2 / low, seconds[large] ** 2 / high
        found.add(largest_paying_size(seconds | {small: low, large: fast_large}))
        found.add(largest_paying_size(seconds | {small: fast_small, large: high}))
    return sorted(found)


def spread_text(timings: Iterable[Timing]) -> str:
    """How sure the least sure of some times is.

    >>> spread_text([Timing(1.0, 0.004), Timing(2.0, 0.0151)])
    'within 1.6 %'
    """
    worst = max(timing.spread for timing in timings)
    return f"within {math.ceil(1000 * worst) / 10:.1f} %"
