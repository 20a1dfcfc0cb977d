"""MNIST and its relatives: four gzip files of images and labels in the idx format."""

import gzip
import struct
from collections.abc import Callable

import numpy as np

from adabatch_jax.data.datasets.preparation.record_writing import Split

_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}


def splits(read: Callable[[str], bytes]) -> dict[str, Split]:
    """The examples of both splits, in the files' order; `read` gives a file's bytes by its name."""
    return {
        split: _split(*(_array(read(name)) for name in names)) for split, names in _FILES.items()
    }


def _split(images: np.ndarray, labels: np.ndarray) -> Split:
    if images.shape != (*labels.shape, 28, 28):
        raise ValueError(f"images of shape {images.shape} and labels of shape {labels.shape}")
    return Split(images[..., None], {"label": labels})


def _array(data: bytes) -> np.ndarray:
    """Decodes idx: two zero bytes, the type (8: uint8), the rank, sizes, then the values."""
    data = gzip.decompress(data)
    rank = data[3]
    shape = struct.unpack_from(f">{rank}I", data, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)
