"""The examples of a configured run: a prepared dataset's splits, or a user's own data."""

import dataclasses
import itertools
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adabatch_jax.config.own_functions import is_reference
from adabatch_jax.config.settings import DataSettings, TrainConfig
from adabatch_jax.config.value_texts import is_text, parse_channels
from adabatch_jax.data.datasets.known_datasets import DatasetSpec, dataset_spec
from adabatch_jax.data.datasets.own.opening import open_own, own_path
from adabatch_jax.data.datasets.own.records import Arrays, Records
from adabatch_jax.data.datasets.own.shares import DEFAULT_SHARE, chosen_splits, has_eval_split
from adabatch_jax.data.datasets.prepared_folders import is_prepared
from adabatch_jax.data.example_reading import SourceReader
from adabatch_jax.data.own_images import OwnImages
from adabatch_jax.data.own_sources import known_classes, sources_of_function
from adabatch_jax.data.pixel_statistics import pixel_statistics
from adabatch_jax.data.sources import ArraySource, Source, array_source, in_memory
from adabatch_jax.data.tfds_images import TfdsSource, tfds_source
from adabatch_jax.data.tokens.texts import open_text
from adabatch_jax.data.tokens.token_source import TokenSource
from adabatch_jax.data.tokens.tokenizers import AnyTokenizer
from adabatch_jax.runs.same_data import check_data, check_tokenizer, data_digests, differing_sources
from adabatch_jax.system.errors import UsageError

# A decoded dataset below this is kept in memory.
_MEMORY_LIMIT_BYTES = 2 * 2**30


@dataclasses.dataclass(frozen=True)
class ConfiguredData:
    """A run's examples, opened.

    Attributes:
      train: those to train on.
      evals: those to evaluate on, by name.
      spec: what is known of them without reading any; `mean` and `std` are () where they have to
        be computed.
      notes: a line for each thing to tell about them.
      tokenizer: what a text was made tokens by; None where that isn't known.
    """

    train: Source
    evals: dict[str, Source]
    spec: DatasetSpec
    notes: tuple[str, ...] = ()
    tokenizer: AnyTokenizer | None = None

    def in_memory(self) -> "ConfiguredData":
        """The same examples, decoded and in memory where they are few."""

        def read(source: Source) -> Source:
            if not isinstance(source, TfdsSource | OwnImages):
                return source
            num_bytes = len(source) * math.prod(source.image_shape)
            return in_memory(source) if num_bytes < _MEMORY_LIMIT_BYTES else source

        evals = {name: read(source) for name, source in self.evals.items()}
        return dataclasses.replace(self, train=read(self.train), evals=evals)

    def with_statistics(self, settings: DataSettings) -> "ConfiguredData":
        """The same with mean and standard deviation: those given, else the training images'."""
        mean, std, shape = self.spec.mean, self.spec.std, self.spec.image_shape
        given = (settings.mean, settings.std)
        if shape is not None and not mean and None in given and _are_pixels(self.train):
            mean, std = pixel_statistics(self.train)
        if shape is not None:
            mean = _per_channel("mean", settings.mean, mean, shape[-1])
            std = _per_channel("std", settings.std, std, shape[-1])
        return dataclasses.replace(self, spec=dataclasses.replace(self.spec, mean=mean, std=std))

    def check_evaluated(self) -> None:
        """Looks at a user's own sources, before a network of images is trained on them.

        Raises:
          UsageError: what it is to be evaluated on differs from what it is trained on, or a label
            is no class.
        """
        trained = SourceReader(self.train).example()
        for name, source in {"train": self.train, **self.evals}.items():
            returned = f"dataset: {self.spec.name} returns as {name!r}"
            example = SourceReader(source).example()
            for array in ("image", "label"):
                if array not in example:
                    raise UsageError(f"{returned} examples without {array!r}, which training has.")
            if (given := _kind(example["image"])) != (wanted := _kind(trained["image"])):
                raise UsageError(
                    f"dataset: the {name!r} images of {self.spec.name} are {given}, and those to "
                    f"train on {wanted}."
                )
            labels = source.arrays["label"] if isinstance(source, ArraySource) else example["label"]
            if labels.dtype.kind not in "iu":
                raise UsageError(f"{returned} labels of type {labels.dtype}, not whole numbers.")
            wrong = np.flatnonzero((labels < 0) | (labels >= self.spec.num_classes))
            if len(wrong):
                raise UsageError(
                    f"{returned} the label {labels.flat[wrong[0]]}, of example {wrong[0]}, and "
                    f"there are {self.spec.num_classes} classes, from 0 on."
                )


