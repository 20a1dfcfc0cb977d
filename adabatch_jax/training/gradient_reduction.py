"""Gradients on several devices: how they are reduced, and where their sums lie."""

from collections.abc import Mapping
from typing import Any

import jax
from jax import lax
from jax.sharding import PartitionSpec

from adabatch_jax.data.mesh import BatchMesh
from adabatch_jax.system.errors import UsageError
from adabatch_jax.training.accumulation import Sums, sum_up
from adabatch_jax.training.gradients import GradFn, Outputs, gradient_function
from adabatch_jax.training.loss_functions import LossFn
from adabatch_jax.training.parameter_sharding import gathered_specs, shardings_of


def sharded_gradient_function(loss_fn: LossFn, params: Any, specs: Any, mesh: BatchMesh) -> GradFn:
    """`gradient_function` where parameters and gradients are sharded.

    Devices that share the examples out compute with all parameters along the data axes, as if those
    had not been sharded over them; see `gathered_specs`.
    """
    gathered = shardings_of(gathered_specs(specs, mesh), mesh)
    grad_fn = gradient_function(loss_fn, lax.with_sharding_constraint(params, gathered))

    def sharded(model_state: Any, batch: Mapping[str, jax.Array], rng: jax.Array) -> Outputs:
        outputs = grad_fn(model_state, batch, rng)
        grads = lax.with_sharding_constraint(outputs.grads, shardings_of(specs, mesh))
        return outputs._replace(grads=grads)

    return sharded


def sum_up_on_each_device(
    loss_fn: LossFn,
    params: Any,
    model_state: Any,
    batch: Mapping[str, jax.Array],
    rng: jax.Array,
    sequential: bool,
    specs: Any,
    mesh: BatchMesh,
) -> Sums:
    """What `sum_up` returns, for arrays (K, m, ...) of which each of D devices holds m / D rows.

    Each device adds up the gradients of its own rows; only then they are summed over the devices.
    (Left to itself, the compiler reduces the gradients of every micro-batch.) `loss_fn` is a
    `jax.tree_util.Partial`: the arrays that it binds are arguments here too. `mesh` has one data
    axis; along others the compiler splits the computation, as the parameters' `specs` make it.
    """
    (axis,) = mesh.data_axes
    scattered = jax.tree.map(lambda spec: _scattered(spec, axis), specs)

    def of_a_device(loss_fn, params, model_state, batch, rng, weights):
        grad_fn = gradient_function(loss_fn, params)
        sums = sum_up(grad_fn, params, model_state, batch, rng, sequential, weights)
        return _over_devices(sums, scattered, sequential, axis)

    whole, spread = PartitionSpec(), mesh.of_rows(1).spec
    # Without check_vma code that was written for one device works as it is, loops included.
    summed_up = jax.shard_map(
        of_a_device,
        mesh=mesh.mesh,
        in_specs=(whole, whole, whole, spread, whole, whole),
        out_specs=Sums(scattered, whole, whole, whole),
        axis_names={axis},
        check_vma=False,
    )
    try:
        return summed_up(loss_fn, params, model_state, batch, rng, batch["weight"].sum(1))
    except ValueError as error:
        if "Context mesh" not in str(error) and "only refer to Auto axes" not in str(error):
            raise
        raise UsageError(
            "loss_fn says where an array lies on all devices, and with `independent_groups` it runs "
            "on the rows of one; give its `with_sharding_constraint` a PartitionSpec without "
            f"{axis!r}, or leave `independent_groups` out."
        ) from error


def _scattered(spec: PartitionSpec, axis: str) -> PartitionSpec:
    """The gradients' parts that devices get from each other: what lies along the data axis alone.

    Of others each gets all, and keeps its part: XLA would gather them first.
    """
    is_alone = all(entry in (None, axis) for entry in spec)
    return spec if is_alone else PartitionSpec()


def _over_devices(sums: Sums, specs: Any, sequential: bool, data_axis: str) -> Sums:
    """Adds up the devices' sums; of sharded gradients each device gets its own part."""
    leaves, treedef = jax.tree.flatten(sums.grads)
    axes = [
        spec.index(data_axis) if data_axis in spec else None
        for spec in treedef.flatten_up_to(specs)
    ]
    whole = {i: leaf for i, (leaf, axis) in enumerate(zip(leaves, axes)) if axis is None}
    states = None if sequential else sums.model_state  # sequential: the same on all devices
    whole, states, metrics, weight = lax.psum((whole, states, sums.metrics, sums.weight), data_axis)
    leaves = [
        whole[i]
        if axis is None
        else lax.psum_scatter(leaf, data_axis, scatter_dimension=axis, tiled=True)
        for i, (leaf, axis) in enumerate(zip(leaves, axes))
    ]
    states = sums.model_state if sequential else states
    return Sums(treedef.unflatten(leaves), states, metrics, weight)
