"""What training changes from step to step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adabatch_jax.system.errors import UsageError


def _arrays(tree: Any, name: str, copy: bool = True) -> Any:
    """The same pytree, of arrays on the devices; a UsageError names a leaf that can't be one."""

    def array(path: Any, leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and not copy:
            return leaf
        try:
            # An explicit dtype also removes the weak type, which the first step's output wouldn't
            # have: the second step would be compiled again.
            return jnp.array(leaf, dtype=jnp.result_type(leaf), copy=True)
        except TypeError:
            raise UsageError(
                f"{name}{jax.tree_util.keystr(path)} is a {type(leaf).__name__}, and a state is "
                "made of arrays and numbers; keep all else out of it, as "
                "`eqx.partition(model, eqx.is_inexact_array)` does."
            ) from None

    return jax.tree.map_with_path(array, tree)


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

    >>> state = TrainState.create(params={"w": jnp.ones(3)}, tx=optax.sgd(0.1))
    >>> jax.tree.map(jnp.shape, state.params), int(state.step)
    ({'w': (3,)}, 0)
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

        Raises:
          UsageError: a leaf is no array and no number.

        >>> state = TrainState.create(params={"w": jnp.ones(3)}, tx=optax.sgd(0.1))
        >>> int(state.step), state.model_state
        (0, {})
        """
        params = _arrays(params, "params")
        model_state = {} if model_state is None else _arrays(model_state, "model_state")
        # Some optimizers keep the parameters themselves; no buffer may be donated twice.
        opt_state = _arrays(tx.init(params), "opt_state")
        return cls(jnp.zeros((), jnp.int32), params, model_state, opt_state)


def on_devices(state: TrainState) -> TrainState:
    """A state, made in whatever way, all of whose leaves are arrays on the devices.

    Raises:
      UsageError: a leaf is no array and no number.
    """
    return _arrays(state, "state", copy=False)
