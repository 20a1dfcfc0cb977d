"""Compiled programs that are there before they are needed."""

import dataclasses
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait

import jax

from adabatch_jax.training.device_memory import program_bytes


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program, and the memory that it needs on each device.

    Attributes:
      compiled: call it with arrays of just the shapes and shardings that it was lowered for.
      num_bytes: all of the memory.
      temporary_bytes: the part of it that grows with the rows computed at a time.
    """

    compiled: jax.stages.Compiled
    num_bytes: int
    temporary_bytes: int


class Programs:
    """Compiles named programs: some at once, the others in the background, in order.

    Compilers let go of the interpreter's lock, so training goes on meanwhile.

    Args:
      lowerings: by name, in the order in which the programs are needed, what lowers them.

    Attributes:
      background_seconds: what was compiled in the background so far took this long.
    """

    def __init__(self, lowerings: Mapping[Hashable, Callable[[], jax.stages.Lowered]]):
        self._lowerings = dict(lowerings)
        self._programs: dict[Hashable, Program] = {}
        self._futures: dict[Hashable, Future[Program]] = {}
        # One thread: each program is wanted before the next, and a machine that trains has few
        # cores to spare.
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="compile")
        self.background_seconds = 0.0

    @property
    def names(self) -> tuple[Hashable, ...]:
        """All programs, in the order in which they are needed."""
        return tuple(self._lowerings)

    def add(self, name: Hashable, lower: Callable[[], jax.stages.Lowered]) -> None:
        """Adds a program that is needed before those that aren't compiled yet."""
        self._lowerings = {name: lower} | self._lowerings

    def compile_rest(self) -> None:
        """Begins to compile, in the background, what isn't compiled yet."""
        for name in self._lowerings:
            if name not in self._programs and name not in self._futures:
                self._futures[name] = self._threads.submit(self._compile_in_background, name)

    def is_ready(self, name: Hashable) -> bool:
        """Whether `get` would return at once."""
        return name in self._programs or (name in self._futures and self._futures[name].done())

    def wait(self, name: Hashable, seconds: float) -> bool:
        """Waits at most so long; returns whether nothing in the background is to be waited for."""
        future = self._futures.get(name)
        return future is None or bool(wait([future], seconds).done)

    def get(self, name: Hashable) -> Program:
        """Returns a program; waits for it, or compiles it, where it isn't there yet."""
        if name in self._futures:
            return self._futures[name].result()
        if name not in self._programs:
            self._programs[name] = program_of(self._lowerings[name]())
        return self._programs[name]

    def _compile_in_background(self, name: Hashable) -> Program:
        begin = time.monotonic()
        # A thread that can't be had any more when the process ends: then what waits is given up.
        with ThreadPoolExecutor(1, thread_name_prefix="compile") as thread:
            lowered = thread.submit(self._lowerings[name]).result()
        program = program_of(lowered)
        self.background_seconds += time.monotonic() - begin
        return program

    def close(self) -> None:
        """Gives up what hasn't begun to compile; what has goes on and is thrown away."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def program_of(lowered: jax.stages.Lowered) -> Program:
    """Compiles a program that was lowered already."""
    # Not in this thread: newer compilers keep the main thread from hearing signals.
    with ThreadPoolExecutor(1, thread_name_prefix="compile") as thread:
        compiled = thread.submit(lowered.compile).result()
    return Program(compiled, *program_bytes(compiled))
