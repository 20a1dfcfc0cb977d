"""What a training run must know about a dataset before it opens it."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from adabatch_jax.data.datasets.prepared_folders import parse_name, prepare_command, prepared_path
from adabatch_jax.data.datasets.tfds_import import import_tfds
from adabatch_jax.system.errors import StorageError, UsageError, did_you_mean, one_line


@dataclasses.dataclass(frozen=True)
class TextSpec:
    """What is known of a run's text, whose examples are sequences of tokens.

    Attributes:
      sequence_length: tokens that are trained on in each example.
      tokenizer: "bytes", or the path of a tokenizer's file; None where only ids are known.
      tokenizer_digest: the file's sha256.
      end_of_document: the id that stands between documents; None where there is none.
      bytes_per_token: of the text that is evaluated on; None where it isn't known.
    """

    sequence_length: int
    tokenizer: str | None = None
    tokenizer_digest: str | None = None
    end_of_document: int | None = None
    bytes_per_token: float | None = None


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """What is known of a dataset of labelled images, or of a text.

    Attributes:
      name: the name under which tfds knows it, or how a user named it.
      num_classes: labels, and a text's tokens, are 0 .. num_classes - 1; None where nobody told.
      image_shape: (height, width, channels) as they are read; None where images differ in size.
      test_split: which split of tfds is evaluated on.
      num_examples: examples that are trained on.
      mean: per channel, of pixels in 0..1, to be subtracted.
      std: per channel, of pixels in 0..1, to be divided by.
      class_names: the name of each label; None where it isn't known without the data.
      image_type: the dtype of the images as they are read.
      text: what is known of a text; None of images.
    """

    name: str
    num_classes: int | None
    image_shape: tuple[int, int, int] | None
    test_split: str
    num_examples: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] | None = None
    image_type: str = "uint8"
    text: TextSpec | None = None

    def to_dict(self) -> dict[str, Any]:
        """What a run's folder keeps, as JSON values."""
        content = dataclasses.asdict(self)
        if self.text is None:
            del content["text"]
        return {name: value for name, value in content.items() if name != "test_split"}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "DatasetSpec":
        """What `to_dict` described."""
        listed = {n: tuple(v) if isinstance(v, list) else v for n, v in content.items()}
        if "text" in listed:
            listed["text"] = TextSpec(**listed["text"])
        return cls(test_split="test", **listed)


# The paper normalises both CIFARs with CIFAR-10's mean, and with these deviations.
_CIFAR = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

KNOWN_DATASETS = {
    spec.name: spec
    for spec in (
        DatasetSpec("digits", 10, (8, 8, 1), "test", 1442, (0.3052,), (0.3760,)),
        DatasetSpec("mnist", 10, (28, 28, 1), "test", 60_000, (0.1307,), (0.3081,)),
        DatasetSpec("fashion_mnist", 10, (28, 28, 1), "test", 60_000, (0.2860,), (0.3530,)),
        DatasetSpec("cifar10", 10, (32, 32, 3), "test", 50_000, *_CIFAR),
        DatasetSpec("cifar100", 100, (32, 32, 3), "test", 50_000, *_CIFAR),
        DatasetSpec("imagenet2012", 1000, None, "validation", 1_281_167, *_IMAGENET),
    )
}


def dataset_spec(name: str, data_dir: str | os.PathLike | None = None) -> DatasetSpec:
    """Returns what is known about a dataset.

    Six datasets are known without any file: see `KNOWN_DATASETS`. Any other tfds dataset with
    an image and a label is described from its prepared files: images of three channels are
    normalised with ImageNet's constants, others with mean 0.5 and deviation 0.25, and a user's own
    with theirs, which have to be computed: () stands for them; the test split is `test`, else
    `validation`.

    Args:
      name: a name such as `"cifar10"`, or `"dataset/config:version"` as tfds writes it.
      data_dir: where datasets are prepared; None means the default folder.

    Raises:
      UsageError: no such dataset, not prepared, or without an image, a label or a test split.

    >>> dataset_spec("cifar10").image_shape
    (32, 32, 3)
    >>> dataset_spec("cifar1O")
    Traceback (most recent call last):
    adabatch_jax.system.errors.UsageError: there is no dataset 'cifar1O'; did you mean 'cifar10'?
    """
    if name in KNOWN_DATASETS:
        return KNOWN_DATASETS[name]
    return _spec_of(name, open_builder(name, data_dir))


def open_builder(name: str, data_dir: str | os.PathLike | None) -> Any:
    """Opens a prepared dataset's newest version from its files alone, whatever code prepared it.

    Raises:
      UsageError: there is no such dataset, or it isn't prepared.
      StorageError: its metadata can't be read.
    """
    path = prepared_path(name, data_dir)
    if path is None:
        require_known(name)
        raise UsageError(
            f"dataset {name!r} is not prepared yet; run {prepare_command(name, data_dir)} first."
        )
    # Only here is tfds needed: known datasets are described without it.
    from adabatch_jax.data.datasets.labelled_images import check_feature_classes

    tfds = import_tfds()
    try:
        check_feature_classes(path)
        return tfds.builder_from_directory(path)
    except Exception as error:  # json, proto and feature errors of many types
        raise StorageError(
            f"the metadata of dataset {name!r} in {path} can't be read "
            f"({one_line(error)}); {prepare_command(name, data_dir, overwrite=True)} "
            "prepares it anew."
        ) from error


def is_known(name: str) -> bool:
    """Whether we or tfds know a dataset of this name."""
    parts = parse_name(name)
    return name in KNOWN_DATASETS or (parts is not None and parts[0] in _known_names())


def require_known(name: str) -> None:
    """Raises a UsageError, which ends with the nearest name, unless we or tfds know `name`."""
    if not is_known(name):
        names, parts = _known_names(), parse_name(name)
        wanted = name.lower().replace("-", "_") if parts is None else parts[0]
        known = f"; known are {', '.join(KNOWN_DATASETS)} and those of tensorflow_datasets."
        raise UsageError(f"there is no dataset {name!r}{did_you_mean(wanted, names) or known}")


def _known_names() -> set[str]:
    # Community datasets are listed in a file on the network.
    return {*KNOWN_DATASETS, *import_tfds().list_builders(with_community_datasets=False)}


def _spec_of(name: str, builder: Any) -> DatasetSpec:
    from adabatch_jax.data.datasets.labelled_images import labelled_images

    images = labelled_images(name, builder.info)
    splits = builder.info.splits
    test_split = next((split for split in ("test", "validation") if split in splits), None)
    if "train" not in splits or test_split is None:
        raise UsageError(
            f"dataset {name!r} needs a split 'train' and a split 'test' or 'validation'; "
            f"it has {', '.join(sorted(splits))}."
        )
    channels = images.shape[-1]
    if (builder.info.metadata or {}).get("own_images"):
        mean, std = (), ()
    else:
        mean, std = _IMAGENET if channels == 3 else ((0.5,) * channels, (0.25,) * channels)
    num_examples, shape = splits["train"].num_examples, images.fixed_shape
    names = images.class_names
    return DatasetSpec(name, images.num_classes, shape, test_split, num_examples, mean, std, names)
