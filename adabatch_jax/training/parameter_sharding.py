"""Where the leaves of a train state lie: as they come, whole on every device, or sharded (FSDP)."""

import math
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from adabatch_jax.data.mesh import BatchMesh, entry_axes
from adabatch_jax.system.errors import UsageError
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


def state_specs(state: TrainState, mesh: BatchMesh, shard_params: bool) -> TrainState:
    """The `PartitionSpec` of each leaf of a state like this one.

    A leaf that comes sharded stays so. Of the others parameters and optimizer state are sharded
    over the data axes where `shard_params`, and all else is whole: model state is small, and all
    read and update it.

    Raises:
      UsageError: a leaf is sharded in a way that this mesh doesn't know.
    """

    def specs(part: str, shard: bool) -> Any:
        return jax.tree.map_with_path(
            lambda path, leaf: _leaf_spec(part + jax.tree_util.keystr(path), leaf, mesh, shard),
            getattr(state, part),
        )

    return TrainState(
        step=specs("step", False),
        params=specs("params", shard_params),
        model_state=specs("model_state", False),
        opt_state=specs("opt_state", shard_params),
    )


def _leaf_spec(name: str, leaf: Any, mesh: BatchMesh, shard: bool) -> PartitionSpec:
    given = given_spec(name, leaf, mesh)
    if given is not None:
        return given
    axis = sharded_axis(leaf.shape, mesh.num_shards) if shard else None
    if axis is None:
        return PartitionSpec()
    return PartitionSpec(*[None] * axis, *mesh.spec[:1])


def given_spec(name: str, leaf: Any, mesh: BatchMesh) -> PartitionSpec | None:
    """How an array that comes sharded is sharded; None of one that lies whole, or not yet."""
    sharding = getattr(leaf, "sharding", None)
    if not isinstance(sharding, Sharding) or sharding.is_fully_replicated:
        return None
    spec = sharding.spec if isinstance(sharding, NamedSharding) else None
    if spec is None or not mesh.can_hold(leaf.shape, spec):
        raise UsageError(
            f"{name} is sharded as {spec or sharding}, and batches lie on the mesh "
            f"{dict(mesh.mesh.shape)}, where that can't be kept; put it there first "
            "(`jax.device_put`)."
        )
    return spec


def is_sharded(specs: Any) -> bool:
    """Whether any leaf with these specs is."""
    return any(spec != PartitionSpec() for spec in jax.tree.leaves(specs))


def shardings_of(specs: Any, mesh: BatchMesh) -> Any:
    """The `NamedSharding` of each leaf."""
    return jax.tree.map(lambda spec: NamedSharding(mesh.mesh, spec), specs)


def gathered_specs(specs: Any, mesh: BatchMesh) -> Any:
    """Those for computing: what is sharded over the data axes is whole along them.

    Left to itself, the compiler might split the computation along features instead.
    """

    def gathered(entry: Any) -> Any:
        return tuple(axis for axis in entry_axes(entry) if axis not in mesh.data_axes) or None

    return jax.tree.map(lambda spec: PartitionSpec(*map(gathered, spec)), specs)
