"""Images with labels as they lie in a user's files: encoded, or as arrays."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from adabatch_jax.data.datasets.image_decoding import resize_and_crop
from adabatch_jax.data.datasets.own.image_index import ImageIndex
from adabatch_jax.system.errors import UsageError, one_line


@dataclasses.dataclass(frozen=True)
class Records:
    """Encoded images with labels.

    Attributes:
      of: what they are from, for errors, such as "./photos".
      places: what errors call each image: a path, or "row 17 of FILE".
      labels: int32, shape `(num_examples,)`.
      key: returns the bytes that decide, by its number, on which side of a share an image is.
      read: returns an image's bytes by its number, may raise an OSError.
      index: returns what is known of all images, and reads those that aren't known yet; `True`
        keeps what it learns of them.
    """

    of: str
    places: Sequence[str]
    labels: np.ndarray
    key: Callable[[int], bytes]
    read: Callable[[int], bytes]
    index: Callable[[bool], ImageIndex]

    def __len__(self) -> int:
        return len(self.labels)

    def share_keys(self) -> Iterable[bytes]:
        """What decides on which side of a share each is."""
        return map(self.key, range(len(self)))

    def take(self, rows: np.ndarray) -> "Records":
        """Some of the images."""
        numbers = rows.tolist()

        def index(keep: bool) -> ImageIndex:
            return self.index(keep).take(rows)

        return dataclasses.replace(
            self,
            places=[self.places[row] for row in numbers],
            labels=self.labels[rows],
            key=lambda number: self.key(numbers[number]),
            read=lambda number: self.read(numbers[number]),
            index=index,
        )


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Decoded images with labels: uint8 of shape `(n, height, width, channels)`, and int32."""

    of: str
    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def share_keys(self) -> Iterable[bytes]:
        """The images themselves: of equal ones all are on the same side."""
        return (image.tobytes() for image in self.images)

    def take(self, rows: np.ndarray) -> "Arrays":
        """Some of the images."""
        return dataclasses.replace(self, images=self.images[rows], labels=self.labels[rows])

    def resized(self, image_size: int | None) -> "Arrays":
        """The images brought to a height and width; None leaves them as they are."""
        if image_size is None or self.images.shape[1:3] == (image_size, image_size):
            return self
        images = np.stack([resize_and_crop(image, image_size) for image in self.images])
        return dataclasses.replace(self, images=images)


@dataclasses.dataclass(frozen=True)
class OwnData:
    """What a user's own files hold.

    Attributes:
      of: what they are, for errors.
      class_names: the name of each label.
      splits: the examples of each split, or all of them under "all" where there are no splits.
    """

    of: str
    class_names: tuple[str, ...]
    splits: dict[str, Records] | dict[str, Arrays]


def class_labels(labels: Any, of: str, what: str) -> np.ndarray:
    """Labels as int32; raises a UsageError unless they are whole numbers from 0 on.

    >>> class_labels([[0], [2], [1]], "data.npz", "y_train")
    array([0, 2, 1], dtype=int32)
    """
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise UsageError(
            f"{of}: {what} has the shape {labels.shape}; it must be a number per example, shape "
            "(n,)" + (", as by argmax(axis=1)." if labels.ndim == 2 else ".")
        )
    if labels.dtype.kind not in "iu":
        hints = {
            "f": f"give them as whole numbers, as by {what}.astype(int)",
            "U": f"number them, as by numpy.unique({what}, return_inverse=True)",
        }
        hint = hints.get(labels.dtype.kind, "give whole numbers from 0 on")
        raise UsageError(f"{of}: {what} holds labels of type {labels.dtype}; {hint}.")
    if labels.size and labels.min() < 0:
        raise UsageError(f"{of}: {what} holds the label {labels.min()}; labels begin with 0.")
    if labels.size and labels.max() >= 2**31:
        raise UsageError(f"{of}: {what} holds the label {labels.max()}, which no class can have.")
    return labels.astype(np.int32)


def named_labels(texts: Sequence[Any], of: str, what: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels and class names of a table's column: numbers as they are, texts sorted.

    >>> named_labels(["dog", "cat", "dog"], "photos.csv", "label")
    (array([1, 0, 1], dtype=int32), ('cat', 'dog'))
    >>> named_labels(["1", "0"], "photos.csv", "label")
    (array([1, 0], dtype=int32), ('0', '1'))
    """
    for row, text in enumerate(texts):
        if text is None or text == "":
            raise UsageError(f"{of}: {what} is empty in row {row + 1}; each image needs a label.")
    is_text = [isinstance(text, str) for text in texts]
    if all(is_text) and not all(map(_is_number, texts)):
        names = tuple(sorted(set(texts)))
        places = {name: label for label, name in enumerate(names)}
        return np.array([places[text] for text in texts], np.int32), names
    try:
        numbers = np.array([int(text) for text in texts]) if any(is_text) else np.array(texts)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{of}: {what} can't be read ({one_line(error)}).") from None
    return class_labels(numbers, of, what), number_names(numbers)


def number_names(labels: np.ndarray) -> tuple[str, ...]:
    """Class names of labels that have none."""
    return tuple(map(str, range(int(labels.max(initial=-1)) + 1)))


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
