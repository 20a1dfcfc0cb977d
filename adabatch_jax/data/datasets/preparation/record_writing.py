"""Writing arrays as a tfds dataset in array_record, without TensorFlow."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

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

    def __len__(self) -> int:
        return len(self.images)

    def records(self) -> Iterator[dict[str, Any]]:
        """What is written of each example."""
        for index, image in enumerate(self.images):
            record = {name: int(labels[index]) for name, labels in self.labels.items()}
            record["image"] = encode_png(image)
            if self.id_prefix is not None:
                record["id"] = f"{self.id_prefix}{index:05d}"
            yield record


class WrittenSplit(Protocol):
    """The examples of one split, as they are written; see `Split`."""

    names: Mapping[str, tuple[str, ...]]

    def __len__(self) -> int:
        """The number of examples."""

    def records(self) -> Iterator[dict[str, Any]]:
        """What is written of each example."""


def write(base: type, splits: Mapping[str, WrittenSplit], folder: Path, report: Report) -> Path:
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

        def _generate_examples(self, name: str, split: WrittenSplit) -> Iterator[tuple[int, dict]]:
            return counted(enumerate(split.records()), f"Writing {name}", len(split), report)

    builder = FromArrays(data_dir=folder, file_format="array_record")
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(
        download_dir=folder / "downloads", download_config=config, file_format="array_record"
    )
    return Path(builder.data_dir)


@contextlib.contextmanager
def repeatable_records() -> Iterator[None]:
    """Lets tfds write the same examples as the same bytes, whatever process does it.

    By itself it leaves the order of a record's features to protobuf, which shuffles them anew in
    each process.
    """
    serializer = import_tfds().core.example_serializer.ExampleSerializer
    original = serializer.serialize_example
    serializer.serialize_example = lambda self, example: self.get_tf_example(
        example
    ).SerializeToString(deterministic=True)
    try:
        yield
    finally:
        serializer.serialize_example = original


def encode_png(image: np.ndarray) -> bytes:
    """Encodes a uint8 image of shape `(height, width, 1 or 3)`, RGB, without loss."""
    import cv2

    if image.shape[-1] == 3:
        image = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", image)[1].tobytes()
