"""A dataset's original files, from a folder or the network, with the checksums tfds knows."""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adabatch_jax.data.datasets.preparation.network import download
from adabatch_jax.data.datasets.preparation.stage_progress import Report
from adabatch_jax.system.errors import StorageError, UsageError

# Debian's package dataset-fashion-mnist stripped the gzip headers of names and of these times.
_FASHION_MNIST_SECONDS = {"train": 1504176606, "t10k": 1504176627}


@dataclass(frozen=True)
class Originals:
    """Where the original files of a dataset come from.

    Attributes:
      dataset: the dataset's name.
      urls: file name -> where it can be downloaded.
      checksums: file name -> sha256 that it must have.
      folder: where the user has the files; None downloads them.
    """

    dataset: str
    urls: Mapping[str, str]
    checksums: Mapping[str, str]
    folder: Path | None
    download_dir: Path
    report: Report

    def read(self, name: str) -> bytes:
        """Returns the bytes of a file; they, and not the file, were checked.

        Raises:
          UsageError: the file isn't in the folder, or can't be downloaded.
          StorageError: it isn't the original.
        """
        path = self._path(name)
        data = path.read_bytes()
        found = _sha256(data)
        if found != self.checksums[name] and self.dataset == "fashion_mnist":
            seconds = _FASHION_MNIST_SECONDS[name.split("-")[0]]
            data = with_gzip_header(name, data, seconds)
        if _sha256(data) == self.checksums[name]:
            return data
        hint = "" if self.folder else "; delete it, and it is downloaded anew"
        raise StorageError(
            f"{path} is not the original file of {self.dataset!r}: its sha256 is {found}, "
            f"wanted is {self.checksums[name]}{hint}."
        )

    def _path(self, name: str) -> Path:
        if self.folder is None:
            return download(
                self.dataset, self.urls[name], self.download_dir, self.checksums[name], self.report
            )
        path = self.folder / name
        if not path.is_file():
            raise UsageError(
                f"{self.folder} has no file {name}; the original files of {self.dataset!r} are "
                f"{', '.join(self.urls)}."
            )
        return path


def with_gzip_header(name: str, data: bytes, seconds: int) -> bytes:
    """Puts the file's name and time (in seconds since 1970) back where a gzip file lost them.

    >>> import gzip
    >>> stripped = gzip.compress(b"data", mtime=0)
    >>> restored = with_gzip_header("data.gz", stripped, seconds=1_500_000_000)
    >>> restored[10:15], gzip.decompress(restored)
    (b'data\\x00', b'data')
    """
    if data[:4] != b"\x1f\x8b\x08\x00":  # no gzip file, or one with a name
        return data
    header = b"\x1f\x8b\x08\x08" + struct.pack("<I", seconds) + b"\x00\x03"
    return header + name.removesuffix(".gz").encode() + b"\x00" + data[10:]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
