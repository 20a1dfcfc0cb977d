"""What a tracker is told of a run, and how it reads a row of metrics."""

import dataclasses
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class TrackedRun:
    """A run that begins or goes on.

    Attributes:
      id: of the run that its checkpoints belong to; another one where it begins anew, None
        where it writes nothing.
      folder: the run's folder; None where it writes nothing.
      settings: as JSON values.
      last_row: the row of metrics that it goes on behind, None where it begins: rows that were
        given behind it come again.
    """

    id: str | None
    folder: Path | None
    settings: Mapping[str, Any]
    last_row: Mapping[str, Any] | None = None

    @property
    def first_step(self) -> int:
        """No row of an earlier update comes.

        >>> TrackedRun("0badcafe", None, {}, {"step": 30, "train_loss": 0.5}).first_step
        31
        """
        return 0 if self.last_row is None else self.last_row["step"] + 1


def scalars_of(row: Mapping[str, Any]) -> dict[str, int | float]:
    """The figures of a row, or of a summary, that can be drawn over the steps.

    >>> scalars_of({"step": 10, "train_loss": 0.5, "examples_digest": "b17e"})
    {'train_loss': 0.5}
    """
    return {
        key: value if isinstance(value, int) else float(value)
        for key, value in row.items()
        if key != "step" and isinstance(value, numbers.Real)
    }
