"""Encoded images with labels in Parquet files, and in what Hugging Face's `datasets` saved."""

import functools
import hashlib
import importlib
from pathlib import Path
from typing import Any

from adabatch_jax.data.datasets.file_digests import file_digests
from adabatch_jax.data.datasets.own.image_index import ImageIndex, index_of_images
from adabatch_jax.data.datasets.own.records import OwnData, Records, class_labels, named_labels
from adabatch_jax.data.datasets.own.shares import ALL, EVAL_NAMES, TRAIN_NAMES
from adabatch_jax.system.errors import StorageError, UsageError, one_line

_IMAGES = ("image", "img", "images")
_LABELS = ("label", "labels", "fine_label")


def open_parquet(path: Path, of: str) -> OwnData:
    """Reads a Parquet file, or a folder's: there `train-*.parquet` are the split "train".

    A column "image" holds encoded images (bytes, or bytes and path), a column "label" whole
    numbers or names.

    Raises:
      UsageError: pyarrow isn't installed, or there are other columns.
    """
    parquet = _package("pyarrow.parquet", "pyarrow", of)
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    by_split: dict[str, list[Path]] = {}
    for file in files:
        split = file.name.partition("-")[0].partition(".")[0]
        is_split = path.is_dir() and split in (*TRAIN_NAMES, *EVAL_NAMES)
        by_split.setdefault(split if is_split else ALL, []).append(file)
    try:
        tables = {
            name: parquet.read_table(several, memory_map=True) for name, several in by_split.items()
        }
    except Exception as error:  # ArrowInvalid and OSError of its own
        raise StorageError(f"cannot read {of} as Parquet: {one_line(error)}.") from error
    return _opened(of, tables, by_split, None)


def is_saved_by_datasets(folder: Path) -> bool:
    """Whether `save_to_disk` of Hugging Face's `datasets` wrote a folder."""
    names = ("dataset_dict.json", "state.json")
    return any((folder / name).is_file() for name in names)


def open_saved(folder: Path, of: str) -> OwnData:
    """Reads what `save_to_disk` wrote, a dataset or a dict of splits.

    Raises:
      UsageError: the package `datasets` isn't installed, or there are other columns.
      StorageError: it can't be read.
    """
    datasets = _package("datasets", "datasets", of)
    try:
        loaded = datasets.load_from_disk(str(folder))
        parts = dict(loaded) if isinstance(loaded, dict) else {ALL: loaded}
        tables = {name: part.with_format("arrow")[:] for name, part in parts.items()}
    except Exception as error:  # of many types
        raise StorageError(f"cannot read {of} with datasets: {one_line(error)}.") from error
    files = {
        name: [Path(file["filename"]) for file in part.cache_files] for name, part in parts.items()
    }
    features = next(iter(parts.values())).features
    names = next((getattr(features[n], "names", None) for n in _LABELS if n in features), None)
    return _opened(of, tables, files, names and tuple(names))


def _opened(
    of: str, tables: dict[str, Any], files: dict[str, list[Path]], names: tuple[str, ...] | None
) -> OwnData:
    first = next(iter(tables.values()))
    image, label = _column(first, _IMAGES, of), _column(first, _LABELS, of)
    columns = {}
    for split, table in tables.items():
        if not {image, label} <= set(table.column_names):
            raise UsageError(f"{of}: the split {split!r} lacks the column {image!r} or {label!r}.")
        columns[split] = table.column(label).to_pylist()
    together = [value for column in columns.values() for value in column]
    if names is None:
        labels, names = named_labels(together, of, f"the column {label!r}")
    else:
        labels = class_labels(together, of, f"the column {label!r}")
    splits, start = {}, 0
    for split, table in tables.items():
        part = labels[start : start + len(columns[split])]
        start += len(part)
        splits[split] = _records(of, split, table.column(image), part, files[split])
    return OwnData(of, names, splits)


def _records(of: str, split: str, column: Any, labels: Any, files: list[Path]) -> Records:
    kind = str(column.type)
    if not (kind.startswith("struct<bytes: ") or kind in ("binary", "large_binary")):
        raise UsageError(
            f"{of}: the column of images is {kind}; it must hold the bytes of image files."
        )
    places = [f"row {row} of {of}" + _of_split(split) for row in range(len(labels))]

    def read(number: int) -> bytes:
        value = column[number].as_py()
        if isinstance(value, dict):
            path = value.get("path")
            value = value["bytes"]
            if value is None and path and Path(path).is_file():
                value = Path(path).read_bytes()
        return value or b""

    @functools.cache
    def index(keep: bool) -> ImageIndex:
        kept_as = "".join(file_digests(files, keep=keep).digests) if files else of
        facts = [(kept_as[:64],)] * len(labels)
        return index_of_images(read, places, of, f"table {kept_as} {split}", facts, keep)

    def key(number: int) -> bytes:  # so equal images are on the same side
        return hashlib.sha256(read(number)).digest()

    return Records(of, places, labels, key, read, index)


def _of_split(split: str) -> str:
    return "" if split == ALL else f" ({split})"


def _column(table: Any, names: tuple[str, ...], of: str) -> str:
    found = next((name for name in names if name in table.column_names), None)
    if found is None:
        raise UsageError(
            f"{of} has no column {names[0]!r}; it has {', '.join(table.column_names)}."
        )
    return found


def _package(module: str, package: str, of: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UsageError(
            f"{of} is read with the package {package}, which isn't installed: pip install {package}."
        ) from None
