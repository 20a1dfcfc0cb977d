"""Ctrl-C and SIGTERM: stop at the next update, save, and say how to go on."""

import os
import signal
import sys
import threading
from types import FrameType

_SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


_SHOW_CURSOR = b"\x1b[?25h\n"


class Interruption:
    """Listens to signals while it is entered; outside the main thread it hears none.

    Until `defer` a signal ends the process at once: there is nothing to save yet, and an
    exception in the middle of an import can abort it. After `defer` the first signal only sets
    `happened`, and a second one ends the process.
    """

    def __init__(self):
        self._signal: int | None = None
        self._deferred = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self._previous = {n: signal.signal(n, self._hear) for n in _SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def defer(self) -> None:
        """From now on the loop decides when to stop."""
        self._deferred = True

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if not self._deferred or self._signal is not None:
            if sys.stdout.isatty():
                os.write(1, _SHOW_CURSOR)  # the live display hides it
            os._exit(128 + number)
        self._signal = number
        os.write(2, b"stopping after this update and saving; once more to stop at once\n")

    @property
    def happened(self) -> bool:
        """Whether a signal came."""
        return self._signal is not None

    @property
    def name(self) -> str:
        """The signal, as a user knows it."""
        return _SIGNALS[self._signal]

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self._signal
