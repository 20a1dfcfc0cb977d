"""The learning rate coupled to the plan's batch sizes, as an `optax.Schedule`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adabatch_jax.schedules.learning_rate_at_step import (
    Coupling,
    StepClock,
    coupling_factors,
    resolve,
)
from adabatch_jax.schedules.learning_rate_text import LearningRate
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.schedules.text_reader import exact
from adabatch_jax.system.errors import UsageError


def coupled_learning_rate(
    plan: BatchPlan,
    base: float | LearningRate | Callable[[Any], Any],
    coupling: Coupling = "linear",
    reference_batch_size: int | None = None,
) -> optax.Schedule:
    """Rescales a learning rate with the batch size (arXiv:1712.02029, section 3).

    The rate of an update is `base * coupling(batch_size / reference_batch_size)`. With "linear"
    coupling lr / batch follows the base learning rate's own decay whatever the batch does.

    Args:
      plan: which update has which batch size.
      base: the learning rate that training at the reference batch size would use: a number, a
        `LearningRate`, or a callable of the epoch (float32, exact at whole epochs), such as an
        optax schedule that counts epochs.
      coupling: "none", "linear", "sqrt", a power of the ratio, or a callable of the ratio
        (called once per phase, on the host, with a Python float).
      reference_batch_size: default: the plan's first batch size.

    Returns:
      A schedule of the update count (int32, any shape), float32, exact in integers inside and
      outside jit. Counts from `plan.num_steps` on keep the last value.

    Raises:
      UsageError: `base` or `coupling` is none of the above, `base` < 0, `reference_batch_size` < 1,
        thresholds out of order, more than 100,000 decays, 2**31 updates or more, or a callable of
        the epoch for an endless stream.

    >>> from adabatch_jax import make_plan, parse_learning_rate
    >>> plan = make_plan("128 x2 every 20ep max 2048", num_examples=50_000, duration="100ep")
    >>> lr = coupled_learning_rate(plan, parse_learning_rate("0.1 x0.375 every 20ep"))
    >>> [round(float(lr(phase.start_step)), 7) for phase in plan.phases]
    [0.1, 0.075, 0.05625, 0.0421875, 0.0316406]
    """
    if callable(base):
        return _of_epochs(plan, base, coupling_factors(plan, coupling, reference_batch_size))
    if not isinstance(base, LearningRate):
        base = LearningRate(exact(base, "base"))
        if base.init_value < 0:
            raise UsageError(f"a learning rate can't be negative, got {base}.")
    rate = resolve(plan, base, coupling, reference_batch_size)

    def schedule(count):
        if isinstance(count, int):  # a loop that logs needn't disturb the device
            return np.float32(rate(np, count))
        with jax.enable_x64(True):
            return rate(jnp, count).astype(jnp.float32)

    return schedule


def _of_epochs(plan: BatchPlan, base: Callable[[Any], Any], factors: list) -> optax.Schedule:
    if plan.num_examples is None:
        raise UsageError(
            "a learning rate that is a callable of the epoch needs epochs, which an endless "
            "stream (num_examples=None) doesn't have."
        )
    clock = StepClock.of(plan)
    factors = np.array([float(factor) for factor in factors], dtype=np.float32)

    def schedule(count):
        epoch, phase = epoch_and_phase(clock, count)
        return jnp.asarray(base(epoch), jnp.float32) * jnp.asarray(factors)[phase]

    return schedule


def epoch_and_phase(clock: StepClock, count: Any) -> tuple[jax.Array, jax.Array]:
    """The float32 epoch of an update, with the exact integer part, and its phase's index."""
    with jax.enable_x64(True):
        count = jnp.minimum(jnp.asarray(count, jnp.int64), clock.last_step)
        phase, sample = clock.phase_and_sample(jnp, count)
        whole, rest = jnp.divmod(sample, clock.num_examples)
        epoch = (whole + rest / clock.num_examples).astype(jnp.float32)
        # Rounding to float32 must not reach the next epoch before its first sample.
        after = (whole + 1).astype(jnp.float32)
        epoch = jnp.where(epoch < after, epoch, jnp.nextafter(after, jnp.float32(0)))
        return epoch, phase.astype(jnp.int32)
