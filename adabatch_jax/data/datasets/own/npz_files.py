"""Decoded images and labels in an .npz file of numpy."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adabatch_jax.data.datasets.own.records import Arrays, OwnData, class_labels, number_names
from adabatch_jax.data.datasets.own.shares import ALL
from adabatch_jax.system.errors import StorageError, UsageError, one_line

_WITH_SPLITS = {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")}
_WITHOUT = {ALL: ("image", "label")}


def open_npz(path: Path, of: str) -> OwnData:
    """Reads `x_train, y_train, x_test, y_test`, or `image, label`; nothing is unpickled.

    Raises:
      UsageError: other names, or arrays that are no images or no labels.
      StorageError: the file can't be read.
    """
    arrays = _read(path, of)
    names = next(
        (n for n in (_WITH_SPLITS, _WITHOUT) if set(sum(n.values(), ())) <= set(arrays)), None
    )
    if names is None:
        raise UsageError(
            f"{of} has {', '.join(sorted(arrays)) or 'no arrays'}; it needs x_train, "
            "y_train, x_test and y_test, or image and label."
        )
    splits = {split: _examples(of, arrays, *pair) for split, pair in names.items()}
    shapes = {name: arrays[name].shape[1:] for name, _ in names.values()}
    if len(set(shapes.values())) > 1:
        raise UsageError(
            f"{of}: the images of x_train and x_test must have one shape, got {shapes}."
        )
    first = next(iter(splits.values()))
    class_names = number_names(first.labels)
    for split, examples in splits.items():
        if examples.labels.max() >= len(class_names):
            raise UsageError(
                f"{of}: y_{split} holds the label {examples.labels.max()}, which y_train lacks."
            )
    return OwnData(of, class_names, splits)


def _read(path: Path, of: str) -> dict[str, np.ndarray]:
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            raise UsageError(f"{of} holds a single array; save it with numpy.savez.")
        with content:
            return {name: _array(content, name, of) for name in content.files}
    except OSError as error:
        raise StorageError(f"cannot read {of}: {error.strerror or one_line(error)}.") from error
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{of} is no .npz file of numpy's, or a damaged one.") from error


def _array(content: Any, name: str, of: str) -> np.ndarray:
    try:
        return content[name]
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise UsageError(
            f"{of}: {name} holds Python objects, which are never unpickled; save it as an array of "
            "numbers, its images all of one size."
        ) from None


def _examples(of: str, arrays: Mapping[str, np.ndarray], image: str, label: str) -> Arrays:
    images, labels = pixels(arrays[image], of, image), class_labels(arrays[label], of, label)
    if len(images) != len(labels):
        raise UsageError(
            f"{of}: {image} has {len(images):,} examples and {label} {len(labels):,}; they must be "
            "as many."
        )
    if not len(images):
        raise UsageError(f"{of}: {image} has no examples.")
    return Arrays(of, images, labels)


def pixels(images: np.ndarray, of: str, what: str) -> np.ndarray:
    """Images as uint8 of shape `(n, height, width, channels)`; a UsageError if they are none.

    >>> pixels(np.zeros((5, 8, 8), np.int64), "data.npz", "x_train").shape
    (5, 8, 8, 1)
    """
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4) or 0 in images.shape[1:]:
        is_channels_first = images.ndim == 4 and images.shape[1] in (1, 3, 4)
        hint = f", as by {what}.transpose(0, 2, 3, 1)" if is_channels_first else ""
        raise UsageError(
            f"{of}: {what} has the shape {images.shape}; images are (n, height, width) or "
            f"(n, height, width, 1, 3 or 4 channels){hint}."
        )
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind in "iu":
        if not images.size or (images.min() >= 0 and images.max() <= 255):
            return images.astype(np.uint8)
        raise UsageError(
            f"{of}: {what} holds pixels from {images.min()} to {images.max()}; they must be whole "
            "numbers from 0 to 255."
        )
    if images.dtype.kind == "f" and np.isnan(images).any():
        example = int(np.flatnonzero(np.isnan(images).any(axis=(1, 2, 3)))[0])
        raise UsageError(
            f"{of}: {what} holds NaN, first in example {example}; pixels are 0 to 255."
        )
    hint = f"; of pixels in 0..1 give (255 * {what}).round().astype('uint8')"
    raise UsageError(
        f"{of}: {what} is {images.dtype}; pixels are whole numbers from 0 to 255, as uint8"
        f"{hint if images.dtype.kind == 'f' else ''}."
    )
