"""Signals and a time limit: stop at the next update, save, and say how to go on."""

import contextlib
import os
import select
import signal
import socket
import threading
import time
from types import FrameType

from adabatch_jax.system.errors import UsageError

# Slurm announces the end of a job by SIGUSR1 where it is asked to.
_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGUSR1: "SIGUSR1"}
_TIME_LIMIT = "--max-time"
_PREEMPTED = 143
# Launchers that pass a signal on to a process group that had it already make one look like two.
_SAME_SIGNAL_SECONDS = 0.1
_SHOW_CURSOR = "\x1b[?25h\n"


class Interruption:
    """Whether a run was asked to stop: by Ctrl-C, SIGTERM or SIGUSR1, or by a limit of its time.

    Signals are heard while it is entered, in the main thread: at once, also while Python itself
    waits for a compiler or a device. Elsewhere, and inside another `Interruption`, it hears none.

    Until `defer` a signal ends the process: there is nothing to save yet, and an exception in the
    middle of an import can abort it. After `defer` the first signal makes `requested` true, and a
    second one ends the process.

    Args:
      max_seconds: how long the run may take, what stopping takes included; None: no limit.
      started: since when, as `time.monotonic()`; None: now.

    Raises:
      UsageError: `max_seconds` is not above 0.

    >>> with Interruption() as interruption:
    ...     interruption.defer()
    ...     signal.raise_signal(signal.SIGTERM)
    ...     while not interruption.requested:
    ...         time.sleep(0.001)
    ...     interruption.name, interruption.exit_code
    ('SIGTERM', 143)
    """

    def __init__(self, max_seconds: float | None = None, started: float | None = None):
        if max_seconds is not None and not max_seconds > 0:
            raise UsageError(f"`max_seconds` must be above 0, got {max_seconds}.")
        started = time.monotonic() if started is None else started
        self._deadline = None if max_seconds is None else started + max_seconds
        self._expected_seconds = 0.0
        self._deferred = False
        self._name: str | None = None
        self._first_heard: float | None = None
        self._entered: list[contextlib.ExitStack] = []

    def __enter__(self) -> "Interruption":
        stack = contextlib.ExitStack()
        self._entered.append(stack)
        if threading.current_thread() is threading.main_thread() and not _listening():
            self._listen(stack)
        return self

    def __exit__(self, *exception: object) -> None:
        self._entered.pop().close()

    def defer(self) -> None:
        """From now on there is something to save, and whoever asks `requested` decides when."""
        self._deferred = True

    def expect(self, seconds: float) -> None:
        """Sets how long before the limit `requested` becomes true: what stopping takes."""
        self._expected_seconds = seconds

    @property
    def requested(self) -> bool:
        """Whether to stop; once true it stays so."""
        if self._name is None and self._deadline is not None:
            if time.monotonic() >= self._deadline - self._expected_seconds:
                self._name = _TIME_LIMIT
        return self._name is not None

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

    def _listen(self, stack: contextlib.ExitStack) -> None:
        """Begins to hear signals; the stack undoes it, in the opposite order."""
        reader, writer = (stack.enter_context(end) for end in socket.socketpair())
        writer.setblocking(False)
        self._wakeup_fd = writer.fileno()
        previous_fd = signal.set_wakeup_fd(self._wakeup_fd, warn_on_full_buffer=False)
        thread = threading.Thread(
            target=self._read, args=(reader, previous_fd), name="signals", daemon=True
        )
        thread.start()
        stack.callback(thread.join)
        stack.callback(writer.send, bytes(1))  # no signal has the number 0
        stack.callback(signal.set_wakeup_fd, previous_fd)
        for number in _NAMES:
            previous = signal.getsignal(number)
            if previous is not None:  # what isn't Python's couldn't be put back
                signal.signal(number, self._handle)
                stack.callback(signal.signal, number, previous)

    def _read(self, reader: socket.socket, previous_fd: int) -> None:
        """The thread that hears: the interpreter's C code writes a byte for each signal."""
        while True:
            for number in reader.recv(64):
                if not number:
                    return
                if number in _NAMES:
                    self._hear(number)
                elif previous_fd >= 0:  # whoever listened there, such as an event loop
                    with contextlib.suppress(OSError):
                        os.write(previous_fd, bytes([number]))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """What Python calls in the main thread, which may be sooner or much later."""
        if self._deferred:
            self._name = self._name or _NAMES[number]
        current = signal.set_wakeup_fd(self._wakeup_fd, warn_on_full_buffer=False)
        if current == self._wakeup_fd:
            return  # the thread has it too, and counts
        if current >= 0:
            signal.set_wakeup_fd(current)
        self._hear(number)

    def _hear(self, number: int) -> None:
        now, name = time.monotonic(), _NAMES[number]
        if not self._deferred:
            say_at_once(
                f"stopped by {name} before the first update: there is nothing new to save\n"
            )
            exit_at_once(_exit_code(name))
        if self._first_heard is None:
            self._first_heard = now
            self._name = self._name or name
            say_at_once(f"{name}: stopping and saving; once more to stop at once\n")
        elif now - self._first_heard > _SAME_SIGNAL_SECONDS:
            exit_at_once(_exit_code(name))


def exit_on_signals() -> None:
    """Has the signals end the process with their exit codes, until an `Interruption` is entered.

    The first thing that a command does: the default is a traceback or another code, and an
    exception raised inside the imports of compiled modules can abort the process.
    """
    for number in _NAMES:
        signal.signal(number, lambda number, _: os._exit(_exit_code(_NAMES[number])))


def _exit_code(name: str) -> int:
    return 130 if name == _NAMES[signal.SIGINT] else _PREEMPTED


def exit_at_once(code: int) -> None:
    """Ends the process, whatever its other threads do."""
    if os.isatty(1):
        say_at_once(_SHOW_CURSOR, 1)  # the live display hides it
    os._exit(code)


def say_at_once(text: str, fd: int = 2) -> None:
    """Writes to stderr or another file, or does nothing if nobody reads the other end."""
    with contextlib.suppress(OSError, ValueError):
        if select.select([], [fd], [], 0)[1]:
            os.write(fd, text.encode())


def _listening() -> dict[int, Interruption]:
    """By signal, the `Interruption` that hears it."""
    handlers = {number: signal.getsignal(number) for number in _NAMES}
    owners = {number: getattr(handler, "__self__", None) for number, handler in handlers.items()}
    return {n: owner for n, owner in owners.items() if isinstance(owner, Interruption)}


def _forget_in_child() -> None:
    """A forked process has the parent's handlers and none of its threads: signals end it.

    Else what `multiprocessing` terminates would live on, and the parent would hear of it.
    """
    if listening := _listening():
        signal.set_wakeup_fd(-1)
        for number in listening:
            signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_forget_in_child)
