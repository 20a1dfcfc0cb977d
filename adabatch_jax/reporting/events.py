"""TensorBoard events of a run, written at once and in order."""

import time
from collections.abc import Mapping
from pathlib import Path

from adabatch_jax.errors import UsageError


class EventFile:
    """One TensorBoard event file, opened anew whenever a run starts or resumes.

    tensorboardX's `SummaryWriter` writes from a thread behind a bounded queue: when the disk is
    full the thread dies and the next put blocks training for ever. A few scalars every fifty
    steps need no thread, so its record writer is used directly and errors arrive as `OSError`.

    Args:
      directory: folder of the events, created where missing.
      purge_step: events of earlier files from this step on are hidden by TensorBoard.
    """

    def __init__(self, directory: Path, purge_step: int):
        try:
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.proto.summary_pb2 import Summary
        except ModuleNotFoundError as error:
            raise UsageError(
                "TensorBoard events need tensorboardX, which is not installed; "
                "pip install 'adabatch_jax[train]'."
            ) from error
        self._event, self._summary = Event, Summary
        directory.mkdir(parents=True, exist_ok=True)
        # The file's name has whole seconds only: two starts within one must not share a file.
        self._writer = EventsWriter(str(directory / "events"), f".{purge_step}")
        start = SessionLog(status=SessionLog.START)
        self._append(Event(step=purge_step, session_log=start))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends the scalars of one step; their names are the tags."""
        values = [
            self._summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()
        ]
        self._append(self._event(step=step, summary=self._summary(value=values)))

    def close(self) -> None:
        self._writer.close()

    def _append(self, event: object) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)
        self._writer.flush()
