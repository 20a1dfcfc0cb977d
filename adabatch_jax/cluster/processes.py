"""What processes of one job say to each other beside the devices, through JAX's key-value store."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import sys
import threading
import time

from adabatch_jax.cluster.jax_internals import joined_place, store
from adabatch_jax.cluster.rendezvous import named
from adabatch_jax.system.errors import (
    AdabatchError,
    DivergedError,
    RestoreError,
    StorageError,
    UsageError,
)

_ROOT = "adabatch_jax"
_FAILURE = f"{_ROOT}/failure"
# How often whoever waits looks whether another process has failed meanwhile.
_LOOK_SECONDS = 1.0
# How long process 0, with whom the store goes, waits for the others to end after a failure: as long
# as they have for it, and what it takes them to hear of it.
_OTHERS_SECONDS = 8.0
# Texts that one process gives again and again: no other is so many behind.
_KEPT = 100


@dataclasses.dataclass(frozen=True)
class Failure:
    """How a process ended that couldn't go on.

    Attributes:
      process_id: which one.
      sentence: what it said.
      code: its exit code.

    >>> alone = Processes()
    >>> alone.say_failure("the disk is full.", code=5)
    >>> alone.failure()
    Failure(process_id=0, sentence='the disk is full.', code=5)
    """

    process_id: int
    sentence: str
    code: int


class PeerFailed(AdabatchError):
    """Another process of the job is gone, so this one can't go on; a new start may help.

    >>> PeerFailed("process 1 was killed.").exit_code
    42
    """

    exit_code = 42


def peer_error(failure: Failure) -> AdabatchError:
    """The error to raise for another process's: of its kind, where a new start wouldn't help.

    >>> peer_error(Failure(1, "no such folder.", 2))
    UsageError('process 1: no such folder.')
    """
    kinds = {
        kind.exit_code: kind for kind in (UsageError, DivergedError, RestoreError, StorageError)
    }
    kind = kinds.get(failure.code, PeerFailed)
    return kind(f"process {failure.process_id}: {failure.sentence}")


class Processes:
    """The processes of one job, as one of them sees them.

    All calls may come from any thread. A name may be used again and again: the n-th use of it by
    one process belongs to the n-th of every other. Alone, nothing is asked of JAX.

    Args:
      index: which process this is, counted from 0.
      count: how many there are.

    >>> alone = Processes()
    >>> alone.index, alone.count, alone.exchange("settings", "abc", timeout=10)
    (0, 1, ('abc',))
    """

    def __init__(self, index: int = 0, count: int = 1):
        self.index, self.count = index, count
        self._uses: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()
        self._own_failure: Failure | None = None
        self._ends_by = math.inf  # as `time.monotonic()`

    def __repr__(self) -> str:
        return f"Processes(index={self.index}, count={self.count})"

    def exchange(self, name: str, text: str, timeout: float = math.inf) -> tuple[str, ...]:
        """Says a text to all, and returns what each said, by its number.

        Args:
          name: what it is about, the same on all processes.
          text: what this process says.
          timeout: how long to wait for the others, in seconds.

        Raises:
          UsageError: some didn't say theirs in time; it names them.
          AdabatchError: another process has failed meanwhile; see `peer_error`.
        """
        use = self._use(name)
        if self.count == 1:
            return (text,)
        # Process 0 reads each text once and hands all on: 2 N requests, not N * N.
        folder, deadline = f"{_ROOT}/exchange/{name}/{use}", time.monotonic() + timeout
        store().key_value_set(f"{folder}/said/{self.index}", text)
        if self.index > 0:
            answer = self._wait_for(f"{folder}/all", deadline)
            if answer is None:
                raise self._late(name, folder, timeout)
            return tuple(json.loads(answer))
        texts = []
        for number in range(self.count):
            said = self._wait_for(f"{folder}/said/{number}", deadline)
            if said is None:
                raise self._late(name, folder, timeout)
            texts.append(said)
        store().key_value_set(f"{folder}/all", json.dumps(texts))
        if use > 1:  # which all have read, as they are here now
            store().key_value_delete(f"{_ROOT}/exchange/{name}/{use - 1}/")
        return tuple(texts)

    def barrier(self, name: str, timeout: float = math.inf) -> None:
        """Waits until all processes are here; raises as `exchange` does."""
        self.exchange(f"barrier/{name}", "", timeout)

    def give(self, name: str, text: str) -> None:
        """Says a text to those who `take` it: one process to all others."""
        if self.count > 1:
            use = self._use(name)
            store().key_value_set(f"{_ROOT}/given/{name}/{use}", text)
            if use > _KEPT:
                store().key_value_delete(f"{_ROOT}/given/{name}/{use - _KEPT}")

    def take(self, name: str) -> str:
        """Waits for the text that another process gives; raises as `exchange` does."""
        return self._wait_for(f"{_ROOT}/given/{name}/{self._use(name)}", math.inf)

    def post(self, name: str, text: str) -> None:
        """Says a text, once under each name, to whoever looks with `posted`."""
        store().key_value_set(f"{_ROOT}/posted/{name}/{self.index}", text)

    def posted(self, name: str) -> dict[int, str]:
        """What was posted so far, by the process; waits for nothing but the store's answer."""
        found = store().key_value_dir_get(f"{_ROOT}/posted/{name}/")
        return {int(key.rpartition("/")[2]): text for key, text in found}

    def say_busy(self, is_busy: bool) -> None:
        """Says that this process is at something that has no limit, or is so no more."""
        if self.count > 1:
            text = "busy" if is_busy else ""
            store().key_value_set(f"{_ROOT}/busy/{self.index}", text, allow_overwrite=True)

    def any_busy(self) -> bool:
        """Whether any process said so; False where the store doesn't answer."""
        with contextlib.suppress(Exception):
            return any(text for _, text in store().key_value_dir_get(f"{_ROOT}/busy/"))
        return False

    def numbered(self, name: str) -> str:
        """The name with another number at each call, the n-th the same in all processes."""
        return f"{name}-{self._use(f'numbered/{name}')}"

    def _use(self, name: str) -> int:
        with self._lock:
            self._uses[name] += 1
            return self._uses[name]

    def say_failure(self, sentence: str, code: int) -> None:
        """Tells all others that this process can't go on: why, and its exit code.

        The first one of a job counts.
        """
        failure = Failure(self.index, sentence, code)
        with self._lock:
            self._own_failure = self._own_failure or failure
        if self.count > 1:
            with contextlib.suppress(Exception):  # another one was first, or the store has gone
                store().key_value_set(_FAILURE, json.dumps(dataclasses.asdict(failure)))

    def failure(self) -> Failure | None:
        """The first failure that a process told of; None as long as there is none.

        It waits for nothing but one answer of the store, below a millisecond.
        """
        if self.count == 1:
            return self._own_failure
        try:
            told = store().key_value_try_get(_FAILURE)
        except Exception:  # there is none, or no store any more
            return self._own_failure
        return Failure(**json.loads(told))

    def leave(self) -> None:
        """Waits for the others to come here, and leaves them: nothing can be said any more."""
        if self.count > 1:
            import jax

            jax.distributed.shutdown()

    def wait_to_end(self) -> None:
        """Has process 0 end after the others where one has failed: their reason goes with it."""
        if self.count == 1:
            return
        with contextlib.suppress(Exception):
            store().key_value_set(f"{_ROOT}/ended/{self.index}", "", allow_overwrite=True)
        if self.index == 0 and self.failure() is not None:
            # Once in all: one that was killed never says that it has ended.
            self._ends_by = min(self._ends_by, time.monotonic() + _OTHERS_SECONDS)
            while time.monotonic() < self._ends_by and self._num_ended() < self.count:
                time.sleep(0.05)

    def end_now(self, code: int) -> None:
        """Ends this process at once: a normal end would wait for the others."""
        self.wait_to_end()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)

    def _num_ended(self) -> int:
        with contextlib.suppress(Exception):
            return len(store().key_value_dir_get(f"{_ROOT}/ended/"))
        return self.count

    def _wait_for(self, key: str, deadline: float) -> str | None:
        """A value of the store when it is there; None where it isn't in time."""
        for is_first in itertools.chain([True], itertools.repeat(False)):
            left = deadline - time.monotonic()
            if left <= 0 and not is_first:
                return None
            try:
                wait = max(1, int(1000 * min(left, _LOOK_SECONDS)))
                return store().blocking_key_value_get(key, wait)
            except Exception as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
            failure = self.failure()
            if failure is not None and failure.process_id != self.index:
                raise peer_error(failure)
        return None

    def _late(self, name: str, folder: str, timeout: float) -> UsageError:
        said = {
            int(key.rpartition("/")[2]) for key, _ in store().key_value_dir_get(folder + "/said/")
        }
        missing = [number for number in range(self.count) if number not in said] or [0]
        return UsageError(
            f"{named(missing)} of {self.count} didn't answer within {timeout:g} s ({name}); look at "
            "the output of each process."
        )


ALONE = Processes()
"""A process that trains alone, with devices of its own."""


def are_joined() -> bool:
    """Whether this program has joined others, with or without `adabatch_jax.cluster`."""
    if "jax" not in sys.modules:
        return False
    import jax

    return jax.distributed.is_initialized()


def current() -> Processes:
    """The processes that this program has joined; alone where it has joined none.

    Every call returns the same ones: how often a name was used is known to all that use it.

    >>> current()
    Processes(index=0, count=1)
    """
    if not are_joined():
        return Processes()
    return _joined(*joined_place())


@functools.cache
def _joined(index: int, count: int) -> Processes:
    return Processes(index, count)
