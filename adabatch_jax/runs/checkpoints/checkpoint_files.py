"""One checkpoint: written whole or not at all, and read back onto the devices that are wanted.

Orbax writes and reads the arrays, here and nowhere else. Its `CheckpointManager` isn't used: it
deletes a checkpoint file by file under its own name, so that a kill leaves half of one that it
takes for a checkpoint again, and after a failed save it raises what failed at the next ones too.
Nor is its asynchronous checkpointer: its saves keep the training thread for 20 to 40 ms with 157
arrays, where copying them to the host, which their digests need anyway, takes 1 ms.
"""

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import re
import secrets
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from adabatch_jax.runs.checkpoints.manifest import STATE, Damaged, write_manifest
from adabatch_jax.runs.checkpoints.verifying import UNFINISHED, Found, check_checkpoint
from adabatch_jax.system.errors import RestoreError, StorageError, one_line
from adabatch_jax.system.fault_points import reach
from adabatch_jax.system.files import sync_folder
from adabatch_jax.training.weights_digest import is_key, named_arrays, stored_numbers

_OPEN_FILES = Path("/proc/self/fd")


@dataclass(frozen=True)
class Contents:
    """What a checkpoint is to hold, as it was when this was made.

    Attributes:
      run: the run's own values; "step", the number of finished updates, is the checkpoint's name.
      descriptions: dtype and shape of each array, by its name.
      arrays: the values, on the host.
    """

    run: Mapping[str, Any]
    descriptions: Mapping[str, str]
    arrays: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, state: Any, run: Mapping[str, Any]) -> "Contents":
        """Copies a state of arrays and scalars, however sharded, which may be donated then.

        Raises a TypeError where `run` holds something that JSON can't.
        """
        leaves = named_arrays(state)
        descriptions = {name: _described(leaf) for name, leaf in leaves.items()}
        # Copies also on a CPU: while a view of an array lives, it can't be donated.
        arrays = {name: np.array(stored_numbers(leaf), order="C") for name, leaf in leaves.items()}
        return cls(json.loads(json.dumps(run)), descriptions, arrays)


def write_checkpoint(path: Path, contents: Contents) -> None:
    """Writes a checkpoint; the folder gets its name, the step, when all is on the disk.

    Raises a StorageError where a file can't be written.
    """
    try:
        _write(path, contents)
    except Exception as error:  # Orbax raises many kinds, some of them bare
        raise StorageError(
            f"a checkpoint in {path.parent} can't be written: {_reason(error)}."
        ) from error


def _write(path: Path, contents: Contents) -> None:
    # Another name each time: after an error Orbax may go on writing for a while.
    temporary = path.with_name(f"{path.name}{UNFINISHED}-{secrets.token_hex(4)}")
    path.parent.mkdir(exist_ok=True)  # not those above: a disk that has gone is not to be filled in
    temporary.mkdir()
    # Orbax doesn't save arrays without elements.
    arrays = {name: array for name, array in contents.arrays.items() if array.size}
    with (
        _plainly_named(path.parent) as parent,
        ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer,
    ):
        checkpointer.save(parent / temporary.name / STATE, args=ocp.args.PyTreeSave(arrays))
    reach("save.mid")
    digests = {
        name: (text, _digest(text, contents.arrays[name]))
        for name, text in contents.descriptions.items()
    }
    write_manifest(temporary, contents.run, digests)
    for folder, _, _ in os.walk(temporary):
        sync_folder(Path(folder))
    os.rename(temporary, path)
    sync_folder(path.parent)


def restore(found: Found, like: Any) -> Any:
    """Reads a checkpoint's state and compares every array with its digest.

    Args:
      found: a checkpoint whose files were verified.
      like: a state of the same structure, whose shapes, dtypes and shardings are wanted.

    Raises:
      RestoreError: it holds other arrays than `like`, or it can't be read though it is what was
        saved.
      Damaged: what was read isn't what was saved.
      StorageError: one of its files can't be read any more.
    """
    leaves = named_arrays(like)
    descriptions = {name: _described(leaf) for name, leaf in leaves.items()}
    _compare(found, descriptions)
    read = _read(found, [name for name, leaf in leaves.items() if np.size(leaf)])
    try:
        restored = {name: _as_leaf(read.get(name), leaf) for name, leaf in leaves.items()}
        for name, leaf in restored.items():
            # Of what reached the devices.
            digest = _digest(descriptions[name], np.asarray(stored_numbers(leaf)))
            if (descriptions[name], digest) != found.arrays[name]:
                raise Damaged(f"{name} has other values than were saved")
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        raise _not_restored(found, error) from error
    return jax.tree.unflatten(jax.tree.structure(like), restored.values())


