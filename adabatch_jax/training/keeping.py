"""Which checkpoints of a run are kept."""

import dataclasses

from adabatch_jax.errors import UsageError
from adabatch_jax.layout_choices import ON_SAVE_ERROR
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

    def __post_init__(self):
        if self.newest < 1:
            raise UsageError(f"keep_checkpoints: must be at least 1, got {self.newest}.")
        if self.on_error not in ON_SAVE_ERROR:
            raise UsageError(
                f"on_save_error: must be one of {', '.join(ON_SAVE_ERROR)}, got {self.on_error!r}."
            )
