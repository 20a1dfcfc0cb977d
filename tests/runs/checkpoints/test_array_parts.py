"""The parts of arrays that processes save, against numpy, on made-up processes of eight devices."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adabatch_jax.runs.checkpoints import array_parts
from adabatch_jax.runs.checkpoints.array_parts import (
    WHOLE,
    cut_out,
    own_parts,
    place_shape,
    place_text,
    slices_of,
)

GRIDS = [(1, 1), (2, 1), (2, 2), (4, 1), (1, 8), (4, 2)]


class AsOneOf:
    """An array as one of several processes has it: each has some devices in a row."""

    def __init__(self, array, process, count):
        devices = [*array.sharding.mesh.devices.flat]
        per_process = len(devices) // count
        own = devices[process * per_process : (process + 1) * per_process]
        self.shape = array.shape
        self.addressable_shards = [s for s in array.addressable_shards if s.device in own]
        self.is_fully_addressable = count == 1
        self.is_fully_replicated = array.is_fully_replicated
        self._array = array

    def __array__(self, dtype=None, copy=None):
        return np.array(self._array, dtype)


@pytest.fixture
def parts_of(monkeypatch):
    """`parts_of(array, 4)`: what each of four processes saves."""
    monkeypatch.setattr(array_parts, "stored_numbers", lambda leaf: leaf)
    monkeypatch.setattr(array_parts, "jax", types.SimpleNamespace(Array=AsOneOf))
    return lambda array, count: [own_parts(AsOneOf(array, i, count), i) for i in range(count)]


def shard(shape, grid, axes):
    """An array of different numbers on a grid of devices, whose axes share these of it out."""
    devices = np.array(jax.devices()[: grid[0] * grid[1]]).reshape(grid)
    spec = [None] * len(shape)
    for name, axis in zip("ab", axes, strict=True):
        if axis is not None:
            spec[axis] = (*(spec[axis] or ()), name)
    where = NamedSharding(Mesh(devices, ("a", "b")), PartitionSpec(*spec))
    values = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    return values, jax.device_put(values, where)


SHARDINGS = [
    (grid, axes, shape)
    for grid in GRIDS
    for shape in [(8, 16), (16, 8, 3)]
    for axes in [(0, 1), (1, 0), (None, 1), (0, None), (None, None), (0, 0)]
]


@pytest.mark.parametrize("grid, axes, shape", SHARDINGS)
def test_together_they_save_each_number_once(parts_of, grid, axes, shape):
    values, array = shard(shape, grid, axes)
    for count in {n for n in (1, 2, 4, 8) if grid[0] * grid[1] % n == 0}:
        saved = parts_of(array, count)
        seen = np.zeros(shape, int)
        whole = np.empty(shape, np.float32)
        for parts in saved:
            for place, part in parts.items():
                where = slices_of(place, shape)
                assert part.shape == (shape if place == WHOLE else place_shape(place))
                seen[where] += 1
                whole[where] = part
        assert (seen == 1).all()
        np.testing.assert_array_equal(whole, values)
        if array.is_fully_replicated or count == 1:
            assert [*saved[0]] == [WHOLE] and not any(saved[1:])


def test_copies_stay_when_the_array_is_donated():
    array = jnp.arange(64.0)
    [copy] = own_parts(array, 0).values()
    jax.jit(lambda x: x * 0, donate_argnums=0)(array).block_until_ready()
    np.testing.assert_array_equal(copy, np.arange(64.0))


@st.composite
def cut_arrays(draw):
    """A shape, where its axes are cut, and a piece of it."""
    shape = draw(st.lists(st.integers(1, 7), min_size=1, max_size=3))
    cuts, piece = [], []
    for size in shape:
        inner = draw(st.sets(st.integers(1, size - 1), max_size=3)) if size > 1 else set()
        cuts.append([0, *sorted(inner), size])
        start = draw(st.integers(0, size - 1))
        piece.append(slice(start, draw(st.integers(start + 1, size))))
    return tuple(shape), cuts, tuple(piece)


@settings(deadline=None, max_examples=200)
@given(cut_arrays())
def test_a_piece_is_put_together_from_whatever_parts_there_are(cut):
    shape, cuts, piece = cut
    values = np.random.default_rng(0).normal(size=shape)
    ranges = [[slice(a, b) for a, b in zip(axis, axis[1:])] for axis in cuts]
    parts = {}
    for number in np.ndindex(*map(len, ranges)):
        where = tuple(axis[k] for axis, k in zip(ranges, number, strict=True))
        place = place_text(where, shape)
        assert slices_of(place, shape) == where
        assert place_shape(place) == values[where].shape
        parts[place] = values[where]
    np.testing.assert_array_equal(cut_out(parts, piece, shape), values[piece])
    # Parts that don't reach into it aren't needed.
    needed = {
        place: part
        for place, part in parts.items()
        if array_parts.overlap(slices_of(place, shape), piece, shape) is not None
    }
    np.testing.assert_array_equal(cut_out(needed, piece, shape), values[piece])
    np.testing.assert_array_equal(cut_out({WHOLE: values}, piece, shape), values[piece])
