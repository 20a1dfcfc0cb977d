"""Work that is done ahead of time, by a thread in the background."""

import collections
import itertools
import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, wait
from typing import Any, TypeVar

import jax

Item = TypeVar("Item")
Result = TypeVar("Result")

# How often a wait looks whether it is still wanted.
_POLL_SECONDS = 0.1
# What `close` waits for a thread that is at work: one that hangs must not hold up a stop.
_CLOSE_SECONDS = 2.0


def never() -> bool:
    """The `should_stop` of work that nobody stops."""
    return False


class BackgroundThread(Executor):
    """One thread that computes what is submitted, in order.

    Its default device is that of whoever makes it; jax keeps that by thread. A source that hangs
    can't be ended, but neither does it keep the process from ending.

    >>> thread = BackgroundThread("squares")
    >>> thread.submit(pow, 3, 2).result()
    9
    >>> thread.close()
    """

    def __init__(self, name: str):
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        device = jax.config.jax_default_device
        # It holds the queue alone, so that it ends with the last reference to this object.
        self._thread = threading.Thread(
            target=_work, args=(self._tasks, device), name=name, daemon=True
        )
        self._end = weakref.finalize(self, self._tasks.put, None)
        self._thread.start()

    def submit(self, function: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future:
        """Returns the future result of `function(*args, **kwargs)`.

        Raises:
          RuntimeError: the thread was shut down.
        """
        if not self._end.alive:
            raise RuntimeError(f"the thread {self._thread.name!r} was shut down.")
        future: Future = Future()
        self._tasks.put((future, lambda: function(*args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the thread behind what was submitted, or behind what it is at."""
        if cancel_futures:
            self._cancel()
        self._end()
        if wait:
            self._thread.join()

    def close(self) -> None:
        """Ends the thread when it has done what it is at; leaves it behind if that takes long."""
        self.shutdown(wait=False, cancel_futures=True)
        self._thread.join(_CLOSE_SECONDS)

    def _cancel(self) -> None:
        while True:
            try:
                task = self._tasks.get_nowait()
            except queue.Empty:
                return
            if task is None:  # shut down already
                self._tasks.put(None)
                return
            task[0].cancel()


_Task = tuple[Future, Callable[[], Any]]


def _work(tasks: "queue.SimpleQueue[_Task | None]", device: Any) -> None:
    with jax.default_device(device):
        while (task := tasks.get()) is not None:
            future, function = task
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:  # raised where the result is wanted
                    future.set_exception(error)
            # Or the last result would stay alive while the next task is waited for.
            del task, future, function


def prefetched(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    thread: Executor,
    num_ahead: int = 2,
    should_stop: Callable[[], bool] = never,
) -> Iterator[tuple[Item, Result]]:
    """Yields each item with `function(item)`, computed ahead in the thread.

    Args:
      function: what the thread does. An error that it raises is raised here, in its turn.
      items: what to do it with; iterated here, not in the thread.
      thread: where to compute; whoever made it shuts it down.
      num_ahead: the most results that exist, or are being made, besides the one yielded last.
      should_stop: asked while a result is waited for: True ends the iteration. Results that are
        there are yielded all the same.

    >>> from concurrent.futures import ThreadPoolExecutor
    >>> with ThreadPoolExecutor(1) as thread:
    ...     list(prefetched(lambda x: x * x, range(4), thread))
    [(0, 0), (1, 1), (2, 4), (3, 9)]
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
