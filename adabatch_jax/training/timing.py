"""How long updates take on the devices at hand, told before the first one counts."""

import statistics
import time

import jax

from adabatch_jax.data.feeds import Feed
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.training.dispatch import Dispatch, sizes_from
from adabatch_jax.training.state import TrainState

# A short run isn't kept waiting to learn how long it would take.
_MIN_BUDGET_SECONDS = 0.5
_BUDGET_SHARE = 0.01
_NUM_TIMED = 3


def seconds_by_size(
    dispatch: Dispatch,
    feed: Feed,
    plan: BatchPlan,
    start_step: int,
    state: TrainState,
    rng: jax.Array,
) -> dict[int, float]:
    """Times updates of the batch sizes whose programs are compiled, on a copy of the state.

    The first size is always timed; another one if that takes no more than a percent of the time
    that the whole run should take.

    Returns:
      Seconds per update, input left out, by batch size.
    """
    sizes = sizes_from(plan, start_step)
    ready = (size for size in sizes if all(map(dispatch.programs.is_ready, dispatch.names(size))))
    seconds: dict[int, float] = {}
    for size in ready:
        if seconds:
            per_example = seconds[sizes[0]] / sizes[0]
            rest = plan.num_samples - plan.samples_at(start_step)
            budget = max(_MIN_BUDGET_SECONDS, _BUDGET_SHARE * per_example * rest)
            if (1 + _NUM_TIMED) * per_example * size > budget:
                continue
        seconds[size] = _update_seconds(dispatch, feed, plan, size, state, rng)
    return seconds


def _update_seconds(
    dispatch: Dispatch, feed: Feed, plan: BatchPlan, size: int, state: TrainState, rng: jax.Array
) -> float:
    """The median of a few dispatches, the first one left out."""
    phase = next(phase for phase in plan.phases if phase.batch_size == size)
    state = jax.tree.map(lambda leaf: leaf.copy(), state)
    inputs, metrics = [], None
    made = feed.run(dispatch.pieces(phase.start_step, lambda finished: False))
    while metrics is None:
        inputs.append(next(made))
        state, metrics, wait_for = dispatch(inputs[-1][0], state, inputs[-1][1], rng)
    made.close()
    num_updates = len(inputs[-1][0].steps)
    seconds = []
    for _ in range(_NUM_TIMED):
        jax.block_until_ready(wait_for)
        begin = time.monotonic()
        for piece, arrays in inputs:
            state, _, wait_for = dispatch(piece, state, arrays, rng)
        jax.block_until_ready(wait_for)
        seconds.append((time.monotonic() - begin) / num_updates)
    return statistics.median(seconds)
