"""Which checkpoints a folder holds and whether they can be trusted; neither JAX nor Orbax.

What is found is listed and verified here, before anything else looks at it: Orbax takes an empty
folder for the newest checkpoint, and gives back flipped bits without a word.
"""

import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adabatch_jax.runs.checkpoints.manifest import (
    MANIFEST,
    STATE,
    Damaged,
    Manifest,
    SavedArray,
    check_files,
    read_manifest,
)
from adabatch_jax.system.files import storage_errors

_STEP = re.compile(r"0|[1-9][0-9]*")
# Follows the name of a checkpoint that isn't finished; Orbax's own, so that its tools know it too.
UNFINISHED = ".orbax-checkpoint-tmp"
_LEFTOVER = re.compile(rf"[0-9]+{re.escape(UNFINISHED)}.*|\.removing-.*")


@dataclass(frozen=True)
class Found:
    """A checkpoint whose files are what was saved.

    Attributes:
      step: finished updates.
      path: its folder.
      run: the run's own values, from JSON.
      arrays: what is saved of each array, by its name.
    """

    step: int
    path: Path
    run: Mapping[str, Any]
    arrays: Mapping[str, SavedArray]


def committed_steps(directory: Path) -> list[int]:
    """The steps that were saved whole, oldest first; what became of them since is not looked at."""
    return sorted(int(entry.name) for entry in _entries(directory) if _STEP.fullmatch(entry.name))


def is_leftover(name: str) -> bool:
    """Whether a name is that of a save or a deletion that was not completed."""
    return _LEFTOVER.fullmatch(name) is not None


def leftovers(directory: Path) -> list[str]:
    """The names of what a kill left behind of a save or a deletion, or a live run is at."""
    return sorted(entry.name for entry in _entries(directory) if is_leftover(entry.name))


def check_checkpoint(path: Path) -> Found:
    """Verifies all files of a checkpoint.

    Raises:
      Damaged: it isn't what was saved.
      StorageError: a part of it can't be read.
    """
    manifest = _manifest(path)
    check_files(path, manifest)
    return Found(int(path.name), path, manifest.run, manifest.arrays)


def read_checkpoint(path: Path) -> Found:
    """A checkpoint by its manifest alone, whose files another process verified.

    Raises as `check_checkpoint`.
    """
    manifest = _manifest(path)
    return Found(int(path.name), path, manifest.run, manifest.arrays)


def read_run(path: Path) -> Mapping[str, Any]:
    """A checkpoint's own values, the only ones that are verified; raises as `check_checkpoint`."""
    return _manifest(path).run


def newest_good(
    directory: Path, accept: Callable[[Found], str | None] = lambda found: None
) -> tuple[Found | None, list[tuple[int, str]]]:
    """Looks for the newest checkpoint that can be used.

    Args:
      directory: the folder of the checkpoints.
      accept: returns why a checkpoint that is sound can't be used all the same, or None.

    Returns:
      The checkpoint, or None; and those that are newer, each with the reason against it, newest
      first.

    Raises a StorageError where one can't be read: it may be the newest good one, so no older one
    is looked at.
    """
    rejected = []
    for step in reversed(committed_steps(directory)):
        try:
            found = check_checkpoint(directory / str(step))
        except Damaged as error:
            reason = str(error)
        else:
            reason = accept(found)
            if reason is None:
                return found, rejected
        rejected.append((step, reason))
    return None, rejected


def other_checkpoints(directory: Path) -> list[str]:
    """The names of checkpoints that were renamed, by `set_aside` or by a person.

    Where they are all that is left, the run is not a new one.
    """
    return sorted(
        entry.name
        for entry in _entries(directory)
        if not _STEP.fullmatch(entry.name)
        and not is_leftover(entry.name)
        and entry.is_dir(follow_symlinks=False)
        and any(os.path.lexists(directory / entry.name / part) for part in (STATE, MANIFEST))
    )


def set_aside(directory: Path, name: int | str) -> Path:
    """Renames what has a name, such as a step, to `bad-<name>`, or `bad-<name>-2` and so on."""
    path, number = directory / f"bad-{name}", 1
    while os.path.lexists(path):
        number += 1
        path = directory / f"bad-{name}-{number}"
    with storage_errors(directory / str(name), action="rename"):
        os.rename(directory / str(name), path)
    return path


def _entries(directory: Path) -> list[os.DirEntry]:
    """What lies in a folder; one that doesn't exist holds nothing."""
    with storage_errors(directory, action="read"):
        try:
            return list(os.scandir(directory))
        except FileNotFoundError:
            return []


def _manifest(path: Path) -> Manifest:
    with storage_errors(path, action="read"):
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise Damaged("it is no folder")
    if os.path.lexists(path / "digests" / MANIFEST):
        raise Damaged("it was written by another version of this program")
    manifest = read_manifest(path)
    step = manifest.run.get("step")
    if type(step) is not int:
        raise Damaged(f"{MANIFEST} names no step")
    if str(step) != path.name:
        raise Damaged(f"it was saved as step {step}, not {path.name}")
    return manifest
