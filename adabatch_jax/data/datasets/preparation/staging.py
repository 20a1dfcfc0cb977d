"""Preparing in a private folder and moving the result into place, so that it's there or not.

Two processes that prepare the same dataset work side by side; the first to finish wins.
"""

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from adabatch_jax.data.datasets.prepared_folders import is_complete
from adabatch_jax.system.file_locks import try_lock

_LOCK = "in-use"
# A folder gets its lock right after it is made: younger ones may not have come to that yet.
_MIN_ABANDONED_SECONDS = 60.0


@contextlib.contextmanager
def staging_folder(data_dir: Path) -> Iterator[Path]:
    """Yields a new folder on the file system of `data_dir`, which is gone afterwards.

    A killed process can't clean up: the next one removes what it left, known by a file lock
    that the operating system lets go with the process.
    """
    root = data_dir / ".preparing"
    root.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(root)
    folder = root / uuid.uuid4().hex
    folder.mkdir()
    try:
        with open(folder / _LOCK, "w") as lock:
            try_lock(lock.fileno())
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(staged: Path, final: Path, folder: Path, overwrite: bool) -> None:
    """Moves the complete dataset `staged` to `final` in one step.

    What is replaced goes to the staging folder `folder`; a complete dataset only with `overwrite`.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(staged, final)
    except OSError:
        if not final.is_dir():
            raise
        if overwrite or not is_complete(final):
            os.rename(final, folder / "replaced")
            os.rename(staged, final)


def _remove_abandoned(root: Path) -> None:
    for folder in root.iterdir():
        with contextlib.suppress(OSError):  # another process cleans up too, or still uses it
            if time.time() - folder.stat().st_mtime > _MIN_ABANDONED_SECONDS:
                with open(folder / _LOCK, "a") as lock:
                    if try_lock(lock.fileno()):
                        shutil.rmtree(folder, ignore_errors=True)
