"""What a loss function is, and what it may promise about itself."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from adabatch_jax.system.errors import UsageError

LossFn = Callable[[Any, Any, Mapping[str, jax.Array], jax.Array], tuple[jax.Array, tuple[Any, Any]]]

_SEQUENTIAL = "has_sequential_model_state"
_GROUP_ROWS = "rows_of_an_independent_group"


def weighted_mean(values: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns the mean over a batch in which example i counts `weight[i]` times.

    Args:
      values: shape (B, ...), one entry per example; booleans count as 0 and 1.
      weight: shape (B,), 1 for a real example and 0 for padding. A padded row must be finite,
        as those that repeat a real example are.

    Returns:
      The mean over the first axis, of shape `values.shape[1:]`; 0 where all weights are 0.

    >>> float(weighted_mean(jnp.array([1.0, 2.0, 9.0]), jnp.array([1.0, 1.0, 0.0])))
    1.5
    """
    values, weight = jnp.asarray(values), jnp.asarray(weight)
    total = weight.sum()
    column = weight.reshape(weight.shape + (1,) * (values.ndim - weight.ndim))
    return (values * column).sum(axis=0) / jnp.where(total > 0, total, 1)


def sequential_model_state(loss_fn: LossFn) -> LossFn:
    """Marks a `loss_fn` whose model state is updated example by example, or group by group.

    Running statistics are: a batch that is computed in micro-batches then leaves the same model
    state as in one piece, if `loss_fn` updates it for the same groups of rows in row order. The
    mark belongs to this function; one that wraps it must be marked itself.

    >>> from adabatch_jax import TrainState, make_train_step
    >>> import optax
    >>> @sequential_model_state
    ... def loss_fn(params, model_state, batch, rng):
    ...     total = model_state["total"] + batch["weight"].sum()
    ...     return 0 * params["w"], ({"total": total}, {})
    >>> tx = optax.sgd(1.0)
    >>> params, model_state = {"w": jnp.zeros(())}, {"total": jnp.zeros(())}
    >>> state = TrainState.create(params=params, tx=tx, model_state=model_state)
    >>> step = make_train_step(loss_fn, tx, microbatch_size=2)
    >>> state, _ = step(state, {"weight": jnp.ones((3, 2))}, jax.random.key(0))
    >>> float(state.model_state["total"])
    6.0
    """
    setattr(loss_fn, _SEQUENTIAL, True)
    return loss_fn


def has_sequential_model_state(loss_fn: LossFn) -> bool:
    """Whether `loss_fn` was marked by `sequential_model_state`."""
    return getattr(loss_fn, _SEQUENTIAL, False)


def independent_groups(loss_fn: LossFn, num_rows: int) -> LossFn:
    """Marks a `loss_fn` that computes each group of `num_rows` consecutive rows apart.

    A batch may then be cut between groups wherever that is fast: into micro-batches of a size
    that is chosen for speed, and over devices that tell each other about their gradients once
    per update. The mark belongs to this function; one that wraps it must be marked itself.

    What is promised: the loss and each metric are means over the rows, weighted by "weight"; a
    row's share in them depends on its own group only, and not on where in the batch the group
    lies. So whatever is random must be drawn from the example's own key (`example_keys`) and not
    from `rng`. Model state is a weighted mean over groups too, or it is sequential
    (`sequential_model_state`) and read through `rows_of_all_devices`.

    Args:
      loss_fn: is changed, and returned.
      num_rows: 1 if there is no normalization over rows at all.

    Raises:
      UsageError: `num_rows` is below 1.

    >>> def loss_fn(params, model_state, batch, rng):
    ...     return weighted_mean(params["w"] * batch["x"], batch["weight"]), (model_state, {})
    >>> group_rows(loss_fn), group_rows(independent_groups(loss_fn, 1))
    (None, 1)
    """
    if num_rows < 1:
        raise UsageError(f"independent_groups needs num_rows of at least 1, got {num_rows}.")
    setattr(loss_fn, _GROUP_ROWS, num_rows)
    return loss_fn


def group_rows(loss_fn: LossFn) -> int | None:
    """The rows of a group that `loss_fn` computes apart from the others.

    Returns:
      What `independent_groups` marked it with; None for a function without a mark, whose groups
      are unknown or the whole batch.
    """
    return getattr(loss_fn, _GROUP_ROWS, None)
