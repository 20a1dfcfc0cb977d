"""The metrics of a run on disk: JSON lines, CSV and TensorBoard events, one row at a time."""

import csv
import io
import json
import math
import numbers
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from adabatch_jax.errors import StorageError
from adabatch_jax.reporting.events import EventFile
from adabatch_jax.reporting.files import storage_errors, write_atomically

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
)


class MetricsWriter:
    """Appends rows to `metrics.jsonl`, `metrics.csv` and `tensorboard/` in a run directory.

    `metrics.jsonl` is the truth: strict JSON, floats as Python's repr, so that they round-trip,
    and null for a NaN or an infinity (a key that is left out was not measured). The CSV file has
    the columns of `COLUMNS`, then any further keys, empty where not measured and `nan` for null.
    Every row has reached the operating system when `write` returns.

    Args:
      directory: the run directory, created where missing.
      resume_from_step: the step that training goes on from. Later rows, and a last line that was
        cut short, are removed, so that the finished files equal an uninterrupted run's, except
        for the keys that end in `_seconds` or `_per_second`. `None` starts empty.

    Raises:
      StorageError: a file can't be written, or one to be resumed is damaged.

    >>> import tempfile
    >>> directory = Path(tempfile.mkdtemp())
    >>> with MetricsWriter(directory) as metrics:
    ...     metrics.write({"step": 50, "batch_size": 128, "train_loss": 0.1})
    >>> with MetricsWriter(directory, resume_from_step=50) as metrics:
    ...     metrics.write({"step": 100, "batch_size": 256, "train_loss": float("nan")})
    >>> print((directory / "metrics.jsonl").read_text())
    {"step": 50, "batch_size": 128, "train_loss": 0.1}
    {"step": 100, "batch_size": 256, "train_loss": null}
    """

    def __init__(self, directory: os.PathLike | str, resume_from_step: int | None = None):
        self._directory = Path(directory)
        self._jsonl_path = self._directory / "metrics.jsonl"
        self._csv_path = self._directory / "metrics.csv"
        lines = []
        if resume_from_step is not None:
            lines = [
                line
                for line, row in _complete_lines(self._jsonl_path)
                if row["step"] <= resume_from_step
            ]
        with storage_errors(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
            write_atomically(self._jsonl_path, b"".join(lines))
            self._jsonl = open(self._jsonl_path, "ab")
            self._columns = self._rewrite_csv()
            self._csv = open(self._csv_path, "ab")
            purge_step = 0 if resume_from_step is None else resume_from_step + 1
            self._events = EventFile(self._directory / "tensorboard", purge_step)

    def write(self, row: Mapping[str, int | float | str]) -> None:
        """Appends one row, which must have the key `step`.

        Raises:
          StorageError: a file can't be written.
        """
        row = {key: _plain(value) for key, value in row.items()}
        with storage_errors(self._directory):
            _append(self._jsonl, json.dumps(row, allow_nan=False).encode() + b"\n")
            if row.keys() <= set(self._columns):
                _append(self._csv, _csv_lines([row], self._columns))
            else:
                self._csv.close()
                self._columns = self._rewrite_csv()
                self._csv = open(self._csv_path, "ab")
            self._events.write(row["step"], _scalars(row))

    def close(self) -> None:
        """Closes the files; every row is on disk already."""
        with storage_errors(self._directory):
            self._jsonl.close()
            self._csv.close()
            self._events.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _rewrite_csv(self) -> tuple[str, ...]:
        """Writes the CSV file from the JSON lines; returns its columns."""
        rows = [row for _, row in _complete_lines(self._jsonl_path)]
        further = dict.fromkeys(key for row in rows for key in row if key not in COLUMNS)
        columns = (*COLUMNS, *further)
        header = dict(zip(columns, columns, strict=True))
        write_atomically(self._csv_path, _csv_lines([header, *rows], columns))
        return columns


def read_metrics(path: os.PathLike | str) -> list[dict[str, Any]]:
    """Reads the rows of a `metrics.jsonl`, null as NaN, a last line cut short left out.

    Raises:
      StorageError: the file can't be read, or a line before the last is damaged.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
    >>> _ = path.write_text('{"step": 50, "train_loss": null}\\n{"step": 100, "tra')
    >>> read_metrics(path)
    [{'step': 50, 'train_loss': nan}]
    """
    if not Path(path).exists():
        raise StorageError(f"cannot read {os.fspath(path)}: No such file or directory.")
    return [
        {key: math.nan if value is None else value for key, value in row.items()}
        for _, row in _complete_lines(Path(path))
    ]


def _complete_lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """The lines that were written whole, as bytes and as rows; none where there is no file."""
    with storage_errors(path, action="read"):
        content = path.read_bytes() if path.exists() else b""
    *lines, _torn = content.split(b"\n")
    return [(line + b"\n", _row(line, path, number)) for number, line in enumerate(lines, 1)]


def _row(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise StorageError(f"line {number} of {path} is damaged: it is not JSON.") from error
    if not isinstance(row, dict) or "step" not in row:
        raise StorageError(f"line {number} of {path} is damaged: it is not a row with a step.")
    return row


def _plain(value: Any) -> int | float | str | None:
    """Python numbers for numpy's, `None` for what JSON has no number for."""
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    return value


def _scalars(row: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: math.nan if value is None else value
        for key, value in row.items()
        if key != "step" and not isinstance(value, str)
    }


def _csv_lines(rows: Iterable[Mapping[str, Any]], columns: tuple[str, ...]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        cells = (row.get(column, "") for column in columns)
        writer.writerow("nan" if cell is None else cell for cell in cells)
    return text.getvalue().encode()


def _append(file: io.BufferedWriter, content: bytes) -> None:
    file.write(content)
    file.flush()
