"""Compiled programs that are there before they are needed."""

import dataclasses
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait

import jax

from adabatch_jax.training.device_memory import program_bytes


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program, and what making it cost.

    Attributes:
      compiled: call it with arrays of just the shapes and shardings that it was lowered for.
      num_bytes: memory that it needs on each device.
      temporary_bytes: the part of it that grows with the rows computed at a time.
      lower_seconds: spent on tracing and lowering.
      compile_seconds: spent in the backend's compiler, or in its cache.
    """

    compiled: jax.stages.Compiled
    num_bytes: int
    temporary_bytes: int
    lower_seconds: float
    compile_seconds: float


class Programs:
    """Compiles named programs: some at once, the others in the background, in order.

    Compilers let go of the interpreter's lock, so training goes on meanwhile.

    Args:
      lowerings: by name, in the order in which the programs are needed, what lowers them.

    >>> import jax.numpy as jnp
    >>> double = jax.jit(lambda x: 2 * x)
    >>> shapes = {n: jax.ShapeDtypeStruct((n,), jnp.float32) for n in (1, 2)}
    >>> with Programs({n: lambda s=s: double.lower(s) for n, s in shapes.items()}) as programs:
    ...     first = programs.get(1)  # waits for it
    ...     programs.compile_rest()
    ...     programs.get(2).compiled(jnp.ones(2)).tolist(), programs.background_seconds > 0
    ([2.0, 2.0], True)
    """

    def __init__(self, lowerings: Mapping[Hashable, Callable[[], jax.stages.Lowered]]):
        self._lowerings = dict(lowerings)
        self._programs: dict[Hashable, Program] = {}
        self._futures: dict[Hashable, Future[Program]] = {}
        # One thread: each program is wanted before the next, and a machine that trains has few
        # cores to spare.
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="compile")

    def __enter__(self) -> "Programs":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

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
                self._futures[name] = self._threads.submit(self._compile, name)

    def is_ready(self, name: Hashable) -> bool:
        """Whether `get` would return at once."""
        return name in self._programs or (name in self._futures and self._futures[name].done())

    def wait(self, name: Hashable, seconds: float) -> bool:
        """Waits at most so long for a program that is compiled in the background.

        Returns:
          Whether nothing in the background is to be waited for any more.
        """
        future = self._futures.get(name)
        return future is None or bool(wait([future], seconds).done)

    def get(self, name: Hashable) -> Program:
        """Returns a program; waits for it, or compiles it, where it isn't there yet."""
        if name not in self._programs:
            future = self._futures.get(name)
            self._programs[name] = self._compile(name) if future is None else future.result()
        return self._programs[name]

    @property
    def background_seconds(self) -> float:
        """What was compiled in the background so far took this long; training went on."""
        done = (future for future in self._futures.values() if future.done())
        programs = (future.result() for future in done if not future.exception())
        return sum(program.lower_seconds + program.compile_seconds for program in programs)

    def _compile(self, name: Hashable) -> Program:
        begin = time.monotonic()
        lowered = self._lowerings[name]()
        return program_of(lowered, time.monotonic() - begin)

    def close(self) -> None:
        """Gives up what hasn't begun to compile; what has goes on and is thrown away."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def program_of(lowered: jax.stages.Lowered, lower_seconds: float = 0.0) -> Program:
    """Compiles a program that was lowered already."""
    begin = time.monotonic()
    # Not in this thread: newer compilers keep the main thread from hearing signals.
    with ThreadPoolExecutor(1, thread_name_prefix="compile") as thread:
        compiled = thread.submit(lowered.compile).result()
    return Program(compiled, *program_bytes(compiled), lower_seconds, time.monotonic() - begin)
