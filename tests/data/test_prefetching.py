"""Work in a background thread: in order, ahead by so much, and never in the way of a stop."""

import gc
import subprocess
import sys
import threading

import pytest

from adabatch_jax.data.prefetching import BackgroundThread, prefetched


@pytest.fixture
def gate():
    """What the thread waits for; open at the end, so that no thread outlives its test."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def thread():
    thread = BackgroundThread("test-prefetching")
    yield thread
    thread.close()


def test_a_stop_ends_the_wait_for_a_source_that_hangs(thread, gate):
    asked = []

    def should_stop():
        asked.append(1)
        return len(asked) > 2

    def read(item):
        return item if item < 2 else gate.wait()

    got = prefetched(read, range(5), thread, should_stop=should_stop)
    assert [item for item, _ in got] == [0, 1]
    # It is what waited, and not the items that were there, that asked to the end.
    assert len(asked) >= 3


def test_what_is_there_is_given_even_when_stopping():
    got = prefetched(str, range(4), Made(), should_stop=lambda: True)
    assert list(got) == [(0, "0"), (1, "1"), (2, "2"), (3, "3")]


class Made(BackgroundThread):
    """Has every result before it is asked for."""

    def __init__(self):
        super().__init__("test-made")

    def submit(self, function, *args):
        future = super().submit(function, *args)
        future.exception()
        return future


def test_an_error_is_raised_in_its_turn_and_the_thread_goes_on(thread):
    inverted = prefetched(lambda x: 1 / x, [2, 1, 0, 4], thread)
    assert [next(inverted), next(inverted)] == [(2, 0.5), (1, 1.0)]
    with pytest.raises(ZeroDivisionError):
        next(inverted)
    assert thread.submit(pow, 2, 5).result() == 32


def test_closing_leaves_a_thread_that_hangs_behind(thread, gate, monkeypatch):
    monkeypatch.setattr("adabatch_jax.data.prefetching._CLOSE_SECONDS", 0.05)
    hanging, waiting = thread.submit(gate.wait), thread.submit(int)
    while not hanging.running():
        pass
    thread.close()
    assert not hanging.done() and waiting.cancelled()
    with pytest.raises(RuntimeError, match="'test-prefetching' was closed"):
        thread.submit(int)
    thread.close()  # again is fine
    gate.set()
    assert hanging.result(60)


def test_a_thread_ends_with_the_last_reference():
    thread = BackgroundThread("test-forgotten")
    thread.submit(int).result()
    (running,) = (t for t in threading.enumerate() if t.name == "test-forgotten")
    del thread
    gc.collect()
    running.join(60)
    assert not running.is_alive()


def test_a_process_ends_while_its_source_hangs():
    code = (
        "import threading; from adabatch_jax.data.prefetching import BackgroundThread;"
        "t = BackgroundThread('hangs'); f = t.submit(threading.Event().wait)\n"
        "while not f.running(): pass\n"
        "print('end')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")
