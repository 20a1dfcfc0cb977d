"""Items of any kind as arrays of rows, exactly, or one sentence that names what can't be."""

import collections
import dataclasses

import jax
import numpy as np
import pytest

from adabatch_jax.data.item_columns import ItemColumns
from adabatch_jax.system.errors import UsageError


def read(*items, batched=True):
    columns = ItemColumns(batched)
    pieces = [columns.read(item, 10 * number) for number, item in enumerate(items)]
    return columns.join([piece for piece in pieces if piece])


@pytest.mark.parametrize(
    ("item", "wanted"),
    [
        ({"x": [1, 2]}, {"x": np.array([1, 2])}),
        ({"x": [[1, 2], [3, 4]]}, {"x": np.array([[1, 2], [3, 4]])}),
        ([np.zeros(2), np.ones(2)], [np.zeros(2), np.ones(2)]),
        (([True, False], [0.5, 1.5]), (np.array([True, False]), np.array([0.5, 1.5]))),
        (collections.UserDict(a=collections.UserDict(b=[1])), {"a": {"b": np.array([1])}}),
        (np.arange(3), np.arange(3)),
        ({"x": [np.float32(1), np.float32(2)]}, {"x": np.array([1, 2], np.float32)}),
    ],
)
def test_lists_and_mappings(item, wanted):
    got = read(item)
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


def test_texts_are_kept_whole():
    got = read({"b": [b"a\0", b""], "s": ["", "long\0"]}, {"b": [b"\0\0"], "s": ["x"]})
    assert got["b"].tolist() == [b"a\0", b"", b"\0\0"] and got["s"].tolist() == ["", "long\0", "x"]
    alone = read((b"a\0", "s"), (b"bc", ""), batched=False)
    assert [column.tolist() for column in alone] == [[b"a\0", b"bc"], ["s", ""]]
    of_numpy = read({"s": np.array(["a"])}, {"s": np.array(["bcd", ""])})
    assert of_numpy["s"].tolist() == ["a", "bcd", ""]


def test_registered_dataclasses_and_single_examples():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Example:
        image: np.ndarray
        label: int

    got = read(Example(np.zeros((2, 2)), 3), Example(np.ones((2, 2)), 4), batched=False)
    assert isinstance(got, Example) and got.label.tolist() == [3, 4]
    assert got.image.tolist() == [[[0, 0], [0, 0]], [[1, 1], [1, 1]]]


def test_items_without_rows_say_nothing():
    got = read({"x": np.zeros((0, 9))}, {"x": np.ones((2, 3), np.int8)}, {"x": []})
    np.testing.assert_array_equal(got["x"], np.ones((2, 3), np.int8), strict=True)


class Unregistered:
    pass


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([{"x": 3}], r"the loader's \['x'\] can't be read: it has no axis of examples; batched=F"),
        ([{}], "items hold no arrays: example 0 is {}"),
        ([{"x": np.zeros(2), "y": np.zeros(3)}], r"\['x'\]: 2, the loader's \['y'\]: 3"),
        ([[Unregistered()]], r"\[0\] can't be read: it holds a Unregistered"),
        ([{"x": [[1, 2], [3]]}], r"\['x'\] can't be read: .*inhomogeneous"),
        ([{"x": [1, None]}], r"\['x'\] can't be read: it holds a int"),
        ([{"x": jax.random.key(0)}], r"\['x'\] can't be read: .*PRNGKey"),
        (
            [{"x": np.zeros(2)}, {"y": np.zeros(2)}],
            r"structure at example 10: the loader's \['x'\] is missing, the loader's \['y'\] is new",
        ),
        ([(np.zeros(2),), [np.zeros(2)]], r"at example 10: .*became PyTreeDef\(\[\*\]\)"),
        (
            [np.zeros((2, 5)), np.zeros((2, 6))],
            r"the loader's item changes from float64\[5\] to float64\[6\] at example 10",
        ),
        ([[1, 2], [0.5]], r"changes from int64\[\] to float64\[\] at example 10; all rows must"),
    ],
)
def test_mistakes(items, message):
    with pytest.raises(UsageError, match=message) as caught:
        read(*items)
    assert "\n" not in str(caught.value)
