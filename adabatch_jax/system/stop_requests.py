"""Signals and a time limit: stop at the next update, save, and say how to go on."""

import contextlib
import math
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from adabatch_jax.system.errors import UsageError

_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
if hasattr(signal, "SIGUSR1"):  # not on Windows
    # Slurm announces the end of a job by it where it is asked to.
    _NAMES[signal.SIGUSR1] = "SIGUSR1"
_TIME_LIMIT = "--max-time"
_PREEMPTED = 143
# Launchers that pass a signal on to a process group that had it already make one look like two.
_SAME_SIGNAL_SECONDS = 0.1
_SHOW_CURSOR = "\x1b[?25h\n"
_LAST_WORDS_SECONDS = 10.0
_last_words: list[Callable[[str, int], None]] = []


class Interruption:
    """Whether a run was asked to stop: by Ctrl-C, SIGTERM or SIGUSR1, or by a limit of its time.

    Signals are heard while it is entered, in the main thread; elsewhere, and inside another
    `Interruption`, it hears none. Python hears them between two of its own instructions: whoever
    waits for a device does so in `jax.block_until_ready`, and for a compiler in another thread.

    Until `defer` a signal ends the process: there is nothing to save yet, and an exception in the
    middle of an import can abort it. After `defer` the first signal makes `requested` true, and a
    second one ends the process. It ends with the exit code of a signal, 130 or 143, which the
    system's own action for SIGUSR1 would not.

    Args:
      max_seconds: how long the run may take, what stopping takes included; None: no limit.
      started: since when, as `time.monotonic()`; None: now.

    Raises:
      UsageError: if `max_seconds` <= 0.

    >>> with Interruption() as interruption:
    ...     interruption.defer()
    ...     signal.raise_signal(signal.SIGTERM)
    ...     interruption.requested, interruption.name, interruption.exit_code
    (True, 'SIGTERM', 143)
    """

    def __init__(self, max_seconds: float | None = None, started: float | None = None):
        if max_seconds is not None and not max_seconds > 0:
            raise UsageError(f"`max_seconds` must be above 0, got {max_seconds}.")
        started = time.monotonic() if started is None else started
        self._deadline = started + (math.inf if max_seconds is None else max_seconds)
        self._expected_seconds = 0.0
        self._deferred = False
        self._name: str | None = None
        self._first_heard: float | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread() and not _heard():
            handlers = {number: signal.getsignal(number) for number in _NAMES}
            # What isn't Python's couldn't be put back.
            self._previous = {n: handler for n, handler in handlers.items() if handler is not None}
            for number in self._previous:
                signal.signal(number, self._hear)
        return self

    def __exit__(self, *exception: object) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def defer(self) -> None:
        """From now on there is something to save, and whoever asks `requested` decides when."""
        self._deferred = True

    def expect(self, seconds: float) -> None:
        """Sets how long before the limit `requested` becomes true: what stopping takes."""
        self._expected_seconds = seconds

    @property
    def requested(self) -> bool:
        """Whether to stop; once true it stays so."""
        if self._name is None and time.monotonic() >= self._deadline - self._expected_seconds:
            self._name = _TIME_LIMIT
        return self._name is not None

    def adopt(self, name: str) -> None:
        """Takes over what all processes stop by, whatever this one was asked by itself."""
        self._name = name

    @property
    def is_time_up(self) -> bool:
        """Whether the limit of its time asked first."""
        return self._name == _TIME_LIMIT

    @property
    def name(self) -> str | None:
        """What asked first, as a user knows it; None if nothing did."""
        return self._name

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, else 143; 0 if nothing asked to stop."""
        return 0 if self._name is None else _exit_code(self._name)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now, name = time.monotonic(), _NAMES[number]
        if not self._deferred:
            why = f"stopped by {name} before the first update"
            say_at_once(f"{why}: there is nothing new to save\n")
            exit_at_once(_exit_code(name), f"{why}.")
        if self._first_heard is None:
            self._first_heard = now
            self._name = self._name or name
            say_at_once(f"{name}: stopping and saving; once more to stop at once\n")
        elif now - self._first_heard > _SAME_SIGNAL_SECONDS:
            exit_at_once(_exit_code(name), f"stopped at once by {name}.")


def exit_on_signals() -> None:
    """Has the signals end the process with their exit codes, until an `Interruption` is entered.

    The first thing that a command does: the default is a traceback or another code, and an
    exception raised inside the imports of compiled modules can abort the process.
    """
    for number in _NAMES:
        signal.signal(number, lambda number, _: os._exit(_exit_code(_NAMES[number])))


def _exit_code(name: str) -> int:
    return 130 if name == _NAMES[signal.SIGINT] else _PREEMPTED


def exit_at_once(code: int, why: str) -> None:
    """Ends the process, whatever its other threads do, after its `last_words`, if they are short."""
    if os.isatty(1):
        say_at_once(_SHOW_CURSOR, 1)  # the live display hides it
    while _last_words:  # once: who asks again doesn't wait for them
        thread = threading.Thread(target=_last_words.pop(), args=(why, code), daemon=True)
        thread.start()
        thread.join(_LAST_WORDS_SECONDS)
    os._exit(code)


@contextlib.contextmanager
def last_words(say: Callable[[str, int], None]) -> Iterator[None]:
    """Has `exit_at_once` call `say(why, code)` first, for at most ten seconds."""
    _last_words.append(say)
    try:
        yield
    finally:
        if say in _last_words:
            _last_words.remove(say)


def say_at_once(text: str, fd: int = 2) -> None:
    """Writes to stderr or another file, or does nothing if nobody reads the other end."""
    with contextlib.suppress(OSError, ValueError):
        if select.select([], [fd], [], 0)[1]:
            os.write(fd, text.encode(errors="backslashreplace"))


def _heard() -> list[signal.Signals]:
    """The signals that an `Interruption` hears."""
    owners = {number: getattr(signal.getsignal(number), "__self__", None) for number in _NAMES}
    return [number for number, owner in owners.items() if isinstance(owner, Interruption)]


def _forget_in_child() -> None:
    """Signals end a forked process: else what `multiprocessing` terminates would live on."""
    for number in _heard():
        signal.signal(number, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):  # where processes fork
    os.register_at_fork(after_in_child=_forget_in_child)
