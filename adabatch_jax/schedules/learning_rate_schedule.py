"""The learning rate coupled to the plan's batch sizes, as an `optax.Schedule`."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adabatch_jax.schedules.coupling_advice import Optimizer, coupling_warnings
from adabatch_jax.schedules.learning_rate_at_step import (
    Coupling,
    ResolvedRate,
    StepClock,
    coupling_factors,
    reference_size,
    resolve,
)
from adabatch_jax.schedules.learning_rate_pieces import unreached
from adabatch_jax.schedules.learning_rate_positions import Counts, Position, position_of
from adabatch_jax.schedules.learning_rate_text import LearningRate
from adabatch_jax.schedules.plan import BatchPlan, check_plan
from adabatch_jax.schedules.text_reader import exact
from adabatch_jax.system.errors import UsageError


def coupled_learning_rate(
    plan: BatchPlan,
    base: float | LearningRate | Callable[[Any], Any],
    coupling: Coupling = "linear",
    reference_batch_size: int | None = None,
    counts: Counts | None = None,
    optimizer: Optimizer | None = None,
) -> optax.Schedule:
    """Rescales a learning rate with the batch size (arXiv:1712.02029, section 3).

    The rate of an update is `base * coupling(batch_size / reference_batch_size)`. With "linear"
    coupling lr / batch follows the base learning rate's own decay whatever the batch does.

    Args:
      plan: which update has which batch size.
      base: the learning rate that training at the reference batch size would use: a number, a
        `LearningRate`, or a callable, such as an optax schedule, of what `counts` says.
      coupling: "none", "linear", "sqrt", a power of the ratio, or a callable of the ratio
        (called once per phase, on the host, with a Python float).
      reference_batch_size: default: the plan's first batch size.
      counts: what a callable is a function of. "steps": where the plan of the constant reference
        size with the same remainder would be, so that a schedule for a fixed batch follows the
        growing one; int32 where it is whole at all updates, as on the fixed plan itself, whose
        rates are those of the callable, bit for bit. "samples", "epochs" and "tokens", and steps
        that are not all whole, come as float32, rounded down: exact below `2**24`, and right at
        every threshold that float32 can hold. Thresholds of optax above `2**31` must be floats.
      optimizer: "sgd", or "adam" for all that divide by a gradient's size: what the rate is for, to
        be warned of a rule that is meant for the other. None: nothing is checked.

    Returns:
      A schedule of the update count (int32, any shape), float32, exact in integers inside and
      outside jit. Counts from `plan.num_steps` on keep the last value.

    Raises:
      UsageError: `base` or `coupling` is none of the above, `base` < 0, `reference_batch_size` < 1,
        thresholds out of order, more than 100,000 decays, `2**31` updates or more, a callable
        without `counts`, epochs of an endless stream, or tokens without `tokens_per_example`; or
        no such `optimizer`.

    Warns:
      UserWarning: what is listed of a rate, or decay, that no update of the run comes to; or the
        end of a warm-up, or of a last part whose length is given. And with `optimizer`: a
        coupling that is meant for the other, or Adam's rate cut by less than the root of what the
        batch grows by there.

    >>> from adabatch_jax import make_plan, parse_learning_rate
    >>> plan = make_plan("128 x2 every 20ep max 2048", num_examples=50_000, duration="100ep")
    >>> lr = coupled_learning_rate(plan, parse_learning_rate("0.1 x0.375 every 20ep"))
    >>> [round(float(lr(phase.start_step)), 7) for phase in plan.phases]
    [0.1, 0.075, 0.05625, 0.0421875, 0.0316406]

    The same run with the schedule of a fixed batch, which would have had 39,063 updates:

    >>> fixed = optax.warmup_cosine_decay_schedule(0, 0.1, 2_000, 39_063)
    >>> lr = coupled_learning_rate(plan, fixed, counts="steps")
    >>> round(float(lr(1_000)), 7), round(float(lr(plan.num_steps - 1) / 16), 7)
    (0.05, 0.0)
    """
    check_plan(plan)
    if callable(base):
        reference = reference_size(plan, reference_batch_size)
        position = position_of(plan, counts, reference)
        factors = coupling_factors(plan, coupling, reference)
        factors = np.array([float(factor) for factor in factors], dtype=np.float32)
        clock = StepClock.of(plan)
        _warn(plan, None, coupling, reference, optimizer)
        if counts == "steps" and [phase.batch_size for phase in plan.phases] == [reference]:
            return _of_own_steps(clock.last_step, base, factors[0])
        return _of_callable(clock, base, position, factors)
    if counts is not None:
        raise UsageError(
            f"`counts` says what a callable is a function of, but `base` is {base!r}; leave it out."
        )
    if isinstance(base, str):
        raise UsageError(f"`base` is a text; give parse_learning_rate({base!r}).")
    if not isinstance(base, LearningRate):
        base = LearningRate(exact(base, "base"))
        if base.init_value < 0:
            raise UsageError(f"a learning rate can't be negative, got {base}.")
    rate = resolve(plan, base, coupling, reference_batch_size)
    for sentence in unreached(plan, base):
        warnings.warn(sentence, UserWarning, stacklevel=2)
    _warn(plan, rate, coupling, reference_batch_size, optimizer)
    return rate_schedule(rate)


def _warn(
    plan: BatchPlan,
    rate: ResolvedRate | None,
    coupling: Coupling,
    reference_batch_size: int | None,
    optimizer: Optimizer | None,
) -> None:
    """Tells the user's call what its coupling isn't meant for."""
    if optimizer is None:
        return
    for sentence in coupling_warnings(plan, rate, coupling, reference_batch_size, optimizer):
        warnings.warn(sentence, UserWarning, stacklevel=3)


def rate_schedule(rate: ResolvedRate) -> optax.Schedule:
    """The schedule of a described rate that has met its plan; nothing is told."""

    def schedule(count):
        if isinstance(count, int):  # a loop that logs needn't disturb the device
            return np.float32(rate(np, count))
        with jax.enable_x64(True):
            return rate(jnp, count).astype(jnp.float32)

    return schedule


def _of_own_steps(last_step: int, base: Callable[[Any], Any], factor: np.float32) -> optax.Schedule:
    """The rate on the fixed plan: its steps are the updates, so that no bit can differ."""

    def schedule(count):
        if isinstance(count, int):
            count = min(count, last_step)
        else:  # NumPy's stay NumPy's, whose arithmetic differs from JAX's in the last bit
            on_host = isinstance(count, np.ndarray | np.generic)
            count = (np if on_host else jnp).minimum(count, last_step)
        return jnp.asarray(base(count), jnp.float32) * factor

    return schedule


def _of_callable(
    clock: StepClock, base: Callable[[Any], Any], position: Position, factors: np.ndarray
) -> optax.Schedule:
    def schedule(count):
        with jax.enable_x64(True):
            count = jnp.minimum(jnp.asarray(count, jnp.int64), clock.last_step)
            phase, sample = clock.phase_and_sample(jnp, count)
            factor, argument = jnp.asarray(factors)[phase], position(sample)
        return jnp.asarray(base(argument), jnp.float32) * factor

    return schedule
