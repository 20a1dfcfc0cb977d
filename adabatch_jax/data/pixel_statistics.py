"""Mean and standard deviation of training images, by which they are normalised."""

from pathlib import Path

import numpy as np

from adabatch_jax.data.datasets import kept_facts
from adabatch_jax.data.datasets.prepared_folders import user_folder
from adabatch_jax.data.example_reading import SourceReader
from adabatch_jax.data.own_images import OwnImages
from adabatch_jax.data.sources import ArraySource, Source
from adabatch_jax.data.tfds_images import TfdsSource

_NUM_IMAGES = 10_000
_NUM_AT_ONCE = 512

Channels = tuple[float, ...]


def pixel_statistics(source: Source) -> tuple[Channels, Channels]:
    """Mean and standard deviation of each channel, of pixels in 0..1, rounded to four digits.

    Of up to 10,000 images, evenly spread: every n-th, n = ceil(number / 10,000). The sums are
    exact, so they don't depend on the order of the arithmetic. A channel that is constant has the
    deviation 1. Of files on disk the result is kept in the user's own folder, under their digest.

    >>> from adabatch_jax.data.sources import array_source
    >>> images = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)
    >>> pixel_statistics(array_source({"image": images}))
    ((0.5,), (0.5,))
    """
    path = _kept(source)
    if path is not None and (content := kept_facts.read_kept(path)) is not None:
        return tuple(content["mean"]), tuple(content["std"])
    mean, std = _statistics(source)
    if path is not None:
        kept_facts.keep(path, {"mean": mean, "std": std})
    return mean, std


def _statistics(source: Source) -> tuple[Channels, Channels]:
    chosen = np.arange(0, len(source), -(-len(source) // _NUM_IMAGES))
    reader = SourceReader(source)
    counts: np.ndarray | int = 0  # of each value, by channel
    for start in range(0, len(chosen), _NUM_AT_ONCE):
        images = reader.read(chosen[start : start + _NUM_AT_ONCE])["image"]
        channels = np.moveaxis(images, -1, 0)
        counts = counts + np.stack([np.bincount(c.ravel(), minlength=256) for c in channels])
    values, number = np.arange(256), counts.sum(axis=1)
    sums, squares = counts @ values, counts @ values**2
    mean = sums / number / 255
    # The difference of whole numbers, so that nothing is lost where the deviation is small.
    deviations = [
        (int(n) * int(square) - int(s) ** 2) ** 0.5 / int(n) / 255
        for n, s, square in zip(number, sums, squares, strict=True)
    ]
    return (
        tuple(round(float(value), 4) for value in mean),
        tuple(round(value, 4) or 1.0 for value in deviations),
    )


def _kept(source: Source) -> Path | None:
    """Where the statistics of files are kept; of arrays they are computed as fast."""
    files = source.read_from if isinstance(source, ArraySource) else source
    if not isinstance(files, OwnImages | TfdsSource):
        return None
    return user_folder() / "statistics" / f"{files.digest()[:32]}.json"
