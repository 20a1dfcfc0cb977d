"""A source over a user's own encoded images, which are decoded as they are read."""

import hashlib
import json
import math

import numpy as np

from adabatch_jax.data.datasets.image_decoding import decode_picture, resize_and_crop
from adabatch_jax.data.datasets.own.image_index import ImageIndex
from adabatch_jax.data.datasets.own.records import Records
from adabatch_jax.data.parallel_reading import PartReader, checked_indices
from adabatch_jax.system.errors import ExampleError, UsageError


class OwnImages:
    """A source of "image" and "label" over encoded images.

    Args:
      records: the images.
      index: what is known of them.
      num_channels: 1 or 3, of the images that are returned.
      image_size: height and width to bring every image to, as in `tfds_source`.

    Attributes:
      image_shape: (height, width, channels) of every image that `read` returns.

    Raises:
      UsageError: the images differ in size and no `image_size` is given.
    """

    def __init__(
        self, records: Records, index: ImageIndex, num_channels: int, image_size: int | None
    ):
        self._records, self._index, self._image_size = records, index, image_size
        size = (image_size, image_size) if image_size else self._index.common_size
        if size is None:
            least, most = self._index.shapes.min(axis=0), self._index.shapes.max(axis=0)
            raise UsageError(
                f"the images of {records.of} differ in size (heights {least[0]} to {most[0]}, "
                f"widths {least[1]} to {most[1]}); give --data.image-size, such as 224."
            )
        self.image_shape = (*size, num_channels)
        self._parts = PartReader("own_images", math.prod(self.image_shape))

    def __len__(self) -> int:
        return len(self._records)

    def digest(self) -> str:
        """A digest of the images' bytes, of their labels and of how they are read."""
        content = [list(self._index.digests), self._records.labels.tolist(), self.image_shape]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Reads examples, in any order and also several times.

        Raises:
          IndexError: an index is out of range.
          ExampleError: an image can't be read or decoded, or isn't the one that was looked at.
        """
        indices = checked_indices(indices, len(self))
        images = np.empty((len(indices), *self.image_shape), np.uint8)

        def read_part(part: slice) -> None:
            for row, index in enumerate(indices[part].tolist(), start=part.start):
                images[row] = self._image(index)

        self._parts.read(len(indices), read_part)
        return {"image": images, "label": self._records.labels[indices]}

    def _image(self, index: int) -> np.ndarray:
        try:
            encoded = self._records.read(index)
            # What is kept of files is believed while sizes and times are the same: here it shows.
            if hashlib.sha256(encoded).hexdigest() != self._index.digests[index]:
                raise ValueError("it isn't what it was when this run, or one before, looked at it")
            image = decode_picture(encoded, self.image_shape[-1])
        except OSError as error:
            raise self._damaged(index, error.strerror or str(error)) from error
        except ValueError as error:
            raise self._damaged(index, str(error)) from error
        if self._image_size is not None:
            return resize_and_crop(image, self._image_size)
        return image

    def _damaged(self, index: int, reason: str) -> ExampleError:
        return ExampleError(
            f"example {index}, {self._records.places[index]}, can't be read ({reason}); put the "
            "image back, or touch it if it was meant to change."
        )
