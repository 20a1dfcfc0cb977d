"""Where the leaves of a train state lie: whole on every device, or sharded over them (FSDP)."""

import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adabatch_jax.training.accumulation import Sums
from adabatch_jax.training.train_state import TrainState

# Elements of the smallest array that is sharded: below, telling it to the others costs more time
# than it saves memory.
SMALLEST_SHARDED = 1024


def sharded_axis(shape: tuple[int, ...], num_devices: int) -> int | None:
    """The largest axis that the devices divide, or None to keep an array whole.

    >>> sharded_axis((3, 3, 64, 128), 8), sharded_axis((4096, 10), 8), sharded_axis((64,), 8)
    (3, 0, None)
    """
    axes = [axis for axis, size in enumerate(shape) if size % num_devices == 0]
    if not axes or math.prod(shape) < SMALLEST_SHARDED:
        return None
    return max(axes, key=lambda axis: shape[axis])


def leaf_specs(tree: Any, mesh: Mesh, shard_params: bool) -> Any:
    """The `PartitionSpec` of each leaf of parameters, gradients or optimizer state."""

    def spec(leaf) -> PartitionSpec:
        axis = sharded_axis(leaf.shape, mesh.size) if shard_params else None
        return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "data")

    return jax.tree.map(spec, tree)


def leaf_shardings(tree: Any, mesh: Mesh, shard_params: bool) -> Any:
    """The `NamedSharding` of each leaf."""
    specs = leaf_specs(tree, mesh, shard_params)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def state_shardings(state: TrainState, mesh: Mesh, shard_params: bool) -> TrainState:
    """Those of a state; model state lies whole always: it is small, and all read and update it."""
    params, opt_state = leaf_shardings((state.params, state.opt_state), mesh, shard_params)
    step, model_state = leaf_shardings((state.step, state.model_state), mesh, shard_params=False)
    return TrainState(step, params, model_state, opt_state)


def sums_shardings(sums: Sums, mesh: Mesh, shard_params: bool) -> Sums:
    """Those of sums: gradients lie as the parameters do, all else is whole."""
    whole = leaf_shardings(sums, mesh, shard_params=False)
    return whole._replace(grads=leaf_shardings(sums.grads, mesh, shard_params))
