"""What a stream can show, and a stream that may break without taking the program with it."""

import os
from collections.abc import Callable
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

    def fileno(self) -> int:
        return self._stream.fileno()

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
        try:
            descriptor = self._stream.fileno()
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)
        except (OSError, ValueError):
            pass  # no file descriptor behind it: nothing will be flushed at exit either
