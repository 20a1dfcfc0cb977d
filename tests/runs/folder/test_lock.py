"""The lock of a run's folder: live, dead and stopped owners, damaged files, disks without locks."""

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

import pytest

from adabatch_jax.runs.folder.lock import LOCK_NAME, Owner, lock_owner, locked
from adabatch_jax.system.errors import UsageError

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
    time.sleep(float(sys.argv[-1]))
"""

UNKNOWN = Owner(None, None, None, None)


@pytest.fixture
def start(tmp_path):
    """Starts another process that has the lock, for so many seconds."""
    with contextlib.ExitStack() as stack:

        def start(*arguments, seconds=600):
            command = [sys.executable, "-c", OWNER, str(tmp_path), *arguments, str(seconds)]
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            stack.callback(process.communicate)
            stack.callback(process.kill)
            return process

        yield start


def said(folder, flag="--workdir", **arguments):
    """What the lock says when it refuses."""
    arguments = {"wait_seconds": 0, **arguments}
    with pytest.raises(UsageError) as caught, locked(folder, flag, **arguments):
        pytest.fail("two owners")
    return str(caught.value)


def test_a_live_owner_is_named_and_a_killed_one_followed_at_once(tmp_path, start):
    process = start()
    assert process.stdout.readline() == "locked\n"
    owner = lock_owner(tmp_path)
    assert owner == Owner(socket.gethostname(), process.pid, owner.since, True)
    process.send_signal(signal.SIGSTOP)
    assert said(tmp_path, "--out") == (
        f"--out: another process is training in {str(tmp_path)!r} (process {process.pid} on "
        f"{socket.gethostname()}, since {owner.since}); wait for it, or give another folder."
    )
    process.kill()
    process.wait()
    content = (tmp_path / LOCK_NAME).read_bytes()
    assert lock_owner(tmp_path) == dataclasses.replace(owner, is_alive=False)
    assert (tmp_path / LOCK_NAME).read_bytes() == content
    with locked(tmp_path):
        assert lock_owner(tmp_path).pid == os.getpid()


def test_a_start_waits_for_an_owner_that_ends(tmp_path, start):
    process = start(seconds=0.5)
    assert process.stdout.readline() == "locked\n"
    with locked(tmp_path, wait_seconds=60):
        assert lock_owner(tmp_path).pid == os.getpid()


def test_a_child_that_outlives_its_parent_does_not_keep_the_lock(tmp_path, start):
    process = start("fork")
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    with locked(tmp_path):
        os.kill(child, 0)  # it lives on
    os.kill(child, signal.SIGKILL)


def test_what_is_let_go_of_is_empty(tmp_path):
    assert lock_owner(tmp_path) is None
    old = os.umask(0o027)
    try:
        with pytest.raises(ZeroDivisionError), locked(tmp_path):
            assert said(tmp_path).startswith("--workdir: another process is training in")
            assert set(json.loads((tmp_path / LOCK_NAME).read_text())) == {"host", "pid", "since"}
            1 / 0
    finally:
        os.umask(old)
    assert (tmp_path / LOCK_NAME).read_bytes() == b""
    assert (tmp_path / LOCK_NAME).stat().st_mode & 0o777 == 0o640
    assert lock_owner(tmp_path) is None
    with locked(tmp_path):
        pass


def test_who_knows_better_takes_over(tmp_path, start):
    """As with a lock on a network file system whose machine is gone."""
    process = start()
    assert process.stdout.readline() == "locked\n"
    with locked(tmp_path, take_over=True):
        assert lock_owner(tmp_path).pid == os.getpid()
        assert f"process {os.getpid()} on" in said(tmp_path)
    with locked(tmp_path):
        pass


def test_a_disk_without_locks_is_for_who_knows_better(tmp_path, monkeypatch):
    def unsupported(fd, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    assert "knows no locks" in said(tmp_path) and "--take-over" in said(tmp_path)
    with locked(tmp_path, take_over=True):
        owner = lock_owner(tmp_path)
        assert (owner.pid, owner.is_alive) == (os.getpid(), None)
    assert lock_owner(tmp_path) is None


@pytest.mark.parametrize(
    "content",
    [
        b"garbage", b"\xff\x00", b"[]", b"{}", b"null", b"[" * 4000,
        b'{"host": 3, "pid": 1, "since": "2026-01-01T00:00:00Z"}',
        b'{"host": "h", "pid": true, "since": "2026-01-01T00:00:00Z"}',
        b'{"host": "h", "pid": 1',
    ],
    ids=range(9),
)  # fmt: skip
def test_a_damaged_file_keeps_nobody_out(tmp_path, content):
    (tmp_path / LOCK_NAME).write_bytes(content)
    assert lock_owner(tmp_path) == dataclasses.replace(UNKNOWN, is_alive=False)
    with locked(tmp_path):
        (tmp_path / LOCK_NAME).write_bytes(content)
        assert lock_owner(tmp_path) == dataclasses.replace(UNKNOWN, is_alive=True)
        assert "(an unknown process); wait" in said(tmp_path)


def test_a_hostile_record_reaches_no_terminal(tmp_path):
    record = {"host": "h\x1b[2J", "pid": 1, "since": "\x1b[2J"}
    with locked(tmp_path):
        (tmp_path / LOCK_NAME).write_text(json.dumps(record))
        assert "\x1b" not in said(tmp_path)


def test_what_is_no_file_is_not_followed(tmp_path):
    target, path = tmp_path / "target", tmp_path / LOCK_NAME
    target.write_text("precious")
    path.symlink_to(target)
    assert os.strerror(errno.ELOOP) in said(tmp_path) and lock_owner(tmp_path) == UNKNOWN
    assert target.read_text() == "precious"
    path.unlink()
    os.mkfifo(path)
    assert ".lock is no regular file" in said(tmp_path) and lock_owner(tmp_path) == UNKNOWN
    path.unlink()
    path.mkdir()  # as in a folder that can only be read; root may write in any
    assert "Is a directory" in said(tmp_path)


def test_on_a_full_disk_it_is_locked_all_the_same(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with locked(tmp_path):
            assert "(an unknown process)" in said(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
