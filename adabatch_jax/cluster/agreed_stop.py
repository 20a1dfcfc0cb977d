"""Has all processes of a run stop at the same place, when any of them wants to."""

import json
import time
from collections.abc import Callable

from adabatch_jax.cluster.processes import Processes

# What the processes tell each other for it, some three messages in such a time, is less than a
# thousandth of it.
_LEASE_SECONDS = 0.5


class AgreedStop:
    """Asked by all processes at the same places of their program, in the same order.

    The first process says ahead up to which place nobody stops, half a second's worth of places or
    one, and looks for wishes before it says so again. A place that it has said is passed without a
    word. So all stop at the place that was the last one said, however far apart they are.

    Args:
      processes: those that make one of these alike.
      clock: in seconds.

    Attributes:
      delay_seconds: how long it takes until all stop whom one asks to.

    >>> from adabatch_jax.cluster.processes import ALONE
    >>> stop = AgreedStop(ALONE)
    >>> stop.reason(None), stop.reason("SIGTERM")
    (None, 'SIGTERM')
    """

    def __init__(self, processes: Processes, clock: Callable[[], float] = time.monotonic):
        self._processes, self._clock = processes, clock
        self.delay_seconds = 0.0 if processes.count == 1 else 2 * _LEASE_SECONDS
        self._name = processes.numbered("stop")
        self._place = 0  # how many were passed
        self._passable = 0  # how many may be
        self._length = 1  # how many more the first process lets pass at a time
        self._since = clock()
        self._has_wished = False
        self._why: str | None = None  # what all stop for, when `_passable` places are passed

    def reason(self, wish: str | None) -> str | None:
        """Whether to stop here, for a reason that is the same in all processes.

        Args:
          wish: why this process wants to stop; None: it doesn't.

        Returns:
          Why all stop here; None: they go on.
        """
        if self._processes.count == 1:
            return wish
        if self._processes.index:
            if wish is not None and not self._has_wished:
                self._has_wished = True
                self._processes.post(self._name, wish)
            while self._place >= self._passable and self._why is None:
                self._hear()
        elif self._why is None and self._place >= self._passable - self._length // 2:
            self._say(wish)
        if self._place >= self._passable:
            return self._why
        self._place += 1
        return None

    def _say(self, wish: str | None) -> None:
        wishes = [*filter(None, [wish]), *self._processes.posted(self._name).values()]
        if wishes:
            self._why = wishes[0]
        else:
            now = self._clock()
            taken, self._since = now - self._since, now
            if taken < _LEASE_SECONDS / 2:
                self._length *= 2
            elif taken > _LEASE_SECONDS:
                self._length = max(1, self._length // 2)
            self._passable += self._length
        self._processes.give(self._name, json.dumps([self._passable, self._why]))

    def _hear(self) -> None:
        self._passable, self._why = json.loads(self._processes.take(self._name))
