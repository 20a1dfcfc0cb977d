"""What is known of encoded images: the sha256 of each, and its size; kept, so it's read once."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from adabatch_jax.data.datasets import kept_facts
from adabatch_jax.data.datasets.image_decoding import decode_picture
from adabatch_jax.data.datasets.prepared_folders import user_folder
from adabatch_jax.system.errors import UsageError

_NUM_NAMED = 20  # of the images that can't be read
_IMAGES_PER_TASK = 64

Entry = tuple[str, int, int, int]  # sha256, height, width, channels


@dataclasses.dataclass(frozen=True)
class ImageIndex:
    """What is known of images that were all decoded once.

    Attributes:
      digests: the sha256 of each image's bytes.
      shapes: int32, shape `(num_images, 3)`: heights, widths (as it is turned), channels (1 or 3).
    """

    digests: Sequence[str]
    shapes: np.ndarray

    def take(self, rows: np.ndarray) -> "ImageIndex":
        """What is known of some of them."""
        return ImageIndex([self.digests[row] for row in rows.tolist()], self.shapes[rows])

    @property
    def common_size(self) -> tuple[int, int] | None:
        """Height and width of all images, or None where they differ."""
        sizes = np.unique(self.shapes[:, :2], axis=0)
        return (int(sizes[0, 0]), int(sizes[0, 1])) if len(sizes) == 1 else None


def index_of_images(
    read: Callable[[int], bytes],
    places: Sequence[str],
    of: str,
    kept_as: str,
    facts: Sequence[Sequence[Any]],
    keep: bool,
) -> ImageIndex:
    """What is known of images; those that aren't known are decoded, in parallel.

    What is known is kept in the user's own folder. What is kept of an image is believed while its
    facts are the same; whoever reads the image compares its sha256.

    Args:
      read: returns an image's bytes by its number.
      places: what each image is called, all different.
      of: what they are from, for errors.
      kept_as: what they are kept under.
      facts: of each image what changes with it, as JSON values: a file's size and time.
      keep: whether to keep what is found out here.

    Raises:
      UsageError: images that can't be read, each named, up to some number.
    """
    path = _kept_index(kept_as)
    known = (kept_facts.read_kept(path) or {"images": {}})["images"]
    entries = [known.get(place, ((), None)) for place in places]
    found: list[Entry | None] = [
        tuple(entry) if tuple(before) == tuple(now) else None
        for (before, entry), now in zip(entries, facts, strict=True)
    ]
    missing = [number for number, entry in enumerate(found) if entry is None]
    problems = _examine(read, missing, found)
    if missing and keep:
        kept = {
            place: [list(fact), list(entry)]
            for place, fact, entry in zip(places, facts, found, strict=True)
            if entry is not None
        }
        kept_facts.keep(path, {"of": of, "images": kept})
    if problems:
        raise UsageError(_problems_text(of, [(places[n], text) for n, text in problems]))
    shapes = np.array([entry[1:] for entry in found], np.int32).reshape(-1, 3)
    return ImageIndex([entry[0] for entry in found], shapes)


def _kept_index(kept_as: str) -> Path:
    """The file in which an index is kept."""
    name = hashlib.sha256(kept_as.encode(errors="surrogateescape")).hexdigest()[:24]
    return user_folder() / "indexes" / f"{name}.json"


def examined(encoded: bytes) -> Entry:
    """What is known of one image; a ValueError that says why where it can't be decoded."""
    image = decode_picture(encoded)
    return (hashlib.sha256(encoded).hexdigest(), *image.shape)


def _examine(
    read: Callable[[int], bytes], numbers: Sequence[int], found: list[Entry | None]
) -> list[tuple[int, str]]:
    """Decodes images and puts what is known of them in place; returns why some can't be."""
    problems = []

    def look_at(start: int) -> None:
        for number in numbers[start : start + _IMAGES_PER_TASK]:
            try:
                found[number] = examined(read(number))
            except OSError as error:
                problems.append((number, error.strerror or str(error)))
            except ValueError as error:
                problems.append((number, str(error)))

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(look_at, range(0, len(numbers), _IMAGES_PER_TASK)))
    return sorted(problems)


def _problems_text(of: str, problems: Sequence[tuple[str, str]]) -> str:
    named = [f"{place} ({text})" for place, text in problems[:_NUM_NAMED]]
    more = len(problems) - len(named)
    rest = f" and {more:,} more" if more else ""
    what = "image of" if len(problems) == 1 else "images of"
    return (
        f"{len(problems):,} {what} {of} can't be read: {', '.join(named)}{rest}; mend, replace or "
        "remove what is damaged."
    )
