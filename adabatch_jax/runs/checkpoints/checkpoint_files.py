"""A checkpoint's files: written whole or not at all; `restoring` makes a state of them again.

Orbax writes and reads the arrays, here and nowhere else. Its `CheckpointManager` isn't used: it
deletes a checkpoint file by file under its own name, so that a kill leaves half of one that it
takes for a checkpoint again, and after a failed save it raises what failed at the next ones too.
Nor is its asynchronous checkpointer: its saves keep the training thread for 20 to 40 ms with 157
arrays, where copying them to the host, which their digests need anyway, takes 1 ms.
"""

import contextlib
import errno
import json
import logging
import os
import re
import secrets
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from adabatch_jax.cluster.agreement import from_all, from_first
from adabatch_jax.cluster.processes import ALONE, PeerFailed, Processes
from adabatch_jax.runs.checkpoints.array_parts import WHOLE, described, digest_of, own_parts
from adabatch_jax.runs.checkpoints.manifest import (
    STATE,
    Part,
    SavedArray,
    write_manifest,
    written_files,
)
from adabatch_jax.runs.checkpoints.verifying import UNFINISHED
from adabatch_jax.system.errors import StorageError, one_line
from adabatch_jax.system.fault_points import reach
from adabatch_jax.system.files import sync_folder
from adabatch_jax.system.mirrored_folder import WorkFolder
from adabatch_jax.training.weights_digest import named_arrays

_OPEN_FILES = Path("/proc/self/fd")


@dataclass(frozen=True)
class Contents:
    """What this process's part of a checkpoint is to hold, as it was when this was made.

    Attributes:
      run: the run's own values; "step", the number of finished updates, is the checkpoint's name.
      descriptions: dtype and shape of each array, by its name.
      parts: the values that this process saves, on the host, by the array's name and their place.
    """

    run: Mapping[str, Any]
    descriptions: Mapping[str, str]
    parts: Mapping[str, Mapping[str, np.ndarray]]

    @classmethod
    def of(cls, state: Any, run: Mapping[str, Any], process_index: int = 0) -> "Contents":
        """Copies a state of arrays and scalars, however sharded, which may be donated then.

        Raises a TypeError where `run` holds something that JSON can't.
        """
        leaves = named_arrays(state)
        descriptions = {name: described(leaf) for name, leaf in leaves.items()}
        parts = {name: own_parts(leaf, process_index) for name, leaf in leaves.items()}
        return cls(json.loads(json.dumps(run)), descriptions, parts)


def write_checkpoint(
    path: Path,
    contents: Contents,
    processes: Processes = ALONE,
    folder: WorkFolder | None = None,
) -> None:
    """Writes a checkpoint; the folder gets its name, the step, when all is on the disk.

    Several processes call it alike: each writes its part, and the first one the rest when all
    have done so. Where the run's `folder` is the copy of one in a store, each brings its part there
    under the name that it will have, and the manifest, which comes last, makes them a checkpoint.

    Raises:
      StorageError: a file can't be written, by whichever process.
      PeerFailed: another process is gone.
    """
    try:
        _write(path, contents, processes, folder or WorkFolder(path.parent))
    except PeerFailed:
        raise  # the disk has nothing to do with it
    except Exception as error:  # Orbax raises many kinds, some of them bare
        raise StorageError(
            f"a checkpoint in {path.parent} can't be written: {reason_of(error)}."
        ) from error


def _write(path: Path, contents: Contents, processes: Processes, folder: WorkFolder) -> None:
    def begin() -> str:
        folder.clear(path)
        return _begun(path)

    def write_parts() -> dict[str, Any]:
        written = _write_parts(temporary, contents, processes.index)
        folder.push_part(temporary, path)
        return written

    def complete() -> None:
        _complete(temporary, path, contents, written)
        folder.push()

    temporary = path.parent / from_first(processes, "checkpoint folder", begin)
    written = from_all(processes, "checkpoint parts", write_parts)
    from_first(processes, "checkpoint", complete)
    if processes.index:
        folder.drop(temporary)


def _begun(path: Path) -> str:
    """Makes the folder that a checkpoint is written to, and returns its name."""
    # Another name each time: after an error Orbax may go on writing for a while.
    temporary = path.with_name(f"{path.name}{UNFINISHED}-{secrets.token_hex(4)}")
    path.parent.mkdir(exist_ok=True)  # not those above: a disk that has gone is not to be filled in
    temporary.mkdir()
    (temporary / STATE).mkdir()
    return temporary.name


