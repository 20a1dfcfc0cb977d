"""Which features of a tfds dataset are its image and its label, and what they look like."""

import contextlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adabatch_jax.data.datasets.tfds_import import import_tfds
from adabatch_jax.system.errors import UsageError


@dataclass(frozen=True)
class LabelledImages:
    """The two features that image classification reads.

    Attributes:
      shape: (height, width, channels); height and width are None where they vary.
      is_encoded: whether images are stored as PNG or JPEG rather than as plain arrays.
      class_names: the name of each label, its number where it has none.
    """

    image_key: str
    label_key: str
    num_classes: int
    shape: tuple[int | None, int | None, int]
    is_encoded: bool
    class_names: tuple[str, ...]

    @property
    def fixed_shape(self) -> tuple[int, int, int] | None:
        """The images' shape, or None where they differ in size."""
        height, width, channels = self.shape
        return None if height is None or width is None else (height, width, channels)


def labelled_images(name: str, info: Any) -> LabelledImages:
    """Finds the image and the label in tfds's info; a UsageError where one is missing."""
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
        image_key, label_key, label.num_classes, tuple(shape), isinstance(image, features.Image),
        tuple(label.names),
    )  # fmt: skip


def _is_pair(keys: Any) -> bool:
    return isinstance(keys, tuple) and len(keys) == 2 and all(isinstance(k, str) for k in keys)


_OF_TFDS = re.compile(r"tensorflow_datasets\.core\.features(\.[A-Za-z_]\w*)+")
# As features are written since tfds 4.5, in the two spellings that protobuf reads, and before.
_NAMES_A_CLASS = ("pythonClassName", "python_class_name", "type")


def check_feature_classes(dataset: Path) -> None:
    """Checks that the dataset in a folder is described by tfds's own features alone.

    `tfds.builder_from_directory` imports the modules that features.json names, so a dataset from
    elsewhere could have any module on the path imported.

    >>> import tempfile
    >>> dataset = Path(tempfile.mkdtemp())
    >>> _ = (dataset / "features.json").write_text('{"pythonClassName": "antigravity.Image"}')
    >>> check_feature_classes(dataset)
    Traceback (most recent call last):
    ValueError: features.json names the class 'antigravity.Image', which is not one of tfds's
    """

    def check(content: dict[str, Any]) -> None:
        for key, value in content.items():
            if not isinstance(value, str):
                continue
            if key not in _NAMES_A_CLASS:
                # Some features keep their own description as a text of JSON.
                with contextlib.suppress(json.JSONDecodeError):
                    json.loads(value, object_hook=check)
            elif not _OF_TFDS.fullmatch(value):
                raise ValueError(
                    f"features.json names the class {value!r}, which is not one of tfds's"
                )

    try:
        json.loads((dataset / "features.json").read_bytes(), object_hook=check)
    except RecursionError:
        raise ValueError("features.json is nested too deeply") from None
