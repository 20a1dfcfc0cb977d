"""Reading a source: what it returns are arrays, as many rows as asked for, each time alike."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from adabatch_jax.data.array_trees import arrays_by_name, is_list
from adabatch_jax.system.errors import ExampleError, UsageError, one_line


class SourceReader:
    """Reads examples, and refuses what a source must not return.

    Args:
      source: where the examples are read from.

    >>> from adabatch_jax.data.sources import array_source
    >>> SourceReader(array_source({"x": np.arange(10) * 2})).read(np.array([3, 1]))
    {'x': array([6, 2])}
    """

    def __init__(self, source: Any):
        self._source, self._kind = source, type(source).__name__
        self._structure: Any = None
        self._rows: list[tuple] = []  # what a row of each array is, from the first read on

    def read(self, indices: np.ndarray) -> dict[str, Any]:
        """The examples' arrays, of numpy, in nested dicts and tuples.

        Raises:
          UsageError: they aren't arrays with one row for each index.
          ExampleError: they have other names, shapes or dtypes than those that were read first, or
            the source says that it has ended.
          Exception: whatever the source raises, with a note that names the example.
        """
        import jax

        given = self._given(indices)
        if not isinstance(given, Mapping):
            kind = type(given).__name__
            raise UsageError(f"{self._kind}.read must return a dict of arrays, got {kind}.")
        given = dict(given)
        leaves, structure = jax.tree.flatten(given, is_leaf=is_list)
        try:
            arrays = [np.asarray(leaf) for leaf in leaves]
        except Exception as error:
            raise self._no_array(given, one_line(error)) from error
        rows, count = [row_type(array) for array in arrays], (len(indices),)
        if any(array.shape[:1] != count for array in arrays):
            raise self._wrong_length(given, len(indices))
        if self._structure is None:
            self._structure, self._rows = structure, rows
        elif structure != self._structure or rows != self._rows:
            raise self._change(structure, rows, indices)
        return jax.tree.unflatten(structure, arrays)

    def example(self) -> dict[str, Any]:
        """Some example, arrays with a leading axis of 1."""
        return self.read(np.zeros(1, np.int64))

    def _given(self, indices: np.ndarray) -> Any:
        try:
            return self._source.read(indices)
        except ExampleError:  # which says so itself
            raise
        except (StopIteration, StopAsyncIteration, GeneratorExit) as error:
            # Whatever iterates over batches would take it for their end.
            raise ExampleError(
                f"{self._kind}.read raised {type(error).__name__} when asked for example "
                f"{indices[0]} and {len(indices) - 1} more; a source has one for every index of the "
                "plan, and what ends sooner needs a shorter plan."
            ) from error
        except Exception as error:
            index = self._first_unreadable(indices)
            which = f"these {len(indices)} examples" if index is None else f"example {index}"
            error.add_note(f"raised while reading {which} of {self._kind}")
            raise

    def _first_unreadable(self, indices: np.ndarray) -> int | None:
        for position in range(len(indices)):
            try:
                self._source.read(indices[position : position + 1])
            except Exception:
                return int(indices[position])
        return None

    def _no_array(self, given: dict[str, Any], reason: str) -> UsageError:
        name = next(name for name, leaf in arrays_by_name(given).items() if not _is_numpys(leaf))
        return UsageError(f"{self._kind}.read returned {name!r}, which is no array: {reason}.")

    def _wrong_length(self, given: dict[str, Any], count: int) -> UsageError:
        shapes = {name: np.shape(leaf) for name, leaf in arrays_by_name(given).items()}
        name, shape = next((n, shape) for n, shape in shapes.items() if shape[:1] != (count,))
        what = f"{shape[0]} rows" if shape else "a scalar"
        return UsageError(
            f"{self._kind}.read returned {what} as {name!r} when asked for {count} examples; the "
            f"first axis of each array must be these examples."
        )

    def _change(self, structure: Any, rows: list[tuple], indices: np.ndarray) -> ExampleError:
        before = arrays_by_name(_tree(self._structure, self._rows))
        now = arrays_by_name(_tree(structure, rows))
        changes = [f"{name!r} is missing" for name in before if name not in now]
        changes += [f"{name!r} is new" for name in now if name not in before]
        changes += [
            f"{name!r} became {now[name]}, and was {was}"
            for name, was in before.items()
            if now.get(name, was) != was
        ]
        told = ", ".join(changes) or f"{self._structure} became {structure}"
        return ExampleError(
            f"{self._kind}.read returned other arrays than before when asked for example "
            f"{indices[0]} and {len(indices) - 1} more: {told}; all examples must have the same "
            "names, shapes and dtypes."
        )


class ReadOnce(SourceReader):
    """Reads an endless source each of whose examples is read once, in order: it may be live.

    Args:
      source: where the examples are read from.
      first: the first one that will be read. `example` reads it ahead of its turn.
    """

    def __init__(self, source: Any, first: int):
        super().__init__(source)
        self._next = first
        self._ahead: dict[str, Any] | None = None
        self._begins_batch, self._first_of_batch = True, None

    def example(self) -> dict[str, Any]:
        """The next example, arrays with a leading axis of 1."""
        if self._ahead is None:
            self._ahead = super().read(np.array([self._next]))
        return dict(self._ahead)

    def begin_batch(self) -> None:
        """What is read next begins a batch, whose first example its padding repeats."""
        self._begins_batch = True

    def read(self, indices: np.ndarray) -> dict[str, Any]:
        """Examples that weren't read yet, in order, and then maybe the batch's first once more."""
        import jax

        new, parts = indices[indices >= self._next], []
        if len(new):
            parts += [] if self._ahead is None else [self._ahead]
            if len(parts) < len(new):
                parts.append(super().read(new[len(parts) :]))
            self._ahead, self._next = None, int(new[-1]) + 1
        if self._begins_batch:
            self._first_of_batch = jax.tree.map(lambda array: array[:1], parts[0])
            self._begins_batch = False
        parts += [self._first_of_batch] * (len(indices) - len(new))
        if len(parts) == 1:
            return dict(parts[0])
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def reader_of(source: Any) -> SourceReader:
    """What reads a source; of a reader itself."""
    return source if isinstance(source, SourceReader) else SourceReader(source)


def check_source(name: str, source: Any, needs_length: bool = True) -> None:
    """Raises a UsageError unless an argument of that name can be read as a source.

    >>> check_source("source", {"x": np.arange(3)})
    Traceback (most recent call last):
    adabatch_jax.system.errors.UsageError: `source` must have the methods read(indices) and ...
    """
    wanted = ("read", "__len__") if needs_length else ("read",)
    missing = [method for method in wanted if not callable(getattr(source, method, None))]
    if not missing:
        return
    is_loader = isinstance(source, Iterable) and not isinstance(source, Mapping)
    raise UsageError(
        f"`{name}` must have the methods read(indices) and __len__(), as "
        f"`array_source({{'x': x}})` makes it of arrays, but {type(source).__name__} has no "
        f"{missing[0]}()"
        + (
            "; what is iterated over, such as a loader or the batches of `rebatch`, is for a loop of "
            "one's own with `make_train_step`."
            if is_loader
            else "."
        )
    )


def row_type(array: np.ndarray) -> tuple:
    """The shape and the dtype of an array's rows; of texts, which may have any length, the kind."""
    dtype = array.dtype
    return array.shape[1:], dtype.type if dtype.kind in "US" else dtype


def row_type_text(row: tuple) -> str:
    """Says what `row_type` is.

    >>> row_type_text(row_type(np.zeros((5, 2), np.int8)))
    'int8[2]'
    """
    shape, dtype = row
    return f"{getattr(dtype, 'name', getattr(dtype, '__name__', dtype))}{list(shape)}"


def _is_numpys(leaf: Any) -> bool:
    try:
        np.asarray(leaf)
    except Exception:
        return False
    return True


def _tree(structure: Any, rows: list[tuple]) -> Any:
    import jax

    return jax.tree.unflatten(structure, map(row_type_text, rows))
