"""What a plan says of an update, as functions of its count that can be traced."""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adabatch_jax.schedules.learning_rate_at_step import StepClock
from adabatch_jax.schedules.plan import BatchPlan, check_plan
from adabatch_jax.schedules.text_reader import excerpt, positive_integer
from adabatch_jax.system.errors import UsageError

CountSchedule = Callable[[Any], Any]


def batch_size_schedule(plan: BatchPlan) -> CountSchedule:
    """The batch size of an update, as `plan.batch_size_at`, on traced counts too.

    Returns:
      A function of the update count (integers, any shape), int32, exact inside and outside jit.
      Counts from `plan.num_steps` on keep the last value.

    Raises:
      UsageError: `2**31` updates or more.

    >>> from adabatch_jax import make_plan
    >>> plan = make_plan("128 x2 every 20ep max 2048", num_examples=50_000, duration="100ep")
    >>> jax.jit(batch_size_schedule(plan))(jnp.array([7812, 7813, 20_000])).tolist()
    [128, 256, 2048]
    """
    check_plan(plan)
    clock = StepClock.of(plan)

    def batch_size(xp: ModuleType, count: Any) -> Any:
        phase, _ = clock.phase_and_sample(xp, count)
        return xp.asarray(clock.batch_sizes)[phase]

    return _traceable(batch_size)


def accumulation_schedule(plan: BatchPlan, microbatch_size: int) -> CountSchedule:
    """The number of micro-batches of an update: `optax.MultiSteps(every_k_schedule=...)`.

    `MultiSteps` passes the number of finished updates. It weighs micro-batches equally, so an
    update is that of its whole batch where all have the same number of examples: batch sizes must
    be multiples of `microbatch_size`, or smaller, which makes one micro-batch. A partial batch has
    as many micro-batches as its real examples fill, so the plan's updates are all made; what
    remains in its last micro-batch weighs as much as a full one.

    Args:
      microbatch_size: examples per micro-batch.

    Returns:
      A function of the update count (integers, any shape), int32, exact inside and outside jit.
      Counts from `plan.num_steps` on have the last phase's whole batch.

    Raises:
      UsageError: `microbatch_size` < 1 or doesn't divide a larger batch, or `2**31` updates or
        more.

    >>> from adabatch_jax import make_plan
    >>> plan = make_plan("64 x2 every 2ep max 256", num_examples=1024, duration="6ep")
    >>> [int(accumulation_schedule(plan, 64)(phase.start_step)) for phase in plan.phases]
    [1, 2, 4]
    """
    check_plan(plan)
    microbatch_size = positive_integer(microbatch_size, "microbatch_size")
    ragged = [s for s in plan.batch_sizes if s > microbatch_size and s % microbatch_size]
    if ragged:
        larger = [size for size in plan.batch_sizes if size > microbatch_size]
        raise UsageError(
            f"`microbatch_size`={microbatch_size} doesn't divide the batch sizes "
            f"{excerpt(', '.join(map(str, ragged)))}, and MultiSteps would weigh the rest of a batch "
            f"as much as a whole micro-batch; use a divisor of {math.gcd(*larger)}."
        )
    clock = StepClock.of(plan)
    stop_samples = np.array([phase.stop_sample for phase in plan.phases], dtype=np.int64)

    def num_microbatches(xp: ModuleType, count: Any) -> Any:
        phase, begin = clock.phase_and_sample(xp, count)
        size = xp.asarray(clock.batch_sizes)[phase]
        num_real = xp.minimum(size, xp.asarray(stop_samples)[phase] - begin)
        if plan.remainder == "partial":
            num_real = xp.minimum(num_real, plan.num_examples - begin % plan.num_examples)
        num_real = xp.where(count > clock.last_step, size, num_real)
        return -(-num_real // microbatch_size)

    return _traceable(num_microbatches)


def _traceable(value: Callable[[ModuleType, Any], Any]) -> CountSchedule:
    def schedule(count):
        if isinstance(count, int):  # a loop that logs needn't disturb the device
            return np.int32(value(np, np.int64(count)))
        with jax.enable_x64(True):
            return value(jnp, jnp.asarray(count, jnp.int64)).astype(jnp.int32)

    return schedule
