"""Reading many small examples by their indices, with several threads."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

# What a thread decodes in one go: 170 images of 32x32, 3 of 224x224. With less of the small ones
# handing over costs more than it gains; the large ones of a batch must do for all processors.
_BYTES_PER_TASK = 2**19


def checked_indices(indices: np.ndarray, num_examples: int) -> np.ndarray:
    """The indices as int64; raises an IndexError where one is out of range.

    >>> checked_indices([3, 5], num_examples=5)
    Traceback (most recent call last):
    IndexError: indices 3 .. 5 of 5 examples.
    """
    indices = np.asarray(indices, np.int64)
    if len(indices) and not 0 <= indices.min() <= indices.max() < num_examples:
        raise IndexError(f"indices {indices.min()} .. {indices.max()} of {num_examples} examples.")
    return indices


class PartReader:
    """Reads rows in parts, side by side.

    Args:
      name: what the threads are called.
      row_bytes: bytes of a decoded row.
    """

    def __init__(self, name: str, row_bytes: int):
        self._length = max(1, _BYTES_PER_TASK // max(1, row_bytes))
        # None is started before it is needed.
        self._threads = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix=name)

    def read(self, num_rows: int, read_part: Callable[[slice], None]) -> None:
        """Calls `read_part` for slices that make up all rows; a failure in any is raised here.

        >>> parts = []
        >>> PartReader("example", row_bytes=2**18).read(5, parts.append)
        >>> sorted(part.stop for part in parts)
        [2, 4, 5]
        """
        length = self._length
        parts = [
            slice(start, min(start + length, num_rows)) for start in range(0, num_rows, length)
        ]
        list(map(read_part, parts) if len(parts) <= 1 else self._threads.map(read_part, parts))
