"""Checkpoints of a run: one atomic step holds the arrays and where the run stands (Orbax)."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from adabatch_jax.errors import RestoreError, StorageError
from adabatch_jax.reporting.files import storage_errors
from adabatch_jax.training import orbax_noise
from adabatch_jax.training.digests import named_arrays
from adabatch_jax.training.state import TrainState

_STEP = re.compile(r"0|[1-9]\d*")


class Checkpoints:
    """The checkpoints in a folder; saving is asynchronous and `close` waits for it.

    Each holds the arrays of a `TrainState`, by name, and JSON values that the caller gives.
    """

    def __init__(self, directory: Path, keep: int):
        """Opens the folder, which is made if need be; the newest `keep` checkpoints are kept."""
        orbax_noise.silence()
        self._directory = directory.absolute()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.LatestN(keep),
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                self._directory, options=options, handler_registry=_handlers()
            )
        except OSError as error:
            raise StorageError(
                f"the checkpoint folder {directory} can't be used: {error.strerror}."
            ) from error
        self._pending = False

    def steps(self) -> list[int]:
        """The steps that were saved whole, oldest first."""
        with storage_errors(self._directory, action="read"):
            paths = list(self._directory.iterdir())
        return sorted(
            int(path.name)
            for path in paths
            if _STEP.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
        )

    def save(self, step: int, state: TrainState, run: Mapping[str, Any]) -> None:
        """Begins to save; returns as soon as the state may be donated."""
        if step in self.steps():
            return
        arrays = named_arrays(state)
        run = {**run, "arrays": _descriptions(arrays)}
        self._raise_errors(
            lambda: self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(arrays), run=ocp.args.JsonSave(run)
                ),
            )
        )
        self._pending = True

    def check(self) -> None:
        """Raises what a save that has ended meanwhile failed with; costs microseconds."""
        if self._pending and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits until everything is saved.

        Raises:
          StorageError: it could not be.
        """
        self._pending = False
        self._raise_errors(self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits, and gives the folder back."""
        self.wait()
        self._manager.close()

    def read_run(self, step: int) -> dict[str, Any]:
        """The JSON values of a checkpoint."""
        args = ocp.args.Composite(run=ocp.args.JsonRestore())
        return self._readable(step, lambda: self._manager.restore(step, args=args)["run"])

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Reads a checkpoint.

        Args:
          step: one of `steps()`.
          like: a state of the same structure, whose shapes, dtypes and shardings are wanted.

        Raises:
          RestoreError: it can't be read, or holds other arrays than `like`.
        """
        run = self.read_run(step)
        wanted = named_arrays(like)
        _compare(run["arrays"], _descriptions(wanted), self._directory / str(step))
        targets = {
            name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
            for name, array in wanted.items()
        }
        args = ocp.args.Composite(
            state=ocp.args.PyTreeRestore(
                targets, restore_args=ocp.checkpoint_utils.construct_restore_args(targets)
            )
        )
        arrays = self._readable(step, lambda: self._manager.restore(step, args=args)["state"])
        leaves = [arrays[name] for name in wanted]
        return jax.tree.unflatten(jax.tree.structure(like), leaves), run

    def _readable(self, step: int, read: Any) -> Any:
        try:
            return read()
        except Exception as error:  # Orbax raises many kinds, some of them bare
            raise RestoreError(
                f"the checkpoint {self._directory / str(step)} can't be read "
                f"({type(error).__name__}); move it away to go on from the one before."
            ) from error

    def _raise_errors(self, act: Any) -> None:
        try:
            act()
        except Exception as error:  # as above
            raise StorageError(
                f"a checkpoint in {self._directory} can't be written: {_reason(error)}."
            ) from error


def _reason(error: Exception) -> str:
    """What the system said, out of the pages that tensorstore writes around it."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code:
        return os.strerror(int(code.group(1)))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).partition("\n")[0] or type(error).__name__


def _handlers() -> Any:
    # Replicated arrays are written by one device: slicing them over the devices compiles a
    # program per shape, which takes seconds at the first save.
    arrays = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    types = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, arrays),
        (np.ndarray, ocp.type_handlers.NumpyHandler()),
        (int, ocp.type_handlers.ScalarHandler()),
        (float, ocp.type_handlers.ScalarHandler()),
    )
    state = ocp.PyTreeCheckpointHandler(type_handler_registry=types)
    run = ocp.JsonCheckpointHandler()
    registry = ocp.DefaultCheckpointHandlerRegistry()
    for args in (ocp.args.PyTreeSave, ocp.args.PyTreeRestore):
        registry.add("state", args, state)
    for args in (ocp.args.JsonSave, ocp.args.JsonRestore):
        registry.add("run", args, run)
    return registry


def _descriptions(arrays: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{a.dtype}{list(a.shape)}" for name, a in arrays.items()}


def _compare(saved: Mapping[str, str], wanted: Mapping[str, str], path: Path) -> None:
    for name in sorted({*saved, *wanted}):
        if saved.get(name) != wanted.get(name):
            raise RestoreError(
                f"the checkpoint {path} belongs to another model or optimizer: {name} is "
                f"{saved.get(name, 'absent')} there and {wanted.get(name, 'absent')} here."
            )
