"""A watchdog: what hangs for ever ends the process, so that a scheduler can start it again."""

import contextlib
import ctypes
import dataclasses
import faulthandler
import functools
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.stop_requests import exit_at_once, say_at_once
from adabatch_jax.system.watchdog_process import EXIT_SIGNAL

# Schedulers that restart jobs by their exit code take this one for "please restart".
RESTART_EXIT_CODE = 42
_LONGEST_INTERVAL_SECONDS = 1.0


@dataclasses.dataclass
class _Watch:
    """Something that is watched."""

    what: str  # for people
    thread: int | None  # whose beats count for it
    since: float  # when it began or last got on, by the watchdog's clock
    more_seconds: float  # that it may take beyond the watchdog's limit


class Watchdog:
    """Ends the process with exit code 42 when something watched takes too long.

    It looks from a thread of its own, so it sees what hangs in a compiler, a device or a file
    system. Where this thread can't run, as somebody holds Python's lock, or the disk of the log
    hangs, a process beside this one (on Linux) ends it once more than the limit has passed. The
    time in which the whole process was stopped doesn't count. A context manager; before it is
    entered, and with `timeout_seconds` None, it does nothing.

    Args:
      timeout_seconds: how long anything watched may go without an end or a beat, above 0.
      log_path: a text file that the stacks of all threads are appended to; None: stderr.
      is_excused: asked before the process is ended: True gives what is overdue its time once more.

    >>> with Watchdog(timeout_seconds=600, log_path=None) as watchdog:
    ...     save = watchdog.begin("the checkpoint of update 10")
    ...     with watchdog.watch("the evaluation after update 10"):
    ...         for batch in range(3):
    ...             watchdog.beat()
    ...     watchdog.end(save)
    """

    def __init__(
        self,
        timeout_seconds: float | None,
        log_path: Path | None,
        is_excused: Callable[[], bool] = lambda: False,
    ):
        if timeout_seconds is not None and not timeout_seconds > 0:
            raise UsageError(f"`timeout_seconds` must be above 0, got {timeout_seconds}.")
        self._timeout, self._log_path = timeout_seconds, log_path
        self._is_excused = is_excused
        self._interval = min((timeout_seconds or 0) / 4, _LONGEST_INTERVAL_SECONDS)
        self._clock = 0.0
        self._watches: dict[int, _Watch] = {}
        self._tokens = itertools.count()
        self._lock = threading.Lock()
        self._is_watching = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "Watchdog":
        if self._timeout is not None:
            self._ended.clear()
            if sys.platform == "linux":
                self._process = _start_process(self._timeout)
            self._thread = threading.Thread(target=self._look, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    @contextlib.contextmanager
    def watch(self, what: str) -> Iterator[None]:
        """Watches the body, which the thread that runs it may prolong by beats.

        Its end is a beat for what is watched around it.
        """
        token = self._add(what, threading.get_ident())
        try:
            yield
        finally:
            self.end(token)
            self.beat()

    def begin(self, what: str, more_seconds: float = 0.0) -> int:
        """Watches what goes on in the background, until `end` with the returned token.

        It may take `more_seconds` longer than anything else.
        """
        return self._add(what, None, more_seconds)

    def end(self, token: int) -> None:
        """Ends what `begin` began; again is fine."""
        if self._timeout is not None:
            with self._lock:
                self._watches.pop(token, None)

    def beat(self) -> None:
        """Tells that this thread gets on with what it has under `watch`."""
        if self._timeout is None:
            return
        thread = threading.get_ident()
        with self._lock:
            for watch in self._watches.values():
                if watch.thread == thread:
                    watch.since = self._now()

    def _add(self, what: str, thread: int | None, more_seconds: float = 0.0) -> int:
        if self._timeout is None:  # costs nothing at every update
            return -1
        with self._lock:
            token = next(self._tokens)
            self._watches[token] = _Watch(what, thread, self._now(), more_seconds)
            if not self._is_watching:
                self._is_watching = True
                self._write("w")
        return token

    def _now(self) -> float:
        # The clock stands still between two looks: rather late than a false alarm.
        return self._clock + self._interval

    def _look(self) -> None:
        last = time.monotonic()
        while not self._ended.wait(self._interval):
            now = time.monotonic()
            overdue = self.overdue(now - last)
            last = now
            if overdue is not None:
                self._end_process(overdue)

    def overdue(self, elapsed: float) -> str | None:
        """What is overdue when so many seconds have passed since it was last asked."""
        with self._lock:
            self._write("w" if self._is_watching else "-")
            self._is_watching = bool(self._watches)
            # After a longer gap this thread, and so the whole process, was stopped meanwhile.
            self._clock += min(elapsed, 2 * self._interval)
            late = [
                watch
                for watch in self._watches.values()
                if self._clock - watch.since > self._timeout + watch.more_seconds
            ]
        if late and self._is_excused():
            for watch in late:
                watch.since = self._now()
            return None
        return min(late, key=lambda watch: watch.since).what if late else None

    def _write(self, text: str) -> None:
        if self._process is not None:
            with contextlib.suppress(OSError):  # it was killed
                self._process.stdin.write(text.encode())

    def _end_process(self, what: str) -> None:
        said = f"{what} took longer than {self._timeout:g} s"
        where = self._dump(said)
        say_at_once(f"error: {said} (--stall-timeout); the stacks of all threads are {where}.\n")
        exit_at_once(RESTART_EXIT_CODE, f"{said} (--stall-timeout).")

    def _dump(self, said: str) -> str:
        """Writes the stacks; returns what to say of where."""
        names = "".join(f"  {t.ident or 0:#018x} {t.name}\n" for t in threading.enumerate())
        at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        head = f"{at}, process {os.getpid()}: {said}\n{names}".encode()
        if self._log_path is not None:
            with contextlib.suppress(OSError), open(self._log_path, "ab", buffering=0) as file:
                file.write(head)
                faulthandler.dump_traceback(file, all_threads=True)
                return f"in {self._log_path}"
        with contextlib.suppress(OSError):
            os.write(2, head)
            faulthandler.dump_traceback(2, all_threads=True)
        return "above"


def _start_process(timeout_seconds: float) -> subprocess.Popen:
    _exit_on_signal()
    program = Path(__file__).with_name("watchdog_process.py")
    arguments = [sys.executable, "-I", "-S", program, str(os.getpid()), str(timeout_seconds)]
    return subprocess.Popen(arguments, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)


@functools.cache
def _exit_on_signal() -> None:
    """Has `EXIT_SIGNAL` write all stacks to stderr and end the process, without Python's lock.

    The C library calls the handler with the signal's number: `_exit` then takes it for the code.
    """
    assert EXIT_SIGNAL == RESTART_EXIT_CODE
    c_library = ctypes.CDLL(None)
    c_library.signal(EXIT_SIGNAL, c_library._exit)
    faulthandler.register(EXIT_SIGNAL, file=2, all_threads=True, chain=True)
