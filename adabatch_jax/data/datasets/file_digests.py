"""Digests of a prepared dataset's files, kept beside them: are they what was prepared?"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from adabatch_jax.data.datasets import kept_facts
from adabatch_jax.data.datasets.prepared_folders import user_folder
from adabatch_jax.system.files import storage_errors

_DIGESTS = "digests.json"

# Files of up to this size together are read each time: what is kept of larger ones is believed as
# long as their sizes and times are the same.
_BYTES_READ_EACH_TIME = 2**30
_NUM_THREADS = 16  # see tfds_images

_Entries = dict[str, dict[str, Any]]  # name of a file -> its size, time and sha256


class FileDigests(NamedTuple):
    """What files hold.

    Attributes:
      digests: sha256 of each file.
      changed: the files that aren't what was prepared, as far as that was kept.
      kept_in: the file that says what was prepared.
    """

    digests: list[str]
    changed: list[Path]
    kept_in: Path


def file_digests(
    paths: Sequence[Path], *, read_all: bool = False, keep: bool = False
) -> FileDigests:
    """Looks at files of one folder.

    Args:
      paths: the files.
      read_all: whether to read large ones too that have the size and the time that were kept.
      keep: whether to keep what wasn't kept yet, and new times of files whose contents are the
        same: beside them or, where this user can't write there, in the user's own folder.

    Raises:
      StorageError: a file can't be read.
    """
    folder = paths[0].parent
    kept_in, kept = _read_kept(folder)
    with storage_errors(folder, action="read"):
        sizes = {path: path.stat().st_size for path in paths}
        read_all = read_all or sum(sizes.values()) <= _BYTES_READ_EACH_TIME
        with ThreadPoolExecutor(_NUM_THREADS) as threads:
            believed = {} if read_all else kept
            entries = list(threads.map(lambda path: _entry(path, believed), sizes))
    now = {path.name: entry for path, entry in zip(sizes, entries, strict=True)}
    changed = [
        path
        for path in sizes
        if path.name in kept and kept[path.name]["sha256"] != now[path.name]["sha256"]
    ]
    if keep:
        # Of a file that changed, what was prepared stays known.
        _keep(folder, kept, {**kept, **now, **{path.name: kept[path.name] for path in changed}})
    return FileDigests([now[path.name]["sha256"] for path in paths], changed, kept_in)


def _entry(path: Path, believed: _Entries) -> dict[str, Any]:
    stat, entry = path.stat(), believed.get(path.name)
    facts = {"size": stat.st_size, "modified_ns": stat.st_mtime_ns}
    if entry is not None and facts.items() <= entry.items():
        return entry
    with open(path, "rb") as file:
        return {**facts, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _places(folder: Path) -> list[Path]:
    """Where digests of a folder's files are kept: the first that can be written."""
    name = hashlib.sha256(bytes(folder.absolute())).hexdigest()[:16]
    return [folder / _DIGESTS, user_folder() / "digests" / f"{name}.json"]


def _read_kept(folder: Path) -> tuple[Path, _Entries]:
    """What is kept of a folder's files, and where; nothing where it's damaged: it is kept anew."""
    for path in _places(folder):
        if (content := kept_facts.read_kept(path)) is not None:
            return path, content["files"]
    return folder / _DIGESTS, {}


def _keep(folder: Path, kept: _Entries, entries: _Entries) -> None:
    if entries == kept:
        return
    for path in _places(folder):
        if kept_facts.keep(path, {"files": entries}):
            return
