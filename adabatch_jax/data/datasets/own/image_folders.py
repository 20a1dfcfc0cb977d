"""Images in folders by class, with or without folders for splits above them."""

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adabatch_jax.data.datasets.own.image_index import ImageIndex, index_of_images
from adabatch_jax.data.datasets.own.records import OwnData, Records
from adabatch_jax.data.datasets.own.shares import ALL, EVAL_NAMES, TRAIN_NAMES
from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.files import storage_errors

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
# Files of other kinds are no images; these are, and can't be left out unseen.
_OTHER_IMAGES = (".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".svg")


class ImageFile(NamedTuple):
    """A file below the folder, with what changes when it is written anew."""

    path: str  # relative, with "/"
    size: int
    modified_ns: int


def open_image_folder(folder: Path, of: str) -> OwnData:
    """Finds the images below a folder; none is opened.

    `FOLDER/CLASS/...` is an image of that class, however deep; with `train` among the folders
    `FOLDER/SPLIT/CLASS/...`. Classes are sorted by name, images by path. What begins with a dot is
    left out, and so are files of kinds that hold no image.

    Raises:
      UsageError: no images, images outside of classes, or classes that the training split lacks.
      StorageError: a folder can't be read.
    """
    with storage_errors(folder, action="read"):
        tops = _folders(folder, of)
        names = [name for name in (*TRAIN_NAMES, *EVAL_NAMES) if name in tops]
        has_splits = any(name in TRAIN_NAMES for name in names)
        if not has_splits:
            names = [ALL]
        found = {name: _classes(folder, f"{name}/" if has_splits else "", of) for name in names}
    first = found[names[0]]
    class_names = tuple(sorted(name for name, files in first.items() if files))
    if not class_names:
        raise UsageError(
            f"{of} holds no images ({', '.join(SUFFIXES)}) in folders by class, such as "
            f"{of}/cats/1.jpg."
        )
    for split, classes in found.items():
        strangers = sorted(name for name in classes if classes[name] and name not in class_names)
        if strangers:
            raise UsageError(
                f"{of}/{split} holds the class {strangers[0]!r}, which {of}/{names[0]} lacks; "
                f"the training images have {_some(class_names)}."
            )
    splits = {
        split: _records(folder, of, split, classes, class_names) for split, classes in found.items()
    }
    return OwnData(of, class_names, splits)


def file_records(
    folder: Path,
    of: str,
    files: Sequence[ImageFile],
    labels: np.ndarray,
    kept_as: str,
    below: int = 0,
) -> Records:
    """Records of image files.

    Args:
      folder: what their paths are below.
      of: what the folder is called.
      kept_as: what their index is kept under.
      below: how long the beginning of the paths is that decides nothing: the split's name.
    """
    paths = [file.path for file in files]

    @functools.cache
    def index(keep: bool) -> ImageIndex:
        facts = [(file.size, file.modified_ns) for file in files]
        return index_of_images(read, places, of, kept_as, facts, keep)

    def read(number: int) -> bytes:
        with open(folder / paths[number], "rb") as file:
            return file.read()

    def key(number: int) -> bytes:
        return os.fsencode(paths[number][below:])

    places = [f"{of}/{path}" for path in paths]
    return Records(of, places, labels, key, read, index)


def _records(
    folder: Path, of: str, split: str, classes: dict[str, list[ImageFile]], names: tuple[str, ...]
) -> Records:
    files = [file for name in names for file in classes.get(name, [])]
    counts = [len(classes.get(name, [])) for name in names]
    if not files:
        raise UsageError(f"{of}/{split} holds no images ({', '.join(SUFFIXES)}).")
    labels = np.repeat(np.arange(len(names), dtype=np.int32), counts)
    below = 0 if split == ALL else len(split) + 1
    return file_records(folder, of, files, labels, f"{folder.resolve()} {split}", below)


def _classes(folder: Path, top: str, of: str) -> dict[str, list[ImageFile]]:
    names = _folders(folder / top, f"{of}/{top}".rstrip("/"))
    return {name: sorted(_images(folder, f"{top}{name}", of, ())) for name in names}


def _folders(folder: Path, of: str) -> list[str]:
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name[0] == ".":
                continue
            if entry.is_dir():
                names.append(entry.name)
            elif entry.name.lower().endswith(SUFFIXES):
                raise UsageError(
                    f"{of} holds the image {entry.name!r}, which is in no class; put images into "
                    f"one folder per class, such as {of}/cats/{entry.name}."
                )
    return sorted(names)


def _images(folder: Path, path: str, of: str, above: tuple[str, ...]) -> Iterator[ImageFile]:
    """The images in a folder and below; a link to a folder above it isn't followed again."""
    here = os.path.realpath(folder / path)
    if here in above:
        return
    with os.scandir(folder / path) as entries:
        for entry in entries:
            inner = f"{path}/{entry.name}"
            if entry.name[0] == ".":
                continue
            if entry.is_dir():
                yield from _images(folder, inner, of, (*above, here))
            elif entry.name.lower().endswith(SUFFIXES):
                stat = entry.stat()
                yield ImageFile(inner, stat.st_size, stat.st_mtime_ns)
            elif entry.name.lower().endswith(_OTHER_IMAGES):
                raise UsageError(
                    f"{of}/{inner} is no JPEG, PNG, WebP or BMP; convert it, or remove it."
                )


def _some(names: tuple[str, ...]) -> str:
    rest = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{', '.join(names[:10])}{rest}"
