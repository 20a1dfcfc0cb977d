"""Reading JPEGs as a source does, against bare decoding with the same threads."""

import contextlib
import io
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from adabatch_jax.data.datasets.image_decoding import decode_image, resize_and_crop
from adabatch_jax.data.datasets.tfds_import import import_tfds
from adabatch_jax.data.tfds_images import tfds_source
from experiments.benchmarks.options import Options
from experiments.benchmarks.rows import Row, Target
from experiments.benchmarks.timing import alternate, ratio, timed

_NAME = "photographs"
_HEIGHT, _WIDTH, _IMAGE_SIZE = 400, 500, 224


def run(options: Options) -> list[Row]:
    """Compares examples per second of `TfdsSource.read` and of decoding and resizing alone."""
    num_images, num_reads = (64, 1) if options.quick else (256, 4)
    num_threads = os.cpu_count() or 1
    encoded = _jpegs(num_images)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(num_threads) as threads:
        _write(encoded, Path(folder))
        source = tfds_source(_NAME, data_dir=folder, image_size=_IMAGE_SIZE)
        batches = [np.random.default_rng(seed).permutation(num_images) for seed in range(num_reads)]

        def read():
            for indices in batches:
                source.read(indices)

        def decode():
            for indices in batches:
                images = np.empty((num_images, _IMAGE_SIZE, _IMAGE_SIZE, 3), np.uint8)
                parts = np.array_split(np.arange(num_images), num_threads)

                def decode_part(rows, indices=indices, images=images):
                    for row in rows:
                        images[row] = _decoded(encoded[indices[row]])

                list(threads.map(decode_part, parts))

        seconds = alternate(
            {"read": timed(read), "decode": timed(decode)}, rounds=1 if options.quick else 9
        )
    examples = num_images * num_reads
    return [
        Row(
            "JPEG input, examples/s / bare decoding with the same threads",
            ratio(seconds["decode"], seconds["read"]),
            Target(at_least=0.8),
            note=(
                f"JPEGs of {_WIDTH}x{_HEIGHT} pixels in array_record, decoded, scaled and cut to "
                f"{_IMAGE_SIZE}x{_IMAGE_SIZE} on both sides, {num_threads} threads."
            ),
            beside={
                "source (examples/s)": examples / min(seconds["read"]),
                "decoding (examples/s)": examples / min(seconds["decode"]),
            },
        )
    ]


def _decoded(encoded: bytes) -> np.ndarray:
    return resize_and_crop(decode_image(encoded, 3), _IMAGE_SIZE)


def _jpegs(num_images: int) -> list[bytes]:
    """Smooth colours with some noise: files of about 90 kB, a little less than ImageNet's."""
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(num_images):
        coarse = rng.integers(0, 256, (20, 25, 3), np.uint8)
        image = cv2.resize(coarse, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_CUBIC)
        noisy = image.astype(np.int16) + rng.integers(-8, 9, image.shape, np.int16)
        image = noisy.clip(0, 255).astype(np.uint8)
        encoded.append(cv2.imencode(".jpg", image)[1].tobytes())
    return encoded


def _write(encoded: list[bytes], folder: Path) -> None:
    """Prepares the images as a tfds dataset in array_record."""
    tfds = import_tfds()

    class Photographs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Synthetic JPEGs."""

        name = _NAME
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            )
            return tfds.core.DatasetInfo(
                builder=self, features=features, supervised_keys=("image", "label")
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Any:
            for index, image in enumerate(encoded):
                yield index, {"image": image, "label": index % 10}

    builder = Photographs(data_dir=folder, file_format="array_record")
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(
            download_dir=folder / "downloads", download_config=config, file_format="array_record"
        )
