"""Arrays in parts: what each process saves of those that lie on the devices of several.

And what a manifest says of them: their dtype and shape, and the digests of their values.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from adabatch_jax.training.weights_digest import stored_numbers

WHOLE = ""
"""The place of a part that is all of its array."""


def own_parts(leaf: Any, process_index: int) -> dict[str, np.ndarray]:
    """Copies what one process saves of a leaf, by its place.

    What every process has whole the first one saves, as one part; each other part is saved by the
    process whose device has its first copy. The copies stay when the leaf is donated.

    >>> own_parts(np.arange(3), 0), own_parts(np.arange(3), 1)
    ({'': array([0, 1, 2])}, {})
    """
    numbers = stored_numbers(leaf)
    if is_whole_here(numbers):
        # A copy also on a CPU: while a view of an array lives, it can't be donated.
        return {} if process_index else {WHOLE: np.array(numbers, order="C")}
    return {
        place_text(shard.index, numbers.shape): np.array(shard.data, order="C")
        for shard in numbers.addressable_shards
        if shard.replica_id == 0
    }


def is_whole_here(numbers: Any) -> bool:
    """Whether this process has all of an array."""
    if not isinstance(numbers, jax.Array):
        return True
    return numbers.is_fully_addressable or numbers.is_fully_replicated


def place_text(index: tuple[slice, ...], shape: tuple[int, ...]) -> str:
    """A part's place in an array of that shape, as a manifest has it.

    >>> place_text((slice(0, 2), slice(None)), (4, 3)), place_text((), ())
    ('0:2,0:3', '')
    """
    bounds = (axis.indices(size)[:2] for axis, size in zip(index, shape, strict=True))
    return ",".join(f"{start}:{stop}" for start, stop in bounds)


def slices_of(place: str, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The place that `place_text` wrote.

    >>> slices_of("0:2,0:3", (4, 3)), slices_of(WHOLE, (2,))
    ((slice(0, 2, None), slice(0, 3, None)), (slice(0, 2, None),))
    """
    if place == WHOLE:
        return tuple(slice(0, size) for size in shape)
    return tuple(slice(*map(int, bounds.split(":"))) for bounds in place.split(","))


def place_shape(place: str) -> tuple[int, ...]:
    """The shape of the part that lies at a place, if that isn't all of its array.

    >>> place_shape("0:6,64:128")
    (6, 64)
    """
    bounds = (map(int, axis.split(":")) for axis in place.split(","))
    return tuple(stop - start for start, stop in bounds)


def overlap(
    part: tuple[slice, ...], index: tuple[slice, ...], shape: tuple[int, ...]
) -> list[tuple[int, int]] | None:
    """Where a part and a piece of an array of that shape are the same, as starts and stops.

    >>> overlap((slice(0, 2),), (slice(1, None),), (4,)), overlap((slice(0, 2),), (slice(2, 4),), (4,))
    ([(1, 2)], None)
    """
    both = []
    for own, axis, size in zip(part, index, shape, strict=True):
        start, stop, _ = axis.indices(size)
        both.append((max(start, own.start), min(stop, own.stop)))
    return None if any(start >= stop for start, stop in both) else both


def cut_out(
    parts: Mapping[str, np.ndarray], index: tuple[slice, ...], shape: tuple[int, ...]
) -> np.ndarray:
    """A piece of an array, put together from those of its parts that reach into it.

    Args:
      parts: parts by their place, all that the piece needs.
      index: which piece.
      shape: the whole array's.

    >>> parts = {"0:2": np.array([1, 2]), "2:4": np.array([3, 4])}
    >>> cut_out(parts, (slice(1, 4),), (4,))
    array([2, 3, 4])
    """
    wanted = [axis.indices(size)[:2] for axis, size in zip(index, shape, strict=True)]
    piece = None
    if any(start >= stop for start, stop in wanted):  # no part reaches into nothing
        dtype = next(iter(parts.values())).dtype
        return np.empty([stop - start for start, stop in wanted], dtype)
    for place, values in parts.items():
        part = slices_of(place, shape)
        both = overlap(part, index, shape)
        if both is None:
            continue
        own = tuple(slice(a - s.start, b - s.start) for (a, b), s in zip(both, part))
        if both == wanted:  # all of it, as mostly
            return values[own]
        if piece is None:
            piece = np.empty([stop - start for start, stop in wanted], values.dtype)
        piece[tuple(slice(a - w, b - w) for (a, b), (w, _) in zip(both, wanted))] = values[own]
    return piece


def described(leaf: Any) -> str:
    """The dtype and the shape of a leaf, as in "float32[2, 3]" or "key<fry>[]".

    >>> described(np.zeros((2, 3), np.float32)), described(1.0)
    ('float32[2, 3]', 'float64[]')
    """
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return f"{leaf.dtype}{list(leaf.shape)}"


def dtype_and_shape(description: str) -> tuple[str, tuple[int, ...]]:
    """What `described` wrote.

    >>> dtype_and_shape("float32[2, 3]"), dtype_and_shape("key<fry>[]")
    (('float32', (2, 3)), ('key<fry>', ()))
    """
    dtype, _, numbers = description.removesuffix("]").partition("[")
    return dtype, tuple(map(int, numbers.split(", "))) if numbers else ()


def digest_of(values: np.ndarray) -> str:
    """sha256 of an array's dtype, shape and values."""
    digest = hashlib.sha256(f"{values.dtype}{list(values.shape)};".encode())
    digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8))
    return digest.hexdigest()
