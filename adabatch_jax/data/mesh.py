"""The mesh of devices that a batch is spread over, and the two shardings that training uses."""

from collections.abc import Sequence

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from adabatch_jax.system.errors import UsageError, one_line


def check_backend(cpu_devices: int | None = None) -> None:
    """Raises a UsageError if JAX won't compile or finds no devices, as with a wrong $JAX_PLATFORMS.

    `cpu_devices` is how many devices to make of the CPU; None leaves that to JAX.
    """
    if cpu_devices is not None:
        if cpu_devices < 1:
            raise UsageError(f"--cpu-devices: must be at least 1, got {cpu_devices}.")
        jax.config.update("jax_num_cpu_devices", cpu_devices)
    if jax.config.jax_disable_jit:
        raise UsageError(
            "JAX is told to compile nothing, and training runs compiled programs only; unset "
            "JAX_DISABLE_JIT, or leave out jax.disable_jit()."
        )
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        chosen = jax.config.jax_platforms
        reason = one_line(error) if str(error) else "no such devices"
        raise UsageError(
            f"JAX can't use the devices it is told to, JAX_PLATFORMS={chosen!r} ({reason}); unset "
            "it to take what there is."
        ) from None


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a one-dimensional mesh with the axis `"data"`.

    Args:
      devices: the devices to use, by default all local ones.

    Returns:
      A mesh whose axis type is Auto: the compiler propagates shardings, so code that was
      written for one device works on it unchanged.

    >>> data_mesh(jax.local_devices()[:1]).shape["data"]
    1
    """
    devices = jax.local_devices() if devices is None else devices
    return Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))


def as_data_mesh(mesh: Mesh) -> Mesh:
    """Returns the mesh that batches are spread over: all devices of `mesh` along "data".

    Any mesh will do, whatever its axes are called; under Explicit ones code that was written for
    one device would have to say where its results lie.
    """
    if mesh.axis_names == ("data",) and mesh.axis_types == (AxisType.Auto,):
        return mesh
    return data_mesh(list(mesh.devices.flat))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole: parameters, metrics, keys."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, microbatched: bool = False) -> NamedSharding:
    """Returns the sharding of a batch's arrays: examples are spread over the devices.

    Arrays are (B, ...), or (K, m, ...) where they are `microbatched`; each of the K micro-batches
    is spread over all devices then.

    >>> tuple(batch_sharding(data_mesh(), microbatched=True).spec)
    (None, 'data')
    """
    spec = PartitionSpec(None, "data") if microbatched else PartitionSpec("data")
    return NamedSharding(mesh, spec)


def rows_of_all_devices(rows: jax.Array) -> jax.Array:
    """Returns the rows of all devices, in order, also where a device computes its share apart.

    A loss function with `independent_groups` and `sequential_model_state` (see `make_train_step`)
    needs it: it then runs on each device for that device's rows only. Of (n, ...) it returns
    (devices * n, ...) in a `jax.shard_map` over the axis `"data"`, and `rows` itself elsewhere.

    >>> jax.shard_map(rows_of_all_devices, mesh=data_mesh(), in_specs=PartitionSpec("data"),
    ...               out_specs=PartitionSpec(), check_vma=False)(np.arange(8)).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    if "data" not in jax.sharding.get_abstract_mesh().manual_axes:
        return rows
    return lax.all_gather(rows, "data", tiled=True)
