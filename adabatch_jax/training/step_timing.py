"""How long updates take on the devices at hand, told before the first one counts."""

import collections
import math
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax

from adabatch_jax.data.feeds import Feed, Inputs, Piece
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.schedules.update_sizes import first_updates_by_size
from adabatch_jax.training.device_memory import device_bytes
from adabatch_jax.training.dispatch import Dispatch, Dispatched
from adabatch_jax.training.train_state import TrainState

# A short run isn't kept waiting to learn how long it would take.
_MIN_BUDGET_SECONDS = 0.1
_BUDGET_SHARE = 0.01
# As many as the loop leaves; XLA deadlocks on several CPU devices where dozens are in flight.
_IN_FLIGHT = 2


def wait_for_all(results: Iterable[Any]) -> None:
    """Waits for results that are dispatched one by one as they are iterated, few at a time."""
    in_flight: collections.deque[Any] = collections.deque()
    for result in results:
        in_flight.append(result)
        if len(in_flight) > _IN_FLIGHT:
            jax.block_until_ready(in_flight.popleft())
    jax.block_until_ready(in_flight[-1])


def seconds_by_size(
    dispatch: Dispatch,
    feed: Feed,
    plan: BatchPlan,
    start_step: int,
    state: TrainState,
    limit_bytes: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[int, float]:
    """Times updates of the sizes whose programs are compiled, on a copy of the state.

    The first size is always timed; another one if that takes no more than a percent of the time
    that the whole run should take. One is left out where a device's memory, `limit_bytes`, has no
    room for the copy. Processes that time their updates together are given one clock. Returns seconds
    per update, input left out, by its number of examples.
    """
    copy_bytes = device_bytes(state)
    firsts = first_updates_by_size(plan, start_step)
    programs = dispatch.programs
    ready = [
        size
        for size in firsts
        if all(
            programs.is_ready(name) and programs.get(name).num_bytes + copy_bytes <= limit_bytes
            for name in dispatch.names(size)
        )
    ]
    seconds: dict[int, float] = {}
    budget = _MIN_BUDGET_SECONDS
    for size in ready:
        if seconds:
            per_example = seconds[ready[0]] / ready[0]
            rest = plan.num_samples - plan.samples_at(start_step)
            budget = max(_MIN_BUDGET_SECONDS, _BUDGET_SHARE * per_example * rest)
            if FEWEST_UPDATES * per_example * size > budget:
                continue
        run = _Updates(dispatch, feed, firsts[size], plan.num_steps, state)
        seconds[size] = seconds_per_update(run, budget, clock) / run.num_updates
    return seconds


class _Updates:
    """Performs updates of one size on a copy of the state, `num_updates` of them per dispatch."""

    def __init__(self, dispatch: Dispatch, feed: Feed, step: int, num_steps: int, state: Any):
        self._dispatch = dispatch
        self._state = jax.tree.map(lambda leaf: leaf.copy(), state)
        made = feed.run(dispatch.pieces(step, lambda finished: num_steps))
        self._pieces, metrics = [], None
        while metrics is None:  # all micro-batches, where they are dispatched one by one
            self._pieces.append(next(made))
            metrics = self._perform(*self._pieces[-1]).metrics
        made.close()
        self.num_updates = len(self._pieces[-1][0].steps)

    def __call__(self, number: int) -> None:
        pieces = (piece for _ in range(number) for piece in self._pieces)
        wait_for_all(self._perform(*piece).wait_for for piece in pieces)

    def _perform(self, piece: Piece, inputs: Inputs) -> Dispatched:
        dispatched = self._dispatch(piece, self._state, inputs)
        self._state = dispatched.state
        return dispatched


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

    After two groups, none is begun that wouldn't end within the budget.
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
