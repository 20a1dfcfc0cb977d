"""The lock of a run's folder: one process at a time, and a dead one doesn't keep others out.

The file `.lock` is locked by the kernel (flock), which lets go of it when its owner dies, and
holds the owner's host, process and start time and a beat that the owner renews. On one machine
the kernel decides, whatever containers the processes are in; across machines, where a shared
file system may not pass its locks on, the beat does.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import stat
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

from adabatch_jax.runs.folder.lock_record import Owner, Record, is_alive, own_record, read_record
from adabatch_jax.system.errors import StorageError, UsageError

LOCK_NAME = ".lock"
BEAT_SECONDS = 5.0
# An owner on another machine whose beat stands still for so long is taken for dead.
STALE_SECONDS = 20.0
_RETRY_SECONDS = 0.1
_NUM_TRIES = 5
_MAX_BYTES = 4096
_RECORD_BYTES = 512

_UNKNOWN = Owner(None, None, None, None)


@contextlib.contextmanager
def locked(workdir: Path, flag: str = "--workdir") -> Iterator[list[str]]:
    """Keeps other processes out of a run's folder; yields what there is to tell the user.

    A lock whose owner is gone is taken over: at once if it ran on this machine, else when its
    beat has stood still for 20 seconds. A process that finds its own lock taken over, because it
    was stopped for that long, ends with exit code 2 before it can spoil the other's run.

    Args:
      workdir: the folder.
      flag: where the user named it.

    Raises:
      UsageError: another process is training there, or the folder can't be written.
      StorageError: the disk is full.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with locked(Path(folder)) as notes:
    ...         notes, lock_owner(Path(folder)).is_alive
    ...     lock_owner(Path(folder)) is None
    ([], True)
    True
    """
    path = workdir / LOCK_NAME
    try:
        fd = _open(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise UsageError(
            f"{flag}: {str(path)!r} can't be opened ({error.strerror}); give another folder."
        ) from None
    held = _Held(path, fd)
    try:
        try:
            notes = _take(held, workdir, flag)
        except OSError as error:
            raise StorageError(f"{str(path)!r} can't be written: {error.strerror}.") from None
        with held.beating():
            yield notes
    finally:
        held.close()


def lock_owner(workdir: Path) -> Owner | None:
    """Who has a run's folder, or left its lock behind; None where nobody did. Changes nothing."""
    try:
        fd = _open(workdir / LOCK_NAME, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError:
        return _UNKNOWN
    try:
        is_free = _flock(fd, fcntl.LOCK_SH)
        text = _read(fd)
    finally:
        os.close(fd)
    record = read_record(text)
    if is_free is False:
        return record.owner(True) if record else dataclasses.replace(_UNKNOWN, is_alive=True)
    if record is None:
        return _UNKNOWN if text.strip() else None
    return record.owner(is_alive(record, is_free))


def _take(held: "_Held", workdir: Path, flag: str) -> list[str]:
    """Writes our record where nobody alive has the lock; returns whose was taken over."""
    is_free = _flock_soon(held.fd)
    text = _read(held.fd)
    record = read_record(text)
    if is_free is False or _is_owned(held.path, text, record, is_free):
        raise _refusal(workdir, flag, record)
    held.write()
    if is_free is None:
        # Without the kernel's help two that start together both come here; the last one stays.
        time.sleep(_RETRY_SECONDS * _NUM_TRIES)
        last = read_record(_read_path(held.path))
        if last != held.record:
            raise _refusal(workdir, flag, last)
    if not text.strip():
        return []
    owner = _UNKNOWN if record is None else record.owner(False)
    return [f"took over the lock of {owner}, which is gone"]


def _is_owned(path: Path, text: str, record: Record | None, is_free: bool | None) -> bool:
    """Whether somebody who is alive left this text in the file."""
    if not text.strip():
        return False
    if record is None:
        owned = False if is_free else None
    else:
        owned = is_alive(record, is_free)
    return _beats(path, text) if owned is None else owned


def _refusal(workdir: Path, flag: str, record: Record | None) -> UsageError:
    who = "" if record is None else f" ({record.owner(True)})"
    return UsageError(
        f"{flag}: another process is training in {str(workdir)!r}{who}; wait for it, or give "
        "another folder."
    )


class _Held:
    """The lock's file while it is open, and the thread that renews the beat."""

    def __init__(self, path: Path, fd: int):
        self.path, self.fd, self.record = path, fd, own_record()
        self._ended = threading.Event()
        # A child would keep the kernel's lock beyond our death.
        reference = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _close_copy(reference()))

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Renews the beat in the background; at the end the file is emptied."""
        thread = threading.Thread(target=self._renew, name="run lock", daemon=True)
        thread.start()
        try:
            yield
        finally:
            if self.fd >= 0:
                self._ended.set()
                thread.join()
                with contextlib.suppress(OSError):
                    os.ftruncate(self.fd, 0)

    def write(self) -> None:
        """Writes the record, always as many bytes: neither a reader nor a full disk cuts it."""
        text = json.dumps({**dataclasses.asdict(self.record), "beat": time.time()})
        os.pwrite(self.fd, f"{text:<{_RECORD_BYTES - 1}}\n".encode(), 0)
        os.ftruncate(self.fd, _RECORD_BYTES)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _renew(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            # A full disk, or a file server that is away: the next beat may get through.
            with contextlib.suppress(OSError):
                try:
                    current = os.stat(self.path, follow_symlinks=False)
                except FileNotFoundError:
                    self._make_again()
                    continue
                record = read_record(_read_path(self.path))
                if record is not None and record != self.record:
                    _give_up(self.path, record)
                if os.path.samestat(current, os.fstat(self.fd)):
                    self.write()

    def _make_again(self) -> None:
        """Somebody removed the file: others would take the folder for free."""
        fd = _open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            if _flock(fd, fcntl.LOCK_EX) is not False:
                os.dup2(fd, self.fd, inheritable=False)
                self.write()
        finally:
            os.close(fd)


def _close_copy(held: _Held | None) -> None:
    if held is not None:
        held.close()


def _give_up(path: Path, record: Record) -> None:
    said = f"error: {record.owner(True)} took over {str(path.parent)!r}: this process ends.\n"
    with contextlib.suppress(OSError):
        os.write(2, said.encode())
    os._exit(UsageError.exit_code)


def _beats(path: Path, text: str) -> bool:
    """Watches the file: whether its owner renews it."""
    until = time.monotonic() + STALE_SECONDS
    while time.monotonic() < until:
        time.sleep(min(_RETRY_SECONDS, STALE_SECONDS))
        with contextlib.suppress(OSError):  # a file server that is away for a moment
            if (now := _read_path(path)) != text:
                return bool(now.strip())  # emptied: its owner has just ended
    return False


def _open(path: Path, flags: int) -> int:
    """Opens the lock's file, and nothing that a link or a pipe of that name leads to."""
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(0, f"{path.name} is no regular file")
    return fd


def _flock(fd: int, how: int) -> bool | None:
    """True: locked; False: another process has it; None: the file system knows no locks."""
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _flock_soon(fd: int) -> bool | None:
    """Locks it; somebody who looks, or who has just ended, may have it for a moment."""
    for _ in range(_NUM_TRIES):
        if (is_free := _flock(fd, fcntl.LOCK_EX)) is not False:
            break
        time.sleep(_RETRY_SECONDS)
    return is_free


def _read(fd: int) -> str:
    return os.pread(fd, _MAX_BYTES, 0).decode(errors="replace")


def _read_path(path: Path) -> str:
    fd = _open(path, os.O_RDONLY)  # anew: a shared file system looks at the server again
    try:
        return _read(fd)
    finally:
        os.close(fd)
