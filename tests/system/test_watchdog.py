"""The watchdog: what hangs ends the process with 42 and its stacks; what gets on doesn't."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.watchdog import Watchdog

START = """
import ctypes, sys, threading, time
from pathlib import Path
from adabatch_jax.system.watchdog import Watchdog

def hang_in_sleep():
    time.sleep(600)

def hang_in_lock():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()

def hang_in_c():
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)

log = Path(sys.argv[1]) if len(sys.argv) > 1 else None
"""


def run(body, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", START + body, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )


@pytest.mark.parametrize("where", ["hang_in_sleep", "hang_in_lock", "hang_in_c"])
def test_what_hangs_is_ended_with_its_stacks(tmp_path, where):
    log = tmp_path / "stalled.log"
    log.write_text("before\n")
    done = run(
        "threading.Thread(target=hang_in_lock, name='reader', daemon=True).start()\n"
        f"with Watchdog(0.1, log) as watchdog, watchdog.watch('update 12'):\n    {where}()",
        log,
    )
    assert done.returncode == 42
    assert done.stdout == ""
    assert done.stderr == (
        "error: update 12 took longer than 0.1 s (--stall-timeout); the stacks of all threads are "
        f"in {log}.\n"
    )
    text = log.read_text()
    assert text.startswith("before\n") and ": update 12 took longer than 0.1 s\n" in text
    thread = re.search(r"(0x\w+) reader\n", text)[1]
    main = re.search(r"(0x\w+) MainThread\n", text)[1]
    stacks = re.split(r"^(?:Current t|T)hread (0x\w+).*:\n", text, flags=re.MULTILINE)
    by_thread = dict(zip(stacks[1::2], stacks[2::2], strict=True))
    assert f"in {where}\n" in by_thread[main] and "in hang_in_lock\n" in by_thread[thread]


def test_of_two_the_one_that_hangs_is_named():
    done = run(
        "with Watchdog(0.3, None) as watchdog:\n"
        "    token = watchdog.begin('the checkpoint of update 3')\n"
        "    while True:\n"
        "        with watchdog.watch('the evaluation'):\n"
        "            watchdog.beat()\n"
    )
    assert done.returncode == 42
    first, last = done.stderr.splitlines()[0], done.stderr.splitlines()[-1]
    assert first.endswith("the checkpoint of update 3 took longer than 0.3 s")
    assert last == (
        "error: the checkpoint of update 3 took longer than 0.3 s (--stall-timeout); the stacks "
        "of all threads are above."
    )
    assert ", line " in done.stderr


def test_a_log_that_cannot_be_written_keeps_nothing_alive(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)  # opening it waits for a reader for ever, as a disk that hangs
    hang = "with Watchdog(0.2, log) as watchdog, watchdog.watch('it'):\n    hang_in_sleep()"
    done = run(hang, fifo)
    assert done.returncode == 42 and "in hang_in_sleep\n" in done.stderr
    done = run(hang, tmp_path / "nowhere" / "log")
    assert done.returncode == 42 and done.stderr.endswith("of all threads are above.\n")
    assert "in hang_in_sleep\n" in done.stderr


HOLDS_THE_LOCK = {
    "sleep": "ctypes.PyDLL(None).sleep(600)",
    "regex": "import re; re.match('(a+)+$', 40 * 'a' + 'b')",
}


@pytest.mark.parametrize("where", HOLDS_THE_LOCK)
def test_what_hangs_with_the_lock_is_ended_too(where):
    begin = time.monotonic()
    body = f"with Watchdog(1, None) as watchdog, watchdog.watch('it'):\n    {HOLDS_THE_LOCK[where]}"
    done = run(body)
    assert done.returncode == 42 and time.monotonic() - begin < 10
    assert "error: Python itself hung for 1 s (--stall-timeout)" in done.stderr
    assert done.stderr.count("File ") > 1  # the stacks


def test_what_holds_the_lock_may_where_nothing_is_watched():
    done = run(
        "with Watchdog(0.3, None) as watchdog:\n"
        "    with watchdog.watch('before'): time.sleep(0.1)\n"
        "    time.sleep(0.2)\n"
        "    ctypes.PyDLL(None).usleep(900_000)"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_process_that_is_stopped_does_not_hang():
    process = subprocess.Popen(
        [sys.executable, "-c", START + "with Watchdog(0.4, None) as w, w.watch('it'):\n"
         "    print('ready', flush=True)\n    input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    process.send_signal(signal.SIGCONT)
    assert process.communicate("\n", timeout=60) == ("", "") and process.returncode == 0


def overdue(watchdog, seconds, step=1.0):
    """What is overdue after so many seconds; by the clock that the watchdog's thread would keep."""
    for _ in range(round(seconds / step)):
        if (what := watchdog.overdue(step)) is not None:
            return what
    return None


def test_the_limit_counts_from_the_last_beat_of_the_same_thread():
    watchdog = Watchdog(10, None)
    with watchdog.watch("updates"):
        save = watchdog.begin("a save")
        assert overdue(watchdog, 6) is None
        watchdog.beat()
        assert overdue(watchdog, 4) is None
        other = threading.Thread(target=watchdog.beat)
        other.start()
        other.join()
        assert overdue(watchdog, 2) == "a save"  # 12 s, and a beat isn't its
        watchdog.end(save)
        watchdog.end(save)
        assert overdue(watchdog, 3) is None
        assert overdue(watchdog, 3) == "updates"  # 12 s since the beat
    assert overdue(watchdog, 100) is None


def test_what_ends_inside_is_a_beat_for_what_is_around_it():
    watchdog = Watchdog(10, None)
    with watchdog.watch("evaluations"):
        for _ in range(5):
            with watchdog.watch("an evaluation"):
                assert overdue(watchdog, 9) is None
        with pytest.raises(ZeroDivisionError), watchdog.watch("an evaluation"):
            assert overdue(watchdog, 9) is None
            1 / 0
        assert overdue(watchdog, 10) is None
        assert overdue(watchdog, 2) == "evaluations"


def test_the_time_in_which_the_process_was_stopped_does_not_count():
    watchdog = Watchdog(10, None)
    with watchdog.watch("an update"):
        assert overdue(watchdog, 3600, step=3600) is None
        assert overdue(watchdog, 7) is None
        assert overdue(watchdog, 3) == "an update"


def test_without_a_limit_it_does_nothing():
    with Watchdog(None, None) as watchdog, watchdog.watch("nothing"):
        watchdog.beat()
        watchdog.end(watchdog.begin("a save"))
        assert not [t for t in threading.enumerate() if t.name == "watchdog"]
    with Watchdog(600, None):
        assert [t for t in threading.enumerate() if t.name == "watchdog"]
    assert not [t for t in threading.enumerate() if t.name == "watchdog"]
    with pytest.raises(UsageError, match="`timeout_seconds` .* 0"):
        Watchdog(0, None)
