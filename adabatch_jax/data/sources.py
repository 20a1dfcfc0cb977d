"""Sources: where examples are read from, by index."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from adabatch_jax.data.array_digest import arrays_digest, is_sampled
from adabatch_jax.data.array_trees import arrays_by_name, map_arrays
from adabatch_jax.data.example_reading import SourceReader
from adabatch_jax.system.errors import UsageError, check_type


class Source(Protocol):
    """Random access to examples; anything with these two methods is a source.

    It may have a third, `digest() -> str | None`, which tells its contents from others: `fit` asks
    for it once and refuses to go on with a run whose examples are others now. Of a source without
    it, or where it returns None, the contents aren't compared.
    """

    def __len__(self) -> int:
        """The number of examples."""

    def read(self, indices: np.ndarray) -> dict[str, Any]:
        """Returns arrays whose leading axis follows `indices` (int64, shape `(n,)`).

        They may lie in further dicts and tuples. Names, and the shapes and dtypes of rows, are the
        same at each call.
        """


class ArraySource:
    """A source over numpy arrays in memory; see `array_source`.

    `read_from` is the source that the arrays were read from, or None.
    """

    def __init__(self, arrays: Mapping[str, Any], read_from: Source | None = None):
        check_type("arrays", arrays, Mapping, "name each array, as in {'x': x}")
        if not arrays:
            raise UsageError("`arrays` is empty; give at least one named array.")
        self.arrays = map_arrays(lambda array: array, dict(arrays))
        by_name = arrays_by_name(self.arrays)
        for name, array in by_name.items():
            if array.ndim == 0:
                raise UsageError(f"array {name!r} is a scalar; its first axis must be examples.")
        lengths = {name: len(array) for name, array in by_name.items()}
        if len(set(lengths.values())) > 1:
            raise UsageError(f"all arrays must have the same number of examples, got {lengths}.")
        self._num_examples = next(iter(lengths.values()))
        self.read_from = read_from

    def __len__(self) -> int:
        return self._num_examples

    def read(self, indices: np.ndarray) -> dict[str, Any]:
        # `take` copies small rows faster; of an array in another order it would first copy all.
        return map_arrays(
            lambda array: (
                np.take(array, indices, axis=0) if array.flags.c_contiguous else array[indices]
            ),
            self.arrays,
        )

    def digest(self) -> str | None:
        """A digest of the arrays as they are now, see `arrays_digest`: a second for each GB."""
        return arrays_digest(arrays_by_name(self.arrays))


def array_source(arrays: Mapping[str, Any]) -> ArraySource:
    """Makes a source of arrays that share their first axis, the examples.

    Args:
      arrays: name -> array of shape `(num_examples, ...)`, or a dict or tuple of such.

    Raises:
      UsageError: no names, no arrays, or different numbers of examples.

    >>> source = array_source({"x": np.arange(10) * 2, "y": np.arange(10)})
    >>> len(source), source.read(np.array([3, 1]))["x"]
    (10, array([6, 2]))
    """
    return ArraySource(arrays)


def in_memory(source: Source, block_size: int = 4096) -> ArraySource:
    """Reads a whole source once and keeps its arrays: the fastest way where they fit.

    They can't be written, because they go by the source's digest too.

    >>> in_memory(array_source({"x": np.arange(5)}), block_size=2).arrays
    {'x': array([0, 1, 2, 3, 4])}
    """
    num_examples, arrays, reader = len(source), None, SourceReader(source)
    for start in range(0, num_examples, block_size):
        block = reader.read(np.arange(start, min(start + block_size, num_examples)))
        if arrays is None:
            arrays = map_arrays(lambda a: np.empty((num_examples, *a.shape[1:]), a.dtype), block)
        into = arrays_by_name(arrays)
        for name, values in arrays_by_name(block).items():
            into[name][start : start + len(values)] = values
    for array in arrays_by_name(arrays or {}).values():
        array.flags.writeable = False
    return ArraySource(arrays or {}, source)


def contents_digests(source: Source) -> list[str]:
    """Digests of what a source holds; two sources hold the same if they have one in common.

    Of examples in memory there is also that of the source they were read from: streamed or not,
    they are the same. None where a source doesn't tell.

    Raises:
      UsageError: its `digest` is no method, or returns something else than a str or None.

    >>> len(contents_digests(in_memory(array_source({"x": np.arange(5)}))))
    1
    """
    digests = []
    read_from = source.read_from if isinstance(source, ArraySource) else None
    if read_from is not None:
        digests = contents_digests(read_from)
        # Where a digest doesn't see all rows, the other one does.
        if digests and any(map(is_sampled, arrays_by_name(source.arrays).values())):
            return digests
    own = _digest(source)
    return digests if own is None or own in digests else [own, *digests]


def _digest(source: Source) -> str | None:
    digest, kind = getattr(source, "digest", None), type(source).__name__
    if digest is None:
        return None
    if not callable(digest):
        raise UsageError(f"`digest` of {kind} must be a method that returns a str or None.")
    text = digest()
    if not isinstance(text, str | None):
        raise UsageError(f"`digest()` of {kind} must return a str or None, got {text!r}.")
    return text
