"""A short run through a schedule's phases: its time against the prediction, and its changes."""

import collections
import time
from collections.abc import Mapping
from typing import Any

import jax

from adabatch_jax import make_plan
from adabatch_jax.training.time_prediction import predict
from experiments.benchmarks.accelerator.sweep import Sweep

_IN_FLIGHT = 2


def run_through(
    sweep: Sweep, seconds_by_size: Mapping[int, float], wanted_seconds: float
) -> dict[str, Any]:
    """Trains through the workload's schedule, in epochs so short that it takes some seconds.

    Args:
      sweep: has the programs of the schedule's sizes.
      seconds_by_size: batch size -> seconds per update, which the prediction is made of.
      wanted_seconds: how long the run should take.

    Returns:
      JSON values: predicted and measured seconds, and for each change of phase the time from
      the last update of the old phase to the first one of the new, in updates of the new one.
    """
    schedule = sweep.workload.schedule
    sizes = make_plan(schedule, 50_000, "100ep").batch_sizes
    if missing := [size for size in sizes if size not in sweep.programs]:
        return {"error": f"no program for batch {missing}"}
    pace = sum(seconds_by_size[size] / size for size in sizes)  # seconds per example of each
    num_examples = max(int(wanted_seconds / pace / 20), sizes[-1])
    plan = make_plan(schedule, num_examples, "100ep")
    predicted = predict(plan, seconds_by_size)
    updates = {size: sweep.updates(size) for size in sizes}
    for update in updates.values():
        jax.block_until_ready(update())
    ends, in_flight = [], collections.deque()
    start = time.perf_counter()
    for step in plan.steps():
        # The parameters beside the metrics are gone once the next update has taken them.
        in_flight.append(updates[step.batch_size]()[0])
        if len(in_flight) > _IN_FLIGHT:
            jax.block_until_ready(in_flight.popleft())
            ends.append(time.perf_counter())
    while in_flight:
        jax.block_until_ready(in_flight.popleft())
        ends.append(time.perf_counter())
    changes = []
    for phase in plan.phases[1:]:
        first = ends[phase.start_step] - ends[phase.start_step - 1]
        changes.append(
            {
                "batch_size": phase.batch_size,
                "first_update_seconds": first,
                "stall_in_updates": first / seconds_by_size[phase.batch_size] - 1,
            }
        )
    return {
        "updates": plan.num_steps,
        "predicted_seconds": predicted.total_seconds,
        "measured_seconds": ends[-1] - start,
        "predicted_over_measured": predicted.total_seconds / (ends[-1] - start),
        "changes": changes,
    }


def recompilation(sweep: Sweep, batch_size: int, update_seconds: float) -> dict[str, Any]:
    """What the first update of a phase takes where `jax.jit` has to compile it."""
    step = sweep.network.step()
    batch = sweep.network.batch(batch_size)
    start = time.perf_counter()
    jax.block_until_ready(step(batch))
    first = time.perf_counter() - start
    return {
        "batch_size": batch_size,
        "first_update_seconds": first,
        "stall_in_updates": first / update_seconds - 1,
    }
