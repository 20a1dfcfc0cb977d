"""TensorBoard events of a run, written at once and in order."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adabatch_jax.runs.tracking.tracked_run import TrackedRun, scalars_of


class TensorBoard:
    """A tracker: a file of events in the run's folder, a new one whenever the run starts.

    TensorBoard hides what earlier files have of the steps that come again.

    tensorboardX's `SummaryWriter` writes from a thread behind a bounded queue: when the disk is
    full the thread dies and the next put blocks training for ever. A few scalars every fifty
    steps need no thread, so its record writer is used directly and errors arrive at once.
    """

    name = "TensorBoard"

    def __init__(self) -> None:
        self._writer: Any = None

    def start(self, run: TrackedRun) -> None:
        """Opens a file in `tensorboard/`; a run without a folder has none."""
        if run.folder is not None:
            self._writer = _opened(run.folder / "tensorboard", run.first_step)

    def row(self, row: Mapping[str, Any]) -> None:
        """Appends a row's numbers; their names are the tags."""
        if self._writer is not None:
            _append(self._writer, step=row["step"], summary=_summary(scalars_of(row)))

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Closes the file; every event is on disk already."""
        if self._writer is not None:
            self._writer.close()


def _opened(directory: Path, purge_step: int) -> Any:
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import SessionLog

    directory.mkdir(parents=True, exist_ok=True)
    # The file's name has whole seconds only: two starts within one must not share a file, and
    # TensorBoard reads files in the order of their names.
    writer = EventsWriter(str(directory / "events"), f".{purge_step:012d}")
    _append(writer, step=purge_step, session_log=SessionLog(status=SessionLog.START))
    return writer


def _append(writer: Any, **content: Any) -> None:
    from tensorboardX.proto.event_pb2 import Event

    writer.write_event(Event(wall_time=time.time(), **content))
    writer.flush()


def _summary(scalars: Mapping[str, float]) -> Any:
    from tensorboardX.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
    return Summary(value=values)
