"""Timing compiled updates on the device at hand, in seconds and not in minutes."""

import math
import statistics
import time
from collections.abc import Callable, Mapping

from adabatch_jax.costs.model import fit_update_cost

Run = Callable[[int], None]  # performs so many updates, and waits for them
Clock = Callable[[], float]

# Short updates are timed in groups of this length: waiting for each would be timed too.
GROUP_SECONDS = 0.05
_MAX_GROUP = 100
_MAX_GROUPS = 9
# A warm-up, and two that are timed.
FEWEST_UPDATES = 3


def seconds_per_update(run: Run, budget_seconds: float, clock: Clock = time.perf_counter) -> float:
    """Times updates: the median of two to nine groups, after one update that isn't timed.

    Args:
      run: performs so many updates and waits for them.
      budget_seconds: after two groups, none is begun that wouldn't end within it.
      clock: seconds that never run backwards.
    """
    begin = clock()
    run(1)
    start = clock()
    run(1)
    seconds = clock() - start
    number = min(max(math.ceil(GROUP_SECONDS / max(seconds, 1e-9)), 1), _MAX_GROUP)
    groups = [seconds] if number == 1 else []
    while len(groups) < _MAX_GROUPS:
        if len(groups) >= 2 and clock() - begin + number * seconds > budget_seconds:
            break
        start = clock()
        run(number)
        groups.append((clock() - start) / number)
    return statistics.median(groups)


def measure_sizes(
    runs: Mapping[int, Callable[[], Run]], budget_seconds: float, clock: Clock = time.perf_counter
) -> dict[int, float]:
    """Times the updates of several batch sizes, the small ones first, while there is time.

    Args:
      runs: batch size -> prepares its updates; see `seconds_per_update`.
      budget_seconds: for all. The smallest size is timed in any case; one whose updates, going
        by the sizes before it, would take too long is left out with all that are larger.
      clock: seconds that never run backwards.

    Returns:
      Batch size -> seconds per update.
    """
    measured: dict[int, float] = {}
    end, sizes = clock() + budget_seconds, sorted(runs)
    for position, size in enumerate(sizes):
        left = end - clock()
        if measured:
            expected = fit_update_cost(measured).update_seconds(size)
            if FEWEST_UPDATES * expected > left:
                break
        # The larger a batch, the longer its update.
        share = left * size / sum(sizes[position:])
        measured[size] = seconds_per_update(runs[size](), share, clock)
    return measured
