"""Signals and the time limit, in processes of their own, and what stays of them."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.interruption import Interruption

SIGNALS = [("SIGINT", "Ctrl-C", 130), ("SIGTERM", "SIGTERM", 143), ("SIGUSR1", "SIGUSR1", 143)]

# Waits for ever where Python's own handlers don't run, as in the copy of an unfinished array.
HANG = """
import ctypes, os, signal, sys, threading, time
from adabatch_jax.system.interruption import Interruption, exit_on_signals

def hang():
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)

def tell(interruption):
    while not interruption.requested:
        time.sleep(0.001)
    print(interruption.name, interruption.exit_code, flush=True)
"""


def run(body, **options):
    """A process that runs the code and has said its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", HANG + body],
        stdout=subprocess.PIPE,
        stderr=options.pop("stderr", subprocess.PIPE),
        text=True,
        **options,
    )
    assert process.stdout.readline() == "ready\n", process.communicate()
    return process


def ended(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize(("number", "name", "code"), SIGNALS)
def test_heard_while_python_waits_and_twice_ends_it(number, name, code):
    process = run(
        "with Interruption() as interruption:\n"
        "    interruption.defer()\n"
        "    threading.Thread(target=tell, args=[interruption]).start()\n"
        "    print('ready', flush=True); hang()"
    )
    process.send_signal(getattr(signal, number))
    assert process.stdout.readline() == f"{name} {code}\n"
    time.sleep(0.15)  # sooner it would count as the same signal
    process.send_signal(signal.SIGTERM)
    out, err = ended(process)[1:]
    assert process.returncode == 143 and out == ""
    assert err == f"{name}: stopping and saving; once more to stop at once\n"


@pytest.mark.parametrize(("number", "name", "code"), SIGNALS)
def test_with_nothing_to_save_it_ends_the_process(number, name, code):
    process = run("with Interruption():\n    print('ready', flush=True); hang()")
    process.send_signal(getattr(signal, number))
    said = f"stopped by {name} before the first update: there is nothing new to save\n"
    assert ended(process) == (code, "", said)


@pytest.mark.parametrize(("number", "name", "code"), SIGNALS)
def test_before_anything_is_imported(number, name, code):
    process = run("exit_on_signals(); print('ready', flush=True); time.sleep(60)")
    process.send_signal(getattr(signal, number))
    assert ended(process) == (code, "", "")


def test_nobody_reads_what_is_said():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writer, bytes(2**12))
    os.set_blocking(writer, True)
    process = run(
        "with Interruption() as interruption:\n"
        "    interruption.defer()\n"
        "    threading.Thread(target=tell, args=[interruption]).start()\n"
        "    print('ready', flush=True); hang()",
        stderr=writer,
    )
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "Ctrl-C 130\n"
    time.sleep(0.15)
    process.send_signal(signal.SIGINT)
    assert ended(process)[0] == 130
    os.close(reader), os.close(writer)


def test_the_same_signal_passed_on_twice_is_one():
    process = run(
        "print('ready', flush=True)\n"
        "with Interruption() as interruption:\n"
        "    interruption.defer()\n"
        "    signal.raise_signal(signal.SIGINT); signal.raise_signal(signal.SIGINT)\n"
        "    tell(interruption)"
    )
    assert ended(process)[:2] == (0, "Ctrl-C 130\n")


def test_a_forked_process_can_be_terminated_and_the_parent_does_not_hear_of_it():
    process = run(
        "print('ready', flush=True)\n"
        "with Interruption() as interruption:\n"
        "    interruption.defer()\n"
        "    for number in (signal.SIGTERM, signal.SIGUSR1):\n"
        "        child = os.fork()\n"
        "        if not child: os.kill(os.getpid(), number); hang()\n"
        "        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -number)\n"
        "    time.sleep(0.05)\n"
        "    print(interruption.requested, interruption.name, interruption.exit_code)"
    )
    assert ended(process)[:2] == (0, "True\nTrue\nFalse None 0\n")


@pytest.fixture
def previous():
    """A program's own handlers and wakeup file; `(handlers, what its end of the socket reads)`."""

    def own(number, frame):
        pytest.fail("not heard by whoever was to hear")

    reader, writer = socket.socketpair()
    writer.setblocking(False)
    reader.settimeout(60)
    before = {n: signal.signal(n, own) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    yield reader
    assert {signal.signal(number, handler) for number, handler in before.items()} == {own}
    assert signal.set_wakeup_fd(fd) == writer.fileno()
    reader.close(), writer.close()


def wait_for(interruption):
    until = time.monotonic() + 60
    while not interruption.requested and time.monotonic() < until:
        time.sleep(0.001)
    return interruption.name


def test_what_was_there_before_is_put_back(previous):
    with Interruption() as interruption:
        interruption.defer()
        signal.raise_signal(signal.SIGUSR1)
        assert wait_for(interruption) == "SIGUSR1"
    assert interruption.requested
    assert not [t for t in threading.enumerate() if t.name == "signals"]


def test_signals_of_others_are_passed_on(previous):
    handler = signal.signal(signal.SIGUSR2, lambda *_: None)
    with Interruption() as interruption:
        interruption.defer()
        signal.raise_signal(signal.SIGUSR2)
        assert previous.recv(1) == bytes([signal.SIGUSR2])
        assert not interruption.requested
    signal.signal(signal.SIGUSR2, handler)


@pytest.mark.parametrize("is_same", [False, True])
def test_inside_another_it_hears_nothing_and_takes_nothing_away(previous, is_same):
    with Interruption() as outer:
        outer.defer()
        with outer if is_same else Interruption() as inner:
            pass
        with outer if is_same else Interruption() as inner:
            signal.raise_signal(signal.SIGINT)
            assert wait_for(outer) == "Ctrl-C"
            assert inner.requested == is_same


def test_in_a_thread_it_hears_nothing():
    handlers = []

    def enter():
        with Interruption(max_seconds=1e9) as interruption:
            handlers.append(signal.getsignal(signal.SIGTERM))
            handlers.append(interruption.requested)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM), False]


def test_heard_after_an_event_loop_took_the_wakeup_file(previous):
    with Interruption() as interruption:
        interruption.defer()
        ours = signal.set_wakeup_fd(-1)
        signal.raise_signal(signal.SIGTERM)
        assert wait_for(interruption) == "SIGTERM"
        assert signal.set_wakeup_fd(ours) == ours  # and it was taken back


def test_the_time_limit_leaves_room_for_stopping():
    interruption = Interruption(max_seconds=1000, started=time.monotonic() - 900)
    interruption.expect(50)
    assert (interruption.requested, interruption.name, interruption.exit_code) == (False, None, 0)
    interruption.expect(100)
    assert interruption.requested
    interruption.expect(0)  # it doesn't change its mind
    assert (interruption.requested, interruption.name) == (True, "--max-time")
    assert interruption.exit_code == 143
    assert not Interruption(started=0).requested
    with pytest.raises(UsageError, match="`max_seconds` must be above 0, got 0"):
        Interruption(max_seconds=0)
