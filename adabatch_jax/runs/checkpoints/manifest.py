"""The manifest of a checkpoint: its own values and the digests of all else; standard library only.

A checkpoint is a folder `<step>/` with the arrays in the folder `state/`, in folders of each
process that saved some, and the file `manifest`: one line with the sha256 of all that follows in it,
and then JSON. `state/` holds what the manifest lists and nothing else; what lies beside them is never
read, so it can't do harm.
"""

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from adabatch_jax.system.files import storage_errors

MANIFEST = "manifest"
STATE = "state"
# Orbax writes it when it is done, and reads it on no file system with an atomic rename.
_UNUSED = "commit_success.txt"
_LARGEST_MANIFEST = 2**26  # bytes; that of 157 arrays has 2**14


class Damaged(Exception):
    """A checkpoint that must not be used; the message is the reason, in one clause.

    Only what was read and isn't what was saved is damage. What can't be read now, for whatever
    reason the system has, may be sound: that is a StorageError.
    """


class Part(NamedTuple):
    """Where a part of an array is saved, mostly all of it.

    Attributes:
      sha256: of its dtype, shape and values.
      path: below the checkpoint: of all of an array Orbax's folder, else the file of its values.
    """

    sha256: str
    path: str


class SavedArray(NamedTuple):
    """An array as a checkpoint holds it.

    Attributes:
      description: its dtype and shape.
      parts: what it is made of, by the place in it; one, "", where that is all of it.
    """

    description: str
    parts: Mapping[str, Part]


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint must hold.

    Attributes:
      run: the run's own values, from JSON.
      arrays: what is saved of each array, by its name.
      files: size in bytes and sha256 of each file, by its path below the checkpoint.
    """

    run: Mapping[str, Any]
    arrays: Mapping[str, SavedArray]
    files: Mapping[str, tuple[int, str]]


def written_files(checkpoint: Path, folder: str = STATE) -> dict[str, tuple[int, str]]:
    """Size and sha256 of the files in a folder that was just written, which then are on the disk."""
    files = {}
    for path in _listed_files(checkpoint, folder):
        with open(checkpoint / path, "rb") as content:
            os.fsync(content.fileno())  # not all who write them do
            digest = hashlib.file_digest(content, "sha256").hexdigest()
            files[path] = (os.fstat(content.fileno()).st_size, digest)
    return files


def write_manifest(
    checkpoint: Path,
    run: Mapping[str, Any],
    arrays: Mapping[str, SavedArray],
    files: Mapping[str, tuple[int, str]] | None = None,
) -> None:
    """Completes a checkpoint by its manifest, when all files are there; None: see for yourself."""
    files = written_files(checkpoint) if files is None else files
    body = {"run": dict(run), "arrays": dict(arrays), "files": dict(files)}
    text = json.dumps(body, sort_keys=True).encode()
    with open(checkpoint / MANIFEST, "wb") as manifest:
        manifest.write(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
        manifest.flush()
        os.fsync(manifest.fileno())


def read_manifest(checkpoint: Path) -> Manifest:
    """Reads a checkpoint's manifest.

    Raises:
      Damaged: there is none, or it was changed.
      StorageError: it can't be read.
    """
    digest, _, text = _content(checkpoint).partition(b"\n")
    if digest != hashlib.sha256(text).hexdigest().encode():
        raise Damaged(f"{MANIFEST} was changed")
    try:
        body = json.loads(text)
        return Manifest(
            run=dict(body["run"]),
            arrays={str(name): _saved_array(*array) for name, array in body["arrays"].items()},
            files={str(path): (int(size), str(sha)) for path, (size, sha) in body["files"].items()},
        )
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise Damaged(f"{MANIFEST} isn't one of this program's") from None


def check_files(checkpoint: Path, manifest: Manifest) -> None:
    """Raises `Damaged` where a file is missing, changed, or too many.

    A StorageError says that one can't be read.
    """
    there = set(_listed_files(checkpoint))
    for path in sorted(manifest.files.keys() - there):
        raise Damaged(f"{path} is missing")
    for path in sorted(there - manifest.files.keys()):
        raise Damaged(f"{path} doesn't belong to it")
    for path, (num_bytes, sha256) in sorted(manifest.files.items()):
        with _reading(checkpoint, path), open(checkpoint / path, "rb") as file:
            found_bytes = os.fstat(file.fileno()).st_size
            if found_bytes != num_bytes:
                raise Damaged(f"{path} has {found_bytes:,} bytes instead of {num_bytes:,}")
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise Damaged(f"{path} was changed")


def _saved_array(description: Any, parts: Mapping[str, Any]) -> SavedArray:
    read = {str(place): Part(str(sha), str(path)) for place, (sha, path) in parts.items()}
    return SavedArray(str(description), read)


def _content(checkpoint: Path) -> bytes:
    """The manifest's bytes, if it is no link or device and of no absurd size."""
    with _reading(checkpoint, MANIFEST):
        status = os.lstat(checkpoint / MANIFEST)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST_MANIFEST:
            raise Damaged(f"{MANIFEST} isn't one of this program's")
        return (checkpoint / MANIFEST).read_bytes()


def _listed_files(checkpoint: Path, folder: str = STATE) -> Iterator[str]:
    """The paths of the files in a folder; raises `Damaged` where one is a link or a device."""
    folders = [folder]
    while folders:
        folder = folders.pop()
        with _reading(checkpoint, folder):
            if not stat.S_ISDIR(os.lstat(checkpoint / folder).st_mode):
                raise Damaged(f"{folder} is no folder")
            names = sorted(os.listdir(checkpoint / folder))
        for path in (f"{folder}/{name}" for name in names if name != _UNUSED):
            with _reading(checkpoint, path):
                mode = os.lstat(checkpoint / path).st_mode
            if stat.S_ISDIR(mode):
                folders.append(path)
            elif stat.S_ISREG(mode):
                yield path
            else:
                raise Damaged(f"{path} is no regular file")


@contextlib.contextmanager
def _reading(checkpoint: Path, path: str) -> Iterator[None]:
    """Turns errors into `Damaged` where something is missing, else into a StorageError."""
    with storage_errors(checkpoint / path, action="read"):
        try:
            yield
        except FileNotFoundError as error:
            os.lstat(checkpoint)  # if that is gone as well, nothing is known of what it held
            raise Damaged(f"{path} is missing") from error
