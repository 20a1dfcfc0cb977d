"""Which checkpoints of a run are kept."""

import dataclasses

from adabatch_jax.schedules.periods import Period
from adabatch_jax.scores import Score


@dataclasses.dataclass(frozen=True)
class Keeping:
    """Which checkpoints stay, and what is done where one can't be saved.

    Attributes:
      newest: how many of the newest.
      best: the best one by this score too, or None.
      every: one for each such period too, or None.
      on_error: "stop", or "warn" to train on until the next one is due.
    """

    newest: int = 3
    best: Score | None = None
    every: Period | None = None
    on_error: str = "stop"
