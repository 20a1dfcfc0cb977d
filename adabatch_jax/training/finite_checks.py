"""Numbers that aren't finite any more: how they are found, and what is left of such an update."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from adabatch_jax.data.mesh import BatchMesh
from adabatch_jax.training.parameter_sharding import is_sharded
from adabatch_jax.training.train_state import TrainState


def all_finite(tree: Any) -> jax.Array:
    """Whether all floating-point numbers of a pytree are finite, a bool scalar.

    >>> bool(all_finite({"w": jnp.ones(3), "n": 2})), bool(all_finite(jnp.array([1, jnp.inf])))
    (True, False)
    """
    leaves = (leaf for leaf in jax.tree.leaves(tree) if _is_float(leaf))
    return jnp.all(jnp.array([_is_finite(jnp.asarray(leaf)) for leaf in leaves]))


def _is_finite(leaf: jax.Array) -> jax.Array:
    # To a row first, and in place, so that a leaf that is spread stays so: on a CPU XLA's
    # reduction to one number takes one number at a time.
    return jnp.isfinite(leaf).all(axis=tuple(range(leaf.ndim - 1))).all()


def is_finite_update(loss: jax.Array, grads: Any, specs: Any, mesh: BatchMesh | None) -> jax.Array:
    """Whether an update's loss and gradients are finite, a bool scalar, the same on all devices.

    Of gradients that are spread over a mesh, with these `specs`, as parameters are, the devices
    tell each other one number. Elsewhere each device has all of them.
    """
    if mesh is None or not is_sharded(specs):
        return all_finite((loss, grads))

    def of_a_device(loss, grads):
        return lax.pmin(all_finite((loss, grads)).astype(jnp.int32), mesh.mesh.axis_names) > 0

    whole = PartitionSpec()
    return jax.shard_map(
        of_a_device,
        mesh=mesh.mesh,
        in_specs=(whole, specs),
        out_specs=whole,
        check_vma=False,
    )(loss, grads)


def rolled_back(saved: TrainState, current: TrainState) -> TrainState:
    """The weights of one state at the place of another in the plan.

    What isn't floating-point in the optimizer's state belongs to the place: counts, which schedules
    go by, and random keys. Moments belong to the weights.

    >>> import optax
    >>> before = TrainState.create(params={"w": jnp.zeros(())}, tx=optax.adam(0.1))
    >>> _, opt_state = optax.adam(0.1).update({"w": jnp.ones(())}, before.opt_state)
    >>> after = TrainState(before.step + 1, {"w": jnp.ones(())}, {}, opt_state)
    >>> state = rolled_back(before, after)
    >>> int(state.step), float(state.params["w"])
    (1, 0.0)
    >>> int(state.opt_state[0].count), float(state.opt_state[0].mu["w"])
    (1, 0.0)
    """
    opt_state = jax.tree.map(
        lambda old, new: old if _is_float(old) else new, saved.opt_state, current.opt_state
    )
    return TrainState(current.step, saved.params, saved.model_state, opt_state)


def poisoned(weight: Any, place: Any = ...) -> Any:
    """Returns a batch's weights, spoiled at `place`: its loss and gradients are not finite then."""
    # A NaN would not do: a micro-batch whose weights don't sum up to more than 0 is left out.
    is_spoiled = np.zeros(weight.shape, bool)
    is_spoiled[place] = True
    shards = [  # of several processes each has its own only
        jax.device_put(np.where(is_spoiled[shard.index], np.inf, shard.data), shard.device)
        for shard in weight.addressable_shards
    ]
    return jax.make_array_from_single_device_arrays(weight.shape, weight.sharding, shards)


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
