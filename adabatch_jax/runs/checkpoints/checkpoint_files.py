"""One checkpoint: written whole or not at all, and read back onto the devices that are wanted.

Orbax writes and reads the arrays, here and nowhere else. Its `CheckpointManager` isn't used: it
deletes a checkpoint file by file under its own name, so that a kill leaves half of one that it
takes for a checkpoint again, and after a failed save it raises what failed at the next ones too.
Nor is its asynchronous checkpointer: its saves keep the training thread for 20 to 40 ms with 157
arrays, where copying them to the host, which their digests need anyway, takes 1 ms.
"""

import collections
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
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from adabatch_jax.cluster.agreement import from_all, from_first
from adabatch_jax.cluster.processes import ALONE, PeerFailed, Processes
from adabatch_jax.runs.checkpoints.array_parts import (
    WHOLE,
    cut_out,
    is_whole_here,
    overlap,
    own_parts,
    place_shape,
    slices_of,
)
from adabatch_jax.runs.checkpoints.manifest import (
    STATE,
    Damaged,
    Part,
    SavedArray,
    write_manifest,
    written_files,
)
from adabatch_jax.runs.checkpoints.verifying import UNFINISHED, Found, check_checkpoint
from adabatch_jax.system.errors import RestoreError, StorageError, one_line
from adabatch_jax.system.fault_points import reach
from adabatch_jax.system.files import sync_folder
from adabatch_jax.system.mirrored_folder import WorkFolder
from adabatch_jax.training.weights_digest import is_key, named_arrays, stored_numbers

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
        descriptions = {name: _described(leaf) for name, leaf in leaves.items()}
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
            f"a checkpoint in {path.parent} can't be written: {_reason(error)}."
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
            digests.setdefault(name, {})[place] = [_digest(values), path]
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


def restore(found: Found, like: Any) -> Any:
    """Reads a checkpoint's state and compares every array with its digest.

    Of arrays that lie on the devices of several processes each process reads what it needs.

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
    _compare(found, {name: _described(leaf) for name, leaf in leaves.items()})
    wanted = {name: _needed(found.arrays[name].parts, leaf) for name, leaf in leaves.items()}
    read = _read(found, wanted)
    try:
        restored = {name: _as_leaf(read[name], leaf) for name, leaf in leaves.items()}
        for name, leaf in restored.items():
            _check_values(name, found.arrays[name].parts, _that_reached(leaf, read[name]))
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        raise _not_restored(found, error) from error
    return jax.tree.unflatten(jax.tree.structure(like), restored.values())


def read_arrays(found: Found, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Some of a checkpoint's arrays, by name, without a state like it; each is compared.

    Raises:
      Damaged: what was read isn't what was saved.
      RestoreError, StorageError: as `restore`.
    """
    arrays = {name: found.arrays[name] for name in names}
    read = _read(found, {name: list(array.parts) for name, array in arrays.items()})
    for name, array in arrays.items():
        _check_values(name, array.parts, read[name])
    return {name: _whole(array, read[name]) for name, array in arrays.items()}


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
    saved = {name: array.description for name, array in found.arrays.items()}
    for name in sorted({*saved, *wanted}):
        if saved.get(name) != wanted.get(name):
            raise RestoreError(
                f"the checkpoint {found.path} belongs to another model or optimizer: {name} is "
                f"{saved.get(name, 'absent')} there and {wanted.get(name, 'absent')} here."
            )


def _needed(parts: Collection[str], like: Any) -> list[str]:
    """The places of the parts that this process needs for a leaf."""
    numbers = stored_numbers(like)
    if is_whole_here(numbers):
        return list(parts)
    indices = numbers.sharding.addressable_devices_indices_map(numbers.shape).values()
    return [
        place
        for place in parts
        if any(overlap(slices_of(place, numbers.shape), index, numbers.shape) for index in indices)
    ]


