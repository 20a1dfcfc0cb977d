"""Writing arrays as a tfds dataset in array_record, without TensorFlow."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adabatch_jax.data.datasets.preparation.stage_progress import Report, counted
from adabatch_jax.data.datasets.tfds_import import import_tfds


@dataclass(frozen=True)
class Split:
    """The examples of one split.

    Attributes:
      images: uint8, shape `(num_examples, height, width, 1 or 3)`.
      labels: feature name -> integers of shape `(num_examples,)`.
      names: feature name -> its classes' names, where the original files hold them.
      id_prefix: gives every example an "id" of this and its five-digit number; None: no id.
    """

    images: np.ndarray
    labels: Mapping[str, np.ndarray]
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    id_prefix: str | None = None


def write(base: type, splits: Mapping[str, Split], folder: Path, report: Report) -> Path:
    """Writes `splits` as the dataset that the builder `base` describes; returns its folder.

    A subclass under the same name replaces how examples are generated, nothing else, so what it
    writes opens as the stock dataset. Keys are the examples' numbers, as with the stock
    builders, so the order is theirs too.
    """
    tfds = import_tfds()

    class FromArrays(base, skip_registration=True):
        name = base.name

        def _split_generators(self, dl_manager: Any) -> Any:
            for split in splits.values():
                for feature, names in split.names.items():
                    self.info.features[feature].names = list(names)
            return {name: self._generate_examples(name, split) for name, split in splits.items()}

        def _generate_examples(self, name: str, split: Split) -> Iterator[tuple[int, dict]]:
            return counted(_records(split), f"Writing {name}", len(split.images), report)

    builder = FromArrays(data_dir=folder, file_format="array_record")
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(
        download_dir=folder / "downloads", download_config=config, file_format="array_record"
    )
    return Path(builder.data_dir)


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """Has tfds write the same examples as the same bytes, in whichever process.

    Protobuf leaves the order of an example's features to chance, unless it is asked not to.
    """
    import_tfds()
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    stock = ExampleSerializer.serialize_example

    def serialize_example(self: ExampleSerializer, example: Any) -> bytes:
        return self.get_tf_example(example).SerializeToString(deterministic=True)

    ExampleSerializer.serialize_example = serialize_example
    try:
        yield
    finally:
        ExampleSerializer.serialize_example = stock


def _records(split: Split) -> Iterator[tuple[int, dict]]:
    for index, image in enumerate(split.images):
        record = {name: int(labels[index]) for name, labels in split.labels.items()}
        record["image"] = encode_png(image)
        if split.id_prefix is not None:
            record["id"] = f"{split.id_prefix}{index:05d}"
        yield index, record


def encode_png(image: np.ndarray) -> bytes:
    """Encodes a uint8 image of shape `(height, width, 1 or 3)`, RGB, without loss."""
    import cv2

    if image.shape[-1] == 3:
        image = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", image)[1].tobytes()
