"""Sources: where examples are read from, by index."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from adabatch_jax.system.errors import ExampleError, UsageError


class Source(Protocol):
    """Random access to examples; anything with these two methods is a source."""

    def __len__(self) -> int:
        """The number of examples."""

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns arrays whose leading axis follows `indices` (int64, shape `(n,)`)."""


class ArraySource:
    """A source over numpy arrays in memory; see `array_source`."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        if not arrays:
            raise UsageError("`arrays` is empty; give at least one named array.")
        self.arrays = {name: np.asarray(array) for name, array in arrays.items()}
        for name, array in self.arrays.items():
            if array.ndim == 0:
                raise UsageError(f"array {name!r} is a scalar; its first axis must be examples.")
        lengths = {name: len(array) for name, array in self.arrays.items()}
        if len(set(lengths.values())) > 1:
            raise UsageError(f"all arrays must have the same number of examples, got {lengths}.")
        self._num_examples = next(iter(lengths.values()))

    def __len__(self) -> int:
        return self._num_examples

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        # `take` copies whole rows at a time: several times as fast as `array[indices]`.
        return {name: np.take(array, indices, axis=0) for name, array in self.arrays.items()}


def array_source(arrays: Mapping[str, np.ndarray]) -> ArraySource:
    """Makes a source of arrays that share their first axis, the examples.

    Args:
      arrays: name -> array of shape `(num_examples, ...)`.

    Raises:
      UsageError: no arrays, or different numbers of examples.

    >>> source = array_source({"x": np.arange(10) * 2, "y": np.arange(10)})
    >>> len(source), source.read(np.array([3, 1]))["x"]
    (10, array([6, 2]))
    """
    return ArraySource(arrays)


def read_examples(source: Source, indices: np.ndarray) -> dict[str, np.ndarray]:
    """`source.read(indices)`; an exception from there gets a note that names the example."""
    try:
        return source.read(indices)
    except ExampleError:  # which says so itself
        raise
    except Exception as error:
        index = _first_unreadable(source, indices)
        which = f"these {len(indices)} examples" if index is None else f"example {index}"
        error.add_note(f"raised while reading {which} of {type(source).__name__}")
        raise


def _first_unreadable(source: Source, indices: np.ndarray) -> int | None:
    for position in range(len(indices)):
        try:
            source.read(indices[position : position + 1])
        except Exception:
            return int(indices[position])
    return None


def in_memory(source: Source, block_size: int = 4096) -> ArraySource:
    """Reads a whole source once and keeps its arrays: the fastest way where they fit.

    >>> in_memory(array_source({"x": np.arange(5)}), block_size=2).arrays
    {'x': array([0, 1, 2, 3, 4])}
    """
    num_examples = len(source)
    arrays: dict[str, np.ndarray] = {}
    for start in range(0, num_examples, block_size):
        block = read_examples(source, np.arange(start, min(start + block_size, num_examples)))
        for name, values in block.items():
            if start == 0:
                arrays[name] = np.empty((num_examples, *values.shape[1:]), values.dtype)
            arrays[name][start : start + len(values)] = values
    return array_source(arrays)
