"""The datasets that this project writes itself, from original files, without TensorFlow."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from adabatch_jax.data.datasets.preparation import cifar, digits, idx
from adabatch_jax.data.datasets.preparation.original_archives import Originals
from adabatch_jax.data.datasets.preparation.record_writing import Split
from adabatch_jax.data.datasets.preparation.stage_progress import Report
from adabatch_jax.data.datasets.tfds_import import import_tfds
from adabatch_jax.system.errors import UsageError

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # dataset-fashion-mnist's

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
    """The tfds builder of the dataset; a UsageError where it can't write the `version`."""
    is_digits = dataset == digits.NAME
    builder = digits.builder_class() if is_digits else import_tfds().builder_cls(dataset)
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
    """Reads a dataset's examples from its original files, see `prepare`."""
    if dataset == digits.NAME:
        return digits.splits()
    # A system package may hold the files.
    if folder is None and dataset == "fashion_mnist" and DEBIAN_FASHION_MNIST.is_dir():
        folder = DEBIAN_FASHION_MNIST
    url_infos = builder_class(dataset).url_infos
    originals = Originals(
        dataset=dataset,
        urls={info.filename: url for url, info in url_infos.items()},
        checksums=checksums or {info.filename: info.checksum for info in url_infos.values()},
        folder=folder,
        download_dir=download_dir / dataset,  # MNIST and Fashion-MNIST name their files alike
        report=report,
    )
    return _SPLITS_OF[dataset](originals.read)
