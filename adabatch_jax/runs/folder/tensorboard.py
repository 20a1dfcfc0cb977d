"""TensorBoard events of a run, written at once and in order."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adabatch_jax.system.errors import one_line


class EventFile:
    """One TensorBoard event file, opened anew whenever a run starts or resumes.

    The rows of metrics are complete without it: where tensorboardX isn't installed, or the file
    can't be written, that is said once on stderr and the run goes on without events.

    tensorboardX's `SummaryWriter` writes from a thread behind a bounded queue: when the disk is
    full the thread dies and the next put blocks training for ever. A few scalars every fifty
    steps need no thread, so its record writer is used directly and errors arrive at once.

    Args:
      directory: folder of the events, created where missing.
      purge_step: events of earlier files from this step on are hidden by TensorBoard.
    """

    def __init__(self, directory: Path, purge_step: int):
        self._directory = directory
        self._writer: Any = None
        with self._giving_up_on_errors():
            self._writer = _opened(directory, purge_step)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends the scalars of one step; their names are the tags."""
        if self._writer is not None:
            with self._giving_up_on_errors():
                _append(self._writer, step=step, summary=_summary(scalars))

    def close(self) -> None:
        """Closes the file; every event is on disk already."""
        if self._writer is not None:
            with self._giving_up_on_errors():
                self._writer.close()

    @contextlib.contextmanager
    def _giving_up_on_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the disk's, and those of packages that don't fit together
            self._writer = None
            said = (
                f"warning: there are no TensorBoard events in {self._directory} from here on "
                f"({_reason(error)}), which training doesn't need."
            )
            print(said, file=sys.stderr, flush=True)


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


def _reason(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"the package {(error.name or '').partition('.')[0]} isn't installed"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error)
