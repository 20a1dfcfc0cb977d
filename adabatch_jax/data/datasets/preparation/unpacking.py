"""Unpacking in memory, up to a size that is known before."""

import gzip
import io
import zlib

from adabatch_jax.system.errors import StorageError

# The largest of the originals, CIFAR's, unpack to 184 MB.
MAX_UNPACKED_BYTES = 2**29


def gunzipped(name: str, data: bytes, max_bytes: int | None = None) -> bytes:
    """Returns what a gzip file holds; a bomb is given up once it has reached its limit.

    Args:
      name: the file's name, for errors.
      data: its bytes.
      max_bytes: the limit; by default `MAX_UNPACKED_BYTES`.

    Raises:
      StorageError: it isn't a whole gzip file, or holds more.

    >>> gunzipped("bomb.gz", gzip.compress(bytes(1_000_000)), max_bytes=1000)
    Traceback (most recent call last):
    adabatch_jax.system.errors.StorageError: bomb.gz is no original: it unpacks to more than 1,000 bytes.
    """
    max_bytes = MAX_UNPACKED_BYTES if max_bytes is None else max_bytes
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            unpacked = file.read(max_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise StorageError(f"{name} is not a whole gzip file ({error}).") from error
    if len(unpacked) > max_bytes:
        raise StorageError(f"{name} is no original: it unpacks to more than {max_bytes:,} bytes.")
    return unpacked
