"""A run's checkpoints, and what is done where one can't be saved or restored."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from adabatch_jax.config.policies import Keeping
from adabatch_jax.runs.checkpoints.checkpoints import Checkpoints
from adabatch_jax.runs.checkpoints.disk_space import check_free_space, checkpoint_bytes
from adabatch_jax.runs.checkpoints.found import Damaged, Found
from adabatch_jax.runs.display.progress import Progress
from adabatch_jax.runs.display.status import is_evaluation
from adabatch_jax.runs.folder.run_folder import CHECKPOINTS, RunFolder
from adabatch_jax.system.errors import RestoreError, StorageError
from adabatch_jax.system.watchdog import Watchdog
from adabatch_jax.training.train_state import TrainState

# Slow enough for most disks, as long as no save was seen to its end.
_EXPECTED_BYTES_PER_SECOND = 100e6


class RunCheckpoints:
    """Saves and restores the checkpoints of a run's folder.

    Args:
      folder: the folder, which this process holds.
      keeping: which ones to keep.
      watchdog: looks after saves in the background.
      progress: told about what isn't as it should be.

    Attributes:
      save_seconds: the longest that a save took, until all was on the disk; before one was seen
        to its end, what is expected of it.
    """

    def __init__(self, folder: RunFolder, keeping: Keeping, watchdog: Watchdog, progress: Progress):
        self._folder, self._keeping = folder, keeping
        self._watchdog, self._progress = watchdog, progress
        self._checkpoints = Checkpoints(folder.path / CHECKPOINTS, keeping.newest)
        self._noted: int | None = None
        self._watch: int | None = None
        self._warned: set[str] = set()
        self._began = 0.0
        self.save_seconds = 0.0

    def restored(self, like: TrainState, check: Callable[[Found], None]) -> TrainState:
        """The state of the folder's checkpoint, or of the newest older one that can be restored.

        Args:
          like: where its arrays are to lie.
          check: raises an error where the run can't go on from a checkpoint.
        """
        while True:
            found = self._folder.checkpoint
            check(found)
            try:
                state = self._checkpoints.restore(found, like)
            except Damaged as error:
                self._folder.reject(str(error))
            else:
                self._noted = found.step
                return state

    def restore(self, found: Found, like: TrainState) -> TrainState:
        """Reads a checkpoint that this process saved; raises a RestoreError where it can't be."""
        try:
            return self._checkpoints.restore(found, like)
        except Damaged as error:
            raise RestoreError(
                f"checkpoint {found.step} in {found.path.parent} can't be restored ({error})."
            ) from error

    def newest_planned(self) -> Found | None:
        """Waits for a save under way; the newest sound checkpoint that was due, or None.

        Where a run was stopped changes nothing about it.
        """
        self.wait()
        return self._folder.newest_planned_checkpoint()

    def check_space(self, state: TrainState) -> None:
        """Warns where the disk is short of room for checkpoints of this size.

        Raises:
          StorageError: it hasn't room for one.
        """
        num_bytes = checkpoint_bytes(state)
        self.save_seconds = self.save_seconds or num_bytes / _EXPECTED_BYTES_PER_SECOND
        warning = check_free_space(self._folder.path, num_bytes, self._keeping.newest)
        if warning is not None:
            self._warn_once(warning)

    def _warn_once(self, warning: str) -> None:
        if warning not in self._warned:
            self._warned.add(warning)
            self._progress.message(f"warning: {warning}")

    def measured(self, row: Mapping[str, Any]) -> None:
        """Takes note of a row of metrics: it says how good the checkpoint of its step is."""
        best = self._keeping.best
        if best is None:
            return
        is_evaluated = is_evaluation(row)
        if is_evaluated and best.metric not in row:
            self._warn_once(f"no {best.metric} is measured, so no checkpoint is kept as the best")
        score = best.of(row)
        if score is not None:
            self._checkpoints.scores[row["step"]] = score

    def save(self, step: int, state: TrainState, run: Mapping[str, Any]) -> None:
        """Begins to save a checkpoint; its state may be donated afterwards.

        Args:
          step: finished updates.
          state: the state after them.
          run: the checkpoint's own values.
        """
        self.wait()  # for the one before, whose failure isn't that of this one
        self._began = time.monotonic()
        last_step = self._checkpoints.latest or 0
        every = self._keeping.every
        run = {
            **run,
            "score": self._checkpoints.scores.get(step),
            "keep": every is not None and every.is_passed(last_step, step),
        }

        def begin() -> None:
            self.check_space(state)
            self._checkpoints.save(step, state, run)

        self._minding_errors(begin)
        if self._checkpoints.is_saving:
            self._watch = self._watchdog.begin("a checkpoint")

    def check_saves(self):
        self.check()

    def newest_planned_checkpoint(self):
        return self.newest_planned()

    def restore_saved(self, found, like):
        return self.restore(found, like)

    def check(self) -> None:
        """Looks whether a save in the background has ended; raises what it failed with."""
        self._minding_errors(self._checkpoints.check)

    def wait(self) -> None:
        """Waits for a save under way; raises what it failed with."""
        self._minding_errors(self._checkpoints.wait)

    def check_is_saved(self, step: int) -> None:
        """An end without its checkpoint is no success, whatever was warned about before."""
        if self._checkpoints.latest != step:
            raise StorageError(
                f"the last checkpoint, after update {step:,}, could not be saved in "
                f"{self._folder.path / CHECKPOINTS}; make room and give the same command again."
            )

    def close(self) -> None:
        """Waits for a save under way, and ends Orbax's threads."""
        self._minding_errors(self._checkpoints.close)

    def _minding_errors(self, act: Callable[[], Any]) -> None:
        """Does what may end a save; notes what was saved, and warns of what couldn't be."""
        self._unless_told_to_stop(act)
        if self._checkpoints.latest != self._noted:
            self._noted = self._checkpoints.latest
            self._unless_told_to_stop(lambda: self._folder.note_saved(self._noted))
        if self._watch is not None and not self._checkpoints.is_saving:
            self._watchdog.end(self._watch)
            self._watch = None
            self.save_seconds = max(self.save_seconds, time.monotonic() - self._began)

    def _unless_told_to_stop(self, act: Callable[[], Any]) -> None:
        try:
            act()
        except StorageError as error:
            if self._keeping.on_error == "stop":
                raise
            self._progress.message(f"warning: {error} Training goes on without it.")
