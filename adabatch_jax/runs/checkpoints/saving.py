"""How Orbax writes a checkpoint: arrays, JSON and the manifest, in one atomic step."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from adabatch_jax.runs.checkpoints.arrays import array_digests, described, host_copy, stored
from adabatch_jax.runs.checkpoints.manifest import MANIFEST, write_manifest
from adabatch_jax.system.fault_points import reach
from adabatch_jax.system.files import sync_folder
from adabatch_jax.training.digests import named_arrays

_FOLDER, _FILE = MANIFEST.split("/")


def state_handler() -> ocp.PyTreeCheckpointHandler:
    """What reads and writes the arrays.

    Replicated arrays are written by one device: slicing them over the devices compiles a program
    per shape, which takes seconds at the first save.
    """
    arrays = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    types = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, arrays), (np.ndarray, ocp.type_handlers.NumpyHandler())
    )
    return ocp.PyTreeCheckpointHandler(type_handler_registry=types)


def checkpointer(attempt: int) -> ocp.AsyncCheckpointer:
    """What saves `contents` in the background, and then renames the folder to its final name.

    After a save has failed another one is needed, with the next `attempt`: Orbax would raise what
    failed at the next saves too, one error at a time, and some of its writes go on for a while in
    the folder that was given up.
    """
    registry = ocp.DefaultCheckpointHandlerRegistry()
    registry.add("state", ocp.args.PyTreeSave, state_handler())
    registry.add("run", ocp.args.JsonSave, ocp.JsonCheckpointHandler())
    # Orbax finishes them in this order: the manifest's handler finds the others' files complete.
    registry.add(_FOLDER, ManifestSave, ManifestHandler())
    # Made in the background, a folder that can't be made leaves threads that wait for it: the
    # process wouldn't end.
    options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
    handler = ocp.CompositeCheckpointHandler(
        handler_registry=registry,
        composite_options=ocp.CompositeOptions(async_options=options),
    )
    return ocp.AsyncCheckpointer(
        handler, async_options=options, temporary_path_class=_temporary_paths(attempt)
    )


def _temporary_paths(attempt: int) -> type:
    class TemporaryPath(ocp.path.atomicity.AtomicRenameTemporaryPath):
        @classmethod
        def from_final(cls, final_path: Any, **options: Any) -> "TemporaryPath":
            name = f"{final_path.name}{ocp.path.atomicity.TMP_DIR_SUFFIX}-{attempt}"
            return cls(final_path.parent / name, final_path, **options)

    return TemporaryPath


def contents(state: Any, run: Mapping[str, Any]) -> ocp.args.Composite:
    """What one checkpoint is made of; the state may be donated when a save of it has begun.

    Raises:
      TypeError: `run` holds something that JSON can't.
    """
    leaves = named_arrays(state)
    descriptions = {name: described(leaf) for name, leaf in leaves.items()}
    arrays = {name: stored(leaf) for name, leaf in leaves.items()}
    copies = {name: host_copy(array) for name, array in arrays.items()}
    return ocp.args.Composite(
        # Orbax doesn't save arrays without elements.
        state=ocp.args.PyTreeSave({name: array for name, array in arrays.items() if array.size}),
        # As it is now: Orbax writes it in the background, while the run goes on.
        run=ocp.args.JsonSave(json.loads(json.dumps({**run, "arrays": descriptions}))),
        **{_FOLDER: ManifestSave(descriptions, copies)},
    )


class ManifestHandler(ocp.AsyncCheckpointHandler):
    """Writes the manifest, in the background, after everything else and before the commit."""

    def __init__(self) -> None:
        self._args: ManifestSave | None = None

    async def async_save(self, directory: Any, args: "ManifestSave") -> list[Any]:
        """Keeps the copies until `finalize`."""
        self._args = args
        return []

    def finalize(self, directory: Any) -> None:
        """Hashes the arrays' copies and the files that Orbax has written."""
        reach("save.mid")
        args, self._args = self._args, None
        directory = Path(directory)
        digests = array_digests(args.descriptions, args.copies)
        write_manifest(directory.parent, directory / _FILE, digests)
        for folder, _, _ in os.walk(directory.parent):
            sync_folder(Path(folder))

    def save(self, directory: Any, *args: Any, **kwargs: Any) -> None:
        """Only part of a save in the background."""
        raise NotImplementedError

    def restore(self, directory: Any, *args: Any, **kwargs: Any) -> None:
        """A manifest is read without Orbax."""
        raise NotImplementedError


@ocp.args.register_with_handler(ManifestHandler, for_save=True, for_restore=True)
@dataclass
class ManifestSave(ocp.args.CheckpointArgs):
    """The arrays' descriptions and their copies on the host, by name."""

    descriptions: Mapping[str, str]
    copies: Mapping[str, np.ndarray]