def open_data(config: TrainConfig, keep: bool = True) -> ConfiguredData:
    """Opens what `--dataset` says; none is read yet, but images that were never looked at.

    `keep` is whether what is found out of these is kept, in the user's own folder.

    Raises:
      UsageError: there is no such dataset, or something in it can't work; each has its sentence.
      StorageError: files can't be read.
    """
    if is_reference(config.dataset):
        return _of_function(config)
    if is_text(config.dataset):
        return _of_text(config)
    path = own_path(config.dataset, config.data.dir)
    return _of_files(config, path, keep) if path is not None else _of_tfds(config)


def describe_data(config: TrainConfig) -> DatasetSpec:
    """What is known of a run's dataset, for a plan; a registered one's examples aren't touched."""
    spec = None if is_own(config) else dataset_spec(config.dataset, config.data.dir)
    if spec is not None and spec.mean:
        size = config.data.image_size
        if size is not None:
            channels = 3 if spec.image_shape is None else spec.image_shape[-1]
            spec = dataclasses.replace(spec, image_shape=(size, size, channels))
        return spec
    return open_data(config).with_statistics(config.data).spec


def num_training_examples(config: TrainConfig) -> int:
    """How many examples an epoch has; of own files none is opened."""
    if is_reference(config.dataset):
        return len(sources_of_function(config.dataset, config.data)["train"])
    if is_text(config.dataset):
        return len(open_data(config).train)
    path = own_path(config.dataset, config.data.dir)
    if path is None:
        return dataset_spec(config.dataset, config.data.dir).num_examples
    return len(chosen_splits(open_own(config.dataset, path), config.data)["train"])


def is_own(config: TrainConfig) -> bool:
    """Whether the dataset is a user's own: a function, a text, or a file or folder."""
    if is_reference(config.dataset) or is_text(config.dataset):
        return True
    return own_path(config.dataset, config.data.dir) is not None


def _of_tfds(config: TrainConfig) -> ConfiguredData:
    spec = dataset_spec(config.dataset, config.data.dir)

    def source(split: str) -> TfdsSource:
        return tfds_source(config.dataset, split, config.data.dir, config.data.image_size)

    evals = {"test": config.data.test_split or spec.test_split}
    if config.data.holdout_split is not None:
        evals["holdout"] = config.data.holdout_split
    train = source(config.data.train_split or "train")
    sources = {name: source(split) for name, split in evals.items()}
    changed = [images.changed_files() for images in (train, *sources.values())]
    notes = tuple(f"warning: {text}" for text in dict.fromkeys(itertools.chain(*changed)))
    facts = {"num_examples": len(train), "image_shape": train.image_shape}
    spec = dataclasses.replace(spec, **facts, class_names=train.class_names)
    return ConfiguredData(train, sources, spec, notes)


def _of_files(config: TrainConfig, path: Path, keep: bool) -> ConfiguredData:
    data = open_own(config.dataset, path)
    parts = chosen_splits(data, config.data)
    sources = _sources(parts, config.data.image_size, keep)
    train = sources.pop("train")
    shape = train.read(np.zeros(1, np.int64))["image"].shape[1:]
    spec = DatasetSpec(
        config.dataset, len(data.class_names), shape, "test", len(train), (), (), data.class_names
    )
    notes = ()
    if config.data.test_split is None and not has_eval_split(data):
        notes = (
            f"note: {data.of} has no test split: {len(sources['test']):,} of its images, about "
            f"{DEFAULT_SHARE}, are kept out to evaluate on (--data.test-split)",
        )
    return ConfiguredData(train, sources, spec, notes)


