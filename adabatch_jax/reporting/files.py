"""Writing files of a run directory: whole or not at all, and disk errors in one sentence."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adabatch_jax.errors import StorageError


@contextlib.contextmanager
def storage_errors(path: os.PathLike | str, action: str = "write") -> Iterator[None]:
    """Turns an `OSError` inside the block into a `StorageError` that names the file.

    >>> with storage_errors("run", action="read"):
    ...     open("/no/such/file")
    Traceback (most recent call last):
    adabatch_jax.errors.StorageError: cannot read /no/such/file: No such file or directory.
    """
    try:
        yield
    except OSError as error:
        where = error.filename if error.filename is not None else path
        reason = error.strerror or str(error)
        raise StorageError(f"cannot {action} {os.fspath(where)}: {reason}.") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces `path` with `content`; a reader or a crash sees the old file or the new one.

    Raises:
      StorageError: the folder is not writable or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with storage_errors(path):
        temporary.unlink(missing_ok=True)  # left of a kill; a link would lead elsewhere
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON object so that a reader sees the old file or the new one."""
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False).encode() + b"\n")


def existing_folder(path: Path) -> Path:
    """The path, or where it doesn't exist the nearest folder above it that does."""
    path = path.absolute()
    return next((folder for folder in (path, *path.parents) if folder.is_dir()), path)


def free_bytes(path: Path) -> int:
    """The bytes that this user may still write on the disk of `path`, which need not exist yet.

    Raises:
      StorageError: the disk doesn't say.
    """
    with storage_errors(path, action="read"):
        return shutil.disk_usage(existing_folder(path)).free
