"""CIFAR-10 and CIFAR-100 from their "binary version" archives."""

import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from adabatch_jax.data.datasets.preparation.record_writing import Split
from adabatch_jax.data.datasets.preparation.unpacking import gunzipped
from adabatch_jax.system.errors import StorageError

_IMAGE_BYTES = 3 * 32 * 32


@dataclass(frozen=True)
class Layout:
    """What an archive holds.

    Attributes:
      archive: the archive's file name.
      folder: the folder inside that all members are in.
      files: split -> members with its records, in order.
      names: label -> member with its classes' names; a record begins with a byte for each.
    """

    archive: str
    folder: str
    files: dict[str, tuple[str, ...]]
    names: dict[str, str]


CIFAR10 = Layout(
    "cifar-10-binary.tar.gz",
    "cifar-10-batches-bin",
    {
        "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        "test": ("test_batch.bin",),
    },
    {"label": "batches.meta.txt"},
)
CIFAR100 = Layout(
    "cifar-100-binary.tar.gz",
    "cifar-100-binary",
    {"train": ("train.bin",), "test": ("test.bin",)},
    {"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"},
)


def splits(read: Callable[[str], bytes], layout: Layout) -> dict[str, Split]:
    """Returns the examples of both splits, in the files' order.

    Raises:
      StorageError: the archive is damaged or lacks a member.
    """
    members = read_members(layout, read(layout.archive))
    names = {label: _names(members[file], file, layout) for label, file in layout.names.items()}
    return {
        split: _split(split, b"".join(members[file] for file in files), names, layout)
        for split, files in layout.files.items()
    }


def read_members(layout: Layout, data: bytes) -> dict[str, bytes]:
    """Reads the members that the layout names, in memory: nothing is ever extracted to a path.

    A member that is a link, a device or has holes (a few bytes may claim any size) is not read.

    Raises:
      StorageError: not a whole archive, or a member is missing or not a plain file.
    """
    wanted = {file for files in layout.files.values() for file in files}
    wanted |= set(layout.names.values())
    members = {}
    unpacked = io.BytesIO(gunzipped(layout.archive, data))
    try:
        with tarfile.open(fileobj=unpacked, mode="r:") as archive:
            for member in archive:
                folder, _, file = member.name.rpartition("/")
                is_plain = member.isreg() and not member.issparse()
                if folder == layout.folder and file in wanted and is_plain:
                    members[file] = archive.extractfile(member).read()
    except Exception as error:  # at a hostile header tarfile raises many kinds
        raise StorageError(f"{layout.archive} is not a whole archive ({error}).") from error
    if missing := sorted(wanted - set(members)):
        raise StorageError(f"{layout.archive} has no plain file {layout.folder}/{missing[0]}.")
    return members


def _names(content: bytes, file: str, layout: Layout) -> tuple[str, ...]:
    names = tuple(filter(None, content.decode(errors="replace").split("\n")))
    if len(set(names)) < len(names):
        raise StorageError(f"{layout.archive} has a name twice in {file}.")
    return names


def _split(split: str, data: bytes, names: dict[str, tuple[str, ...]], layout: Layout) -> Split:
    record_bytes = len(names) + _IMAGE_BYTES
    if not data or len(data) % record_bytes:
        raise StorageError(
            f"the {split} files in {layout.archive} have {len(data)} bytes, "
            f"not a multiple of {record_bytes}."
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, record_bytes)
    images = records[:, len(names) :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    labels = {label: records[:, column] for column, label in enumerate(names)}
    for label, values in labels.items():
        if values.max() >= len(names[label]):
            raise StorageError(
                f"the {split} files in {layout.archive} have the {label} {values.max()}, "
                f"but {len(names[label])} names."
            )
    return Split(images, labels, names, id_prefix=f"{split}_")
