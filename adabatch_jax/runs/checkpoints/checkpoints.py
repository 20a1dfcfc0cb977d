"""The checkpoints of a run under way: saved in the background, with the old ones cleared away."""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from adabatch_jax.runs.checkpoints import orbax_noise, restoring
from adabatch_jax.runs.checkpoints.found import (
    Damaged,
    Found,
    committed_steps,
    read_run,
    set_aside,
)
from adabatch_jax.runs.checkpoints.retention import Stored, removable, remove, remove_leftovers
from adabatch_jax.runs.checkpoints.saving import checkpointer, contents
from adabatch_jax.system.errors import StorageError, one_line
from adabatch_jax.system.fault_points import reach
from adabatch_jax.system.files import storage_errors, sync_folder
from adabatch_jax.training.train_state import TrainState


class Checkpoints:
    """Saves checkpoints in a folder that no other process writes to; a context manager.

    Attributes:
      latest: the newest step that was saved or restored here; None before.
      scores: of steps, larger is better, where they are known from elsewhere than the checkpoint:
        what is measured of a state may be known only after it was saved.
    """

    def __init__(self, directory: Path, keep_newest: int):
        """Opens the folder, which is made if need be, and clears away what a kill left behind.

        Args:
          directory: where the checkpoints lie, each in a folder named by its step.
          keep_newest: how many are kept at least, beside the best and those marked `keep`.

        Raises:
          StorageError: the folder can't be used.
        """
        orbax_noise.silence()
        self._directory = directory.absolute()
        self._keep_newest = keep_newest
        self._saving: int | None = None
        self._has_committed = False
        self._stored: dict[int, Stored | None] = {}
        self.latest: int | None = None
        self.scores: dict[int, float] = {}
        with storage_errors(directory):
            self._directory.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self._directory)
        self._attempt = 0
        self._checkpointer = checkpointer(self._attempt)

    @property
    def is_saving(self) -> bool:
        """Whether a save has begun whose end `check` or `wait` hasn't seen."""
        return self._saving is not None

    def save(self, step: int, state: TrainState, run: Mapping[str, Any]) -> None:
        """Begins to save; an earlier save is waited for.

        It returns as soon as the state may be donated. Whatever has this step's name already is
        set aside.

        Args:
          step: finished updates.
          state: arrays on this process's devices, however sharded; host arrays and scalars.
          run: JSON values; "score" (a number, higher is better) and "keep" (a bool) decide
            whether the checkpoint is kept when it is no more among the newest.

        Raises:
          StorageError: this save can't begin, or the one before has failed.
        """
        self.wait()
        reach("save.before")
        if os.path.lexists(self._directory / str(step)):
            set_aside(self._directory, step)  # not this run's: it hasn't been here before
        self._stored.pop(step, None)
        args = contents(state, {**run, "step": step})
        with self._save_errors():
            self._checkpointer.save(self._directory / str(step), args=args)
        self._saving = step
        reach("save.scheduled")

    def check(self) -> bool:
        """Looks whether a save has ended; costs microseconds while it goes on.

        Returns:
          Whether a checkpoint was saved whole since the last call.

        Raises:
          StorageError: the save has failed.
        """
        if self._saving is not None:
            with self._save_errors():
                self._checkpointer.check_for_errors()
            if (self._directory / str(self._saving)).is_dir():  # renamed: all is written
                self.wait()
        has_committed, self._has_committed = self._has_committed, False
        return has_committed

    def wait(self) -> None:
        """Waits until everything is saved, and removes what need not be kept any more.

        Raises:
          StorageError: the save has failed; older checkpoints are there still, and the same step
            can be saved again.
        """
        if self._saving is None:
            return
        with self._save_errors():
            self._checkpointer.wait_until_finished()
            for folder in (self._directory / str(self._saving), self._directory):
                sync_folder(folder)  # before the checkpoints go that it replaces
        self.latest, self._saving, self._has_committed = self._saving, None, True
        reach("save.committed")
        self._remove_old()

    def restore(self, found: Found, like: TrainState) -> TrainState:
        """Reads a checkpoint onto the devices of `like`.

        Args:
          found: of `found.newest_good`.
          like: a state of the same structure, whose shapes, dtypes and shardings are wanted.

        Raises:
          RestoreError: it holds other arrays than `like`.
          Damaged: it can't be read, or what was read isn't what was saved.
        """
        state = restoring.restore(found, like)
        self.latest = found.step
        return state

    def close(self) -> None:
        """Waits, and ends Orbax's threads."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        try:
            self.close()
        except StorageError:
            if error is None:  # what went wrong first is what the user has to know
                raise

    @contextmanager
    def _save_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax raises many kinds, some of them bare
            self._saving = None
            self._begin_anew()
            raise StorageError(
                f"a checkpoint in {self._directory} can't be written: {_reason(error)}."
            ) from error

    def _begin_anew(self) -> None:
        for _ in range(8):  # each call raises one of the errors that are left, until it ends
            with suppress(Exception):
                self._checkpointer.close()
                break
        self._attempt += 1
        self._checkpointer = checkpointer(self._attempt)
        with suppress(StorageError):
            remove_leftovers(self._directory)

    def _remove_old(self) -> None:
        remove_leftovers(self._directory)
        steps = committed_steps(self._directory)
        for step in steps:
            if step not in self._stored:
                self._stored[step] = self._read_stored(step)
        stored = [self._scored(one) for step in steps if (one := self._stored[step]) is not None]
        for step in removable(stored, self._keep_newest):
            if step != self.latest:  # whatever else is in the folder
                remove(self._directory, step)

    def _scored(self, stored: Stored) -> Stored:
        return dataclasses.replace(stored, score=self.scores.get(stored.step, stored.score))

    def _read_stored(self, step: int) -> Stored | None:
        """What is known of a checkpoint; None of a damaged one, which doesn't count as kept."""
        try:
            return Stored.of(read_run(self._directory / str(step)))
        except Damaged:
            return None


def _reason(error: Exception) -> str:
    """What the system said, out of the pages that tensorstore writes around it."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code:
        return os.strerror(int(code.group(1)))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error)
