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
        value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (new_state, metrics)), grads = value_and_grad(params, model_state, batch, rng)
        return Outputs(grads, new_state, _with_loss(metrics, loss, model_state, new_state))

    return grad_fn


def metrics_like(
    loss_fn: LossFn, params: Any, model_state: Any, batch: Mapping[str, Any], rng: jax.Array
) -> Any:
    """Shapes and dtypes of the metrics, of those of the arguments."""

    def metrics_of(params, model_state, batch, rng):
        loss, (new_state, metrics) = loss_fn(params, model_state, batch, rng)
        return _with_loss(metrics, loss, model_state, new_state)

    return jax.eval_shape(metrics_of, params, model_state, dict(batch), rng)


def _with_loss(metrics: Any, loss: jax.Array, before: Any, after: Any) -> dict[str, jax.Array]:
    if "loss" in metrics:
        raise UsageError("loss_fn's metrics must not have the key 'loss', the step adds it.")
    before, after = _description(before), _description(after)
    if before != after:
        raise UsageError(
            "loss_fn must return a model_state of the same structure, shapes and dtypes as "
            f"it was given, {before}, got {after}."
        )
    return {**metrics, "loss": loss}


def _description(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.typeof(leaf).str_short(), tree)
