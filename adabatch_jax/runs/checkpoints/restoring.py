"""Restores a checkpoint: read back onto the devices that are wanted, each array compared."""

import collections
import contextlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adabatch_jax.runs.checkpoints.array_parts import (
    WHOLE,
    cut_out,
    described,
    digest_of,
    dtype_and_shape,
    is_whole_here,
    overlap,
    place_shape,
    slices_of,
)
from adabatch_jax.runs.checkpoints.checkpoint_files import read_folder, reason_of
from adabatch_jax.runs.checkpoints.manifest import Damaged, Part, SavedArray
from adabatch_jax.runs.checkpoints.verifying import Found, check_checkpoint
from adabatch_jax.system.errors import RestoreError
from adabatch_jax.training.weights_digest import is_key, named_arrays, stored_numbers


def restore(found: Found, like: Any) -> Any:
    """Reads a checkpoint's state and compares every array with its digest.

    Of arrays that lie on the devices of several processes each process reads what it needs.

    Args:
      found: a checkpoint whose files were verified.
      like: a state of the same structure, whose shapes, dtypes and shardings are wanted.

    Raises:
      RestoreError: it holds other arrays than `like`, or it can't be read though it is what was
        saved.
      Damaged: what was read isn't what was saved.
      StorageError: one of its files can't be read any more.
    """
    leaves = named_arrays(like)
    _compare(found, {name: described(leaf) for name, leaf in leaves.items()})
    wanted = {name: _needed(found.arrays[name].parts, leaf) for name, leaf in leaves.items()}
    read = _read(found, wanted)
    try:
        restored = {name: _as_leaf(read[name], leaf) for name, leaf in leaves.items()}
        for name, leaf in restored.items():
            _check_values(name, found.arrays[name].parts, _that_reached(leaf, read[name]))
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        raise _not_restored(found, error) from error
    return jax.tree.unflatten(jax.tree.structure(like), restored.values())


def read_arrays(found: Found, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Some of a checkpoint's arrays, by name, without a state like it; each is compared.

    Raises:
      Damaged: what was read isn't what was saved.
      RestoreError, StorageError: as `restore`.
    """
    arrays = {name: found.arrays[name] for name in names}
    read = _read(found, {name: list(array.parts) for name, array in arrays.items()})
    for name, array in arrays.items():
        _check_values(name, array.parts, read[name])
    return {name: _whole(array, read[name]) for name, array in arrays.items()}


def _compare(found: Found, wanted: Mapping[str, str]) -> None:
    saved = {name: array.description for name, array in found.arrays.items()}
    for name in sorted({*saved, *wanted}):
        if saved.get(name) != wanted.get(name):
            raise RestoreError(
                f"the checkpoint {found.path} belongs to another model or optimizer: {name} is "
                f"{saved.get(name, 'absent')} there and {wanted.get(name, 'absent')} here."
            )


def _needed(parts: Collection[str], like: Any) -> list[str]:
    """The places of the parts that this process needs for a leaf."""
    numbers = stored_numbers(like)
    if is_whole_here(numbers):
        return list(parts)
    indices = numbers.sharding.addressable_devices_indices_map(numbers.shape).values()
    return [
        place
        for place in parts
        if any(overlap(slices_of(place, numbers.shape), index, numbers.shape) for index in indices)
    ]


def _read(found: Found, wanted: Mapping[str, list[str]]) -> dict[str, dict[str, np.ndarray]]:
    """Reads parts of arrays, given and returned by the array's name and by their place."""
    by_folder: dict[str, list[str]] = collections.defaultdict(list)
    read: dict[str, dict[str, np.ndarray]] = {name: {} for name in wanted}
    for name, places in wanted.items():
        array = found.arrays[name]
        for place in places:
            empty, path = _without_elements(array.description), array.parts[place].path
            if empty is not None:
                read[name][place] = empty
            elif place == WHOLE:
                by_folder[path].append(name)
            else:
                read[name][place] = _read_piece(found, path, array.description, place)
    for folder, names in by_folder.items():
        with _reading(found):
            together = read_folder(found.path, folder, names)
        for name, values in together.items():
            read[name][WHOLE] = values
    return read


def _read_piece(found: Found, path: str, description: str, place: str) -> np.ndarray:
    kind = dtype_and_shape(description)[0]
    dtype = np.uint32 if kind.startswith("key<") else jnp.dtype(kind)
    with _reading(found):
        return np.fromfile(found.path / path, dtype).reshape(place_shape(place))


@contextlib.contextmanager
def _reading(found: Found) -> Iterator[None]:
    """What goes wrong inside is told as damage, or as what can't be restored here."""
    try:
        yield
    except Exception as error:  # Orbax raises many kinds, some of them bare
        check_checkpoint(found.path)  # the files may have changed since they were verified
        raise _not_restored(found, error) from error


def _without_elements(description: str) -> np.ndarray | None:
    """An array that `described` says this of, if it has no elements: Orbax saves none of those."""
    dtype, shape = dtype_and_shape(description)
    return None if math.prod(shape) else np.zeros(shape, jnp.dtype(dtype))


def _whole(array: SavedArray, parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """All of an array that is no key's, from all of its parts."""
    if list(parts) == [WHOLE]:
        return np.asarray(parts[WHOLE])
    shape = dtype_and_shape(array.description)[1]
    return cut_out(parts, tuple(slice(0, size) for size in shape), shape)


def _as_leaf(parts: Mapping[str, np.ndarray], like: Any) -> Any:
    """The leaf whose `stored_numbers` these parts are, of the kind and sharding of `like`."""
    if not np.size(like):
        return like
    if not isinstance(like, jax.Array):
        array = parts[WHOLE]
        return array if isinstance(like, np.ndarray) else type(like)(array[()])
    numbers = jax.eval_shape(stored_numbers, like)

    def piece(index: tuple[slice, ...]) -> np.ndarray:
        return cut_out(parts, index, numbers.shape)

    if not like.is_fully_addressable:
        sharding = stored_numbers(like).sharding
        array = jax.make_array_from_callback(numbers.shape, sharding, piece)
        return (
            jax.random.wrap_key_data(array, impl=jax.random.key_impl(like))
            if is_key(like)
            else array
        )
    array = piece(tuple(slice(0, size) for size in numbers.shape))
    if is_key(like):
        array = jax.random.wrap_key_data(jnp.array(array), impl=jax.random.key_impl(like))
    # Programs for arrays that JAX may move are others, and would be compiled anew.
    return jax.device_put(array, like.sharding) if like.committed else jnp.array(array)


def _that_reached(leaf: Any, read: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The parts of a restored leaf as they lie on the devices; of one in several, as read."""
    numbers = stored_numbers(leaf)
    if list(read) == [WHOLE] and is_whole_here(numbers):
        return {WHOLE: np.asarray(numbers)}
    return read


def _check_values(name: str, parts: Mapping[str, Part], values: Mapping[str, np.ndarray]) -> None:
    for place, array in values.items():
        if digest_of(array) != parts[place].sha256:
            raise Damaged(f"{name} has other values than were saved")


def _not_restored(found: Found, error: Exception) -> RestoreError:
    return RestoreError(
        f"checkpoint {found.step} in {found.path.parent} can't be restored here, though its files "
        f"are what was saved ({reason_of(error)})."
    )