def _read(found: Found, wanted: Mapping[str, list[str]]) -> dict[str, dict[str, np.ndarray]]:
    """Reads parts of arrays, given and returned by the array's name and by their place."""
    by_folder: dict[str, list[str]] = collections.defaultdict(list)
    read: dict[str, dict[str, np.ndarray]] = {name: {} for name in wanted}
    for name, places in wanted.items():
        array = found.arrays[name]
        for place in places:
            empty, path = _without_elements(array.description), array.parts[place].path
            if empty is not None:
                read[name][place] = empty
            elif place == WHOLE:
                by_folder[path].append(name)
            else:
                read[name][place] = _read_piece(found, path, array.description, place)
    for folder, names in by_folder.items():
        for name, values in _read_folder(found, folder, names).items():
            read[name][WHOLE] = values
    return read


def _read_piece(found: Found, path: str, description: str, place: str) -> np.ndarray:
    kind = _dtype_and_shape(description)[0]
    dtype = np.uint32 if kind.startswith("key<") else jnp.dtype(kind)
    try:
        return np.fromfile(found.path / path, dtype).reshape(place_shape(place))
    except Exception as error:
        check_checkpoint(found.path)  # the file may have changed since it was verified
        raise _not_restored(found, error) from error


def _read_folder(found: Found, folder: str, names: list[str]) -> dict[str, np.ndarray]:
    args = ocp.args.PyTreeRestore(
        item=dict.fromkeys(names, 0),
        restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names},
        partial_restore=True,
    )
    try:
        with _plainly_named(found.path.parent) as parent, _checkpointer() as checkpointer:
            return checkpointer.restore(parent / found.path.name / folder, args=args)
    except Exception as error:  # Orbax raises many kinds, some of them bare
        check_checkpoint(found.path)  # the files may have changed since they were verified
        raise _not_restored(found, error) from error


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
    dtype, shape = _dtype_and_shape(description)
    return None if math.prod(shape) else np.zeros(shape, jnp.dtype(dtype))


def _dtype_and_shape(description: str) -> tuple[str, tuple[int, ...]]:
    dtype, _, numbers = description.removesuffix("]").partition("[")
    return dtype, tuple(map(int, numbers.split(", "))) if numbers else ()


def _whole(array: SavedArray, parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """All of an array that is no key's, from all of its parts."""
    if list(parts) == [WHOLE]:
        return np.asarray(parts[WHOLE])
    shape = _dtype_and_shape(array.description)[1]
    return cut_out(parts, tuple(slice(0, size) for size in shape), shape)


def _as_leaf(parts: Mapping[str, np.ndarray], like: Any) -> Any:
    """The leaf whose `stored_numbers` these parts are, of the kind and sharding of `like`."""
    if not np.size(like):
        return like
    if not isinstance(like, jax.Array):
        array = parts[WHOLE]
        return array if isinstance(like, np.ndarray) else type(like)(array[()])
    numbers = jax.eval_shape(stored_numbers, like)

    def piece(index: tuple[slice, ...]) -> np.ndarray:
        return cut_out(parts, index, numbers.shape)

    if not like.is_fully_addressable:
        sharding = stored_numbers(like).sharding
        array = jax.make_array_from_callback(numbers.shape, sharding, piece)
        return (
            jax.random.wrap_key_data(array, impl=jax.random.key_impl(like))
            if is_key(like)
            else array
        )
    array = piece(tuple(slice(0, size) for size in numbers.shape))
    if is_key(like):
        array = jax.random.wrap_key_data(jnp.array(array), impl=jax.random.key_impl(like))
    # Programs for arrays that JAX may move are others, and would be compiled anew.
    return jax.device_put(array, like.sharding) if like.committed else jnp.array(array)


def _that_reached(leaf: Any, read: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The parts of a restored leaf as they lie on the devices; of one in several, as read."""
    numbers = stored_numbers(leaf)
    if list(read) == [WHOLE] and is_whole_here(numbers):
        return {WHOLE: np.asarray(numbers)}
    return read


def _check_values(name: str, parts: Mapping[str, Part], values: Mapping[str, np.ndarray]) -> None:
    for place, array in values.items():
        if _digest(array) != parts[place].sha256:
            raise Damaged(f"{name} has other values than were saved")


def _digest(values: np.ndarray) -> str:
    """sha256 of an array's dtype, shape and values."""
    digest = hashlib.sha256(f"{values.dtype}{list(values.shape)};".encode())
    digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8))
    return digest.hexdigest()
