"""The lock of a run's folder: live, dead, stopped and foreign owners, and damaged files."""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from adabatch_jax.runs.folder import lock, lock_record
from adabatch_jax.runs.folder.lock import LOCK_NAME, Owner, lock_owner, locked
from adabatch_jax.system.errors import StorageError, UsageError

OWNER = """
import os, signal, sys, time
from pathlib import Path
from adabatch_jax.runs.folder import lock
with lock.locked(Path(sys.argv[1])):
    if "fork" in sys.argv:
        child = os.fork()
        if not child:
            time.sleep(600)
        print(child, flush=True)
    print("locked", flush=True)
    time.sleep(600)
"""


UNKNOWN = Owner(None, None, None, None)


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(lock, "_RETRY_SECONDS", 0.002)


@pytest.fixture
def start(tmp_path):
    """Starts another process that has the lock."""
    with contextlib.ExitStack() as stack:

        def start(*arguments, code=OWNER):
            command = [sys.executable, "-c", code, str(tmp_path), *arguments]
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            stack.callback(process.communicate)
            stack.callback(process.kill)
            return process

        yield start


@pytest.fixture
def no_flock(monkeypatch):
    """A file system that knows no locks."""

    def unsupported(fd, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)


@pytest.fixture
def no_waiting(monkeypatch):
    """What is to be decided at once."""
    monkeypatch.setattr(lock, "_beats", lambda *_: pytest.fail("watched the beat"))


def planted(folder, **changes):
    """Leaves a record behind, as of this process but for the changes; returns it."""
    record = dataclasses.asdict(lock_record.own_record()) | changes
    (folder / LOCK_NAME).write_text(json.dumps(record))
    return record


def said(folder, flag="--workdir"):
    """What the lock says when it refuses."""
    with pytest.raises(UsageError) as caught, locked(folder, flag):
        pytest.fail("two owners")
    return str(caught.value)


def test_a_live_owner_is_named_and_a_killed_one_followed_at_once(tmp_path, start, no_waiting):
    process = start()
    assert process.stdout.readline() == "locked\n"
    owner = lock_owner(tmp_path)
    assert owner == Owner(socket.gethostname(), process.pid, owner.started, True)
    process.send_signal(signal.SIGSTOP)
    assert said(tmp_path, "--out") == (
        f"--out: another process is training in {str(tmp_path)!r} (process {process.pid} on "
        f"{socket.gethostname()}, since {owner.started}); wait for it, or give another folder."
    )
    process.kill()
    process.wait()
    content = (tmp_path / LOCK_NAME).read_bytes()
    assert lock_owner(tmp_path) == dataclasses.replace(owner, is_alive=False)
    assert (tmp_path / LOCK_NAME).read_bytes() == content
    with locked(tmp_path) as notes:
        assert notes == [f"took over the lock of {owner}, which is gone"]
        assert lock_owner(tmp_path).pid == os.getpid()


def test_a_child_that_outlives_its_parent_does_not_keep_the_lock(tmp_path, start, no_waiting):
    process = start("fork")
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    with locked(tmp_path) as notes:
        assert len(notes) == 1
        os.kill(child, 0)  # it lives on
    os.kill(child, signal.SIGKILL)


def test_what_is_let_go_of_is_empty(tmp_path):
    assert lock_owner(tmp_path) is None
    old = os.umask(0o027)
    try:
        with pytest.raises(ZeroDivisionError), locked(tmp_path) as notes:
            assert notes == []
            assert said(tmp_path).startswith("--workdir: another process is training in")
            1 / 0
    finally:
        os.umask(old)
    assert (tmp_path / LOCK_NAME).read_bytes() == b""
    assert (tmp_path / LOCK_NAME).stat().st_mode & 0o777 == 0o640
    assert lock_owner(tmp_path) is None
    assert not [t for t in threading.enumerate() if t.name == "run lock"]
    with locked(tmp_path) as notes:
        assert notes == []


ELSEWHERE = {"host": "elsewhere", "boot": "another"}


@pytest.mark.parametrize("elsewhere", [ELSEWHERE, {"boot": "another"}, {**ELSEWHERE, "boot": None}])
def test_an_owner_elsewhere_is_dead_when_its_beat_stands_still(tmp_path, monkeypatch, elsewhere):
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.05)
    record = planted(tmp_path, **elsewhere)
    owner = Owner(record["host"], record["pid"], record["started"], None)
    assert lock_owner(tmp_path) == owner
    with locked(tmp_path) as notes:
        assert notes == [f"took over the lock of {owner}, which is gone"]


@pytest.mark.parametrize("content", ["beats", "ends"])
def test_an_owner_elsewhere_that_beats(tmp_path, monkeypatch, content):
    monkeypatch.setattr(lock, "STALE_SECONDS", 60)
    record = planted(tmp_path, **ELSEWHERE)

    def beat(seconds):
        text = json.dumps(record | {"beat": 1.0}) if content == "beats" else ""
        (tmp_path / LOCK_NAME).write_text(text)

    monkeypatch.setattr(time, "sleep", beat)
    if content == "beats":
        assert f"(process {os.getpid()} on elsewhere, since" in said(tmp_path)
    else:
        with locked(tmp_path):
            pass


