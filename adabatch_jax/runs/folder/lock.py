"""The lock of a run's folder: one process at a time.

The kernel (flock) locks the file `.lock` and lets go of it when its owner dies, on one machine at
once, on a network file system when a dead machine's lease ends. What the file says is only for
people: the owner's host, process and start.
"""

import contextlib
import dataclasses
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.file_locks import HAS_LOCKS, try_lock
from adabatch_jax.system.files import open_flags
from adabatch_jax.system.number_texts import printable

LOCK_NAME = ".lock"
LOCK_SECONDS = 2.0
"""How long a start waits for a lock that another process has, unless told otherwise."""

_RETRY_SECONDS = 0.1
_MAX_BYTES = 4096

# A child would keep the lock beyond its parent's death.
_held: set[int] = set()


def _close_copies() -> None:
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):  # where processes fork
    os.register_at_fork(after_in_child=_close_copies)


@dataclasses.dataclass(frozen=True)
class Owner:
    """Who has, or had, a run's folder; None is what the lock doesn't say."""

    host: str | None
    pid: int | None
    since: str | None  # UTC, as in "2026-08-01T12:00:00Z"
    is_alive: bool | None  # None on a file system that knows no locks

    def __str__(self) -> str:
        if self.host is None:
            return "an unknown process"
        return f"process {self.pid} on {self.host}, since {self.since}"


@contextlib.contextmanager
def locked(
    workdir: Path,
    flag: str = "--workdir",
    wait_seconds: float = LOCK_SECONDS,
    take_over: bool = False,
) -> Iterator[None]:
    """Keeps other processes out of a run's folder; raises a UsageError where one has it.

    Args:
      workdir: the folder.
      flag: where the user named it.
      wait_seconds: how long to wait for a lock that another process has.
      take_over: goes on without waiting for it, and where the file system knows no locks. For
        users who know that no other process is at work there.
    """
    path = workdir / LOCK_NAME
    try:
        fd = _taken(path, flag, 0.0 if take_over else wait_seconds, take_over)
    except OSError as error:
        raise UsageError(
            f"{flag}: {str(path)!r} can't be opened ({error.strerror}); move it away, or give "
            "another folder."
        ) from None
    _held.add(fd)
    try:
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
        _write(fd, json.dumps(record) + "\n")
        yield
    finally:
        if fd in _held:  # else this is a child
            _held.remove(fd)
            _write(fd, "")
            os.close(fd)


def lock_owner(workdir: Path) -> Owner | None:
    """Who has a run's folder, or left its lock behind; None where nobody did. Changes nothing."""
    try:
        fd = _open(workdir / LOCK_NAME, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError:
        return Owner(None, None, None, None)
    is_free = try_lock(fd, is_shared=True)
    text = _read(fd)
    os.close(fd)
    is_alive = None if is_free is None else not is_free
    return _owner(text, is_alive) if text.strip() or is_alive else None


def lock_text(workdir: Path) -> str:
    """What the lock's file says of its owner, by which processes know that they see one folder."""
    return (workdir / LOCK_NAME).read_text(errors="replace")


def _taken(path: Path, flag: str, wait_seconds: float, take_over: bool) -> int:
    """Opens and locks the file, or with leave puts a new one in the place of one that is held."""
    until = time.monotonic() + wait_seconds
    while True:
        fd = _open(path, os.O_RDWR | os.O_CREAT)
        is_locked = try_lock(fd)
        if (is_locked and _is_at(path, fd)) or (is_locked is None and take_over):
            return fd
        owner = _owner(_read(fd), True)
        if take_over and _is_at(path, fd):
            path.unlink()
        os.close(fd)
        if is_locked is None:
            lacks, instead = f"the disk of {str(path)!r} knows no locks", "give another folder"
            if not HAS_LOCKS:
                lacks = "this system has no locks of files (fcntl), which keep a run's folder"
                instead = "train on Linux or macOS"
            raise UsageError(
                f"{flag}: {lacks}; {instead}, or where no other process is at work there "
                "--take-over."
            )
        if not take_over:
            if time.monotonic() >= until:
                raise UsageError(
                    f"{flag}: another process is training in {str(path.parent)!r} ({owner}); wait "
                    "for it, or give another folder."
                )
            time.sleep(_RETRY_SECONDS)


def _is_at(path: Path, fd: int) -> bool:
    """Whether a file has its name still: one that was taken over has not."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(fd))
    return False


def _open(path: Path, flags: int) -> int:
    """Opens the lock's file, and nothing that a link or a pipe of that name leads to."""
    fd = os.open(path, flags | open_flags("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"), 0o666)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(0, f"{path.name} is no regular file")
    return fd


def _read(fd: int) -> bytes:
    os.lseek(fd, 0, os.SEEK_SET)
    return os.read(fd, _MAX_BYTES)


def _write(fd: int, text: str) -> None:
    with contextlib.suppress(OSError):  # it is for people only, and the disk may be full
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, text.encode())


def _owner(text: bytes, is_alive: bool | None) -> Owner:
    with contextlib.suppress(ValueError, TypeError, LookupError, RecursionError):
        record = json.loads(text)
        host, pid, since = record["host"], record["pid"], record["since"]
        if isinstance(host, str) and type(pid) is int and isinstance(since, str):
            return Owner(printable(host), pid, printable(since), is_alive)
    return Owner(None, None, None, is_alive)
