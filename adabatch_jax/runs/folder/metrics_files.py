"""The metrics of a run on disk: JSON lines and CSV, one row at a time."""

import csv
import dataclasses
import hashlib
import io
import json
import math
import numbers
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from adabatch_jax.system.errors import RestoreError, StorageError
from adabatch_jax.system.fault_points import reach
from adabatch_jax.system.files import read_file, storage_errors, write_atomically

COLUMNS = (
    "step",
    "samples",
    "epoch",
    "phase",
    "batch_size",
    "learning_rate",
    "train_loss",
    "examples_digest",
    "test_loss",
    "test_accuracy",
    "holdout_loss",
    "holdout_accuracy",
    "training_seconds",
    "elapsed_seconds",
    "examples_per_second",
    "tokens",
    "tokens_per_second",
)


@dataclasses.dataclass(frozen=True)
class MetricsPosition:
    """How far `metrics.jsonl` was written at some time; `dataclasses.asdict` makes it JSON."""

    num_bytes: int
    sha256: str

    @classmethod
    def after(cls, content: bytes) -> "MetricsPosition":
        return cls(len(content), hashlib.sha256(content).hexdigest())

    def is_in(self, content: bytes) -> bool:
        """Whether `metrics.jsonl` with this content holds what was written up to here."""
        return self.after(content[: self.num_bytes]) == self

    def content(self, path: Path) -> bytes:
        """Reads `metrics.jsonl` up to here; raises a RestoreError if that isn't what was written.

        A StorageError says that it is there and can't be read, so its rows may not be lost.
        """
        with storage_errors(path, action="read"):
            content = read_file(path)[: self.num_bytes] if path.exists() else b""
        if not self.is_in(content):
            raise RestoreError(
                f"rows before the checkpoint are damaged or missing in {path}; put the file back, "
                "or go on without the earlier rows with --allow-change rows."
            )
        return content


class MetricsWriter:
    """Appends rows to `metrics.jsonl` and `metrics.csv` in a run directory.

    `metrics.jsonl` is the truth: strict JSON, floats as Python's repr, so that they round-trip,
    and null for a NaN or an infinity (a key that is left out was not measured). The CSV file,
    which is never read, has the columns of `COLUMNS`, then any further keys, empty where not
    measured and `nan` for null. A row's keys are in the order of the columns. Every row has
    reached the operating system when `write` returns.

    Args:
      directory: the run directory, created where missing.
      resume_from: where `metrics.jsonl` ended at the state that training goes on from. What
        follows is removed, so that the finished files equal an uninterrupted run's, except for
        the keys that end in `_seconds` or `_per_second`. `None` starts empty.
    """

    def __init__(self, directory: Path, resume_from: MetricsPosition | None = None):
        self._directory = directory
        self._jsonl_path = self._directory / "metrics.jsonl"
        self._csv_path = self._directory / "metrics.csv"
        content = b"" if resume_from is None else resume_from.content(self._jsonl_path)
        self._columns = COLUMNS
        self._num_bytes, self._sha256 = len(content), hashlib.sha256(content)
        with storage_errors(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
            write_atomically(self._jsonl_path, content)
            self._jsonl = open(self._jsonl_path, "ab")
            self._rewrite_csv()
            self._csv = open(self._csv_path, "ab")

    def write(self, row: Mapping[str, int | float | str]) -> None:
        """Appends one row, which must have the key `step`."""
        row = {key: _plain(row[key]) for key in (*self._columns, *row) if key in row}
        with storage_errors(self._jsonl_path):
            self._append_line(json.dumps(row, allow_nan=False).encode() + b"\n")
        with storage_errors(self._csv_path):
            if row.keys() <= set(self._columns):
                self._csv.write(_csv_lines([row], self._columns))
                self._csv.flush()
            else:
                self._csv.close()
                self._rewrite_csv()
                self._csv = open(self._csv_path, "ab")

    def position(self) -> MetricsPosition:
        """Returns where `metrics.jsonl` ends, when all of it is on the disk."""
        with storage_errors(self._jsonl_path):
            os.fsync(self._jsonl.fileno())
        return MetricsPosition(self._num_bytes, self._sha256.hexdigest())

    def close(self) -> None:
        """Closes the files; every row is on disk already."""
        with storage_errors(self._directory):
            self._jsonl.close()
            self._csv.close()

    def _append_line(self, line: bytes) -> None:
        half = len(line) // 2
        self._jsonl.write(line[:half])
        reach("metrics.mid_line", before=self._jsonl.flush)
        self._jsonl.write(line[half:])
        self._jsonl.flush()
        self._num_bytes += len(line)
        self._sha256.update(line)

    def _rewrite_csv(self) -> None:
        """Writes the CSV file from the JSON lines, and keeps its columns."""
        rows = _complete_rows(self._jsonl_path)
        further = dict.fromkeys(key for row in rows for key in row if key not in COLUMNS)
        self._columns = (*COLUMNS, *further)
        header = dict(zip(self._columns, self._columns, strict=True))
        write_atomically(self._csv_path, _csv_lines([header, *rows], self._columns))


def read_metrics(path: Path, num_bytes: int | None = None) -> list[dict[str, Any]]:
    """Reads the rows of a `metrics.jsonl`, null as NaN, a last line cut short left out.

    `num_bytes`: only those of so many first bytes.

    Raises a StorageError where the file can't be read, or a line before the last is damaged.
    """
    return [
        {key: math.nan if value is None else value for key, value in row.items()}
        for row in _complete_rows(path, num_bytes)
    ]


def _complete_rows(path: Path, num_bytes: int | None = None) -> list[dict[str, Any]]:
    """The rows that were written whole."""
    with storage_errors(path, action="read"):
        *lines, _torn = read_file(path)[:num_bytes].split(b"\n")
    return [_row(line, path, number) for number, line in enumerate(lines, 1)]


def _row(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise StorageError(f"line {number} of {path} is damaged: it is not JSON.") from error
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        raise StorageError(f"line {number} of {path} is damaged: it is not a row with a step.")
    return row


def _plain(value: Any) -> int | float | str | None:
    """Python numbers for numpy's, `None` for what JSON has no number for."""
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    return value


def _csv_lines(rows: Iterable[Mapping[str, Any]], columns: tuple[str, ...]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        cells = (row.get(column, "") for column in columns)
        writer.writerow("nan" if cell is None else cell for cell in cells)
    return text.getvalue().encode()
