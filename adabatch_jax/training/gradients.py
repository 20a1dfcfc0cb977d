"""The gradient of a loss function over one (micro-)batch."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

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
        loss, (new_state, metrics) = loss_fn(params, model_state, batch, rng)
        if "loss" in metrics:
            raise UsageError("loss_fn's metrics must not have the key 'loss', the step adds it.")
        before, after = _description(model_state), _description(new_state)
        if before != after:
            raise UsageError(
                "loss_fn must return a model_state of the same structure, shapes and dtypes as "
                f"it was given, {before}, got {after}."
            )
        return loss, (new_state, {**metrics, "loss": loss})

    return checked


def _description(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.typeof(leaf).str_short(), tree)
