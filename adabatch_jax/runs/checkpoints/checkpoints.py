"""The checkpoints of a run under way: saved in the background, while old ones are deleted."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adabatch_jax.cluster.agreement import from_first
from adabatch_jax.cluster.processes import ALONE, Processes
from adabatch_jax.config.value_texts import Score
from adabatch_jax.runs.checkpoints.checkpoint_files import Contents, quieten_orbax, write_checkpoint
from adabatch_jax.runs.checkpoints.deleting_old import delete_leftovers, delete_old
from adabatch_jax.runs.checkpoints.disk_space import check_free_space, checkpoint_bytes
from adabatch_jax.runs.checkpoints.restoring import restore
from adabatch_jax.runs.checkpoints.verifying import Found, set_aside
from adabatch_jax.runs.display.progress import Progress
from adabatch_jax.runs.display.status import is_evaluation
from adabatch_jax.schedules.periods import Period
from adabatch_jax.system.errors import StorageError
from adabatch_jax.system.fault_points import reach
from adabatch_jax.system.files import storage_errors
from adabatch_jax.system.mirrored_folder import WorkFolder
from adabatch_jax.system.watchdog import Watchdog
from adabatch_jax.training.train_state import TrainState

# Slow enough for most disks, as long as no save was seen to its end.
_EXPECTED_BYTES_PER_SECOND = 100e6
# A save that hangs is told from a slow one by what one takes, over how long anything may take.
_PATIENCE = 5


@dataclass(frozen=True)
class _Save:
    """A save under way."""

    step: int
    began: float  # by `time.monotonic`
    watch: int  # the watchdog's token
    written: Future[None]
    cleared: Future[list[StorageError]]  # of old ones, behind `written`


class Checkpoints:
    """Saves and restores in a folder that no other run's process writes to.

    A save copies the state to the host and leaves the rest to a thread. What fails there is raised
    by the next call, `save`, `check`, `wait` or `close`, as one StorageError, or with `on_error`
    "warn" shown; older checkpoints are intact, and the next save has nothing to do with it.

    Args:
      directory: where they lie, each in a folder named by its step; it is made if need be, and
        what a kill left behind is deleted.
      newest: how many of the newest are kept, at least 1.
      best: the best one by this score is kept too.
      every: the first one in each such period is kept for good.
      on_error: "stop" or "warn".
      watchdog: looks after saves.
      progress: told about what isn't as it should be.
      on_saved: called with the step when a checkpoint is there.
      processes: those that train together, which all save and restore alike.
      folder: the run's, in which the directory lies.

    Attributes:
      latest: the newest step that was saved or restored here; None before.
      save_seconds: the longest that a save took, until all was on the disk; before one was seen
        to its end, what is expected of it.
    """

    def __init__(
        self,
        directory: Path,
        *,
        newest: int,
        best: Score | None,
        every: Period | None,
        on_error: str,
        watchdog: Watchdog,
        progress: Progress,
        on_saved: Callable[[int], None],
        processes: Processes = ALONE,
        folder: WorkFolder | None = None,
    ):
        self._directory = directory.absolute()
        self._newest, self._best, self._every = newest, best, every
        self._on_error, self._on_saved = on_error, on_saved
        self._watchdog, self._progress = watchdog, progress
        self._processes = processes
        self._folder = WorkFolder(self._directory.parent) if folder is None else folder
        self._scores: dict[int, float] = {}
        self._warned: set[str] = set()
        self._under_way: _Save | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self.latest: int | None = None
        self.save_seconds = 0.0
        quieten_orbax()
        with storage_errors(directory):
            self._directory.mkdir(parents=True, exist_ok=True)
            self._folder_around = os.stat(self._directory.parent)
        if not processes.index:
            delete_leftovers(self._directory)

    def save(self, step: int, state: TrainState, run: Mapping[str, Any]) -> None:
        """Begins to save a checkpoint, when an earlier save has ended; the state may be donated.

        Whatever has this step's name already is set aside. With "is_planned" False in `run`, the
        run's own values, it takes no other's place among the newest.
        """
        self.wait()
        began, path = time.monotonic(), self._directory / str(step)
        is_kept = self._every is not None and self._every.is_passed(self.latest or 0, step)
        own = {"step": step, "score": self._scores.get(step), "keep": is_kept}
        with self._minding_errors():
            from_first(self._processes, "save", lambda: self._make_way(path, state))
            contents = Contents.of(state, {**run, **own}, self._processes.index)
            written = self._thread.submit(self._write, path, contents)
            cleared = self._thread.submit(self._delete_old, step)
            watch = self._watchdog.begin("a checkpoint", _PATIENCE * self.save_seconds)
            self._under_way = _Save(step, began, watch, written, cleared)
            reach("save.scheduled")

    def _make_way(self, path: Path, state: TrainState) -> None:
        self._check_is_there()
        self.check_space(state)
        reach("save.before")
        if os.path.lexists(path):
            set_aside(self._directory, path.name)  # not this run's: it hasn't been here before

    def _delete_old(self, step: int) -> list[StorageError]:
        if self._processes.index:
            return []
        errors = delete_old(self._directory, step, self._newest, self._scores)
        self._folder.push()
        return errors

    def check(self) -> None:
        """Looks whether a save has ended, in microseconds."""
        if self._under_way is not None and self._under_way.cleared.done():
            self.wait()

    def wait(self) -> None:
        """Waits for a save under way."""
        if self._under_way is None:
            return
        save, self._under_way = self._under_way, None
        try:
            save.cleared.exception()  # waits until the thread has nothing more to do
            with self._minding_errors():
                save.written.result()
                self._check_is_there()
                self.latest = save.step
                self._on_saved(save.step)
                for error in save.cleared.result():
                    self._warn_once(f"{error} The checkpoint is neither used nor removed.")
        finally:
            self._watchdog.end(save.watch)
            self.save_seconds = max(self.save_seconds, time.monotonic() - save.began)

    def restore(self, found: Found, like: TrainState) -> TrainState:
        """Reads a checkpoint onto the devices of `like`; raises as `restoring.restore`."""
        state = restore(found, like)
        self.latest = found.step
        return state

    def measured(self, row: Mapping[str, Any]) -> None:
        """Takes note of how good the checkpoint of a row's step is, maybe after it was saved."""
        if self._best is None:
            return
        if is_evaluation(row) and not row.keys() & set(self._best.metrics):
            self._warn_once(
                f"no {' or '.join(self._best.metrics)} is measured, so no checkpoint is kept as the best"
            )
        score = self._best.of(row)
        if score is not None:
            self._scores[row["step"]] = score

    def check_space(self, state: TrainState) -> None:
        """Warns where the disk is short of room; raises a StorageError where it has none for one."""
        num_bytes = checkpoint_bytes(state)
        self.save_seconds = self.save_seconds or num_bytes / _EXPECTED_BYTES_PER_SECOND
        warning = check_free_space(self._directory, num_bytes, self._newest)
        if warning is not None:
            self._warn_once(warning)

    def check_is_saved(self, step: int) -> None:
        """Raises a StorageError where `step` isn't saved: whatever was warned about, no success."""
        if self.latest != step:
            raise StorageError(
                f"the last checkpoint, after update {step:,}, could not be saved in "
                f"{self._directory}; make room and give the same command again."
            )

    def close(self) -> None:
        """Waits for a save under way, and ends the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _check_is_there(self) -> None:
        """Raises a StorageError where the folder around was moved, or its disk has gone.

        A new folder of that name would have half of a run.
        """
        folder, is_there = self._directory.parent, False
        with storage_errors(folder, action="read"), contextlib.suppress(FileNotFoundError):
            is_there = os.path.samestat(os.stat(folder), self._folder_around)
        if not is_there:
            raise StorageError(
                f"{folder} isn't the folder any more that training began in: it was moved, or its "
                "disk has gone; put it back and give the same command again."
            )

    def _write(self, path: Path, contents: Contents) -> None:
        self._check_is_there()  # again: the thread may have begun later
        write_checkpoint(path, contents, self._processes, self._folder)
        reach("save.committed")

    @contextlib.contextmanager
    def _minding_errors(self) -> Iterator[None]:
        try:
            yield
        except StorageError as error:
            if self._on_error == "stop":
                raise
            self._progress.message(f"warning: {error} Training goes on without it.")

    def _warn_once(self, warning: str) -> None:
        if warning not in self._warned:
            self._warned.add(warning)
            self._progress.message(f"warning: {warning}")
