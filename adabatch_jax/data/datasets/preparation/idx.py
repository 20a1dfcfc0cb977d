"""MNIST and its relatives: four gzip files of images and labels in the idx format."""

import struct
from collections.abc import Callable

import numpy as np

from adabatch_jax.data.datasets.preparation.record_writing import Split
from adabatch_jax.data.datasets.preparation.unpacking import gunzipped
from adabatch_jax.system.errors import StorageError

_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}


def splits(read: Callable[[str], bytes]) -> dict[str, Split]:
    """Returns the examples of both splits, in the files' order.

    Args:
      read: gives a file's bytes by its name.

    Raises:
      StorageError: a file is damaged, or has other images than 28x28.
    """
    return {
        split: _split(*(_array(name, read(name)) for name in names), names)
        for split, names in _FILES.items()
    }


def _split(images: np.ndarray, labels: np.ndarray, names: tuple[str, str]) -> Split:
    if images.shape[1:] != (28, 28) or labels.ndim != 1:
        raise StorageError(
            f"{names[0]} and {names[1]} must hold images of 28x28 and labels, "
            f"they hold arrays of shape {images.shape} and {labels.shape}."
        )
    if len(images) != len(labels):
        raise StorageError(
            f"{names[0]} has {len(images)} images and {names[1]} has {len(labels)} labels."
        )
    return Split(images[..., None], {"label": labels})


def _array(name: str, data: bytes) -> np.ndarray:
    """Decodes idx: two zero bytes, the type (8: uint8), the rank, sizes, then the values."""
    data = gunzipped(name, data)
    rank = data[3] if len(data) >= 4 and data[:3] == b"\0\0\x08" else 0
    start = 4 + 4 * rank
    if not 1 <= rank <= 3 or len(data) < start:
        raise StorageError(f"{name} is not an idx file of unsigned bytes.")
    shape = struct.unpack(f">{rank}I", data[4:start])
    if len(data) - start != np.prod(shape, dtype=object):
        raise StorageError(
            f"{name} has {len(data) - start} bytes of values for an array of shape {shape}."
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
