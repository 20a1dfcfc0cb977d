"""Which features of a tfds dataset are its image and its label, and what they look like."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adabatch_jax.data.datasets import DatasetSpec
from adabatch_jax.data.feature_classes import check_feature_classes
from adabatch_jax.data.prepared import prepare_command
from adabatch_jax.data.tfds_import import import_tfds
from adabatch_jax.errors import StorageError, UsageError


@dataclass(frozen=True)
class LabelledImages:
    """The two features that image classification reads.

    Attributes:
      image_key: name of the image feature.
      label_key: name of the label feature.
      num_classes: number of classes of the label.
      shape: (height, width, channels); height and width are None where they vary.
      is_encoded: whether images are stored as PNG or JPEG rather than as plain arrays.
    """

    image_key: str
    label_key: str
    num_classes: int
    shape: tuple[int | None, int | None, int]
    is_encoded: bool

    @property
    def fixed_shape(self) -> tuple[int, int, int] | None:
        """The images' shape, or None where they differ in size."""
        height, width, channels = self.shape
        return None if height is None or width is None else (height, width, channels)


def labelled_images(name: str, info: Any) -> LabelledImages:
    """Finds the image and the label among a dataset's features.

    Args:
      name: the dataset's name, for the error.
      info: a `tfds.core.DatasetInfo`.

    Raises:
      UsageError: there is no uint8 image, or no class label.
    """
    features = import_tfds().features
    if not isinstance(info.features, features.FeaturesDict):
        raise UsageError(f"dataset {name!r} has no named features.")
    image_key, label_key = info.supervised_keys if _is_pair(info.supervised_keys) else (None, None)
    keys = set(info.features.keys())
    image_key = image_key if image_key in keys else "image"
    label_key = label_key if label_key in keys else "label"
    image, label = (info.features[key] if key in keys else None for key in (image_key, label_key))
    if not isinstance(label, features.ClassLabel) or not label.num_classes:
        raise UsageError(
            f"dataset {name!r} has no class label; its features are {', '.join(sorted(keys))}."
        )
    shape = getattr(image, "shape", None) or ()
    if len(shape) != 3 or shape[-1] not in (1, 3, 4) or np.dtype(image.np_dtype) != np.uint8:
        raise UsageError(
            f"dataset {name!r} has no uint8 image of 1, 3 or 4 channels; "
            f"its features are {', '.join(sorted(keys))}."
        )
    return LabelledImages(
        image_key, label_key, label.num_classes, tuple(shape), isinstance(image, features.Image)
    )


def spec_of(name: str, builder: Any) -> DatasetSpec:
    """Describes a prepared dataset from its own info.

    Raises:
      UsageError: no image, no label, or no split to train or to evaluate on.
    """
    images = labelled_images(name, builder.info)
    splits = builder.info.splits
    test_split = next((split for split in ("test", "validation") if split in splits), None)
    if "train" not in splits or test_split is None:
        raise UsageError(
            f"dataset {name!r} needs a split 'train' and a split 'test' or 'validation'; "
            f"it has {', '.join(sorted(splits))}."
        )
    channels = images.shape[-1]
    mean, std = (0.5,) * channels, (0.25,) * channels
    if channels == 3:
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return DatasetSpec(
        name=name,
        num_classes=images.num_classes,
        image_shape=images.fixed_shape,
        train_split="train",
        test_split=test_split,
        num_examples=splits["train"].num_examples,
        mean=mean,
        std=std,
    )


def open_builder(path: Path, name: str, data_dir: str | os.PathLike | None) -> Any:
    """Opens the prepared dataset in `path` from its files alone, whatever code prepared it.

    Raises:
      StorageError: its metadata can't be read.
    """
    tfds = import_tfds()
    try:
        check_feature_classes(path)
        builder = tfds.builder_from_directory(path)
    except Exception as error:  # json, proto and feature errors of many types
        raise StorageError(
            f"the metadata of dataset {name!r} in {path} can't be read "
            f"({one_line(error)}); {prepare_command(name, data_dir, overwrite=True)} "
            "prepares it anew."
        ) from error
    return builder


def one_line(error: BaseException) -> str:
    """Returns the first line of an error's text, without a final full stop.

    >>> one_line(ValueError("no such thing.\\nHere is a long story."))
    'no such thing'
    """
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".:;,") if lines else type(error).__name__


def _is_pair(keys: Any) -> bool:
    return isinstance(keys, tuple) and len(keys) == 2 and all(isinstance(k, str) for k in keys)
