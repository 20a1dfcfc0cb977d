"""The folder of a run while one process owns it: its lock and every file in it."""

import contextlib
import dataclasses
import json
import os
import secrets
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from adabatch_jax.cluster.agreement import from_all, from_first
from adabatch_jax.cluster.processes import ALONE, Processes
from adabatch_jax.config.settings import Keep, settings_digest
from adabatch_jax.runs.checkpoints.verifying import Damaged, Found, read_checkpoint
from adabatch_jax.runs.display.progress import Progress
from adabatch_jax.runs.folder.finished_run import Finished, digests_of_files, find_finished
from adabatch_jax.runs.folder.folder_reading import (
    CHECKPOINTS,
    DATASET,
    ENVIRONMENT,
    SUMMARY,
    TOKENIZER,
    LastCheckpoint,
    has_environment,
    newest_usable,
)
from adabatch_jax.runs.folder.lock import LOCK_SECONDS, lock_text
from adabatch_jax.runs.folder.metrics_files import MetricsWriter, read_metrics
from adabatch_jax.runs.folder.opened_folder import locked_folder
from adabatch_jax.runs.folder.start_point import (
    StartPoint,
    find_start,
    put_folder_right,
    write_last_checkpoint,
)
from adabatch_jax.schedules.periods import Period
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.system.environment import describe_environment
from adabatch_jax.system.errors import RestoreError, StorageError, explain_missing
from adabatch_jax.system.files import (
    read_file,
    storage_errors,
    write_atomically,
    write_json,
    write_sealed,
)
from adabatch_jax.system.mirrored_folder import WorkFolder
from adabatch_jax.system.watchdog import Watchdog
from adabatch_jax.training.time_prediction import Prediction
from adabatch_jax.training.train_state import TrainState

if TYPE_CHECKING:
    from adabatch_jax.runs.checkpoints.checkpoints import Checkpoints


