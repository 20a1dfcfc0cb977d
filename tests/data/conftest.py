"""Original files in miniature, and real datasets prepared once for all tests."""

import gzip
import hashlib
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from adabatch_jax.data.datasets.preparation import prepare
from adabatch_jax.data.datasets.preparation.own_datasets import DEBIAN_FASHION_MNIST
from adabatch_jax.data.sources import in_memory
from adabatch_jax.data.tfds_images import tfds_source


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    prepare("digits", folder)
    return folder


@pytest.fixture(scope="session")
def fashion_mnist_dir(tmp_path_factory) -> Path:
    if not DEBIAN_FASHION_MNIST.is_dir():
        pytest.skip("needs Debian's package dataset-fashion-mnist, which isn't installed")
    folder = tmp_path_factory.mktemp("fashion_mnist")
    prepare("fashion_mnist", folder)
    return folder


def idx_bytes(array: np.ndarray) -> bytes:
    """Writes the idx format, independently of the code under test."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.tobytes())


def tar_bytes(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    """A tar.gz of plain files, or of members as they are given."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


class Miniature:
    """A folder with a small dataset in the layout of the original files.

    Attributes:
      folder: the folder.
      checksums: file name -> sha256.
      images: split -> uint8 images, NHWC.
      labels: split -> labels.
      coarse_labels: split -> coarse labels, for CIFAR-100.
    """

    def __init__(self, folder: Path, name: str):
        rng = np.random.default_rng(0)
        shape = (28, 28, 1) if name.endswith("mnist") else (32, 32, 3)
        num_classes = 100 if name == "cifar100" else 10
        self.folder = folder
        self.sizes = {"train": 50, "test": 20}
        self.images = {
            split: rng.integers(0, 256, (n, *shape), np.uint8) for split, n in self.sizes.items()
        }
        self.labels = {
            split: rng.integers(0, num_classes, n).astype(np.uint8)
            for split, n in self.sizes.items()
        }
        self.coarse_labels = {split: labels // 5 for split, labels in self.labels.items()}
        self.write({"cifar10": self.cifar10, "cifar100": self.cifar100}.get(name, self.idx)())

    def write(self, files: dict[str, bytes]) -> None:
        for name, data in files.items():
            (self.folder / name).write_bytes(data)
        self.checksums = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.folder.iterdir()
        }

    def idx(self) -> dict[str, bytes]:
        files = {}
        for split, prefix in (("train", "train"), ("test", "t10k")):
            files[f"{prefix}-images-idx3-ubyte.gz"] = idx_bytes(self.images[split][..., 0])
            files[f"{prefix}-labels-idx1-ubyte.gz"] = idx_bytes(self.labels[split])
        return files

    def cifar10_members(self) -> dict[str, bytes]:
        train, test = self._records("train"), self._records("test")
        members = {
            "batches.meta.txt": "\n".join(f"class {i}" for i in range(10)).encode() + b"\n\n"
        }
        for i in range(5):
            members[f"data_batch_{i + 1}.bin"] = b"".join(train[10 * i : 10 * i + 10])
        members["test_batch.bin"] = b"".join(test)
        return {f"cifar-10-batches-bin/{name}": data for name, data in members.items()}

    def cifar10(self) -> dict[str, bytes]:
        return {"cifar-10-binary.tar.gz": tar_bytes(self.cifar10_members())}

    def cifar100(self) -> dict[str, bytes]:
        members = {
            "coarse_label_names.txt": "\n".join(f"coarse {i}" for i in range(20)).encode(),
            "fine_label_names.txt": "\n".join(f"fine {i}" for i in range(100)).encode(),
            "train.bin": b"".join(self._records("train", coarse=True)),
            "test.bin": b"".join(self._records("test", coarse=True)),
        }
        return {
            "cifar-100-binary.tar.gz": tar_bytes(
                {f"cifar-100-binary/{name}": data for name, data in members.items()}
            )
        }

    def _records(self, split: str, coarse: bool = False) -> list[bytes]:
        records = []
        for image, label, group in zip(
            self.images[split], self.labels[split], self.coarse_labels[split], strict=True
        ):
            planes = b"".join(image[:, :, channel].tobytes() for channel in range(3))
            records.append((bytes([group]) if coarse else b"") + bytes([label]) + planes)
        return records


@pytest.fixture
def miniature(tmp_path):
    """Makes a small dataset: `miniature("cifar10")`."""

    def make(name: str) -> Miniature:
        folder = tmp_path / f"original_{name}"
        folder.mkdir()
        return Miniature(folder, name)

    return make


@pytest.fixture
def as_sorted_examples():
    """Order in prepared data is tfds's own: examples are compared as sorted lists."""

    def sort(images, labels):
        return sorted((i.tobytes(), int(label)) for i, label in zip(images, labels, strict=True))

    return sort


@pytest.fixture
def prepared_examples(as_sorted_examples):
    """Reads a whole prepared split: `prepared_examples(name, split, data_dir)`."""

    def read(name, split, data_dir):
        arrays = in_memory(tfds_source(name, split, data_dir)).arrays
        return as_sorted_examples(arrays["image"], arrays["label"])

    return read


@pytest.fixture
def files_in():
    return lambda folder: sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def make_tar():
    return tar_bytes


@pytest.fixture
def offline(monkeypatch):
    """No host name can be looked up, on a machine with a network too."""
    import socket

    def fail(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", fail)
