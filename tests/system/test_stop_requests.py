"""Signals and the time limit, in processes of their own, and what stays of them."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.stop_requests import Interruption

SIGNALS = [("SIGINT", "Ctrl-C", 130), ("SIGTERM", "SIGTERM", 143), ("SIGUSR1", "SIGUSR1", 143)]

START = """
import os, signal, time
from adabatch_jax.system.stop_requests import Interruption, exit_on_signals

def wait():
    print("ready", flush=True)
    time.sleep(600)

def wait_for_device():
    import jax
    endless = jax.jit(lambda x: jax.lax.while_loop(lambda x: x[0, 0] > -1, lambda x: x @ x, x))
    result = endless(jax.numpy.ones((300, 300)))  # less would be computed in this thread
    print("ready", flush=True)
    jax.block_until_ready(result)

def wait_for_compiler():
    import ctypes
    from types import SimpleNamespace
    from adabatch_jax.training.compiled_programs import program_of
    def compile():
        mutex = ctypes.create_string_buffer(64)
        for _ in range(2):
            ctypes.CDLL(None).pthread_mutex_lock(mutex)
    print("ready", flush=True)
    program_of(SimpleNamespace(compile=compile))
"""


def run(body, **options):
    """A process that runs the code and has said its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", START + body],
        stdout=subprocess.PIPE,
        stderr=options.pop("stderr", subprocess.PIPE),
        text=True,
        **options,
    )
    assert process.stdout.readline() == "ready\n", process.communicate()
    return process


def ended(process):
    with process:
        process.wait(60)
        # Not `communicate`: it loses what came together with the first line.
        return process.returncode, process.stdout.read(), process.stderr and process.stderr.read()


@pytest.mark.parametrize("where", ["wait", "wait_for_device", "wait_for_compiler"])
def test_heard_in_a_wait_and_twice_ends_it(where):
    process = run(f"with Interruption() as interruption:\n    interruption.defer()\n    {where}()")
    process.send_signal(signal.SIGUSR1)
    assert process.stderr.readline() == "SIGUSR1: stopping and saving; once more to stop at once\n"
    time.sleep(0.15)  # sooner it would count as the same signal
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (143, "", "")


@pytest.mark.parametrize(("number", "name", "code"), SIGNALS)
def test_the_first_asks_to_stop_and_the_second_ends_it(number, name, code):
    process = run(
        "with Interruption() as interruption:\n"
        "    interruption.defer()\n"
        "    print('ready', flush=True)\n"
        "    while not interruption.requested: time.sleep(0.001)\n"
        "    print(interruption.name, interruption.exit_code, flush=True)\n"
        "    time.sleep(600)"
    )
    process.send_signal(getattr(signal, number))
    assert process.stdout.readline() == f"{name} {code}\n"
    time.sleep(0.15)
    process.send_signal(getattr(signal, number))
    assert ended(process)[:2] == (code, "")


@pytest.mark.parametrize(("number", "name", "code"), SIGNALS)
def test_with_nothing_to_save_it_ends_the_process(number, name, code):
    process = run("with Interruption(): wait()")
    process.send_signal(getattr(signal, number))
    returned, out, err = ended(process)
    assert (returned, out) == (code, "") and name in err and "nothing new to save" in err


@pytest.mark.parametrize(("number", "name", "code"), SIGNALS)
def test_before_anything_is_imported(number, name, code):
    process = run("exit_on_signals(); wait()")
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
        "    print('ready', flush=True)\n"
        "    while not interruption.requested: time.sleep(0.001)\n"
        "    wait()",
        stderr=writer,
    )
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "ready\n"
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
        "    print(interruption.name, interruption.exit_code)"
    )
    assert ended(process)[:2] == (0, "Ctrl-C 130\n")


def test_a_forked_process_can_be_terminated_and_the_parent_does_not_hear_of_it():
    process = run(
        "print('ready', flush=True)\n"
        "with Interruption() as interruption:\n"
        "    interruption.defer()\n"
        "    for number in (signal.SIGTERM, signal.SIGUSR1):\n"
        "        child = os.fork()\n"
        "        if not child: os.kill(os.getpid(), number); wait()\n"
        "        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -number)\n"
        "    time.sleep(0.05)\n"
        "    print(interruption.requested, interruption.name, interruption.exit_code)"
    )
    assert ended(process)[:2] == (0, "True\nTrue\nFalse None 0\n")


@pytest.fixture
def previous():
    """A program's own handlers."""

    def own(number, frame):
        pytest.fail("not heard by whoever was to hear")

    before = {n: signal.signal(n, own) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    yield
    assert {signal.signal(number, handler) for number, handler in before.items()} == {own}


def test_what_was_there_before_is_put_back(previous):
    with Interruption() as interruption:
        interruption.defer()
        signal.raise_signal(signal.SIGUSR1)
    assert interruption.requested and interruption.name == "SIGUSR1"


def test_inside_another_it_hears_nothing_and_takes_nothing_away(previous):
    with Interruption() as outer:
        outer.defer()
        for _ in range(2):
            with Interruption() as inner:
                signal.raise_signal(signal.SIGINT)
        assert outer.name == "Ctrl-C" and not inner.requested


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
    with pytest.raises(UsageError, match="`max_seconds` .* 0"):
        Interruption(max_seconds=0)
