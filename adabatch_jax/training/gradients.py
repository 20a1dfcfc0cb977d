"""The gradient of a loss function over one (micro-)batch."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adabatch_jax.system.errors import UsageError
from adabatch_jax.training.loss_functions import LossFn


class Outputs(NamedTuple):
    """What one (micro-)batch gives: gradients, the new model state, and metrics with "loss"."""

    grads: Any
    model_state: Any
    metrics: Any


GradFn = Callable[[Any, Mapping[str, jax.Array], jax.Array], Outputs]


def gradient_function(loss_fn: LossFn, params: Any) -> GradFn:
    """Returns the function that computes the `Outputs` of a batch at these parameters."""
    for path, leaf in jax.tree.leaves_with_path(params):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise UsageError(
                f"params{jax.tree_util.keystr(path)} is {_told(leaf)}, which has no gradient; "
                "parameters are floating-point numbers, all else belongs into model_state."
            )

    def grad_fn(model_state: Any, batch: Mapping[str, jax.Array], rng: jax.Array) -> Outputs:
        grad = jax.grad(_with_loss(loss_fn), has_aux=True)
        grads, (model_state, metrics) = grad(params, model_state, batch, rng)
        return Outputs(grads, model_state, metrics)

    return grad_fn


def metrics_like(
    loss_fn: LossFn, params: Any, model_state: Any, batch: Mapping[str, Any], rng: jax.Array
) -> Any:
    """Shapes and dtypes of the metrics, of those of the arguments."""
    _, (_, metrics) = jax.eval_shape(_with_loss(loss_fn), params, model_state, dict(batch), rng)
    return metrics


def _with_loss(loss_fn: LossFn) -> LossFn:
    """The same function, checked, whose metrics have the loss among them."""

    def checked(params, model_state, batch, rng):
        # Its own copy of the tree: equinox makes a State useless when another is made of it.
        match loss_fn(params, jax.tree.map(lambda leaf: leaf, model_state), batch, rng):
            case (loss, (new_state, metrics)):
                pass
            case other:
                raise UsageError(
                    f"loss_fn must return (loss, (model_state, metrics)), got {_told(other)}."
                )
        loss = _checked_loss(loss)
        _check_model_state(model_state, new_state)
        metrics = {**_checked_metrics(metrics), "loss": loss}
        return loss, (jax.tree.map(_as_array, new_state), metrics)

    return checked


def _checked_loss(loss: Any) -> jax.Array:
    kind = _type(loss)
    if kind is None or kind.shape or not jnp.issubdtype(kind.dtype, jnp.floating):
        raise UsageError(
            "loss_fn's loss must be one floating-point number, such as "
            f"weighted_mean(losses, batch['weight']), got {_told(loss)}."
        )
    return _as_array(loss)


def _checked_metrics(metrics: Any) -> dict[str, Any]:
    if not isinstance(metrics, Mapping):
        raise UsageError(f"loss_fn's metrics must be a dict, {{}} for none, got {_told(metrics)}.")
    if "loss" in metrics:
        raise UsageError("loss_fn's metrics must not have the key 'loss', the step adds it.")
    for path, leaf in jax.tree.leaves_with_path(dict(metrics)):
        if _type(leaf) is None:
            raise UsageError(
                f"loss_fn's metrics{jax.tree_util.keystr(path)} is {_told(leaf)}; a metric is a "
                "number."
            )
    return jax.tree.map(_as_array, dict(metrics))


def _check_model_state(given: Any, returned: Any) -> None:
    """Raises a UsageError that names what of a model state came back as something else."""
    demand = "loss_fn must return a model_state of the same structure, shapes and dtypes as it was"
    before, after = _leaves(given), _leaves(returned)
    for path in {**before, **after}:
        if before.get(path) != after.get(path):
            raise UsageError(
                f"{demand} given, but model_state{path} was {before.get(path, 'absent')} and is "
                f"{after.get(path, 'absent')} now."
            )
    structures = jax.tree.structure(given), jax.tree.structure(returned)
    if structures[0] != structures[1]:
        raise UsageError(
            f"{demand} given; its arrays are, but what is around them isn't: {structures[0]}, got "
            f"{structures[1]} (functions and other static fields must compare equal)."
        )


def _leaves(tree: Any) -> dict[str, str]:
    """What the leaves of a pytree are, by their paths.

    The leaves and not the tree are compared: a tree may be of a class that has no `__eq__`.
    """
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path): _told(leaf) for path, leaf in leaves}


def _type(value: Any) -> Any:
    """The abstract type of an array or a number; None of anything else."""
    try:
        return jax.typeof(value)
    except TypeError:
        return None


def _told(value: Any) -> str:
    """A value in a few words: "float32[3]", "(float32[], a dict)"."""
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_told, value))})"
    kind = _type(value)
    return f"a {type(value).__name__}" if kind is None else kind.str_short()


def _as_array(leaf: Any) -> jax.Array:
    # An explicit dtype, or a number's would be weak, and the next update another program.
    return leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf, jnp.result_type(leaf))