@pytest.mark.parametrize(
    ("changes", "is_alive"),
    [
        ({}, False),
        # Another container, and a machine that tells nothing of itself but its name.
        ({"host": "container", "namespace": "pid:[1]"}, False),
        ({"boot": None, "namespace": None, "start_ticks": None}, False),
    ],
)
def test_on_this_machine_the_kernel_decides(tmp_path, no_waiting, changes, is_alive):
    planted(tmp_path, **changes)  # this process lives, but has not got the kernel's lock
    assert lock_owner(tmp_path).is_alive is is_alive
    with locked(tmp_path) as notes:
        assert len(notes) == 1


def test_where_the_kernel_cannot_decide_the_process_does(tmp_path, no_flock, no_waiting):
    assert planted(tmp_path)["start_ticks"] is not None
    assert lock_owner(tmp_path).is_alive is True
    assert f"(process {os.getpid()} on" in said(tmp_path)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    with open(f"/proc/{ended.pid}/stat") as file:
        while ") Z " not in file.read():  # ended, and not waited for
            file.seek(0)
    # Not there any more; a number beyond all; ended; given to a process that started later.
    for changes in (
        {"pid": 2**22 + 1},
        {"pid": 10**30},
        {"pid": ended.pid},
        {"start_ticks": 1},
    ):
        planted(tmp_path, **changes)
        assert lock_owner(tmp_path).is_alive is False
        with locked(tmp_path) as notes:
            assert len(notes) == 1
            assert "another process" in said(tmp_path)
    ended.wait()
    planted(tmp_path, namespace="pid:[1]")  # its number means nothing here
    assert lock_owner(tmp_path).is_alive is None


def test_of_two_that_start_together_without_the_kernel_one_stays(tmp_path, monkeypatch, no_flock):
    def other_one_writes(seconds):
        planted(tmp_path, pid=4711)

    monkeypatch.setattr(time, "sleep", other_one_writes)
    assert "(process 4711 on" in said(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"garbage",
        b"\xff\x00",
        b"[]",
        b"{}",
        b"null",
        b"[" * 5000,
        b'{"host": 3, "pid": 1, "started": "2026-01-01T00:00:00Z"}',
        b'{"host": "h", "pid": true, "started": "2026-01-01T00:00:00Z"}',
        b'{"host": "h\\u001b[2J", "pid": 1, "started": "2026-01-01T00:00:00Z"}',
        b'{"host": "h", "pid": 1, "started": "\\u001b[2J"}',
        b'{"host": "h", "pid": 1',
    ],
    ids=range(11),
)
def test_a_damaged_file_keeps_nobody_out(tmp_path, no_waiting, content):
    (tmp_path / LOCK_NAME).write_bytes(content)
    assert lock_owner(tmp_path) == UNKNOWN
    with locked(tmp_path) as notes:
        assert notes == ["took over the lock of an unknown process, which is gone"]
        (tmp_path / LOCK_NAME).write_bytes(content)
        assert lock_owner(tmp_path) == Owner(None, None, None, True)
        assert said(tmp_path).endswith(f"{str(tmp_path)!r}; wait for it, or give another folder.")


def test_what_is_no_file_is_not_followed(tmp_path):
    target, path = tmp_path / "target", tmp_path / LOCK_NAME
    target.write_text("precious")

    def refused(reason):
        assert said(tmp_path, "--out") == (
            f"--out: {str(path)!r} can't be opened ({reason}); give another folder."
        )
        assert lock_owner(tmp_path) == UNKNOWN

    path.symlink_to(target)
    refused(os.strerror(errno.ELOOP))
    assert target.read_text() == "precious"
    path.unlink()
    os.mkfifo(path)
    refused(".lock is no regular file")
    path.unlink()
    path.mkdir()  # as in a folder that can only be read; root may write in any
    with pytest.raises(UsageError, match="Is a directory"), locked(tmp_path):
        pytest.fail("not locked")


def test_a_full_disk_is_a_storage_error(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(StorageError) as caught, locked(tmp_path):
            pytest.fail("not locked")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(caught.value) == f"{str(tmp_path / LOCK_NAME)!r} can't be written: File too large."
    with locked(tmp_path):
        pass


def wait_until(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)


@pytest.mark.parametrize("damage", ["remove", "empty", "garbage"])
def test_the_owner_repairs_the_file(tmp_path, monkeypatch, damage, start):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.005)
    path = tmp_path / LOCK_NAME
    with locked(tmp_path):
        first = path.read_text()
        wait_until(lambda: path.read_text() not in (first, ""))  # it beats
        if damage == "remove":
            path.unlink()
        else:
            path.write_text("" if damage == "empty" else "garbage" * 200)
        wait_until(lambda: path.exists() and (lock_owner(tmp_path) or UNKNOWN).pid)
        assert lock_owner(tmp_path) == Owner(
            socket.gethostname(), os.getpid(), json.loads(first)["started"], True
        )
        process = start()
        process.wait()
        assert f"another process is training in {str(tmp_path)!r} (process" in (
            process.stderr.read()
        )
    assert path.read_bytes() == b""


def test_an_owner_whose_lock_was_taken_over_ends(tmp_path, start):
    process = start(
        code="from adabatch_jax.runs.folder import lock; lock.BEAT_SECONDS = 0.005" + OWNER
    )
    assert process.stdout.readline() == "locked\n"
    record = planted(tmp_path, **ELSEWHERE)
    assert process.wait(60) == 2
    assert process.stderr.read() == (
        f"error: process {os.getpid()} on elsewhere, since {record['started']} took over "
        f"{str(tmp_path)!r}: this process ends.\n"
    )
    assert json.loads((tmp_path / LOCK_NAME).read_text()) == record
