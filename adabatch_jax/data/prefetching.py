"""Work that is done ahead of time, by a thread in the background."""

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TypeVar

import jax

Item = TypeVar("Item")
Result = TypeVar("Result")


def background_thread(name: str) -> ThreadPoolExecutor:
    """A thread whose default device is the caller's; jax keeps that by thread."""
    device = jax.default_device(jax.config.jax_default_device)
    return ThreadPoolExecutor(1, thread_name_prefix=name, initializer=device.__enter__)


def prefetched(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    thread: Executor,
    num_ahead: int = 2,
) -> Iterator[tuple[Item, Result]]:
    """Yields each item with `function(item)`, computed ahead in the thread.

    Args:
      function: what the thread does. An error that it raises is raised here, in its turn.
      items: what to do it with; iterated here, not in the thread.
      thread: where to compute; whoever made it shuts it down.
      num_ahead: the most results that exist, or are being made, besides the one yielded last.

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
            item, future = ahead.popleft()
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
