"""What a learning rate that is a callable is given: steps, samples, epochs or tokens.

Positions are whole numbers and fractions of whole numbers on the integer clock, inside jit too.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.schedules.strides import Stride
from adabatch_jax.system.errors import UsageError, did_you_mean

Counts = Literal["steps", "samples", "epochs", "tokens"]
COUNTS: tuple[Counts, ...] = get_args(Counts)

Position = Callable[[jax.Array], jax.Array]


def position_of(plan: BatchPlan, counts: Counts | None, reference_batch_size: int) -> Position:
    """Returns what turns a sample (int64) into the argument of a callable.

    It is float32, rounded down; steps that are whole at all updates are int32.

    Raises:
      UsageError: `counts` is none of `COUNTS`, or what it counts isn't known on this plan.
    """
    if counts not in COUNTS:
        raise UsageError(
            "a learning rate that is a callable needs `counts`, what it is a function of: 'steps' "
            "(of the same run at the reference batch size), 'samples', 'epochs' or 'tokens'"
            f"; got {counts!r}{did_you_mean(str(counts), COUNTS) or '.'}"
        )
    if counts == "steps":
        return _position_in_steps(plan, reference_batch_size)
    if counts == "epochs":
        if plan.num_examples is None:
            raise UsageError(
                "a learning rate that counts epochs needs some, which an endless stream "
                "(num_examples=None) doesn't have; give counts='steps', 'samples' or 'tokens'."
            )
        return lambda sample: _rounded_down(*divmod(sample, plan.num_examples), plan.num_examples)
    tokens = plan.tokens_per_example if counts == "tokens" else 1
    if tokens is None:
        raise UsageError(
            "a learning rate that counts tokens needs the plan's `tokens_per_example`; give it to "
            "make_plan."
        )
    return lambda sample: _rounded_down(sample * tokens, 0, 1)


def _position_in_steps(plan: BatchPlan, reference: int) -> Position:
    examples = plan.num_examples
    if plan.remainder == "drop" and reference > examples:
        raise UsageError(
            f"`reference_batch_size` ({reference}) exceeds num_examples={examples}, so with "
            "remainder='drop' the run at that size has no steps to count."
        )
    stride = Stride(0, reference, examples, plan.remainder)
    is_whole = stride.progress(plan.num_samples)[0] < 2**31 and all(
        phase.batch_size % reference == 0 == stride.progress(phase.start_sample)[1]
        for phase in plan.phases
    )
    if is_whole:
        return lambda sample: stride.progress(sample)[0].astype(jnp.int32)
    return lambda sample: _rounded_down(*stride.progress(sample))


def _rounded_down(whole: Any, part: Any, parts: Any) -> Any:
    """The largest float32 that is not above whole + part / parts, from int64 arrays.

    Rounded to the nearest it could reach a threshold before its first sample.
    """
    # From 1 on float32 holds no finer fractions than these, from 2**24 on none.
    fine = part * 2**23 // parts / 2**23
    fraction = jnp.where(whole >= 2**24, 0.0, jnp.where(whole > 0, fine, part / parts))
    exact = whole.astype(jnp.float64) + fraction
    nearest = exact.astype(jnp.float32)
    return jnp.where(nearest > exact, jnp.nextafter(nearest, jnp.float32(0)), nearest)
