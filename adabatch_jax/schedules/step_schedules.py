"""What a plan says of an update, as functions of its count that can be traced."""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adabatch_jax.schedules.durations import Duration, positive_duration
from adabatch_jax.schedules.learning_rate_at_step import StepClock, reference_size
from adabatch_jax.schedules.plan import BatchPlan, check_plan
from adabatch_jax.schedules.text_reader import exact, excerpt, positive_integer
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


def half_life_in_samples(
    plan: BatchPlan,
    decay: float | str | Duration,
    reference_batch_size: int | None = None,
    first_order: bool = False,
) -> CountSchedule:
    """A decay per update, such as Adam's betas or an EMA's, that forgets so much per sample.

    An average that keeps `decay` of itself in an update of the reference batch size keeps
    `decay ** (batch_size / reference_batch_size)` in one of the update's, so what half of it was
    made of is as many samples old whatever the batch does (arXiv:2507.07101, arXiv:2307.13813).

    Args:
      plan: which update has which batch size.
      decay: the decay per update of the reference batch size, 0 <= decay < 1; or the half-life
        itself, such as "10Mtok", "1ep" or "2.5Msp".
      reference_batch_size: default: the plan's first batch size.
      first_order: instead `1 - (1 - decay) * batch_size / reference_batch_size`, which is the same
        to first order, and what Malladi et al. derive for Adam (arXiv:2205.10287).

    Returns:
      A schedule of the update count (integers, any shape), float32. Counts from `plan.num_steps` on
      keep the last value. `scale_by_adam` takes it, and corrects the bias of what changes.

    Raises:
      UsageError: a decay outside of 0 to 1, a half-life in steps, one of nothing or in units that
        the plan doesn't know, `reference_batch_size` < 1, a batch too large for `first_order`, or
        `2**31` updates or more.

    >>> from adabatch_jax import make_plan
    >>> plan = make_plan("64, 2Ktok: 128, 8Ktok: 256", None, "32Ktok", tokens_per_example=1)
    >>> b2 = half_life_in_samples(plan, 0.999)
    >>> [round(float(b2(phase.start_step)), 6) for phase in plan.phases]
    [0.999, 0.998001, 0.996006]
    >>> b2 = half_life_in_samples(plan, "640tok")
    >>> [round(float(b2(phase.start_step)) ** (640 / phase.batch_size), 6) for phase in plan.phases]
    [0.5, 0.5, 0.5]

    An average of the weights is then, after update `count`:

    >>> import optax
    >>> ema = optax.incremental_update({"w": 3.0}, {"w": 1.0}, 1 - half_life_in_samples(plan, 0.5)(0))
    >>> float(ema["w"])
    2.0
    """
    check_plan(plan)
    clock = StepClock.of(plan)
    sizes = np.array([phase.batch_size for phase in plan.phases], dtype=np.float64)
    if isinstance(decay, str | Duration):
        half_life = positive_duration(decay, "a half-life")
        samples = plan.units.in_samples(half_life, f"the half-life {str(half_life)!r}")
        if samples is None:
            raise UsageError(
                f"the half-life {str(half_life)!r} is counted in steps, which grow with the batch; "
                "give samples (sp), tokens (tok) or epochs (ep), or the decay of an update."
            )
        if first_order:
            raise UsageError("`first_order` is of a decay per update; a half-life is exact.")
        decays = 0.5 ** (sizes / float(samples))
    else:
        value = float(exact(decay, "decay"))
        if not 0 <= value < 1:
            raise UsageError(f"`decay` must be at least 0 and below 1, got {decay}.")
        ratios = sizes / reference_size(plan, reference_batch_size)
        decays = 1 - (1 - value) * ratios if first_order else value**ratios
        if decays.min() < 0:
            raise UsageError(
                f"to first order the decay {decay} of batch size {int(sizes.max())} is "
                f"{decays.min():.3g}, below 0; cap the batch, or leave out `first_order`."
            )

    def decay_of(xp: ModuleType, count: Any) -> Any:
        phase, _ = clock.phase_and_sample(xp, count)
        return xp.asarray(decays)[phase]

    return _traceable(decay_of, "float32")


def _traceable(value: Callable[[ModuleType, Any], Any], dtype: str = "int32") -> CountSchedule:
    def schedule(count):
        if isinstance(count, int):  # a loop that logs needn't disturb the device
            return np.dtype(dtype).type(value(np, np.int64(count)))
        with jax.enable_x64(True):
            return value(jnp, jnp.asarray(count, jnp.int64)).astype(dtype)

    return schedule
