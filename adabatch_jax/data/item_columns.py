"""What other people's loaders give, as numpy arrays with a leading axis of rows."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from adabatch_jax.data.example_reading import row_type, row_type_text
from adabatch_jax.system.errors import UsageError, one_line

_SCALARS = (str, bytes, bool, int, float, complex, np.generic, type(None))


class ItemColumns:
    """Takes the arrays out of a loader's items, all of one structure, and puts batches together.

    An item is a pytree: dicts, lists, tuples, named tuples, registered dataclasses, and any other
    mapping. What isn't one is an array: of numpy, jax, torch or TensorFlow, a scalar, a text, or
    a list of scalars, texts or such lists. Texts become arrays of objects, which keep them whole.

    Args:
      batched: whether the first axis of an item's arrays is examples; else an item is one example.

    >>> columns = ItemColumns(batched=True)
    >>> columns.read({"x": np.zeros((2, 3)), "text": ["a", "b"]}, 0)
    [array(['a', 'b'], dtype=object), array([[0., 0., 0.], [0., 0., 0.]])]
    """

    def __init__(self, batched: bool):
        self._batched = batched
        self._structure: Any = None
        self._rows: list[tuple] = []  # what a row of each array is

    def read(self, item: Any, position: int) -> list[np.ndarray]:
        """The item's arrays, copies of shape `(rows, ...)`; [] if it has no rows.

        Args:
          item: what the loader gave.
          position: which example of the run its first is.

        Raises:
          UsageError: an array that numpy can't take, arrays of different lengths, or another
            structure, shape or dtype than that of the items before.
        """
        leaves, structure = jax.tree.flatten(item, is_leaf=_is_array)
        if not leaves:
            raise UsageError(f"the loader's items hold no arrays: example {position} is {item!r}.")
        if any(isinstance(leaf, Mapping) for leaf in leaves):  # as tokenizers give them
            return self.read(jax.tree.map(_as_dict, item, is_leaf=_is_array), position)
        arrays = []
        for number, leaf in enumerate(leaves):
            try:
                arrays.append(self._rows_of(leaf))
            except Exception as error:
                raise UsageError(
                    f"{_names(item)[number]} can't be read: {one_line(error)}."
                ) from error
        lengths = [len(array) for array in arrays]
        if len(set(lengths)) > 1:
            told = ", ".join(f"{n}: {m}" for n, m in zip(_names(item), lengths, strict=True))
            raise UsageError(
                f"the arrays of an item must have the same number of rows, got {told}; "
                "batched=False is for items that are one example each."
            )
        if lengths[0] == 0:
            return []
        rows = [row_type(array) for array in arrays]
        if self._structure is None:
            self._structure, self._rows = structure, rows
        if structure != self._structure:
            raise UsageError(self._other_structure(item, structure, position))
        for number, (before, now) in enumerate(zip(self._rows, rows, strict=True)):
            if before != now:
                raise UsageError(
                    f"{_names(item)[number]} changes from {row_type_text(before)} to "
                    f"{row_type_text(now)} at example {position}; all rows must have one shape and "
                    "dtype."
                )
        return arrays

    def join(self, pieces: list[list[np.ndarray]]) -> Any:
        """The tree of a batch whose rows are those of the pieces."""
        if len(pieces) == 1:
            return jax.tree.unflatten(self._structure, pieces[0])
        columns = [np.concatenate(column) for column in zip(*pieces, strict=True)]
        return jax.tree.unflatten(self._structure, columns)

    def _rows_of(self, leaf: Any) -> np.ndarray:
        array = _as_array(leaf)
        if self._batched and array.ndim == 0:
            raise TypeError(
                "it has no axis of examples; batched=False is for items that are one example each"
            )
        # A copy, since a loader may fill its own arrays anew while these rows wait.
        return np.array(array if self._batched else array[None])

    def _other_structure(self, item: Any, structure: Any, position: int) -> str:
        before = _names(jax.tree.unflatten(self._structure, [0] * self._structure.num_leaves))
        now = _names(item)
        changes = [f"{name} is missing" for name in before if name not in now]
        changes += [f"{name} is new" for name in now if name not in before]
        told = ", ".join(changes) or f"{self._structure} became {structure}"
        return f"the loader's items change their structure at example {position}: {told}."


def _as_dict(leaf: Any) -> Any:
    """Turns a mapping that jax doesn't know as such into one that it does."""
    return dict(leaf) if isinstance(leaf, Mapping) else leaf


def _is_array(node: Any) -> bool:
    """Whether a node of an item is a list that stands for one array."""
    return isinstance(node, list) and all(
        isinstance(element, _SCALARS) or _is_array(element) for element in node
    )


def _as_array(leaf: Any) -> np.ndarray:
    first = leaf
    while isinstance(first, list) and first:
        first = first[0]
    if isinstance(first, str | bytes):  # numpy's own texts lose zeros at the end
        array = np.array(leaf, dtype=object)
    elif type(leaf).__module__ == "torch" and str(getattr(leaf, "dtype", "")) == "torch.bfloat16":
        array = np.asarray(jax.dlpack.from_dlpack(leaf))  # which torch doesn't give to numpy
    else:
        array = np.asarray(leaf)
    if array.dtype == object and not isinstance(leaf, np.ndarray):
        odd = [type(x).__name__ for x in array.flat if not isinstance(x, str | bytes)]
        if odd:
            raise TypeError(f"it holds a {odd[0]}, which is no number, no text and no pytree")
    return array


def _names(item: Any) -> list[str]:
    """What a message calls each array of an item."""
    paths, _ = jax.tree_util.tree_flatten_with_path(item, is_leaf=_is_array)
    return [f"the loader's {jax.tree_util.keystr(path) or 'item'}" for path, _ in paths]
