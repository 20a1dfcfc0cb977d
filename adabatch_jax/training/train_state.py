"""What training changes from step to step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax


def _copied(leaf: Any) -> jax.Array:
    # An explicit dtype also removes the weak type, which the first step's output wouldn't have:
    # the second step would be compiled again.
    return jnp.array(leaf, dtype=jnp.result_type(leaf), copy=True)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Parameters and everything else that a train step reads and replaces.

    The number of samples seen isn't here: it is `plan.samples_at(state.step)`.

    Attributes:
      step: finished updates, an int32 scalar.
      params: a pytree of arrays, what the optimizer changes.
      model_state: a pytree of arrays that `loss_fn` replaces, such as BatchNorm's statistics.
      opt_state: the optimizer's own state.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any

    @classmethod
    def create(
        cls, *, params: Any, tx: optax.GradientTransformation, model_state: Any = None
    ) -> "TrainState":
        """Returns the state before step 0.

        The arrays are copied, because a train step donates (destroys) the state it is given.

        Args:
          params: a pytree of arrays.
          tx: the optimizer, which is asked for its initial state.
          model_state: a pytree of arrays, by default an empty dict.

        >>> state = TrainState.create(params={"w": jnp.ones(3)}, tx=optax.sgd(0.1))
        >>> int(state.step), state.model_state
        (0, {})
        """
        params = jax.tree.map(_copied, params)
        model_state = {} if model_state is None else jax.tree.map(_copied, model_state)
        # Some optimizers keep the parameters themselves; no buffer may be donated twice.
        opt_state = jax.tree.map(_copied, tx.init(params))
        return cls(jnp.zeros((), jnp.int32), params, model_state, opt_state)
