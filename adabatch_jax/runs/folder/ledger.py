"""What is known of a run's checkpoints outside of their folder; no third-party import."""

import dataclasses
import json
from pathlib import Path

from adabatch_jax.system.files import read_file, write_json

NAME = "last_checkpoint.json"


@dataclasses.dataclass(frozen=True)
class Ledger:
    """Remembers the newest checkpoint, so that a run that lost it doesn't begin anew unnoticed.

    Attributes:
      run_id: the run's, which its checkpoints have too; None where it isn't known.
      step: of the newest checkpoint that was saved; None where it isn't known.
      rows_lost_at: the checkpoint that the run went on from without the rows before it, or None.
    """

    run_id: str | None = None
    step: int | None = None
    rows_lost_at: int | None = None

    def write(self, folder: Path) -> None:
        """Writes the ledger into a run's folder."""
        write_json(folder / NAME, dataclasses.asdict(self))


def read_ledger(folder: Path) -> Ledger:
    """The ledger in a run's folder; one that says nothing where there is none, or a damaged one.

    >>> read_ledger(Path("no/such/folder"))
    Ledger(run_id=None, step=None, rows_lost_at=None)
    """
    try:
        content = json.loads(read_file(folder / NAME))
        ledger = Ledger(**content)
    except (OSError, ValueError, TypeError, RecursionError):
        return Ledger()
    steps = (ledger.step, ledger.rows_lost_at)
    is_sound = all(step is None or type(step) is int for step in steps)
    return ledger if is_sound and isinstance(ledger.run_id, str | None) else Ledger()
