"""A run without a folder."""

from collections.abc import Mapping
from typing import Any

from adabatch_jax.training.train_state import TrainState


class InMemory:
    """What a run calls of a `RunFolder`, where it writes nothing and has nothing to go on from."""

    path = None
    checkpoint = None
    notes = ()
    save_seconds = 0.0

    def open(self, *_: Any) -> None: ...

    def begin(self, *_: Any) -> list[dict[str, Any]]:
        return []

    def wants_prediction(self, *_: Any) -> bool:
        return False

    def check_space(self, state: TrainState) -> None: ...

    def write_environment(self, *_: Any) -> None: ...

    def write_row(self, row: Mapping[str, Any]) -> None: ...

    def save(self, *_: Any) -> None: ...

    def check_saves(self) -> None: ...

    def wait_for_saves(self, step: int | None = None) -> None: ...

    def newest_planned_checkpoint(self) -> None: ...

    def write_summary(self, summary: Mapping[str, Any], *_: Any) -> dict[str, Any]:
        return dict(summary)

    def close(self) -> None: ...
