"""The datasets that this project writes itself, from original files, without TensorFlow."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from adabatch_jax.data.datasets.preparation import cifar, digits, idx
from adabatch_jax.data.datasets.preparation.original_archives import (
    Originals,
    as_is,
    with_gzip_header,
)
from adabatch_jax.data.datasets.preparation.record_writing import Split
from adabatch_jax.data.datasets.preparation.stage_progress import Report
from adabatch_jax.data.datasets.tfds_import import import_tfds
from adabatch_jax.system.errors import UsageError

# Debian's package dataset-fashion-mnist. It stripped the gzip headers of names and times.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_FASHION_MNIST_SECONDS = {"train": 1504176606, "t10k": 1504176627}

_SPLITS_OF: dict[str, Callable[[Callable[[str], bytes]], dict[str, Split]]] = {
    "mnist": idx.splits,
    "fashion_mnist": idx.splits,
    "cifar10": partial(cifar.splits, layout=cifar.CIFAR10),
    "cifar100": partial(cifar.splits, layout=cifar.CIFAR100),
}


def is_own(dataset: str) -> bool:
    """Whether this module can prepare the dataset."""
    return dataset == digits.NAME or dataset in _SPLITS_OF


def builder_class(dataset: str, version: str | None = None) -> type:
    """Returns the tfds builder that describes the dataset: the stock one, or our own.

    Raises:
      UsageError: it can't write the `version`; None means the one that it writes.
    """
    if dataset == digits.NAME:
        builder = digits.builder_class()
    else:
        builder = import_tfds().builder_cls(dataset)
    if version not in (None, str(builder.VERSION)):
        raise UsageError(
            f"version {version} of {dataset!r} can't be prepared, only {builder.VERSION}."
        )
    return builder


def read_splits(
    dataset: str,
    folder: Path | None,
    download_dir: Path,
    checksums: Mapping[str, str] | None,
    report: Report,
) -> dict[str, Split]:
    """Reads a dataset's examples from its original files.

    Args:
      dataset: its name.
      folder: where the original files are; None finds or downloads them.
      download_dir: where downloads are kept.
      checksums: file name -> sha256; None means those registered in tfds.
      report: is told how a download proceeds.
    """
    if dataset == digits.NAME:
        return digits.splits()
    url_infos = builder_class(dataset).url_infos
    originals = Originals(
        dataset=dataset,
        urls={info.filename: url for url, info in url_infos.items()},
        checksums=checksums or {info.filename: info.checksum for info in url_infos.values()},
        folder=folder or _installed(dataset),
        # MNIST and Fashion-MNIST name their files alike.
        download_dir=download_dir / dataset,
        report=report,
        repair=_restore_fashion_mnist if dataset == "fashion_mnist" else as_is,
    )
    return _SPLITS_OF[dataset](originals.read)


def _installed(dataset: str) -> Path | None:
    """The folder of a system package that holds the dataset's original files."""
    if dataset == "fashion_mnist" and DEBIAN_FASHION_MNIST.is_dir():
        return DEBIAN_FASHION_MNIST
    return None


def _restore_fashion_mnist(name: str, data: bytes) -> bytes:
    seconds = _FASHION_MNIST_SECONDS.get(name.split("-")[0])
    return data if seconds is None else with_gzip_header(name, data, seconds)
