"""A CSV file that names image files and their labels."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from adabatch_jax.data.datasets.own.image_folders import ImageFile, file_records
from adabatch_jax.data.datasets.own.records import OwnData, Records, named_labels
from adabatch_jax.data.datasets.own.shares import ALL
from adabatch_jax.system.errors import StorageError, UsageError, one_line

_PATHS = ("path", "file", "filename", "file_name", "filepath", "image", "img")
_LABELS = ("label", "labels", "class", "target", "category")
_SPLIT = "split"
_NUM_NAMED = 20


def open_csv(path: Path, of: str) -> OwnData:
    """Reads a file with a line of names, a path and a label in each line, and maybe a split.

    Paths are below the file's folder, or absolute. Labels are numbers from 0 on, or names.

    Raises:
      UsageError: other columns, no lines, or files that aren't there, each named.
      StorageError: the file can't be read.
    """
    header, lines = _lines(path, of)
    image, label = _column(header, _PATHS, of), _column(header, _LABELS, of)
    for number, line in enumerate(lines, start=2):
        if len(line) != len(header):
            raise UsageError(
                f"{of}: line {number} has {len(line)} fields and the first {len(header)}; put a "
                'path that holds a comma into "".'
            )
    labels, class_names = named_labels([line[label].strip() for line in lines], of, header[label])
    files = _files(path.parent, [line[image].strip() for line in lines], of)

    def records(rows: Sequence[int], split: str = ALL) -> Records:
        chosen, folder = [files[row] for row in rows], os.path.dirname(of) or "."
        kept_as = f"{path.resolve()} {split}"
        return file_records(path.parent, folder, chosen, labels[list(rows)], kept_as)

    lower = [name.strip().lower() for name in header]
    if _SPLIT not in lower:
        return OwnData(of, class_names, {ALL: records(range(len(files)))})
    splits = np.array([line[lower.index(_SPLIT)].strip() for line in lines])
    rows = {name: np.flatnonzero(splits == name) for name in dict.fromkeys(splits.tolist())}
    parts = {name: records(some.tolist(), name) for name, some in rows.items()}
    return OwnData(of, class_names, parts)


def _lines(path: Path, of: str) -> tuple[list[str], list[list[str]]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = [line for line in csv.reader(file, strict=True) if any(line)]
    except OSError as error:
        raise StorageError(f"cannot read {of}: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{of} is no CSV in UTF-8 ({one_line(error)}).") from None
    if len(lines) < 2:
        raise UsageError(f"{of} has no lines of path,label below a line with these two names.")
    return lines[0], lines[1:]


def _column(header: list[str], names: tuple[str, ...], of: str) -> int:
    found = [n for n, title in enumerate(header) if title.strip().lower() in names]
    if len(found) == 1:
        return found[0]
    what = f"has no column {names[0]!r}" if not found else f"has several columns for {names[0]!r}"
    raise UsageError(
        f"{of} {what}; its first line must name a path and a label, such as path,label, and is "
        f"{','.join(header)}."
    )


def _files(folder: Path, paths: list[str], of: str) -> list[ImageFile]:
    files, missing = [], []
    for number, path in enumerate(paths, start=2):
        try:
            stat = os.stat(folder / path)
        except (OSError, ValueError):
            missing.append(f"{path or 'no path'} (line {number})")
            continue
        files.append(ImageFile(path, stat.st_size, stat.st_mtime_ns))
    if missing:
        rest = f" and {len(missing) - _NUM_NAMED:,} more" if len(missing) > _NUM_NAMED else ""
        raise UsageError(
            f"{of} names {len(missing):,} files that aren't in {folder}: "
            f"{', '.join(missing[:_NUM_NAMED])}{rest}."
        )
    return files
