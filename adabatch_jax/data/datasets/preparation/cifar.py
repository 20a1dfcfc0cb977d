"""CIFAR-10 and CIFAR-100 from their "binary version" archives."""

import gzip
import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from adabatch_jax.data.datasets.preparation.record_writing import Split

_IMAGE_BYTES = 3 * 32 * 32


@dataclass(frozen=True)
class ArchiveLayout:
    """What an archive holds.

    Attributes:
      folder: the folder inside that all members are in.
      files: split -> members with its records, in order.
      names: label -> member with its classes' names; a record begins with a byte for each.
    """

    archive: str
    folder: str
    files: dict[str, tuple[str, ...]]
    names: dict[str, str]


CIFAR10 = ArchiveLayout(
    "cifar-10-binary.tar.gz",
    "cifar-10-batches-bin",
    {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
    {"label": "batches.meta.txt"},
)
CIFAR100 = ArchiveLayout(
    "cifar-100-binary.tar.gz",
    "cifar-100-binary",
    {"train": ("train.bin",), "test": ("test.bin",)},
    {"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"},
)


def splits(read: Callable[[str], bytes], layout: ArchiveLayout) -> dict[str, Split]:
    """The examples of both splits, in the files' order; nothing is extracted to a path."""
    unpacked = io.BytesIO(gzip.decompress(read(layout.archive)))
    with tarfile.open(fileobj=unpacked, mode="r:") as archive:

        def member(file: str) -> bytes:
            return archive.extractfile(f"{layout.folder}/{file}").read()

        names = {
            label: tuple(filter(None, member(file).decode().split("\n")))
            for label, file in layout.names.items()
        }
        return {
            split: _split(split, b"".join(map(member, files)), names)
            for split, files in layout.files.items()
        }


def _split(split: str, data: bytes, names: dict[str, tuple[str, ...]]) -> Split:
    records = np.frombuffer(data, np.uint8).reshape(-1, len(names) + _IMAGE_BYTES)
    images = records[:, len(names) :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    labels = {label: records[:, column] for column, label in enumerate(names)}
    return Split(images, labels, names, id_prefix=f"{split}_")
