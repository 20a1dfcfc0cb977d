"""TensorBoard events of a run, written at once and in order."""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from adabatch_jax.system.errors import one_line


class EventFile:
    """One TensorBoard event file, opened anew whenever a run starts or resumes.

    The rows of metrics are complete without it: where tensorboardX isn't installed, or the file
    can't be written, that is said once and the run goes on without events.

    tensorboardX's `SummaryWriter` writes from a thread behind a bounded queue: when the disk is
    full the thread dies and the next put blocks training for ever. A few scalars every fifty
    steps need no thread, so its record writer is used directly and errors arrive at once.

    Args:
      directory: folder of the events, created where missing.
      purge_step: events of earlier files from this step on are hidden by TensorBoard.
      warn: is given the one sentence.
    """

    def __init__(self, directory: Path, purge_step: int, warn: Callable[[str], None] | None = None):
        self._directory, self._warn = directory, warn or _to_stderr
        self._writer: Any = None
        self._attempt(lambda: self._open(purge_step))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends the scalars of one step; their names are the tags."""
        if self._writer is not None:
            self._attempt(lambda: self._append_scalars(step, scalars))

    def close(self) -> None:
        if self._writer is not None:
            self._attempt(self._writer.close)

    def _open(self, purge_step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        self._event, self._summary = Event, Summary
        self._directory.mkdir(parents=True, exist_ok=True)
        # The file's name has whole seconds only: two starts within one must not share a file.
        self._writer = EventsWriter(str(self._directory / "events"), f".{purge_step}")
        start = SessionLog(status=SessionLog.START)
        self._append(Event(step=purge_step, session_log=start))

    def _append_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        values = [
            self._summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()
        ]
        self._append(self._event(step=step, summary=self._summary(value=values)))

    def _append(self, event: object) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)
        self._writer.flush()

    def _attempt(self, act: Callable[[], Any]) -> None:
        try:
            act()
        except Exception as error:  # the disk's, and those of packages that don't fit together
            self._writer = None
            self._warn(
                f"warning: there are no TensorBoard events in {self._directory} from here on "
                f"({_reason(error)}), which training doesn't need."
            )


def _reason(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"the package {(error.name or '').partition('.')[0]} isn't installed"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error)


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
