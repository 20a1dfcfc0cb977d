"""A run without a folder."""

from collections.abc import Mapping
from typing import Any

from adabatch_jax.training.train_state import TrainState


class InMemory:
    """What a run calls of a `RunFolder`, where it writes nothing and has nothing to go on from."""

    path = run_id = None
    checkpoint = None
    notes = ()
    changes = ()
    save_seconds = 0.0

    def open(self, *_: Any) -> None:
        """Has nothing to open."""

    def begin(self, *_: Any) -> list[dict[str, Any]]:
        """No rows: the run is a new one."""
        return []

    def wants_prediction(self, *_: Any) -> bool:
        """Nobody would read a prediction."""
        return False

    def check_space(self, state: TrainState) -> None:
        """Needs no room on a disk."""

    def write_environment(self, *_: Any) -> None:
        """Writes nothing."""

    def write_row(self, row: Mapping[str, Any]) -> None:
        """Writes nothing; the run's history has the row."""

    def save(self, *_: Any) -> None:
        """Saves nothing."""

    def check_saves(self) -> None:
        """No save is ever under way."""

    def wait_for_saves(self, step: int | None = None) -> None:
        """No save is ever under way."""

    def newest_planned_checkpoint(self) -> None:
        """None: nothing is saved."""

    def write_summary(self, summary: Mapping[str, Any], *_: Any) -> dict[str, Any]:
        """Returns the summary, which is written nowhere."""
        return dict(summary)

    def close(self, *_: Any) -> None:
        """Has nothing to close."""
