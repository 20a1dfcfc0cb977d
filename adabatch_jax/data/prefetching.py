"""Work that is done ahead of time, by a thread in the background."""

import collections
import contextlib
import itertools
import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from typing import Any, TypeVar

import jax

Item = TypeVar("Item")
Result = TypeVar("Result")

# The most results that exist, or are being made, besides the one yielded last.
_NUM_AHEAD = 2
# How often a wait looks whether it is still wanted.
_POLL_SECONDS = 0.1
# What `close` waits for a thread that is at work: one that hangs must not hold up a stop.
_CLOSE_SECONDS = 2.0


def never() -> bool:
    """The `should_stop` of work that nobody stops."""
    return False


class BackgroundThread:
    """One thread that computes what is submitted, in order.

    Its default device is that of whoever makes it; jax keeps that by thread. A source that hangs
    can't be ended, but neither does it keep the process from ending.

    >>> thread = BackgroundThread("squares")
    >>> thread.submit(pow, 3, 2).result()
    9
    >>> thread.close()
    """

    def __init__(self, name: str):
        self._tasks: _Tasks = queue.SimpleQueue()
        device = jax.config.jax_default_device
        # It holds the queue alone, so that it ends with the last reference to this object.
        self._thread = threading.Thread(
            target=_work, args=(self._tasks, device), name=name, daemon=True
        )
        self._end = weakref.finalize(self, self._tasks.put, None)
        self._thread.start()

    def submit(self, function: Callable[..., Result], *args: Any) -> "Future[Result]":
        """Returns the future result of `function(*args)`; a RuntimeError if it was closed."""
        if not self._end.alive:
            raise RuntimeError(f"the thread {self._thread.name!r} was closed.")
        future: Future = Future()
        self._tasks.put((future, function, args))
        return future

    def close(self) -> None:
        """Ends the thread when it has done what it is at; leaves it behind if that takes long."""
        while not self._tasks.empty():
            with contextlib.suppress(queue.Empty):  # the thread was faster
                if (task := self._tasks.get_nowait()) is not None:
                    task[0].cancel()
        self._end()
        self._tasks.put(None)  # once more: a call before this one may have put it there
        self._thread.join(_CLOSE_SECONDS)


_Tasks = queue.SimpleQueue[tuple[Future, Callable[..., Any], tuple] | None]


def _work(tasks: _Tasks, device: Any) -> None:
    with jax.default_device(device):
        while (task := tasks.get()) is not None:
            future, function, args = task
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(*args))
                except BaseException as error:  # raised where the result is wanted
                    future.set_exception(error)
            # Or the last result would stay alive while the next task is waited for.
            del task, future, function, args


def prefetched(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    thread: BackgroundThread,
    should_stop: Callable[[], bool] = never,
    num_ahead: int = _NUM_AHEAD,
) -> Iterator[tuple[Item, Result]]:
    """Yields each item with `function(item)`, computed in the thread `num_ahead` items ahead.

    An error of the function is raised here, in its turn; items are iterated here, too. While a
    result is waited for, `should_stop` is asked: True ends the iteration. Results that are there
    are yielded all the same.

    >>> thread = BackgroundThread("squares")
    >>> list(prefetched(lambda x: x * x, range(4), thread))
    [(0, 0), (1, 1), (2, 4), (3, 9)]
    >>> thread.close()
    """
    items = iter(items)
    ahead = collections.deque(
        (item, thread.submit(function, item)) for item in itertools.islice(items, num_ahead)
    )
    try:
        while ahead:
            item, future = ahead[0]
            while not future.done():
                if should_stop():
                    return
                wait((future,), _POLL_SECONDS)
            ahead.popleft()
            result = future.result()
            ahead.extend(
                (later, thread.submit(function, later)) for later in itertools.islice(items, 1)
            )
            # Or this frame would keep the result alive while it waits to be resumed.
            del future
            yield item, result
            del result
    finally:
        for _, future in ahead:
            future.cancel()


def read_ahead(results: Iterator[Result], num_ahead: int, name: str) -> Iterator[Result]:
    """The same results, none of them None, made ahead by a thread that ends with the iterator.

    >>> list(read_ahead((x * x for x in range(4)), 2, "squares"))
    [0, 1, 4, 9]
    """
    thread = BackgroundThread(name)
    try:
        made = prefetched(
            lambda _: next(results, None), itertools.repeat(None), thread, num_ahead=num_ahead
        )
        for _, result in made:
            if result is None:
                return
            yield result
            del result  # or it would stay alive while the next one is waited for
    finally:
        thread.close()
