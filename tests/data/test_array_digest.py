"""Digests of arrays: their contents alone decide, whatever they lie like in memory."""

import hashlib
import json

import ml_dtypes
import numpy as np
import pytest

from adabatch_jax.data import array_digest
from adabatch_jax.data.array_digest import arrays_digest

X = np.arange(60, dtype=np.int32).reshape(10, 6)
Y = np.arange(10, dtype=np.float32)


def test_it_is_the_sha256_of_what_they_hold(monkeypatch):
    content = b'["x", "int32", [10, 6]]' + X.tobytes() + b'["y", "float32", [10]]' + Y.tobytes()
    assert json.loads(content[:23]) == ["x", "int32", [10, 6]]
    for together in (2**24, 48, 1):  # however many rows are taken at once
        monkeypatch.setattr(array_digest, "_BYTES_AT_ONCE", together)
        assert arrays_digest({"y": Y, "x": X}) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    "same",
    [
        X.copy(), np.asfortranarray(X), X.astype(">i4"), np.repeat(X, 2, axis=0)[::2],
        np.ascontiguousarray(X[::-1])[::-1], np.ascontiguousarray(X.T).T,
    ],
)  # fmt: skip
def test_the_layout_in_memory_makes_no_difference(same):
    assert arrays_digest({"x": same, "y": Y}) == arrays_digest({"x": X, "y": Y})


def one_value_changed():
    array = X.copy()
    array[7, 2] ^= 1
    return array


@pytest.mark.parametrize(
    "other",
    [
        {"x": one_value_changed()}, {"x": X[::-1]}, {"x": X[np.r_[1, 0, 2:10]]}, {"z": X},
        {"x": X.astype(np.int64)}, {"x": X.view(np.float32)}, {"x": X.reshape(10, 3, 2)},
        {"x": X[:9]}, {"x": X, "y": Y}, {"x": np.concatenate([X, X[-1:]])},
    ],
)  # fmt: skip
def test_other_contents_have_another_digest(other):
    assert arrays_digest(other) != arrays_digest({"x": X})


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a", "bc", ""]), np.array([b"a", b"bc"]), np.zeros((3, 0)), np.zeros((0, 3)),
        np.array([1, 2], ml_dtypes.bfloat16), np.array(["2020-01-01"], "datetime64[D]"),
        np.array([True, False]), np.array([1j, 2]), np.zeros(3, "i4,f8"),
        np.array([np.nan, -0.0]),
    ],
)  # fmt: skip
def test_of_any_type_that_has_bytes(array):
    assert arrays_digest({"x": array}) == arrays_digest({"x": array.copy()})
    assert len(arrays_digest({"x": array})) == 64


def test_objects_have_none():
    assert arrays_digest({"x": X, "name": np.array(["a", None], object)}) is None


def test_of_large_arrays_evenly_spread_rows_are_read(monkeypatch):
    monkeypatch.setattr(array_digest, "_WHOLE_BYTES", 239)
    monkeypatch.setattr(array_digest, "_SAMPLE_BYTES", 72)
    whole = arrays_digest({"x": X})  # 240 bytes: every fourth row
    for row in range(10):
        other = X.copy()
        other[row, 5] += 1
        assert (arrays_digest({"x": other}) == whole) == (row not in (0, 4, 8)), row
    assert arrays_digest({"x": X[:-1]}) != whole
    # An array next to it that is small is read as a whole.
    assert arrays_digest({"x": X, "y": Y}) != arrays_digest({"x": X, "y": Y + 1})
