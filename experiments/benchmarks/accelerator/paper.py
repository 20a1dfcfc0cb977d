"""The paper's single-device table: the fixed small batch, the adaptive batches, the large batch."""

from collections.abc import Mapping
from typing import Any

from adabatch_jax import make_plan
from adabatch_jax.training.time_prediction import predict

# Section 4.1: CIFAR, 100 epochs, incomplete batches dropped as in the official code.
_NUM_EXAMPLES, _DURATION = 50_000, "100ep"


def single_device_table(schedule: str, seconds_by_size: Mapping[int, float]) -> dict[str, Any]:
    """What the paper's arms take, from measured seconds per update and the plans' updates.

    Args:
      schedule: the adaptive arm's batches.
      seconds_by_size: batch size -> measured seconds per update.

    Returns:
      JSON values: seconds and updates of the fixed small, adaptive and fixed large arm, the
      adaptive one's speed-up in each phase and in all.

    >>> seconds = {128: 0.1, 256: 0.15, 512: 0.25, 1024: 0.5, 2048: 1.0}
    >>> table = single_device_table("128 x2 every 20ep max 2048", seconds)
    >>> table["arms"]["adaptive"]["updates"], [round(p["speedup"], 2) for p in table["phases"]]
    (15080, [1.0, 1.33, 1.6, 1.6, 1.6])
    """
    plan = make_plan(schedule, _NUM_EXAMPLES, _DURATION, remainder="drop")
    adaptive = predict(plan, seconds_by_size)
    sizes = plan.batch_sizes
    arms = {}
    for name, text in (
        ("fixed small", f"{sizes[0]}"),
        ("adaptive", schedule),
        ("fixed large", f"{sizes[-1]}"),
    ):
        arm = predict(make_plan(text, _NUM_EXAMPLES, _DURATION, remainder="drop"), seconds_by_size)
        updates = sum(phase.num_updates for phase in arm.phases)
        arms[name] = {"updates": updates, "total_seconds": arm.total_seconds}
    return {
        "schedule": schedule,
        "arms": arms,
        "speedup": arms["fixed small"]["total_seconds"] / arms["adaptive"]["total_seconds"],
        "phases": [
            {
                "batch_size": phase.batch_size,
                "updates": phase.num_updates,
                "phase_seconds": phase.phase_seconds,
                "speedup": adaptive.phase_speedup(phase),
                "is_measured": phase.is_measured,
            }
            for phase in adaptive.phases
        ],
    }