def _sources(
    parts: Mapping[str, Records | Arrays], image_size: int | None, keep: bool
) -> dict[str, Source]:
    if all(isinstance(part, Arrays) for part in parts.values()):
        decoded = {name: part.resized(image_size) for name, part in parts.items()}
        return {
            name: array_source({"image": part.images, "label": part.labels})
            for name, part in decoded.items()
        }
    # Grey stays one channel where all images are: those that are evaluated on too.
    indexes = {name: part.index(keep) for name, part in parts.items()}
    is_grey = all((index.shapes[:, 2] == 1).all() for index in indexes.values())
    num_channels = 1 if is_grey else 3
    sources = {
        name: OwnImages(part, indexes[name], num_channels, image_size)
        for name, part in parts.items()
    }
    shapes = {name: source.image_shape[:2] for name, source in sources.items()}
    if len(set(shapes.values())) > 1:
        raise UsageError(
            f"the images differ in size from split to split ({shapes}); give --data.image-size, "
            "such as 224."
        )
    return sources


def _of_text(config: TrainConfig) -> ConfiguredData:
    settings, length = config.data, config.sequence_length
    text = open_text(config.dataset, settings, length)
    documents, end = settings.documents or "joined", text.spec.end_of_document
    if (
        documents != "joined"
        and end is None
        and any(t.starts is None for t in text.tokens.values())
    ):
        raise UsageError(
            f"data.documents: {config.dataset} doesn't say where its documents end; give the "
            "--data.tokenizer that made it, whose end of text stands between them, or join them."
        )
    vocabulary_size = settings.vocabulary_size or text.vocabulary_size
    sources = {
        name: TokenSource(tokens, length, documents, end, vocabulary_size)
        for name, tokens in text.tokens.items()
    }
    train = sources.pop("train")
    spec = DatasetSpec(
        config.dataset, vocabulary_size, None, "test", len(train), (), (), text=text.spec
    )
    return ConfiguredData(train, sources, spec, text.notes, text.tokenizer)


def _of_function(config: TrainConfig) -> ConfiguredData:
    if config.data.image_size is not None:
        raise UsageError(
            f"data.image_size: {config.dataset} returns sources, which bring their images to a size "
            "themselves."
        )
    sources = sources_of_function(config.dataset, config.data)
    train = sources.pop("train")
    image = SourceReader(train).example().get("image")
    shape = getattr(train, "image_shape", None if image is None else image.shape[1:])
    num_classes = known_classes(train)
    names = getattr(train, "class_names", None)
    if names is None and num_classes is not None:
        names = map(str, range(num_classes))
    spec = DatasetSpec(
        config.dataset, num_classes, shape and tuple(shape), "test", len(train),
        tuple(getattr(train, "mean", ())), tuple(getattr(train, "std", ())),
        names and tuple(names), "uint8" if image is None else str(image.dtype),
    )  # fmt: skip
    return ConfiguredData(train, sources, spec)


def _kind(images: np.ndarray) -> str:
    return f"{images.dtype}, {'x'.join(map(str, images.shape[1:]))}"


def _are_pixels(source: Source) -> bool:
    image = SourceReader(source).example().get("image")
    return image is not None and image.dtype == np.uint8 and image.ndim == 4


def _per_channel(
    name: str, given: str | None, own: tuple[float, ...], channels: int
) -> tuple[float, ...]:
    if given is None:
        return own
    values = parse_channels(given)
    if len(values) not in (1, channels):
        raise UsageError(
            f"data.{name}: {len(values)} numbers were given, and the images have {channels} "
            f"channel{'s'[: channels > 1]}."
        )
    return values * channels if len(values) == 1 else values


def check_prepared_data(
    config: TrainConfig,
    run: Mapping[str, Any] | None,
    workdir: Path,
    allow_change: Collection[str] = (),
) -> None:
    """`check_data` of a configured run, where nothing is to be trained or written.

    Without a checkpoint's own values, or where the dataset isn't there, nothing is compared; and
    nothing of a user's own function, which isn't called for this.
    """
    if run is None or is_reference(config.dataset):
        return
    if not is_own(config) and not is_prepared(config.dataset, config.data.dir):
        return
    data = open_data(config, keep=False)
    check_tokenizer(run, data.spec.text, workdir)
    for source in (data.train, *data.evals.values()):
        if isinstance(source, TfdsSource):
            source.digest(keep=False)
    # Other files may hold the same examples: then they are read.
    if differing_sources(run, data_digests(data.train, data.evals)):
        data = data.in_memory()
        check_data(run, data_digests(data.train, data.evals), workdir, allow_change)
