"""Who works in a folder of an object store, where the kernel knows no lock: one process at a time.

The object `.lock` says whose folder it is, and is only written over the state of it that was looked
at. Its owner adds a beat to `.beat` every few seconds; where none comes for long the owner is gone,
and the next one takes its place. One that was only asleep finds that out before it commits anything.
"""

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time

from adabatch_jax.system.errors import StorageError, UsageError
from adabatch_jax.system.number_texts import printable
from adabatch_jax.system.object_store import ObjectFolder

LOCK, BEAT = ".lock", ".beat"

_BEAT_SECONDS = 5.0
SILENT_SECONDS = 30.0
"""After how long without a beat a process counts as gone."""


class ObjectLock:
    """Keeps other processes out of a folder of an object store, while entered.

    Args:
      store: the folder.
      where: its name, for people.
      flag: where the user named it.
      wait_seconds: how long to wait for another process that is at work there.
      take_over: doesn't wait, for users who know that none is.
      beat_seconds, silent_seconds: between two beats, and after how long without one a process
        counts as gone.

    Raises a UsageError (when entered) where another process is at work in the folder.
    """

    def __init__(
        self,
        store: ObjectFolder,
        where: str,
        flag: str,
        wait_seconds: float,
        take_over: bool,
        beat_seconds: float = _BEAT_SECONDS,
        silent_seconds: float = SILENT_SECONDS,
    ):
        self._store, self._where, self._flag = store, where, flag
        self._wait_seconds, self._take_over = wait_seconds, take_over
        self._beat_seconds, self._silent_seconds = beat_seconds, silent_seconds
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
        self.text = (json.dumps(record | {"id": secrets.token_hex(8)}) + "\n").encode()
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._beat, daemon=True, name="beats of the lock")

    def __enter__(self) -> "ObjectLock":
        self._take()
        self._beats.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._beats.join()
        with contextlib.suppress(StorageError):  # the next one then waits a little
            lock = self._store.see(LOCK)
            if lock.content == self.text and self._store.replace(LOCK, None, lock.state):
                self._store.delete([BEAT])

    def check(self) -> None:
        """Raises a StorageError where another process has taken the folder meanwhile."""
        if not self._is_ours():
            raise StorageError(
                f"another process has taken {self._where} over, or its lock was removed; nothing "
                "more is written there."
            )

    def _take(self) -> None:
        until = time.monotonic() + self._wait_seconds
        last, quiet_since, is_told = None, time.monotonic(), False
        while True:
            lock = self._store.see(LOCK)
            signs, now = (lock.content, self._store.see(BEAT).content), time.monotonic()
            is_seen_alive = last is not None and signs != last
            if signs != last:
                last, quiet_since = signs, now
            is_gone = lock.content is None or now - quiet_since >= self._silent_seconds
            if is_gone or self._take_over:
                self._store.delete([BEAT])
                # The second look is for stores that don't keep to the condition, as emulators.
                if self._store.replace(LOCK, self.text, lock.state) and self._is_ours():
                    return
            elif is_seen_alive and now >= until:
                raise UsageError(
                    f"{self._flag}: another process is training in {self._where!r} "
                    f"({_owner(lock.content)}); wait for it, or give another folder."
                )
            elif not is_told:
                is_told = True
                waits = f"waiting up to {self._silent_seconds:.0f} s for a sign of life"
                print(
                    f"note: {_owner(lock.content)} has {self._where}, or had; {waits}",
                    file=sys.stderr,
                )
            time.sleep(min(1.0, self._beat_seconds / 4))

    def _is_ours(self) -> bool:
        return self._store.see(LOCK).content == self.text

    def _beat(self) -> None:
        number = 0
        while True:
            number += 1
            try:
                if not self._is_ours():
                    return  # the next commit says so
                self._store.write({BEAT: f"{number}\n".encode})
            except StorageError:
                pass  # the next beat may come through
            if self._ended.wait(self._beat_seconds):
                return


def _owner(text: bytes | None) -> str:
    try:
        record = json.loads(text or b"")
        return printable("process {pid} on {host}, since {since}".format(**record))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return "an unknown process"
