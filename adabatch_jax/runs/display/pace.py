"""How fast a run goes, everything it waits for included."""

from collections import deque
from collections.abc import Callable

WINDOW_SECONDS = 60.0
RESOLUTION_SECONDS = 0.5


class Pace:
    """Examples per second over the last minute.

    >>> now = iter([0.0, 10.0])
    >>> pace = Pace(lambda: next(now))
    >>> pace.observe(0), pace.observe(5_000), pace.examples_per_second
    (None, None, 500.0)
    """

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._observed: deque[tuple[float, int]] = deque()

    def observe(self, samples: int) -> None:
        """Notes that `samples` are done now; what came before the first call doesn't count."""
        now, observed = self._clock(), self._observed
        if len(observed) >= 2 and now - observed[-2][0] < RESOLUTION_SECONDS:
            observed.pop()  # so that memory is bounded, however often this is called
        observed.append((now, samples))
        while len(observed) > 2 and observed[1][0] <= now - WINDOW_SECONDS:
            observed.popleft()

    @property
    def examples_per_second(self) -> float | None:
        """The recent speed; None until there is something to compare."""
        if not self._observed:
            return None
        (start, first), (stop, last) = self._observed[0], self._observed[-1]
        return (last - first) / (stop - start) if stop > start and last > first else None
