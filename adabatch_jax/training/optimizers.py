"""What a train step tells an optimizer, and what it asks of one."""

import re
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adabatch_jax.schedules.text_reader import excerpt
from adabatch_jax.system.errors import UsageError, one_line

_UNKNOWN = re.compile(r"unexpected keyword argument '(\w+)'")


def updates_of(
    tx: optax.GradientTransformation, grads: Any, opt_state: Any, params: Any, loss: jax.Array
) -> tuple[Any, Any]:
    """Asks an optimizer for its updates and its new state.

    One that takes extra arguments gets optax's `value`, the whole batch's loss, and `grad`, its
    gradients, as `optax.contrib.reduce_on_plateau` and `optax.polyak_sgd` want them; what one of
    its parts doesn't take (`optax.contrib.sam` neither), none gets.

    Raises:
      UsageError: it can't work with these, or its updates are none of the parameters.
    """
    if isinstance(tx, optax.MultiSteps):  # no transformation itself, and takes extra arguments
        tx = optax.GradientTransformationExtraArgs(tx.init, tx.update)
    tx = optax.with_extra_args_support(tx)
    updates, opt_state = _ask(tx, (grads, opt_state, params), {"value": loss, "grad": grads})
    shapes, wanted = ([*map(jnp.shape, jax.tree.leaves(tree))] for tree in (updates, params))
    if shapes != wanted:
        raise UsageError(
            f"the optimizer's updates have the shapes {excerpt(str(shapes))} where the parameters "
            f"have {excerpt(str(wanted))}; it must work with gradients of the whole batch, not of "
            "each example, as those for differential privacy do."
        )
    return updates, opt_state


def _ask(
    tx: optax.GradientTransformationExtraArgs, arguments: tuple[Any, ...], extra: dict[str, Any]
) -> tuple[Any, Any]:
    """An optimizer's answer; a chain tells only by refusing which extra arguments it takes."""
    try:
        return tx.update(*arguments, **extra)
    except UsageError:
        raise
    except Exception as error:  # which one is up to the optimizer
        unknown = _UNKNOWN.search(str(error)) if isinstance(error, TypeError) else None
        if unknown and unknown[1] in extra:
            return _ask(tx, arguments, {k: v for k, v in extra.items() if k != unknown[1]})
        given = "".join(f", `{name}`" for name in extra)
        if len(extra) < 2:
            given += " (a part of it takes no others)"
        raise UsageError(
            f"the optimizer can't work with what a train step gives it, gradients, state, params"
            f"{given}: {one_line(error)}; take one that needs no more, such as "
            "optax.lbfgs(1e-2, linesearch=None), or give an optax.GradientTransformation(init, "
            "update) that calls it as it wants."
        ) from error


def refuse_multi_steps(opt_state: Any, where: str) -> None:
    """Raises a UsageError if an optimizer adds up several of what is an update of the plan."""
    if _has_multi_steps(opt_state):
        raise UsageError(
            f"optax.MultiSteps {where} would add up whole batches of the plan, and its rate would "
            "fall behind the plan; leave it out, for `microbatch_size` (in `fit` "
            "layout=Layout(microbatch_size=...)) does its work, or make a call without that for "
            "each micro-batch in a loop of your own, with `accumulation_schedule`."
        )


def warn_of_whole_batches(opt_state: Any, num_rows: Sequence[int]) -> None:
    """Tells who adds up several calls, of these sizes up to now, where the calls grow with the plan.

    Micro-batches rarely do: only while a whole batch is smaller than one.
    """
    if _has_multi_steps(opt_state) and num_rows[-1] > num_rows[0]:
        warnings.warn(
            f"a call with {num_rows[-1]} examples after one with {num_rows[0]}: optax.MultiSteps "
            "counts several calls as an update, so if these are whole batches of a plan, its rate "
            "falls behind; then leave it out, or make a call for each micro-batch, see "
            "`accumulation_schedule`.",
            stacklevel=2,
        )


def _has_multi_steps(opt_state: Any) -> bool:
    def is_multi_steps(node: Any) -> bool:
        return isinstance(node, optax.MultiStepsState)

    return any(map(is_multi_steps, jax.tree.leaves(opt_state, is_leaf=is_multi_steps)))
