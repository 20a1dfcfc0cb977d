"""The manifest of a checkpoint: digests of its files and of its arrays; standard library only.

A checkpoint is a folder `<step>/` with the folders `state/` (arrays), `run/` (JSON) and
`digests/`, whose file `manifest` is one line with the sha256 of all that follows in it, and then
JSON. `state/` and `run/` hold what the manifest lists and nothing else; what lies beside them is
never read, so it can't do harm.
"""

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "digests/manifest"
RUN = "run/metadata"
LISTED = ("run", "state")
# Orbax writes it when it is done, and reads it on no file system with an atomic rename.
_UNUSED = "commit_success.txt"
_LARGEST_MANIFEST = 2**26  # bytes; that of 157 arrays has 2**14


class Damaged(Exception):
    """A checkpoint that must not be used; the message is the reason, in one clause."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint must hold.

    Attributes:
      files: size in bytes and sha256 of each file, by its path below the checkpoint.
      arrays: sha256 of each array, by its name.
    """

    files: Mapping[str, tuple[int, str]]
    arrays: Mapping[str, str]


def write_manifest(checkpoint: Path, arrays: Mapping[str, str]) -> None:
    """Lists the files of a checkpoint, which is complete otherwise, and its arrays' digests."""
    files = {}
    for path in listed_files(checkpoint):
        with open(checkpoint / path, "rb") as content:
            os.fsync(content.fileno())  # not all who write them do
            digest = hashlib.file_digest(content, "sha256").hexdigest()
            files[path] = (os.fstat(content.fileno()).st_size, digest)
    text = json.dumps({"files": files, "arrays": dict(arrays)}, sort_keys=True).encode()
    (checkpoint / MANIFEST).parent.mkdir(exist_ok=True)
    with open(checkpoint / MANIFEST, "wb") as manifest:
        manifest.write(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
        manifest.flush()
        os.fsync(manifest.fileno())


def read_manifest(checkpoint: Path) -> Manifest:
    """Reads the manifest of a checkpoint.

    Raises:
      Damaged: there is none, or it was changed.
    """
    content = read_regular(checkpoint, MANIFEST, _LARGEST_MANIFEST)
    digest, _, text = content.partition(b"\n")
    if digest != hashlib.sha256(text).hexdigest().encode():
        raise Damaged(f"{MANIFEST} was changed")
    body = parse_json(text, MANIFEST)
    try:
        files = {str(path): (int(size), str(sha)) for path, (size, sha) in body["files"].items()}
        arrays = {str(name): str(sha) for name, sha in body["arrays"].items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise Damaged(f"{MANIFEST} isn't one of this program's") from None
    return Manifest(files, arrays)


def check_files(checkpoint: Path, manifest: Manifest) -> None:
    """Compares every file with the manifest.

    Raises:
      Damaged: a file is missing, changed, or too many.
    """
    there = set(listed_files(checkpoint))
    for path in sorted(manifest.files.keys() - there):
        raise Damaged(f"{path} is missing")
    for path in sorted(there - manifest.files.keys()):
        raise Damaged(f"{path} doesn't belong to it")
    for path, (num_bytes, sha256) in sorted(manifest.files.items()):
        with _as_damaged(path), open(checkpoint / path, "rb") as file:
            found_bytes = os.fstat(file.fileno()).st_size
            if found_bytes != num_bytes:
                raise Damaged(f"{path} has {found_bytes:,} bytes instead of {num_bytes:,}")
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise Damaged(f"{path} was changed")


def read_listed(checkpoint: Path, manifest: Manifest, path: str) -> bytes:
    """Reads one small file that the manifest lists.

    Raises:
      Damaged: it isn't what was saved.
    """
    if path not in manifest.files:
        raise Damaged(f"{MANIFEST} doesn't list {path}")
    num_bytes, sha256 = manifest.files[path]
    content = read_regular(checkpoint, path, num_bytes)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise Damaged(f"{path} was changed")
    return content


def read_regular(checkpoint: Path, path: str, most_bytes: int) -> bytes:
    """Reads a file below a checkpoint that is no link or device and not larger than expected."""
    with _as_damaged(path):
        status = os.lstat(checkpoint / path)
        if not stat.S_ISREG(status.st_mode):
            raise Damaged(f"{path} is no regular file")
        if status.st_size > most_bytes:
            raise Damaged(f"{path} has {status.st_size:,} bytes instead of {most_bytes:,}")
        return (checkpoint / path).read_bytes()


def parse_json(text: bytes, path: str) -> dict[str, Any]:
    """Reads an object of JSON."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        raise Damaged(f"{path} is no JSON") from None
    if not isinstance(body, dict):
        raise Damaged(f"{path} is no JSON object")
    return body


def listed_files(checkpoint: Path) -> Iterator[str]:
    """The paths of the files that a manifest lists, in no particular order.

    Raises:
      Damaged: one of them is a link or a device, or a folder can't be read.
    """
    folders = list(LISTED)
    while folders:
        folder = folders.pop()
        with _as_damaged(folder):
            if not stat.S_ISDIR(os.lstat(checkpoint / folder).st_mode):
                raise Damaged(f"{folder} is no folder")
            entries = list(os.scandir(checkpoint / folder))
        for entry in entries:
            path = f"{folder}/{entry.name}"
            if entry.name == _UNUSED:
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(path)
            elif entry.is_file(follow_symlinks=False):
                yield path
            else:
                raise Damaged(f"{path} is no regular file")


@contextlib.contextmanager
def _as_damaged(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise Damaged(f"{path} is missing") from error
    except OSError as error:
        raise Damaged(f"{path} can't be read ({error.strerror or error})") from error
