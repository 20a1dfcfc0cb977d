"""Networks that a user's own function makes."""

import inspect
from typing import Any, NamedTuple

from flax import nnx

from adabatch_jax.config.own_functions import load_function
from adabatch_jax.system.errors import UsageError
from adabatch_jax.training.evaluation import EvalFn
from adabatch_jax.training.loss_functions import LossFn


class OwnFunctions(NamedTuple):
    """A network as plain functions and pytrees, of a user's own making."""

    params: Any
    model_state: Any
    loss_fn: LossFn
    eval_fn: EvalFn | None = None


def make_own(reference: str, **given: Any) -> nnx.Module | OwnFunctions:
    """Calls a user's function, by keyword, with what is given: num_classes, seed and the like.

    It returns an nnx module, or `(params, model_state, loss_fn)` with or without an `eval_fn`.
    What isn't known of the data is None.

    Raises:
      UsageError: there is no such function, it fails, or it returns something else.
    """
    function = load_function(reference, "model")
    try:
        inspect.signature(function).bind(**given)
    except TypeError as error:
        *first, last = given
        raise UsageError(
            f"model: {reference} must take the keywords {', '.join(first)} and {last} ({error})."
        ) from None
    try:
        made = function(**given)
    except UsageError:
        raise
    except Exception as error:
        shown = ", ".join(f"{name}={value}" for name, value in given.items())
        raise UsageError(
            f"model: {reference} fails with {type(error).__name__} ({error}) when called with "
            f"{shown}."
        ) from error
    if isinstance(made, nnx.Module):
        return made
    if isinstance(made, tuple) and len(made) in (3, 4) and callable(made[2]):
        return OwnFunctions(*made)
    raise UsageError(
        f"model: {reference} must return an nnx module, or (params, model_state, loss_fn) with or "
        f"without an eval_fn, and returned {_described(made)}."
    )


def _described(made: Any) -> str:
    if not isinstance(made, tuple):
        return f"one of type {type(made).__module__}.{type(made).__name__}"
    return f"({', '.join(type(part).__name__ for part in made)})"
