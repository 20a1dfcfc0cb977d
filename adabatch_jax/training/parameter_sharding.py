"""Where the leaves of a train state lie: whole on every device, or sharded over them (FSDP)."""

import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adabatch_jax.data.mesh import replicated
from adabatch_jax.training.accumulation import Sums
from adabatch_jax.training.train_state import TrainState

# Elements of the smallest array that is sharded: below, telling it to the others costs more time
# than it saves memory.
SMALLEST_SHARDED = 1024


def sharded_axis(shape: tuple[int, ...], num_devices: int) -> int | None:
    """Returns the largest axis that the devices divide, or None to keep an array whole.

    >>> sharded_axis((3, 3, 64, 128), 8), sharded_axis((4096, 10), 8), sharded_axis((64,), 8)
    (3, 0, None)
    """
    axes = [axis for axis, size in enumerate(shape) if size % num_devices == 0]
    if not axes or math.prod(shape) < SMALLEST_SHARDED:
        return None
    return max(axes, key=lambda axis: shape[axis])


def leaf_specs(tree: Any, mesh: Mesh, shard_params: bool) -> Any:
    """Returns for each leaf of parameters, gradients or optimizer state its `PartitionSpec`."""

    def spec(leaf) -> PartitionSpec:
        axis = sharded_axis(leaf.shape, mesh.size) if shard_params else None
        return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "data")

    return jax.tree.map(spec, tree)


def leaf_shardings(tree: Any, mesh: Mesh, shard_params: bool) -> Any:
    """Returns `leaf_specs` on this mesh."""
    specs = leaf_specs(tree, mesh, shard_params)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def state_shardings(state: TrainState, mesh: Mesh, shard_params: bool) -> TrainState:
    """Returns a `NamedSharding` for each leaf of a state.

    Model state lies whole on every device always: it is small, and all read and update it.
    """
    whole = jax.tree.map(lambda leaf: replicated(mesh), state)
    params, opt_state = (
        leaf_shardings(part, mesh, shard_params) for part in (state.params, state.opt_state)
    )
    return TrainState(whole.step, params, whole.model_state, opt_state)


def sums_shardings(sums: Sums, mesh: Mesh, shard_params: bool) -> Sums:
    """Returns a `NamedSharding` for each leaf of sums: gradients lie as the parameters do."""
    whole = jax.tree.map(lambda leaf: replicated(mesh), sums)
    return whole._replace(grads=leaf_shardings(sums.grads, mesh, shard_params))
