"""A user's own images as a dataset of tfds: described, and written as they are where that works."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from adabatch_jax.config.settings import DataSettings
from adabatch_jax.data.datasets.image_decoding import decode_image, decode_picture, resize_and_crop
from adabatch_jax.data.datasets.own.opening import open_own
from adabatch_jax.data.datasets.own.records import Arrays, Records
from adabatch_jax.data.datasets.own.shares import (
    ALL,
    TEST_NAMES,
    TRAIN_NAMES,
    VALIDATION_NAMES,
    chosen_splits,
    first_of,
    has_eval_split,
)
from adabatch_jax.data.datasets.preparation.record_writing import WrittenSplit, encode_png
from adabatch_jax.data.datasets.tfds_import import import_tfds
from adabatch_jax.system.errors import StorageError, UsageError

# As tfds calls them.
_NAMES = {"train": (*TRAIN_NAMES, ALL), "test": TEST_NAMES, "validation": VALIDATION_NAMES}


@dataclasses.dataclass(frozen=True)
class _Images:
    """One split's images, of 1 or 3 channels, resized where a size is given."""

    examples: Records | Arrays
    num_channels: int
    image_size: int | None

    names: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # which the builder tells

    def __len__(self) -> int:
        return len(self.examples)

    def records(self) -> Iterator[dict[str, Any]]:
        """What is written of each example."""
        encoded = self._of_arrays() if isinstance(self.examples, Arrays) else self._of_files()
        for image, label in zip(encoded, self.examples.labels.tolist(), strict=True):
            yield {"image": image, "label": label}

    def digest(self) -> str:
        """Equal for the same images with the same labels, to be written in the same way."""
        if isinstance(self.examples, Arrays):
            images = self.examples.images
            of_images = [images.shape, hashlib.sha256(np.ascontiguousarray(images)).hexdigest()]
        else:
            of_images = self.examples.index(True).digests
        known = [of_images, self.examples.labels.tolist(), self.num_channels, self.image_size]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()

    def _of_arrays(self) -> Iterator[bytes]:
        return map(encode_png, self.examples.resized(self.image_size).images)

    def _of_files(self) -> Iterator[bytes]:
        digests = self.examples.index(True).digests
        for number, digest in enumerate(digests):
            encoded = self.examples.read(number)
            if hashlib.sha256(encoded).hexdigest() != digest:
                place = self.examples.places[number]
                raise StorageError(f"{place} isn't what it was when it was looked at first.")
            yield self._written(encoded)

    def _written(self, encoded: bytes) -> bytes:
        image = decode_picture(encoded, self.num_channels)
        if self.image_size is not None:
            return encode_png(resize_and_crop(image, self.image_size))
        # Who reads what is prepared doesn't turn images.
        as_read = decode_image(encoded, self.num_channels)
        return encoded if np.array_equal(image, as_read) else encode_png(image)


def described(
    dataset: str, path: Path, name: str, image_size: int | None
) -> tuple[type, dict[str, WrittenSplit]]:
    """The builder that describes a user's own images, and their splits."""
    data = open_own(dataset, path)
    parts = chosen_splits(data, DataSettings())  # finds what can't be trained on
    if has_eval_split(data):
        named = {new: first_of(data.splits, olds) for new, olds in _NAMES.items()}
        parts = {new: data.splits[old] for new, old in named.items() if old is not None}
    shapes = [_shapes(part) for part in parts.values()]
    num_channels = max(int(found[:, 2].max()) for found in shapes)
    if num_channels == 4:
        raise UsageError(f"{data.of}: images of 4 channels can't be prepared, only 1 or 3.")
    sizes = np.unique(np.concatenate(shapes)[:, :2], axis=0)
    size = (image_size, image_size) if image_size else (None, None)
    if image_size is None and len(sizes) == 1:
        size = tuple(sizes[0].tolist())
    splits = {new: _Images(part, num_channels, image_size) for new, part in parts.items()}
    digests = {new: images.digest() for new, images in splits.items()}
    known = json.dumps([data.class_names, digests]).encode()
    digest = hashlib.sha256(known).hexdigest()
    base = builder_class(name, (*size, num_channels), data.class_names, dataset, digest)
    return base, splits


def builder_class(
    name: str, shape: tuple, class_names: tuple[str, ...], dataset: str, digest: str
) -> type:
    """The tfds builder of a dataset of labelled images; it isn't registered.

    `digest`, of what it is prepared from, is its `source_digest`, and kept in its metadata.
    """
    tfds = import_tfds()

    class OwnImages(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """A user's own images."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = {
                "image": tfds.features.Image(shape=shape),
                "label": tfds.features.ClassLabel(names=list(class_names)),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                description=f"Own images, from {dataset}.",
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
                disable_shuffling=True,
                metadata=tfds.core.MetadataDict(own_images=digest),
            )

    OwnImages.name, OwnImages.source_digest = name, digest
    return OwnImages


def _shapes(part: Records | Arrays) -> np.ndarray:
    if isinstance(part, Arrays):
        return np.array([part.images.shape[1:]])
    return part.index(True).shapes
