"""Sources over prepared tfds datasets: labelled images by index, without TensorFlow."""

import hashlib
import json
import math
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from adabatch_jax.data.datasets.file_digests import FileDigests, file_digests
from adabatch_jax.data.datasets.image_decoding import decode_image, resize_and_crop
from adabatch_jax.data.datasets.known_datasets import open_builder
from adabatch_jax.data.datasets.labelled_images import LabelledImages, labelled_images
from adabatch_jax.data.datasets.prepared_folders import prepare_command
from adabatch_jax.data.datasets.tfds_import import import_tfds
from adabatch_jax.data.parallel_reading import PartReader, checked_indices
from adabatch_jax.system.errors import (
    ExampleError,
    StorageError,
    UsageError,
    did_you_mean,
    one_line,
)
from adabatch_jax.system.files import storage_errors

_MIN_READ_TOGETHER = 16
# ImageNet has a thousand files; on a network's file system each takes a while to open.
_NUM_CHECKING_THREADS = 16


def tfds_source(
    name: str,
    split: str = "train",
    data_dir: str | os.PathLike | None = None,
    image_size: int | None = None,
) -> "TfdsSource":
    """Opens a split of a prepared dataset as a source of "image" and "label".

    `digits` is prepared on first use; any other dataset has to be prepared before.

    Args:
      name: a dataset with an image and a label, such as `"cifar10"`.
      split: as tfds writes it: `"test"`, `"train[:90%]"`, `"train[100:200]"`.
      data_dir: where datasets are prepared; None means `default_data_dir()`.
      image_size: height and width to bring every image to, in pixels: its shorter side is scaled
        to that length and the central square is taken. Needed where images differ in size; None
        leaves them as they are.

    Returns:
      A source whose `read` gives "image", uint8 of shape `(n, height, width, channels)`, and
      "label", int32 of shape `(n,)`; with the attributes `num_classes` and `image_shape`.

    Raises:
      UsageError: an unknown or unprepared dataset, a wrong split, a missing `image_size`.
      StorageError: the prepared files are damaged.

    >>> source = tfds_source("digits", split="test")
    >>> len(source), source.num_classes, source.image_shape
    (355, 10, (8, 8, 1))
    >>> source.read(np.array([3, 0]))["image"].shape
    (2, 8, 8, 1)
    """
    if image_size is not None and image_size < 1:
        raise UsageError(f"`image_size` must be at least 1 pixel, got {image_size}.")
    if name == "digits":
        from adabatch_jax.data.datasets.preparation import prepare

        prepare(name, data_dir)
    builder = open_builder(name, data_dir)
    images = labelled_images(name, builder.info)
    if images.fixed_shape is None and image_size is None:
        raise UsageError(
            f"the images of {name!r} differ in size; give `image_size`, such as image_size=224."
        )
    again = prepare_command(name, data_dir, overwrite=True)
    files = _split_files(name, split, builder)
    records = _data_source(name, split, builder, images)
    _check_files(name, files, again)
    return TfdsSource(name, records, files, images, image_size, again)


def check_dataset(name: str, data_dir: str | os.PathLike | None = None) -> dict[str, int]:
    """Opens a prepared dataset as `tfds_source` does, and compares all contents of its files.

    Nothing is prepared or written, and no example is decoded. Returns the number of examples by
    split. Raises a StorageError where a file isn't what was prepared.

    >>> check_dataset("digits")
    {'test': 355, 'train': 1442}
    """
    builder = open_builder(name, data_dir)
    labelled_images(name, builder.info)
    again = prepare_command(name, data_dir, overwrite=True)
    splits = builder.info.splits
    for split in splits.values():
        _check_files(name, split.file_instructions, again)
        found = file_digests(_paths(split.file_instructions), read_all=True)
        for text in _changed_texts(name, found, again):
            raise StorageError(text)
    return {split: splits[split].num_examples for split in sorted(splits)}


