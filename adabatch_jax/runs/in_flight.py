"""Updates that were dispatched and whose results nobody has looked at yet."""

import collections
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from adabatch_jax.data.feeds import Piece
from adabatch_jax.training.dispatch import Dispatched


@dataclasses.dataclass(frozen=True)
class BadUpdate:
    """An update whose loss or gradients aren't finite.

    Attributes:
      finished: how many updates are finished with it.
      what: what was found, for people.
    """

    finished: int
    what: str


class Settled(NamedTuple):
    """A piece whose results are known.

    Attributes:
      piece: its updates, or one of an update's micro-batches.
      dispatched: what the dispatch returned; all of it is computed.
      rows: what is known already of the rows of metrics that are due in it, oldest first.
      bad_updates: those of its updates that aren't finite, oldest first.
    """

    piece: Piece
    dispatched: Dispatched
    rows: Sequence[Mapping[str, Any]]
    bad_updates: Sequence[BadUpdate]

    @property
    def is_whole(self) -> bool:
        """Whether an update ends here; else it is in the middle of its micro-batches."""
        return self.dispatched.metrics is not None

    @property
    def finished(self) -> int:
        """How many updates are finished when it is; of a whole one."""
        return self.piece.steps[-1].index + 1


class InFlight:
    """A queue of what was dispatched; the devices work on it meanwhile.

    Dispatch runs ahead of the devices; without a bound, batches pile up in memory.
    """

    def __init__(self) -> None:
        self._entries: collections.deque[tuple[Piece, Dispatched, Sequence[Mapping]]] = (
            collections.deque()
        )
        self._num_rows = 0

    @property
    def holds_rows(self) -> bool:
        """Whether rows of metrics wait for another piece than the newest one."""
        return self._num_rows > (len(self._entries[-1][2]) if self._entries else 0)

    def add(self, piece: Piece, dispatched: Dispatched, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds a piece that has just been dispatched.

        Args:
          piece: which.
          dispatched: what the dispatch returned.
          rows: what is known of the rows of metrics that are due in it.
        """
        self._entries.append((piece, dispatched, rows))
        self._num_rows += len(rows)

    def settle(self, num_to_leave: int) -> Iterator[Settled]:
        """Waits for the oldest pieces, until so many are left, and yields each."""
        while len(self._entries) > num_to_leave:
            piece, dispatched, rows = self._entries.popleft()
            self._num_rows -= len(rows)
            # A signal is heard while blocking here, and not inside a copy.
            dispatched.wait_for.block_until_ready()
            yield Settled(piece, dispatched, rows, _bad_updates(piece, dispatched))

    def holds_bad_update(self) -> bool:
        """Whether any update in flight isn't finite; waits for all of them."""
        flags = [dispatched.is_finite for _, dispatched, _ in self._entries]
        jax.block_until_ready(flags)  # where a signal is heard
        return not all(np.asarray(flag).all() for flag in flags if flag is not None)


def _bad_updates(piece: Piece, dispatched: Dispatched) -> Sequence[BadUpdate]:
    if dispatched.is_finite is None:
        return ()
    flags = np.asarray(dispatched.is_finite)
    if flags.all():
        return ()
    losses = np.atleast_1d(jax.device_get(dispatched.metrics["loss"]))
    return [
        BadUpdate(
            step.index + 1,
            "a gradient is not finite" if math.isfinite(loss) else f"the loss is {float(loss)}",
        )
        for step, is_finite, loss in zip(piece.steps, np.atleast_1d(flags), losses)
        if not is_finite
    ]
