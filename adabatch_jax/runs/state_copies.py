"""Copies of the state that checkpoints are saved from, while the devices go on."""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from adabatch_jax.runs.nonfinite_recovery import Recovery
from adabatch_jax.runs.record import RunRecord
from adabatch_jax.training.finite_checks import all_finite
from adabatch_jax.training.train_state import TrainState

# What the program of `copied` is called among the run's programs.
COPY = "copy"


def copied(state: TrainState) -> tuple[TrainState, jax.Array]:
    """Returns a state's copy, which stays when that is donated, and whether it is finite."""
    return jax.tree.map(jnp.copy, state), all_finite(state)


def lower_copy(state: TrainState, shardings: Any, has_room: bool) -> jax.stages.Lowered:
    """Lowers what looks at a state before it is saved.

    Args:
      state: abstract arrays.
      shardings: where a copy's leaves are to lie; None: on one device.
      has_room: whether there is memory for a copy; without one the program only looks.
    """
    if not has_room:
        return jax.jit(lambda state: (None, all_finite(state))).lower(state)
    of_copy = {} if shardings is None else {"out_shardings": (shardings, None)}
    return jax.jit(copied, **of_copy).lower(state)


@dataclasses.dataclass(frozen=True)
class _Copy:
    """A state as it was after `finished` updates, computed or on its way."""

    finished: int
    state: TrainState
    is_finite: jax.Array
    position: Mapping[str, Any]


class StateCopies:
    """Saves checkpoints from copies: a device makes one behind an update, and goes on.

    A copy is written when the updates before it are known to be good, so that no checkpoint holds
    numbers that are lost.

    Args:
      record: where checkpoints go.
      recovery: makes the error for weights that aren't finite.

    Attributes:
      newest: the number of updates behind the newest copy that is saved or will be.
    """

    def __init__(self, record: RunRecord, recovery: Recovery):
        self._record, self._recovery = record, recovery
        self._copies: collections.deque[_Copy] = collections.deque()
        self.newest = self._newest_saved = record.start_step

    def take(
        self,
        program: jax.stages.Compiled,
        finished: int,
        state: TrainState,
        is_planned: bool,
        pending_row: Any = None,
    ) -> bool:
        """Begins to copy the state after `finished` updates, which is that of the run now.

        Args:
          program: what `lower_copy` lowered.
          finished: how many updates.
          state: the state.
          is_planned: whether a checkpoint is due here anyway, or because of a stop.
          pending_row: a row that still lacks its evaluation.

        Returns:
          Whether the state may be donated; without a copy only after `save_settled`.
        """
        position = self._record.position(finished)
        position |= {"is_planned": is_planned, "pending_row": pending_row}
        with self._record.clocks.timed("step"):
            copy, is_finite = program(state)
        self._copies.append(_Copy(finished, state if copy is None else copy, is_finite, position))
        self.newest = finished
        return copy is not None

    @property
    def is_waiting(self) -> bool:
        """Whether a copy waits for the updates before it."""
        return bool(self._copies)

    def save_settled(self, finished: int) -> None:
        """Saves what was copied behind updates whose results were looked at.

        Raises:
          DivergedError: a weight is not finite.
          StorageError: an earlier checkpoint could not be saved.
        """
        while self._copies and self._copies[0].finished <= finished:
            copy = self._copies.popleft()
            with self._record.clocks.timed("step"):
                jax.block_until_ready(copy.is_finite)
            if not jax.device_get(copy.is_finite):
                raise self._recovery.diverged(copy.finished, "a weight is not finite")
            with self._record.clocks.timed("checkpoint"):
                self._record.save(copy.state, copy.position)
            self._newest_saved = copy.finished

    def forget(self) -> None:
        """Gives up what wasn't saved yet."""
        self._copies.clear()
        self.newest = self._newest_saved