class TfdsSource:
    """A source over a split of a prepared dataset; made by `tfds_source`.

    Attributes:
      num_classes: labels are 0 .. num_classes - 1.
      class_names: the name of each label.
      image_shape: (height, width, channels) of every image that `read` returns.
    """

    def __init__(
        self,
        name: str,
        records: Any,
        files: list[Any],
        images: LabelledImages,
        image_size: int | None,
        prepare_again: str,
    ):
        self._name, self._prepare_again = name, prepare_again
        self._records, self._files = records, files
        self._images, self._image_size = images, image_size
        self._file_digests: FileDigests | None = None
        self.num_classes, self.class_names = images.num_classes, images.class_names
        self.image_shape = (
            (image_size, image_size, images.shape[-1]) if image_size else images.fixed_shape
        )
        self._parts = PartReader("tfds_source", math.prod(self.image_shape))

    def __len__(self) -> int:
        return len(self._records)

    def digest(self, keep: bool = True) -> str:
        """A digest of the files' contents, and of which of their records are read, and how.

        It takes a second for each GB. Of more than 1 GiB of files what is kept is believed as long
        as sizes and times are the same; without `keep` nothing is kept.
        """
        images, records = self._images, [(file.skip, file.take) for file in self._files]
        read_as = (images.image_key, images.label_key, self._image_size)
        content = [self._examined(keep).digests, records, read_as]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def changed_files(self) -> list[str]:
        """A sentence for each file that isn't what was prepared."""
        return _changed_texts(self._name, self._examined(keep=True), self._prepare_again)

    def _examined(self, keep: bool) -> FileDigests:
        if self._file_digests is None:
            self._file_digests = file_digests(_paths(self._files), keep=keep)
        return self._file_digests

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Reads examples, in any order and also several times.

        Raises:
          IndexError: an index is out of range.
          ExampleError: an example can't be read or decoded.
        """
        indices = checked_indices(indices, len(self))
        images = np.empty((len(indices), *self.image_shape), np.uint8)
        labels = np.empty(len(indices), np.int32)

        def read_part(rows: slice) -> None:
            part = indices[rows].tolist()
            records = enumerate(zip(part, self._fetch(part), strict=True), start=rows.start)
            for row, (index, record) in records:
                labels[row] = self._label(record[self._images.label_key], index)
                images[row] = self._image(record[self._images.image_key], index)

        self._parts.read(len(indices), read_part)
        return {"image": images, "label": labels}

    def _fetch(self, indices: list[int]) -> Iterable[dict[str, Any]]:
        # Reading together takes a thread for each file: not for a few.
        if len(indices) >= _MIN_READ_TOGETHER:
            try:
                return self._records.__getitems__(indices)
            except Exception:  # one of them is bad: one at a time tells which
                pass
        return map(self._record, indices)

    def _record(self, index: int) -> dict[str, Any]:
        try:
            return self._records[index]
        except Exception as error:  # array_record and protobuf share no base
            raise self._damaged(index, one_line(error)) from error

    def _label(self, stored: Any, index: int) -> int:
        if 0 <= stored < self.num_classes:
            return stored
        raise self._damaged(index, f"its label {stored} is none of {self.num_classes} classes")

    def _image(self, stored: Any, index: int) -> np.ndarray:
        image = stored
        if self._images.is_encoded:
            try:
                image = decode_image(stored, self._images.shape[-1])
            except ValueError as error:
                raise self._damaged(index, str(error)) from error
        if self._image_size is not None:
            return resize_and_crop(image, self._image_size)
        if image.shape != self.image_shape:
            raise self._damaged(index, f"its shape is {image.shape}, not {self.image_shape}")
        return image

    def _damaged(self, index: int, reason: str) -> ExampleError:
        position = index
        for file in self._files:
            if position < file.take:
                break
            position -= file.take
        return ExampleError(
            f"example {index} of dataset {self._name!r} in {file.filename} can't be read "
            f"({reason}); {self._prepare_again} prepares it anew."
        )


def _split_files(name: str, split: str, builder: Any) -> list[Any]:
    """Which records of which files make up the split, as tfds's file instructions."""
    splits = builder.info.splits
    try:
        files = splits[split].file_instructions
    except Exception as error:  # tfds raises KeyError, ValueError, AssertionError
        base = split.partition("[")[0]
        if base in splits:
            raise UsageError(
                f"split {split!r} of dataset {name!r} can't be read ({one_line(error)}); "
                f"{base!r} has {splits[base].num_examples} examples."
            ) from error
        known = did_you_mean(base, splits) or f"; it has {', '.join(sorted(splits))}."
        raise UsageError(f"dataset {name!r} has no split {split!r}{known}") from error
    if not sum(file.take for file in files):
        raise UsageError(f"split {split!r} of dataset {name!r} has no examples.")
    return files


def _paths(files: Iterable[Any]) -> list[Path]:
    return [Path(file.filename) for file in files]


def _changed_texts(name: str, found: FileDigests, prepare_again: str) -> list[str]:
    return [
        f"the file {path} of dataset {name!r} isn't what was prepared: its sha256 differs from "
        f"that in {found.kept_in}; {prepare_again} prepares it anew, and where it was meant to "
        "change delete the latter."
        for path in found.changed
    ]


def _check_files(name: str, files: Iterable[Any], prepare_again: str) -> None:
    with ThreadPoolExecutor(_NUM_CHECKING_THREADS) as threads:
        list(threads.map(lambda file: _check_file(name, file, prepare_again), files))


def _check_file(name: str, file: Any, prepare_again: str) -> None:
    """Compares the number of records with what tfds noted; the count stands at a file's end."""
    path = Path(file.filename)
    if path.is_file():
        # Its reader doesn't tell a file that it may not or can't open from a damaged one.
        with storage_errors(path, action="read"), path.open("rb"):
            found = _num_records(path)
        if found == file.examples_in_shard:
            return
        size = path.stat().st_size
        reason = f"has {found} whole records in {size} bytes instead of {file.examples_in_shard}"
    else:
        reason = "is missing"
    raise StorageError(
        f"the file {path} of dataset {name!r} {reason}; {prepare_again} prepares it anew."
    )


def _num_records(path: Path) -> int:
    """The number of records as the file's end tells it; 0 where that can't be read."""
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path))
    if not reader.ok():  # and closing it would raise
        return 0
    num_records = reader.num_records()
    reader.close()
    return num_records


def _data_source(name: str, split: str, builder: Any, images: LabelledImages) -> Any:
    tfds = import_tfds()
    # tfds would decode one image after the other; here that is done in threads.
    decoders = {images.image_key: tfds.decode.SkipDecoding()} if images.is_encoded else None
    try:
        return builder.as_data_source(split=split, decoders=decoders)
    except NotImplementedError as error:
        raise UsageError(
            f"dataset {name!r} in {builder.data_dir} was prepared as "
            f"{builder.info.file_format.value}, which can't be read by index; prepare it as "
            "array_record in another folder."
        ) from error
