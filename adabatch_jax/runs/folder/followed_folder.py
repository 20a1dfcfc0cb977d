"""The folder of a run for those of its processes that don't own it."""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from adabatch_jax.cluster.agreement import from_all, from_first
from adabatch_jax.cluster.processes import ALONE, Processes
from adabatch_jax.config.settings import settings_digest
from adabatch_jax.runs.checkpoints.verifying import Damaged
from adabatch_jax.runs.folder.folder_reading import LOGS
from adabatch_jax.runs.folder.in_memory import InMemory
from adabatch_jax.runs.folder.lock import lock_text
from adabatch_jax.runs.folder.metrics_files import MetricsPosition
from adabatch_jax.runs.folder.opened_folder import opened
from adabatch_jax.runs.folder.run_folder import RunFolder
from adabatch_jax.runs.folder.start_point import StartPoint
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.system.errors import UsageError
from adabatch_jax.training.train_state import TrainState


class FollowedFolder(RunFolder):
    """A `RunFolder` as another process than the first sees it: it saves its part of checkpoints.

    Which checkpoint the run goes on from, and what else is there, the first process says. Nothing
    but its part of checkpoints is written here.

    Raises (when entered):
      UsageError: this process doesn't see the folder that the first one locked.
    """

    def __enter__(self) -> "FollowedFolder":
        self._adopt()
        return self

    def _adopt(self) -> None:
        told = from_first(self.processes, "run folder", dict)
        step, rows = told["step"], told["rows"]

        def see() -> None:
            self._folder.fetch()
            try:
                is_seen = lock_text(self.path) == told["lock"]
                checkpoint = None if step is None or not is_seen else self._seen(step)
            except (OSError, Damaged):
                is_seen = False
            if not is_seen:
                raise UsageError(
                    f"workdir: {self.path} isn't the folder here that process 0 trains in; give one "
                    "on a disk that all processes share."
                )
            end = None if rows is None else MetricsPosition(**rows)
            self._start = StartPoint(checkpoint, end)

        from_all(self.processes, "run folder is seen", see)
        self._run_id = told["run_id"]

    def _find_again(self, rejected: Collection[tuple[int, str]]) -> None:
        self._adopt()

    def _push_rest(self) -> None:
        self._folder.push([LOGS])

    def begin(
        self,
        plan: BatchPlan,
        identity: Mapping[str, Any],
        is_done: bool,
        changed: Collection[str] = (),
    ) -> list[dict]:
        """The rows of metrics up to the checkpoint."""
        rows = self.kept_rows()
        for row in rows:
            self._checkpoints.measured(row)
        return rows

    def write_row(self, row: Mapping[str, Any]) -> None:
        """Writes nothing."""
        self._checkpoints.measured(row)

    def write_prediction(self, plan: BatchPlan, prediction: Mapping[str, Any]) -> None:
        """Writes nothing."""

    def write_environment(self, *_: Any) -> None:
        """Writes nothing."""

    def write_summary(
        self, summary: Mapping[str, Any], identity: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Returns the summary, which the first process writes."""
        return {**summary, "config_digest": settings_digest(identity)}

    def save(self, step: int, state: TrainState, run: Mapping[str, Any]) -> None:
        """Begins to save this process's part of a checkpoint; the state may be donated."""
        self._checkpoints.save(step, state, run)

    def _note_saved(self, step: int) -> None:
        pass


def run_folder(
    workdir: str | os.PathLike, *args: Any, processes: Processes, **kwargs: Any
) -> RunFolder:
    """The folder of a run that these processes train together, to be entered; see `RunFolder`."""
    kind = FollowedFolder if processes.index else RunFolder
    return kind(workdir, *args, processes=processes, **kwargs)


@contextmanager
def run_store(
    workdir: str | os.PathLike | RunFolder | None,
    allow_change: Collection[str] = (),
    processes: Processes = ALONE,
) -> Iterator[RunFolder | InMemory]:
    """Where a run leaves what it leaves: in a folder, held already or from now on, or nowhere."""
    if workdir is None:
        yield InMemory()
    elif isinstance(workdir, RunFolder):
        yield workdir
    else:
        with (
            opened(workdir, "workdir") as place,
            run_folder(place, "workdir", allow_change, processes=processes) as folder,
        ):
            yield folder
