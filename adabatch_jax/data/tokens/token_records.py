"""Token ids in array_record: each record is one document's ids, as they lie in memory."""

import bisect
import functools
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from adabatch_jax.data.datasets import kept_facts
from adabatch_jax.data.datasets.prepared_folders import user_folder
from adabatch_jax.system.errors import StorageError, UsageError, one_line

_RECORDS_TOGETHER = 1024


class RecordIds:
    """The ids of all records of a file, one after the other.

    Args:
      path: the file.
      dtype: of the ids.
      begins: where each record begins, and at its end how many ids there are.
      within: which of all these ids are meant.
    """

    def __init__(self, path: Path, dtype: np.dtype, begins: np.ndarray, within: range):
        self._path, self.dtype, self._begins, self._within = path, dtype, begins, within

    def __len__(self) -> int:
        return len(self._within)

    def part(self, start: int, stop: int) -> "RecordIds":
        """Those from one place to another, none of which are read."""
        return RecordIds(self._path, self.dtype, self._begins, self._within[start:stop])

    def __getitem__(self, place: slice) -> np.ndarray:
        within = self._within[place]
        start, stop = within.start, within.stop
        if not within:
            return np.zeros(0, self.dtype)
        first = bisect.bisect_right(self._begins, start) - 1
        last = bisect.bisect_left(self._begins, stop)
        records = _read(self._reader, self._path, range(first, last))
        ids = np.frombuffer(b"".join(records), self.dtype)
        return ids[start - self._begins[first] : stop - self._begins[first]]

    @functools.cached_property
    def _reader(self) -> Any:
        return _open(self._path)


def open_records(path: Path, of: str, dtype: np.dtype) -> tuple[RecordIds, np.ndarray]:
    """The ids, and where each document begins.

    How long the records are is found out by reading them once, and kept in the user's own folder.

    Raises:
      UsageError: array_record isn't installed, or a record holds something else.
      StorageError: the file can't be read.
    """
    sizes = _record_sizes(path)
    odd = np.flatnonzero(sizes % dtype.itemsize)
    if len(odd):
        raise UsageError(
            f"{of}: record {odd[0]} has {sizes[odd[0]]:,} bytes, which are no tokens of {dtype}."
        )
    begins = np.concatenate([[0], np.cumsum(sizes // dtype.itemsize)])
    return RecordIds(path, dtype, begins, range(int(begins[-1]))), begins[:-1]


def _record_sizes(path: Path) -> np.ndarray:
    stat, name = path.stat(), str(path.resolve())
    facts = [name, stat.st_size, stat.st_mtime_ns]
    named = hashlib.sha256(os.fsencode(name)).hexdigest()[:24]
    kept_in = user_folder() / "indexes" / f"{named}.json"
    kept = kept_facts.read_kept(kept_in)
    if kept is not None and kept["of"] == facts:
        return np.array(kept["sizes"], np.int64)
    reader = _open(path)
    number, sizes = reader.num_records(), []
    for start in range(0, number, _RECORDS_TOGETHER):
        together = range(start, min(start + _RECORDS_TOGETHER, number))
        sizes += map(len, _read(reader, path, together))
    kept_facts.keep(kept_in, {"of": facts, "sizes": sizes})
    return np.array(sizes, np.int64)


def _read(reader: Any, path: Path, numbers: range) -> list[bytes]:
    try:
        return reader.read([*numbers])
    except Exception as error:  # of array_record, without a type of its own
        raise StorageError(f"cannot read {path}: {one_line(error)}.") from error


def _open(path: Path) -> Any:
    try:
        from array_record.python.array_record_module import ArrayRecordReader
    except ImportError:
        raise UsageError(
            f'{path} needs the package array_record; pip install "adabatch_jax[train]" brings it.'
        ) from None
    try:
        return ArrayRecordReader(str(path))
    except Exception as error:
        raise StorageError(f"cannot read {path} as array_record: {one_line(error)}.") from error
