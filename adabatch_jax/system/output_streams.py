"""What a stream can show, and a stream that may break without taking the program with it."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody looks at the stream; it may be missing, as after `>&-`."""
    return stream is not None and stream.isatty()


def can_be_redrawn(stream: TextIO) -> bool:
    """Whether the stream is a terminal that can move its cursor."""
    return is_terminal(stream) and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


class ForgivingStream:
    """A text stream that falls silent where the wrapped one breaks, instead of raising.

    Once it has broken, its file descriptor leads to the null device: Python flushes standard
    output at exit, and whatever else the program prints should not end it either.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._broken = False

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return bool(self._attempt(self._stream.isatty))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        printable = text.encode(self.encoding, "replace").decode(self.encoding)
        self._attempt(self._stream.write, printable)
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, function: Callable[..., Any], *args: Any) -> Any:
        if self._broken:
            return None
        try:
            return function(*args)
        except (OSError, ValueError):  # a broken pipe or a hung-up terminal; a closed file
            self._broken = True
            self._lead_to_null_device()
            return None

    def _lead_to_null_device(self) -> None:
        # Without a file descriptor behind it nothing will be flushed at exit either.
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as null:
            os.dup2(null.fileno(), self._stream.fileno())


@contextlib.contextmanager
def forgiving_output() -> Iterator[None]:
    """Lets whatever is printed inside to a reader that has gone fall silent.

    What a command returns then tells of its work alone: `| head -1`, a terminal that was closed
    or a descriptor that never was open change nothing.
    """
    _open_standard_streams()
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (ForgivingStream(stream) for stream in streams)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()  # what is left would fail at exit, and change the exit code
        sys.stdout, sys.stderr = streams


def _open_standard_streams() -> None:
    """Opens the null device in place of standard streams that were closed (`>&-`).

    Otherwise the next file or socket that is opened gets the number of standard output, and
    whatever a library prints there goes into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which takes the lowest number that is free
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")