def read_arrays(found: Found, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Some of a checkpoint's arrays, by name, without a state like it; each is compared.

    Raises:
      Damaged: what was read isn't what was saved.
      RestoreError, StorageError: as `restore`.
    """
    arrays = {name: _without_elements(found.arrays[name][0]) for name in names}
    arrays |= _read(found, [name for name, array in arrays.items() if array is None])
    for name, array in arrays.items():
        description, digest = found.arrays[name]
        if _digest(description, array) != digest:
            raise Damaged(f"{name} has other values than were saved")
    return {name: np.asarray(array) for name, array in arrays.items()}


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


def _compare(found: Found, wanted: Mapping[str, str]) -> None:
    saved = {name: description for name, (description, _) in found.arrays.items()}
    for name in sorted({*saved, *wanted}):
        if saved.get(name) != wanted.get(name):
            raise RestoreError(
                f"the checkpoint {found.path} belongs to another model or optimizer: {name} is "
                f"{saved.get(name, 'absent')} there and {wanted.get(name, 'absent')} here."
            )


def _read(found: Found, names: list[str]) -> dict[str, np.ndarray]:
    args = ocp.args.PyTreeRestore(
        item=dict.fromkeys(names, 0),
        restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names},
        partial_restore=True,
    )
    try:
        with (
            _plainly_named(found.path.parent) as parent,
            ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer,
        ):
            return checkpointer.restore(parent / found.path.name / STATE, args=args)
    except Exception as error:  # Orbax raises many kinds, some of them bare
        check_checkpoint(found.path)  # the files may have changed since they were verified
        raise _not_restored(found, error) from error


def _not_restored(found: Found, error: Exception) -> RestoreError:
    return RestoreError(
        f"checkpoint {found.step} in {found.path.parent} can't be restored here, though its files "
        f"are what was saved ({_reason(error)})."
    )


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


def _reason(error: Exception) -> str:
    """What the system said, out of the pages that tensorstore writes around it."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code:
        return os.strerror(int(code.group(1)))
    if isinstance(error, MemoryError):
        return os.strerror(errno.ENOMEM)
    return (isinstance(error, OSError) and error.strerror) or one_line(error).partition(" [")[0]


def _described(leaf: Any) -> str:
    """The dtype and the shape of a leaf, as in "float32[2, 3]" or "key<fry>[]"."""
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return f"{leaf.dtype}{list(leaf.shape)}"


def _without_elements(description: str) -> np.ndarray | None:
    """An array that `_described` says this of, if it has no elements: Orbax saves none of those."""
    dtype, _, numbers = description.removesuffix("]").partition("[")
    shape = tuple(map(int, numbers.split(", "))) if numbers else ()
    return None if math.prod(shape) else np.zeros(shape, jnp.dtype(dtype))


def _as_leaf(array: np.ndarray | None, like: Any) -> Any:
    """The leaf whose `stored_numbers` is `array`, of the kind and with the sharding of `like`."""
    if array is None:
        return like
    if not isinstance(like, jax.Array):
        return array if isinstance(like, np.ndarray) else type(like)(array[()])
    if is_key(like):
        array = jax.random.wrap_key_data(jnp.array(array), impl=jax.random.key_impl(like))
    # Programs for arrays that JAX may move are others, and would be compiled anew.
    return jax.device_put(array, like.sharding) if like.committed else jnp.array(array)


def _digest(description: str, values: np.ndarray) -> str:
    """sha256 of an array's dtype, shape and values, wherever they lay and however sharded."""
    digest = hashlib.sha256(f"{description};".encode())
    digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8))
    return digest.hexdigest()
