"""How a batch lies on its devices: the mesh, the axes that share examples out, the shardings."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from adabatch_jax.system.errors import UsageError, one_line


def check_backend(cpu_devices: int | None = None) -> None:
    """Raises a UsageError if JAX won't compile, insists on shardings, or finds no devices.

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
    if AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types:
        raise UsageError(
            "`jax.set_mesh` has set a mesh with Explicit axes, under which each operation has to say "
            "where its result lies; call this outside of it: arrays and NamedShardings on that mesh "
            "may be given as they are."
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


@dataclasses.dataclass(frozen=True)
class BatchMesh:
    """A mesh of devices, and how batches lie on it; `as_batch_mesh` makes it.

    Attributes:
      mesh: the devices, all axes of the type Auto.
      spec: that of one (micro-)batch's arrays: its first entry names the axes that share the
        examples out, the data axes, and later ones may shard later dimensions of arrays that have
        them, such as a sequence's.
    """

    mesh: Mesh
    spec: PartitionSpec

    @functools.cached_property
    def data_axes(self) -> tuple[str, ...]:
        """The axes that share the examples out, the first one slowest."""
        return entry_axes(self.spec[0] if len(self.spec) else None)

    @functools.cached_property
    def num_shards(self) -> int:
        """How many parts the examples of a batch are shared out in."""
        return _num_parts(self.mesh, self.data_axes)

    @functools.cached_property
    def own_shards(self) -> tuple[int, ...]:
        """Which of these parts this process's devices hold, in order.

        Two processes hold the same one where another axis has devices of both.
        """
        numbers, here = shard_numbers(self.mesh, self.data_axes), jax.process_index()
        holders = zip(self.mesh.devices.flat, numbers.flat, strict=True)
        return tuple(sorted({int(n) for device, n in holders if device.process_index == here}))

    @functools.cached_property
    def whole(self) -> NamedSharding:
        """The sharding of what every device holds whole: metrics, keys."""
        return NamedSharding(self.mesh, PartitionSpec())

    def of_rows(self, num_stacked: int = 0) -> NamedSharding:
        """That of arrays whose axis `num_stacked` is the examples, and nothing else is shared out.

        Axes before it, such as that of the K micro-batches, are never sharded.
        """
        return NamedSharding(self.mesh, PartitionSpec(*[None] * num_stacked, *self.spec[:1]))

    def of_batch(self, arrays: Mapping[str, Any], num_stacked: int = 0) -> Any:
        """The sharding of a batch's arrays: one for all, or one each where the spec has more.

        Raises a UsageError where a dimension behind the examples can't be shared out.
        """
        if len(self.spec) < 2:
            return self.of_rows(num_stacked)
        return jax.tree.map_with_path(
            lambda path, array: self._of_array(path, array.shape, num_stacked), dict(arrays)
        )

    def _of_array(self, path: Any, shape: tuple[int, ...], num_stacked: int) -> NamedSharding:
        spec = PartitionSpec(*([None] * num_stacked + list(self.spec))[: len(shape)])
        for axis in range(num_stacked + 1, len(spec)):
            num_parts = _num_parts(self.mesh, spec[axis])
            if shape[axis] % num_parts:
                raise UsageError(
                    f"batch{jax.tree_util.keystr(path)} has {shape[axis]} entries along dimension "
                    f"{axis}, which {spec[axis]!r} in the sharding {self.spec} can't share out in "
                    f"{num_parts} parts; pad it, or leave that entry out."
                )
        return NamedSharding(self.mesh, spec)

    def can_hold(self, shape: tuple[int, ...], spec: PartitionSpec) -> bool:
        """Whether an array can be sharded so here: the axes are there, and divide it."""
        known = all(axis in self.mesh.shape for entry in spec for axis in entry_axes(entry))
        return known and all(
            size % _num_parts(self.mesh, entry) == 0 for size, entry in zip(shape, spec)
        )

    def put(self, arrays: Mapping[str, Any], num_stacked: int = 0) -> dict[str, Any]:
        """Puts a batch on the devices, of which `arrays` hold the rows of `own_shards`, in order."""
        if not self.mesh.is_multi_process:
            return jax.device_put(dict(arrays), self.of_batch(arrays, num_stacked))
        return jax.tree.map_with_path(
            lambda path, array: self._put_rows(
                array, self._of_array(path, array.shape, num_stacked), num_stacked
            ),
            dict(arrays),
        )

    def _put_rows(self, array: np.ndarray, sharding: NamedSharding, num_stacked: int) -> jax.Array:
        shape = list(array.shape)
        width = shape[num_stacked] // len(self.own_shards)
        shape[num_stacked] = width * self.num_shards

        def part(place: tuple[slice, ...]) -> np.ndarray:
            start = self.own_shards.index((place[num_stacked].start or 0) // width) * width
            own = (*place[:num_stacked], slice(start, start + width), *place[num_stacked + 1 :])
            return array[own]

        return jax.make_array_from_callback(tuple(shape), sharding, part)

    def put_whole(self, tree: Any) -> Any:
        """Puts what all processes have alike on every device."""
        return self.put_as(tree, self.whole)

    def put_as(self, tree: Any, shardings: Any) -> Any:
        """Puts what all processes have alike, or on their devices already, where it is to lie.

        `shardings` is one for each leaf, or one for all.
        """
        if not self.mesh.is_multi_process:
            return jax.device_put(tree, shardings)
        return jax.tree.map(_put_alike, tree, jax.tree.broadcast(shardings, tree))


def _put_alike(leaf: Any, sharding: NamedSharding) -> jax.Array:
    # `device_put` would take neither keys nor committed arrays, and compare the rest by sending it.
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return leaf if leaf.sharding == sharding else resharded(leaf, sharding)
    if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
        # Its axes are those of the key, and one more that is never sharded.
        bits = _put_alike(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(leaf))
    array = np.asarray(leaf)
    return jax.make_array_from_callback(array.shape, sharding, lambda place: array[place])


def resharded(array: jax.Array, sharding: NamedSharding) -> jax.Array:
    """The same array on the same devices, of whatever processes, which all call this alike."""
    return jax.jit(_same, out_shardings=sharding)(array)


def _same(array: jax.Array) -> jax.Array:
    return array


def as_batch_mesh(
    mesh: Mesh | NamedSharding | BatchMesh | None, name: str = "mesh"
) -> BatchMesh | None:
    """What a user gives as the mesh, as a `BatchMesh`; None stays None.

    The axes become Auto: under Explicit ones code that was written for one device would have to
    say where its results lie.

    Args:
      mesh: a mesh of one axis, or the sharding of one (micro-)batch, whose spec's first entry names
        the axes that share the examples out.
      name: what errors call it.

    Raises:
      UsageError: it is neither.

    >>> as_batch_mesh(data_mesh(jax.devices()[:1])).data_axes
    ('data',)
    """
    if mesh is None or isinstance(mesh, BatchMesh):
        return mesh
    if isinstance(mesh, NamedSharding) and isinstance(mesh.mesh, Mesh):
        mesh, spec = mesh.mesh, mesh.spec
    elif not isinstance(mesh, Mesh):
        raise UsageError(
            f"`{name}` must be of type Mesh or NamedSharding, got one of type "
            f"{type(mesh).__name__}."
        )
    elif len(mesh.axis_names) != 1:
        raise UsageError(
            f"`{name}` has the axes {mesh.axis_names}, and doesn't say which of them share the "
            f"examples out; give NamedSharding(mesh, PartitionSpec({mesh.axis_names[0]!r})) "
            "instead, with the name of that axis."
        )
    else:
        spec = PartitionSpec(*mesh.axis_names)
    if any(entry is PartitionSpec.UNCONSTRAINED for entry in spec):
        raise UsageError(
            f"`{name}` leaves open how a batch lies, {spec}; name mesh axes, or None, in each entry."
        )
    if set(mesh.axis_types) != {AxisType.Auto}:
        mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)
    return BatchMesh(mesh, spec)


def mesh_and_sharding(mesh: Mesh | NamedSharding | None, sharding: NamedSharding | None) -> Any:
    """The `BatchMesh` that both arguments of `batches` mean; at least one of them is given."""
    if sharding is None:
        return as_batch_mesh(mesh)
    if not isinstance(sharding, NamedSharding):
        raise UsageError(
            f"`sharding` must be of type NamedSharding, got one of type {type(sharding).__name__}."
        )
    if mesh is not None and mesh not in (sharding, sharding.mesh):
        raise UsageError(
            "`mesh` and `sharding` say different things of how a batch lies; give only the "
            "sharding, or with it just its own mesh."
        )
    return as_batch_mesh(sharding, "sharding")


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device of a mesh of one axis holds whole."""
    return as_batch_mesh(mesh).whole


def batch_sharding(mesh: Mesh, microbatched: bool = False) -> NamedSharding:
    """Returns the sharding of a batch's arrays, (B, ...) or (K, m, ...) if `microbatched`.

    >>> tuple(batch_sharding(data_mesh(), microbatched=True).spec)
    (None, 'data')
    """
    return as_batch_mesh(mesh).of_rows(int(microbatched))


def entry_axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes that an entry of a `PartitionSpec` names.

    >>> entry_axes("data"), entry_axes(("data", "fsdp")), entry_axes(None)
    (('data',), ('data', 'fsdp'), ())
    """
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def _num_parts(mesh: Mesh, entry: str | tuple[str, ...] | None) -> int:
    """In how many parts an entry of a `PartitionSpec` shares a dimension out."""
    return math.prod(mesh.shape[axis] for axis in entry_axes(entry))


def shard_numbers(mesh: Mesh, axes: Sequence[str]) -> np.ndarray:
    """Which part of a dimension that is sharded over `axes` each device holds, as `mesh.devices`.

    >>> mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    >>> shard_numbers(mesh, ["data"])
    array([[0]])
    """
    numbers = np.zeros(mesh.devices.shape, int)
    for axis in axes:
        place = np.indices(mesh.devices.shape)[mesh.axis_names.index(axis)]
        numbers = numbers * mesh.shape[axis] + place
    return numbers


def rows_of_all_devices(rows: jax.Array) -> jax.Array:
    """Returns the rows of all devices, in order, also where a device computes its share apart.

    A loss function with `independent_groups` and `sequential_model_state` (see `make_train_step`)
    needs it: it then runs on each device for that device's rows only. Of (n, ...) it returns
    (devices * n, ...) in a `jax.shard_map` over one axis, or over `"data"` and others, and `rows`
    itself elsewhere.

    Raises:
      UsageError: the shard_map is over several axes, none of which is `"data"`.

    >>> jax.shard_map(rows_of_all_devices, mesh=data_mesh(), in_specs=PartitionSpec("data"),
    ...               out_specs=PartitionSpec(), check_vma=False)(np.arange(8)).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    axes = tuple(jax.sharding.get_abstract_mesh().manual_axes)
    if not axes:
        return rows
    if len(axes) > 1 and "data" not in axes:
        raise UsageError(
            f"in a shard_map over the axes {axes} it isn't known which of them share the rows out; "
            'call that axis "data".'
        )
    return lax.all_gather(rows, axes[0] if len(axes) == 1 else "data", tiled=True)
