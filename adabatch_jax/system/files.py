"""Reading and writing files of a run directory: whole or not at all, errors in one sentence."""

import contextlib
import errno
import functools
import hashlib
import json
import operator
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adabatch_jax.system.errors import NotAsWritten, StorageError

# A folder, a link to itself or a socket where a file belongs; a file where a folder does.
_IN_THE_WAY = (errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENOTDIR)


@contextlib.contextmanager
def storage_errors(path: os.PathLike | str, action: str = "write") -> Iterator[None]:
    """Turns an `OSError` inside the block into a `StorageError` that names the file.

    >>> with storage_errors("run", action="read"):
    ...     open("/no/such/file")
    Traceback (most recent call last):
    adabatch_jax.system.errors.StorageError: cannot read /no/such/file: No such file or directory.
    """
    try:
        yield
    except OSError as error:
        where = error.filename if error.filename is not None else path
        reason = error.strerror or str(error)
        if error.errno in _IN_THE_WAY:
            where = error.filename2 or where  # what was to be replaced
            reason = f"{reason}; move it away"
        elif os.fspath(where) == os.fspath(temporary_path(Path(path))):
            where = path  # whose name a reader knows
        raise StorageError(f"cannot {action} {os.fspath(where)}: {reason}.") from error


def open_flags(*names: str) -> int:
    """Flags for `os.open`, of which a system may not have all.

    >>> open_flags("O_NONBLOCK", "O_NO_SUCH_FLAG") == open_flags("O_NONBLOCK")
    True
    """
    return functools.reduce(operator.or_, (getattr(os, name, 0) for name in names))


def read_file(path: Path) -> bytes:
    """Reads a file, and nothing that would never end: an OSError, such as for a pipe of that name.

    >>> read_file(Path("/dev/zero"))
    Traceback (most recent call last):
    OSError: [Errno 22] not a regular file; move it away: '/dev/zero'
    """
    # Else to open a pipe waits for somebody who writes.
    no_wait = open_flags("O_NONBLOCK", "O_BINARY")
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | no_wait)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file; move it away", os.fspath(path))
        return file.read()


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces `path` with `content`; a reader or a crash sees the old file or the new one."""
    temporary = temporary_path(path)
    with storage_errors(path):
        temporary.unlink(missing_ok=True)  # left of a kill; a link would lead elsewhere
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk: a loss of power can't undo them."""
    if not hasattr(os, "O_DIRECTORY"):
        return  # where folders can't be opened
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that can't, or needn't
            raise
    finally:
        os.close(fd)


def temporary_path(path: Path) -> Path:
    """Where the new content of a file is written before it takes the file's name."""
    return path.with_name(f".{path.name}.tmp")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON object so that a reader sees the old file or the new one."""
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False).encode() + b"\n")


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON object with a digest of all else in it, which `read_sealed` looks at."""
    write_json(path, {**content, "digest": _digest_of(content)})


def read_sealed(path: Path) -> dict[str, Any] | None:
    """Reads what `write_sealed` wrote; None where there is no such file.

    Raises a NotAsWritten where it holds something else, a StorageError where it can't be read.
    """
    if not os.path.lexists(path):
        return None
    with storage_errors(path, action="read"):
        if not path.is_file():
            raise NotAsWritten(f"{path} is damaged: not a regular file.")
        text = read_file(path)
    try:
        content = json.loads(text)
        digest = content.pop("digest")
        if digest == _digest_of(content):
            return content
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass  # not even of this kind
    raise NotAsWritten(f"{path} is damaged: it isn't what the run wrote.")


def _digest_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def existing_folder(path: Path) -> Path:
    """The path, or where it doesn't exist the nearest folder above it that does."""
    path = path.absolute()
    return next((folder for folder in (path, *path.parents) if folder.is_dir()), path)


def free_bytes(path: Path) -> int:
    """The bytes that this user may still write on the disk of `path`, which need not exist yet."""
    with storage_errors(path, action="read"):
        return shutil.disk_usage(existing_folder(path)).free
