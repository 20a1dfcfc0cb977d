"""The examples of a configured run: a prepared dataset's splits."""

import itertools
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from adabatch_jax.config.settings import TrainConfig
from adabatch_jax.data.datasets.known_datasets import DatasetSpec, dataset_spec
from adabatch_jax.data.datasets.prepared_folders import is_prepared
from adabatch_jax.data.sources import Source, in_memory
from adabatch_jax.data.tfds_images import TfdsSource, tfds_source
from adabatch_jax.runs.same_data import check_data, data_digests, differing_sources

# A decoded dataset below this is kept in memory.
_MEMORY_LIMIT_BYTES = 2 * 2**30


def open_splits(config: TrainConfig, spec: DatasetSpec) -> tuple[TfdsSource, dict[str, TfdsSource]]:
    """The training examples, and by name those to evaluate on; none is read yet."""

    def source(split: str) -> TfdsSource:
        return tfds_source(config.dataset, split, config.data.dir, config.data.image_size)

    eval_splits = {"test": config.data.test_split or spec.test_split}
    if config.data.holdout_split is not None:
        eval_splits["holdout"] = config.data.holdout_split
    train_images = source(config.data.train_split or "train")
    return train_images, {name: source(split) for name, split in eval_splits.items()}


def warnings_of_files(train_images: TfdsSource, eval_images: Mapping[str, TfdsSource]) -> list[str]:
    """A line for each file that isn't what was prepared."""
    changed = [images.changed_files() for images in (train_images, *eval_images.values())]
    return [f"warning: {text}" for text in dict.fromkeys(itertools.chain(*changed))]


def read_what_fits(
    train_images: TfdsSource, eval_images: Mapping[str, TfdsSource]
) -> tuple[Source, dict[str, Source]]:
    """The same examples, in memory where they are few."""

    def read(images: TfdsSource) -> Source:
        num_bytes = len(images) * math.prod(images.image_shape)
        return in_memory(images) if num_bytes < _MEMORY_LIMIT_BYTES else images

    return read(train_images), {name: read(images) for name, images in eval_images.items()}


def check_prepared_data(
    config: TrainConfig,
    run: Mapping[str, Any] | None,
    workdir: Path,
    allow_change: Collection[str] = (),
) -> None:
    """`check_data` of a configured run, where nothing is to be trained or written.

    Without a checkpoint's own values, or where the dataset isn't prepared, nothing is compared.
    """
    if run is None or not is_prepared(config.dataset, config.data.dir):
        return
    train_images, eval_images = open_splits(config, dataset_spec(config.dataset, config.data.dir))
    for images in (train_images, *eval_images.values()):
        images.digest(keep=False)
    # Other files may hold the same examples: then they are read.
    if differing_sources(run, data_digests(train_images, eval_images)):
        now = data_digests(*read_what_fits(train_images, eval_images))
        check_data(run, now, workdir, allow_change)