class RunFolder:
    """A run's folder, made if need be; a context manager that keeps other processes out.

    What lies there already is never trusted to be readable, and is left as it is until `put_right`:
    where a run is refused, nothing is changed.

    Args:
      path: the folder, or one that was `opened`.
      flag: where the user named it, for errors.
      allow_change: with "rows" among it a run goes on without rows of metrics that were lost.
      lock_seconds, take_over: as in `locked`.
      processes: those that train together; this is the first of them.

    Attributes:
      dataset: what is known of the dataset, for dataset.json; None where nobody told.
      tokenizer: of a text, the content of tokenizer.json; None where there is none to keep.
      notes: what was found and is worth a line each.
      changes: what differs from what the checkpoint says, as JSON values; of lost rows it is known
        from `put_right` on.

    Raises (when entered):
      UsageError: another process is training there.
      RestoreError: there were checkpoints, and none of them is sound; or rows before the newest
        one are damaged or missing.
      StorageError: the folder can't be read or written.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        flag: str = "--workdir",
        allow_change: Collection[str] = (),
        lock_seconds: float = LOCK_SECONDS,
        take_over: bool = False,
        processes: Processes = ALONE,
    ):
        self._folder = path if isinstance(path, WorkFolder) else WorkFolder(Path(path).absolute())
        self.path = Path(path).absolute()  # the program may change its current folder
        self.processes = processes
        self.dataset: Mapping[str, Any] | None = None
        self.tokenizer: bytes | None = None
        self.notes: list[str] = []
        self.changes: list[dict[str, Any]] = []
        self._may_lose_rows = "rows" in allow_change
        self._start = StartPoint()
        self._lock = locked_folder(self._folder, flag, lock_seconds, take_over)
        self._stack = contextlib.ExitStack()
        self._run_id = secrets.token_hex(8)
        self._last = LastCheckpoint()  # of this run
        self._checkpoints: Checkpoints | None = None
        self._rows: MetricsWriter | None = None

    def __enter__(self) -> "RunFolder":
        with contextlib.ExitStack() as stack:
            from_first(self.processes, "run folder", lambda: self._take(stack))
            from_all(self.processes, "run folder is seen", lambda: None)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: Any, failure: BaseException | None, *_: Any) -> None:
        with self._stack:
            try:
                self._push_rest()
            except StorageError:
                if failure is None:  # which tells the cause
                    raise

    def _push_rest(self) -> None:
        self._folder.push()

    def _take(self, stack: contextlib.ExitStack) -> dict[str, Any]:
        """Locks the folder, and finds what is in it."""
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        stack.enter_context(self._lock)
        self._find()
        return self._found()

    def _found(self) -> dict[str, Any]:
        """What other processes are told of what is there, as JSON values."""
        return {
            "lock": lock_text(self.path),
            "run_id": self._run_id,
            "step": None if self.checkpoint is None else self.checkpoint.step,
            "rows": None if self._start.rows is None else dataclasses.asdict(self._start.rows),
        }

    def _find(self, rejected: Collection[tuple[int, str]] = ()) -> None:
        """Finds what to go on from; changes nothing."""
        self._start = find_start(self.path, rejected, self._may_lose_rows)
        if self.checkpoint is not None:
            self._run_id = self.checkpoint.run["run_id"]
        elif (self.path / "metrics.jsonl").exists():
            self.notes.append(
                "note: the run here has no checkpoint yet, so it begins with its first update again"
            )

    def _find_again(self, rejected: Collection[tuple[int, str]]) -> None:
        def find() -> dict[str, Any]:
            self._find(rejected)
            return self._found()

        from_first(self.processes, "run folder", find)
        from_all(self.processes, "run folder is seen", lambda: None)

    @property
    def checkpoint(self) -> Found | None:
        """The newest sound checkpoint, when entered; None where none was saved yet."""
        return self._start.checkpoint

    def put_right(self) -> None:
        """Sets aside what the run can't go on with, when nothing refuses the run any more."""
        self.processes.barrier("run folder is read")

        def put() -> list[dict[str, Any]]:
            self._last, notes = put_folder_right(self.path, self._start)
            self.notes += notes
            lost_at = self._last.rows_lost_at
            if lost_at is not None and self.checkpoint.step <= lost_at:
                self.changes.append({"kind": "rows_lost", "step": lost_at})
            return self.changes

        self.changes = from_first(self.processes, "run folder is put right", put)

    def open(
        self,
        keep: Keep,
        period: Period | None,
        on_save_error: str,
        watchdog: Watchdog,
        progress: Progress,
    ) -> None:
        """Opens the checkpoints, `period` being `keep.every`; `close` ends what this begins."""
        try:
            # Not needed in memory.
            from adabatch_jax.runs.checkpoints.checkpoints import Checkpoints
        except ModuleNotFoundError as error:
            raise explain_missing(error) or error from error

        self._checkpoints = Checkpoints(
            self.path / CHECKPOINTS,
            newest=keep.newest,
            best=keep.score,
            every=period,
            on_error=on_save_error,
            watchdog=watchdog,
            progress=progress,
            on_saved=self._note_saved,
            processes=self.processes,
            folder=self._folder,
        )

    def begin(
        self,
        plan: BatchPlan,
        identity: Mapping[str, Any],
        is_done: bool,
        changed: Collection[str] = (),
    ) -> list[dict]:
        """Writes what describes the run; returns its rows of metrics up to the checkpoint.

        Where something is left to be done, the results there, of a shorter run, are removed.
        What is in files that were `changed` isn't believed.
        """
        if not is_done:
            with storage_errors(self.path):
                for name in (SUMMARY, "report.html"):
                    (self.path / name).unlink(missing_ok=True)
        # It also tells a run's folder from a foreign one.
        write_json(self.path / "config.json", identity)
        if self.dataset is not None:
            write_json(self.path / DATASET, self.dataset)
        if self.tokenizer is not None:
            write_atomically(self.path / TOKENIZER, self.tokenizer)
        predicted = None if "plan.json" in changed else self._prediction(plan)
        kept = {} if predicted is None else {"prediction": predicted.to_dict()}
        write_json(self.path / "plan.json", plan.to_dict() | kept)
        self._rows = MetricsWriter(self.path, self._start.rows)
        rows = self.read_rows()
        for row in rows:
            self._checkpoints.measured(row)
        self._folder.clear()
        self._folder.push()
        return rows

    @property
    def where(self) -> str:
        """The folder's name for people: its path, or its address in an object store."""
        return str(self._folder)

    @property
    def run_id(self) -> str:
        """The run's own name, which its checkpoints have too; another one where it begins anew."""
        return self._run_id

    def kept_rows(self) -> list[dict[str, Any]]:
        """The rows up to the checkpoint; none where they were lost."""
        end = self._start.rows
        if end is None or not end.num_bytes:  # an object store keeps no file then
            return []
        return read_metrics(self.path / "metrics.jsonl", end.num_bytes)

    def read_rows(self) -> list[dict[str, Any]]:
        """The rows of metrics so far."""
        path = self.path / "metrics.jsonl"
        return read_metrics(path) if path.exists() else []

    def write_row(self, row: Mapping[str, Any]) -> None:
        """Adds a row of metrics."""
        self._rows.write(row)
        self._checkpoints.measured(row)

    def wants_prediction(self, plan: BatchPlan) -> bool:
        """Whether nothing was predicted for this very plan."""
        return from_first(self.processes, "no prediction", lambda: self._prediction(plan) is None)

    def write_prediction(self, plan: BatchPlan, prediction: Mapping[str, Any]) -> None:
        """Adds what the run should take to plan.json."""
        write_json(self.path / "plan.json", plan.to_dict() | {"prediction": dict(prediction)})

    def _prediction(self, plan: BatchPlan) -> Prediction | None:
        """What was predicted for this very plan; a run may have been prolonged."""
        try:
            content = json.loads(read_file(self.path / "plan.json"))
            predicted = Prediction.from_dict(content["prediction"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
                RecursionError):  # fmt: skip
            return None  # not there yet, or damaged: it decides nothing
        phases = [(phase.batch_size, phase.num_updates) for phase in predicted.phases]
        is_its = phases == [(phase.batch_size, phase.num_steps) for phase in plan.phases]
        return predicted if is_its else None

    def write_environment(
        self, layout: Mapping[str, Any], numerics: Mapping[str, Any], restarts: int
    ) -> None:
        """Describes what the run was made with."""
        environment = describe_environment(device.device_kind for device in jax.devices())
        environment |= {
            "layout": dict(layout),
            "numerics": dict(numerics),
            "restarts": restarts,
        }
        write_json(self.path / ENVIRONMENT, environment)

    def find_finished(self, identity: Mapping[str, Any]) -> Finished:
        """What is there of this run, if it was finished with these settings."""

        def find() -> tuple[Any, ...]:
            there = self._find_finished(identity)
            return there.summary, there.changed, there.run_id

        summary, changed, run_id = from_first(self.processes, "finished run", find)
        return Finished(summary, tuple(changed), run_id)

    def _find_finished(self, identity: Mapping[str, Any]) -> Finished:
        there = find_finished(self.path, settings_digest(identity), self.checkpoint)
        if there.summary is not None and there.run_id != self._run_id:
            there = Finished(None, (SUMMARY,))
        if there.summary is None and not has_environment(self.path):
            there = Finished(None, (*there.changed, ENVIRONMENT))
        return there

    def write_summary(
        self, summary: Mapping[str, Any], identity: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Writes summary.json, when all else but the report is there; returns the summary."""
        summary = {**summary, "config_digest": settings_digest(identity)}
        about = {"run_id": self._run_id, "files": digests_of_files(self.path)}
        write_sealed(self.path / SUMMARY, summary | about)
        self._folder.push()
        return summary

    def restored(self, like: TrainState, check: Callable[[Found], None]) -> TrainState:
        """The state of the newest checkpoint that can be restored, if `check` raises no error."""
        while True:
            check(self.checkpoint)
            restored: list[TrainState] = []

            def restore() -> str | None:
                try:
                    restored.append(self._checkpoints.restore(self.checkpoint, like))
                except Damaged as error:
                    return str(error)
                return None

            reasons = from_all(self.processes, "restored", restore)
            if not any(reasons):
                return restored[0]
            reason = next(filter(None, reasons))
            self._find_again([*self._start.rejected, (self.checkpoint.step, reason)])

    def restore_saved(self, found: Found, like: TrainState) -> TrainState:
        """Reads a checkpoint that this process saved; raises a RestoreError where it can't be."""
        try:
            return self._checkpoints.restore(found, like)
        except Damaged as error:
            raise RestoreError(
                f"checkpoint {found.step} in {found.path.parent} can't be restored ({error})."
            ) from error

    def newest_planned_checkpoint(self) -> Found | None:
        """Waits for a save under way; the newest sound checkpoint that no stop made be saved."""
        self.wait_for_saves()
        found: list[Found | None] = []

        def find() -> int | None:
            found.append(self._newest_planned())
            return None if found[0] is None else found[0].step

        step = from_first(self.processes, "newest planned checkpoint", find)
        return found[0] if found or step is None else self._seen(step)

    def _newest_planned(self) -> Found | None:
        self._folder.complete(self.path / CHECKPOINTS)
        return newest_usable(
            self.path,
            self._run_id,
            lambda found: None if found.run["is_planned"] else "a stop made it be saved",
        )[0]

    def _seen(self, step: int) -> Found:
        """A checkpoint that the first process verified."""
        self._folder.complete(self.path / CHECKPOINTS / str(step))
        return read_checkpoint(self.path / CHECKPOINTS / str(step))

    @property
    def save_seconds(self) -> float:
        """The longest that a save took, or what is expected of the first."""
        return self._checkpoints.save_seconds

    def check_space(self, state: TrainState) -> None:
        """Warns where there is little room for checkpoints; a StorageError where there is none."""
        from_first(self.processes, "room", lambda: self._checkpoints.check_space(state))

    def save(self, step: int, state: TrainState, run: Mapping[str, Any]) -> None:
        """Begins to save a checkpoint; rows before it are on disk, and the state may be donated."""
        rows = dataclasses.asdict(self._rows.position())
        own = {"run_id": self._run_id, "metrics": rows, "dataset": self.dataset}
        self._checkpoints.save(step, state, {**run, **own})

    def check_saves(self) -> None:
        """Looks whether a save in the background has ended; raises what it failed with."""
        self._checkpoints.check()

    def wait_for_saves(self, step: int | None = None) -> None:
        """Waits for a save under way; raises what it failed with.

        The run's end, if given as `step`, is no success without its checkpoint.
        """
        self._checkpoints.wait()
        if step is not None:
            self._checkpoints.check_is_saved(step)

    def _note_saved(self, step: int) -> None:
        self._last = dataclasses.replace(self._last, run_id=self._run_id, step=step)
        write_last_checkpoint(self.path, self._last)

    def close(self, _: Any = None, failure: BaseException | None = None, *__: Any) -> None:
        """Ends what `open` and `begin` began; the folder stays locked.

        Called as an `__exit__` it raises nothing after a `failure`: the first one tells the cause.
        """
        parts = (self._checkpoints, self._rows)
        self._checkpoints = self._rows = None
        first = failure
        for part in parts:
            try:
                if part is not None:
                    part.close()
            except Exception as error:
                first = first or error
        if first is not failure:
            raise first
