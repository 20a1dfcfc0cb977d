"""Weights & Biases: one run there for one run here, however often it is started."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adabatch_jax.runs.tracking.tracked_run import TrackedRun, scalars_of
from adabatch_jax.system.files import read_file

# Its own default is to wait for ever at the end of a run, where its server can't be reached.
_FINISH_SECONDS = 60.0
_START_SECONDS = 30.0


class WeightsAndBiases:
    """A tracker: rows go to wandb.ai, or where `WANDB_MODE=offline` says so into the run's folder.

    The package's own variables say what they always do: `WANDB_PROJECT` (here "adabatch" where it
    isn't set), `WANDB_ENTITY`, `WANDB_API_KEY`, `WANDB_MODE`.

    A run there can't go back: a step that it has it would refuse. A restart makes the rows behind
    its checkpoint again, as they were, so those that were given are left out. How far that is, and
    which run it is, is kept in `wandb/run.json` in the run's folder.
    """

    name = "Weights & Biases"

    def __init__(self) -> None:
        self._run: Any = None
        self._kept: Path | None = None
        self._id, self._last_step = "", -1

    def start(self, run: TrackedRun) -> None:
        """Begins the run there, or goes on with it."""
        import wandb

        self._id, self._last_step = run.id, -1
        if run.folder is not None:
            self._kept = run.folder / "wandb" / "run.json"
            self._kept.parent.mkdir(exist_ok=True)
            self._restore()
        self._run = wandb.init(
            id=self._id,
            name=None if run.folder is None else run.folder.name,
            project=os.environ.get("WANDB_PROJECT", "adabatch"),
            dir=run.folder,
            config=dict(run.settings),
            resume="allow",
            # It must neither take the terminal, which shows how the run goes, nor hold its end.
            settings=wandb.Settings(
                console="off",
                quiet=True,
                init_timeout=_START_SECONDS,
                finish_timeout=_FINISH_SECONDS,
            ),
        )
        self._keep()

    def row(self, row: Mapping[str, Any]) -> None:
        """Sends a row's numbers, once in a run's life."""
        if row["step"] > self._last_step:
            self._last_step = row["step"]
            self._keep()  # first: after a kill rows may be missing there, and none is twice
            self._run.log(scalars_of(row), step=row["step"], commit=True)

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Ends the run there: as finished, or as one that may go on."""
        if self._run is not None:
            if summary is not None:
                self._run.summary.update(scalars_of(summary))
            self._run.finish(exit_code=int(summary is None))

    def _restore(self) -> None:
        try:
            content = json.loads(read_file(self._kept))
            self._id, self._last_step = str(content["id"]), int(content["last_step"])
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            pass  # not there yet, or damaged: the run's own name will do

    def _keep(self) -> None:
        if self._kept is not None:
            beside = self._kept.with_name("run.json.tmp")
            beside.write_text(json.dumps({"id": self._id, "last_step": self._last_step}))
            os.replace(beside, self._kept)
