"""Datasets that live on the devices: which fit, how they lie there, and batches from them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from adabatch_jax.data.abstract_arrays import abstract_rows, example_types, tree_bytes
from adabatch_jax.data.batches import refuse_unfit_values, with_float_weights
from adabatch_jax.data.mesh import BatchMesh
from adabatch_jax.data.sources import ArraySource, Source
from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.quantities import bytes_text


class Placement(NamedTuple):
    """Where a run's examples live, "resident" or "streaming", and why, for people.

    `spread` is whether they are shared out among the devices rather than on each of them,
    `from_memory` whether they are streamed from memory with room to spare.
    """

    kind: str
    reason: str
    spread: bool = False
    from_memory: bool = False


def choose_placement(
    source: Source,
    num_examples: int | None,
    kind: str,
    num_devices: int,
    available_bytes: float,
    platform: str,
) -> Placement:
    """Decides where the examples live; see `Feed`.

    >>> from adabatch_jax.data.sources import array_source
    >>> source = array_source({"image": np.zeros((50_000, 32, 32, 3), np.uint8)})
    >>> choose_placement(source, 50_000, "auto", 1, 2**33, "gpu").reason
    'resident: 146.5 MiB of examples fit on the device'
    """
    if kind == "streaming":
        return Placement("streaming", "streaming: as asked for")
    if num_examples is None:
        if kind == "resident":
            raise UsageError("the input can't be resident: its examples never end; stream it.")
        return Placement("streaming", "streaming: the examples never end")
    if kind == "auto" and not isinstance(source, ArraySource):
        return Placement("streaming", "streaming: the examples aren't in memory")
    row_bytes = tree_bytes(abstract_rows(example_types(source)))
    num_bytes, share_bytes = (
        rows * row_bytes for rows in (num_examples, -(-num_examples // num_devices))
    )
    what = f"{bytes_text(num_bytes)} of examples"
    where = "the device" if num_devices == 1 else f"each of {num_devices} devices"
    # Unless it was asked for, half of the memory is left to the training.
    room = available_bytes / 2 if kind == "auto" else available_bytes
    if kind == "auto" and platform == "cpu":  # it has no other memory
        reason = f"streaming: {what} are in memory already"
        return Placement("streaming", reason, from_memory=num_bytes <= room)
    if num_bytes <= room:
        return Placement("resident", f"resident: {what} fit on {where}")
    if share_bytes <= room:
        return Placement("resident", f"resident: {what}, spread over {num_devices} devices", True)
    if kind == "auto":
        half = f"half of the {bytes_text(available_bytes)} on {where}"
        return Placement("streaming", f"streaming: {what} don't fit in {half}")
    raise UsageError(
        f"the input can't be resident: its examples take {share_bytes:,} bytes on {where}, where "
        f"{available_bytes:,} are free; stream it."
    )


def put_tables(
    arrays: Mapping[str, Any], mesh: BatchMesh | None, spread: bool = False
) -> dict[str, Any]:
    """Puts arrays of shape `(num_examples, ...)` on the devices.

    Examples that are `spread` are shared out; the first axis is then padded to a multiple of the
    devices.
    """
    refuse_unfit_values(arrays)
    arrays = with_float_weights(arrays)
    if mesh is None:
        return jax.device_put(arrays)
    if spread:
        return jax.tree.map(lambda array: _put_spread(array, mesh), arrays)
    return mesh.put_whole(arrays)


def gather(tables: Mapping[str, Any], inputs: Mapping[str, jax.Array]) -> dict[str, Any]:
    """Returns a whole batch: `inputs`, and the tables' rows at `inputs["index"]`.

    A weight of the examples' own is multiplied into that of the inputs.

    For use inside a compiled program, which takes the tables as an argument; without tables it
    returns the inputs.

    >>> inputs = {"index": jax.numpy.array([2, 0])}
    >>> gather({"label": jax.numpy.array([5, 6, 7])}, inputs)["label"].tolist()
    [7, 5]
    """
    # Every index is an example, so no program has to check.
    rows = jax.tree.map(
        lambda table: table.at[inputs["index"]].get(mode="promise_in_bounds"), dict(tables)
    )
    batch = rows | dict(inputs)
    if "weight" in rows:
        batch["weight"] = rows["weight"] * inputs["weight"]
    return batch


def _put_spread(array: np.ndarray, mesh: BatchMesh) -> jax.Array:
    width = -(-len(array) // mesh.num_shards)

    def share(place: tuple[slice, ...]) -> np.ndarray:
        part = array[place]  # less than the width at the end
        return np.pad(part, [(0, width - len(part)), *((0, 0),) * (array.ndim - 1)])

    shape = (mesh.num_shards * width, *array.shape[1:])
    return jax.make_array_from_callback(shape, mesh.of_rows(), share)