def _write_parts(temporary: Path, contents: Contents, process_index: int) -> dict[str, Any]:
    """Writes what this process has; returns the digests of its parts and of its files."""
    (temporary / STATE).mkdir(parents=True, exist_ok=True)  # where others don't see the first's
    whole, pieces = f"{STATE}/{process_index}", f"{STATE}/parts-{process_index}"
    arrays, files, digests = {}, {}, {}
    for name, parts in contents.parts.items():
        for place, values in parts.items():
            path = whole if place == WHOLE else f"{pieces}/{len(files)}"
            digests.setdefault(name, {})[place] = [digest_of(values), path]
            if place != WHOLE:
                files[path] = values
            elif values.size:  # Orbax saves no others
                arrays[name] = values
    if arrays:
        with _plainly_named(temporary.parent) as parent, _checkpointer() as checkpointer:
            target = parent / temporary.name / whole
            checkpointer.save(target, args=ocp.args.PyTreeSave(arrays))
    if files:
        # Orbax writes numpy arrays in the first process only, and takes no `jax.Array` of one.
        (temporary / pieces).mkdir()
        for path, values in files.items():
            values.tofile(temporary / path)
    reach("save.mid")
    written = {}
    for folder in (whole, pieces):
        if (temporary / folder).exists():
            written |= written_files(temporary, folder)
        for made, _, _ in os.walk(temporary / folder):
            sync_folder(Path(made))
    return {"parts": digests, "files": written}


def _complete(
    temporary: Path, path: Path, contents: Contents, written: list[dict[str, Any]]
) -> None:
    """Writes the manifest of what all processes wrote, and gives the checkpoint its name."""
    parts: dict[str, dict[str, Part]] = {name: {} for name in contents.descriptions}
    for theirs in written:
        for name, digests in theirs["parts"].items():
            parts[name] |= {place: Part(*digest) for place, digest in digests.items()}
    arrays = {name: SavedArray(text, parts[name]) for name, text in contents.descriptions.items()}
    files = {path: tuple(facts) for theirs in written for path, facts in theirs["files"].items()}
    write_manifest(temporary, contents.run, arrays, files)
    for folder in (temporary / STATE, temporary):
        sync_folder(folder)
    os.rename(temporary, path)
    sync_folder(path.parent)


def read_folder(checkpoint: Path, folder: str, names: list[str]) -> dict[str, np.ndarray]:
    """Reads whole arrays that Orbax saved in a folder of a checkpoint; raises whatever Orbax does."""
    args = ocp.args.PyTreeRestore(
        item=dict.fromkeys(names, 0),
        restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names},
        partial_restore=True,
    )
    with _plainly_named(checkpoint.parent) as parent, _checkpointer() as checkpointer:
        return checkpointer.restore(parent / checkpoint.name / folder, args=args)


def quieten_orbax() -> None:
    """From now on only the error that a failed save raises is heard of, once, from us.

    Orbax logs it, Python warns of coroutines that it forgets, asyncio logs writes that it gave up,
    and tensorstore's threads report to an event loop that Orbax has closed meanwhile, which Python
    prints as an unraisable exception, in pieces that mix with other lines. Everything else goes
    where it went before.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine '(run_sync|is_path_finalized).* never awaited")
    if not isinstance(sys.unraisablehook, _WithoutClosedLoop):
        sys.unraisablehook = _WithoutClosedLoop(sys.unraisablehook)


@dataclass(frozen=True)
class _WithoutClosedLoop:
    following: Any

    def __call__(self, unraisable: Any) -> None:
        error = unraisable.exc_value
        if not isinstance(error, RuntimeError) or str(error) != "Event loop is closed":
            self.following(unraisable)


def _checkpointer() -> ocp.Checkpointer:
    """Orbax's, for this process alone: what its own barriers wait for we agree on ourselves."""
    if not jax.distributed.is_initialized():
        return ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process_{here}"
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


@contextlib.contextmanager
def _plainly_named(folder: Path) -> Iterator[Path]:
    """A name of a folder that Orbax and tensorstore take.

    They read backslashes and brackets of a path as something else, and take no bytes that aren't
    UTF-8.
    """
    with contextlib.ExitStack() as stack:
        if _OPEN_FILES.exists():
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, fd)
            name = _OPEN_FILES / str(fd)
        else:  # not Linux
            name = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "folder"
            name.symlink_to(folder.absolute())
        yield name


def reason_of(error: Exception) -> str:
    """What the system said, out of the pages that tensorstore writes around it."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code:
        return os.strerror(int(code.group(1)))
    if isinstance(error, MemoryError):
        return os.strerror(errno.ENOMEM)
    return (isinstance(error, OSError) and error.strerror) or one_line(error).partition(" [")[0]
