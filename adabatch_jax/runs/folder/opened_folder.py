"""Opens the folder of a run, wherever it is: a path of this machine, or gs://bucket/folder."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from adabatch_jax.runs.checkpoints.manifest import MANIFEST
from adabatch_jax.runs.checkpoints.verifying import is_leftover
from adabatch_jax.runs.folder.folder_reading import CHECKPOINTS, LAST_CHECKPOINT, LOGS, SUMMARY
from adabatch_jax.runs.folder.lock import LOCK_SECONDS, locked
from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.mirrored_folder import MirroredFolder, WorkFolder, mirrored
from adabatch_jax.system.object_store import is_url

_OF_CHECKPOINT = re.compile(rf"({CHECKPOINTS}/([^/]+))/.+", re.DOTALL)


@contextlib.contextmanager
def opened(workdir: str | os.PathLike, flag: str = "--workdir") -> Iterator[WorkFolder]:
    """The folder to work in, or to read; one that is open already stays so.

    Raises a UsageError where it is in a store that can't be used, a StorageError where Google's
    says no; `flag` is where the user named it.

    >>> with opened("runs/a") as folder:
    ...     print(folder / "config.json")
    runs/a/config.json
    """
    if isinstance(workdir, WorkFolder):
        yield workdir
    elif is_url(workdir):
        with mirrored(str(workdir), flag, mark_of, rank) as folder:
            _check_is_run(folder, flag)
            folder.fetch()
            yield folder
    else:
        yield WorkFolder(Path(workdir))


def _check_is_run(folder: MirroredFolder, flag: str) -> None:
    """Raises a UsageError where a store's folder holds something else: all of it would be copied."""
    names = {name.partition("/")[0] for name in folder.names() if not name.startswith(".")}
    others = sorted(names - {LOGS})
    if others and not names & {"config.json", CHECKPOINTS}:
        raise UsageError(
            f"{flag}: {str(folder)!r} holds {others[0]!r} but no run (no config.json of this "
            "program)."
        )


def locked_folder(
    folder: WorkFolder,
    flag: str = "--workdir",
    wait_seconds: float = LOCK_SECONDS,
    take_over: bool = False,
) -> contextlib.AbstractContextManager[None]:
    """Keeps other processes out of a run's folder, as `locked` does, wherever it is."""
    if isinstance(folder, MirroredFolder):
        return folder.locked(flag, wait_seconds, take_over)
    return locked(folder.path, flag, wait_seconds, take_over)


def mark_of(name: str) -> str | None:
    """The manifest of the checkpoint that a file belongs to, without which it is worth nothing.

    >>> mark_of("checkpoints/351/state/0/d/ab"), mark_of("checkpoints/bad-9/manifest")
    ('checkpoints/351/manifest', None)
    >>> mark_of("metrics.jsonl")
    """
    found = _OF_CHECKPOINT.fullmatch(name)
    if found is None or not found[2].isdecimal():
        return None
    return f"{found[1]}/{MANIFEST}"


def rank(name: str) -> int:
    """The order in which a run's files go to a store: what speaks of others comes behind them.

    >>> names = ["summary.json", "checkpoints/3/manifest", "metrics.jsonl", "last_checkpoint.json"]
    >>> sorted(names, key=rank)
    ['metrics.jsonl', 'checkpoints/3/manifest', 'last_checkpoint.json', 'summary.json']
    >>> rank("checkpoints/3.orbax-checkpoint-tmp-0a/state/0/d/ab"), rank("checkpoints/bad-3/x")
    (-1, 0)
    """
    found = _OF_CHECKPOINT.fullmatch(name)
    if found is not None and is_leftover(found[2]):
        return -1
    last = (LAST_CHECKPOINT, SUMMARY)
    return last.index(name) + 2 if name in last else int(name == mark_of(name))
