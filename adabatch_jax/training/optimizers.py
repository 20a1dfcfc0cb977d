"""What a train step tells an optimizer, and what it asks of one."""

import re
from typing import Any

import jax
import optax

from adabatch_jax.system.errors import UsageError

_MISSING = re.compile(r"missing \d+ required keyword-only arguments?: (.+)")


def updates_of(
    tx: optax.GradientTransformation, grads: Any, opt_state: Any, params: Any, loss: jax.Array
) -> tuple[Any, Any]:
    """Asks an optimizer for its updates and its new state.

    One that takes extra arguments gets optax's `value`, the whole batch's loss, and `grad`, its
    gradients, as `optax.contrib.reduce_on_plateau` and `optax.polyak_sgd` want them.

    Raises:
      UsageError: it needs another argument.
    """
    if isinstance(tx, optax.MultiSteps):  # no transformation itself, and takes extra arguments
        tx = optax.GradientTransformationExtraArgs(tx.init, tx.update)
    tx = optax.with_extra_args_support(tx)
    try:
        return tx.update(grads, opt_state, params, value=loss, grad=grads)
    except TypeError as error:
        missing = _MISSING.search(str(error))
        if missing is None:
            raise
        raise UsageError(
            f"the optimizer needs {missing[1]}; a train step gives `value`, the loss, and `grad`, the "
            "gradients, to an optax.GradientTransformationExtraArgs, and nothing else; take one "
            "without a line search, such as optax.lbfgs(1e-2, linesearch=None)."
        ) from error


def refuse_multi_steps(opt_state: Any) -> None:
    """Raises a UsageError if an optimizer adds up several of what `fit` counts as updates."""

    def is_multi_steps(node: Any) -> bool:
        return isinstance(node, optax.MultiStepsState)

    if any(map(is_multi_steps, jax.tree.leaves(opt_state, is_leaf=is_multi_steps))):
        raise UsageError(
            "optax.MultiSteps in `fit` would add up whole batches of the plan, and its rate would "
            "fall behind the plan; leave it out and give layout=Layout(microbatch_size=...), or "
            "use it in a loop of your own, with `accumulation_schedule`."
        )
