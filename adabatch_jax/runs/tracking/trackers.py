"""What a tracker is, and how a run tells its trackers: none of them can end it."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from adabatch_jax.runs.tracking.tensorboard import TensorBoard
from adabatch_jax.runs.tracking.tracked_run import TrackedRun
from adabatch_jax.runs.tracking.weights_and_biases import WeightsAndBiases
from adabatch_jax.system.errors import UsageError, did_you_mean, one_line
from adabatch_jax.system.number_texts import printable


class Tracker(Protocol):
    """What follows a run; whatever it raises costs the run one line and the tracker its rows."""

    def start(self, run: TrackedRun) -> None:
        """A run begins, or goes on after a restart."""

    def row(self, row: Mapping[str, Any]) -> None:
        """A row of metrics, as in `metrics.jsonl`; a figure that isn't finite is a NaN."""

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """The run is finished, with these figures; or it ended unfinished, and may go on: None."""


_KNOWN = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


class Tracking:
    """The trackers of a run, which is told once of each that fails, and goes on without it.

    Args:
      trackers: each one's name, or an object with the methods of `Tracker`.

    Raises:
      UsageError: one of them is neither.
    """

    def __init__(self, trackers: Sequence[str | Tracker]):
        if isinstance(trackers, str) or not isinstance(trackers, Sequence):
            raise UsageError(f"trackers: {trackers!r} is no list of trackers; give ['wandb'].")
        self._trackers = [_made(tracker) for tracker in trackers]
        self._has_started = False

    def start(self, run: TrackedRun) -> None:
        """Tells that a run begins or goes on."""
        self._has_started = True
        self._tell("start", run)

    def row(self, row: Mapping[str, Any]) -> None:
        """Hands on a row."""
        self._tell("row", row)

    def finish(self, summary: Mapping[str, Any] | None = None) -> None:
        """Tells the end to those that were told of a beginning, once."""
        if self._has_started:
            self._has_started = False
            self._tell("finish", summary)

    def _tell(self, event: str, what: Any) -> None:
        for tracker in list(self._trackers):
            try:
                getattr(tracker, event)(what)
            except Exception as error:  # the disk's, the network's, and those of other packages
                self._trackers.remove(tracker)
                said = (
                    f"warning: {getattr(tracker, 'name', type(tracker).__name__)} gets nothing "
                    f"more of this run ({_reason(error)}), which training doesn't need."
                )
                print(printable(said), file=sys.stderr, flush=True)


def _made(tracker: str | Tracker) -> Tracker:
    if isinstance(tracker, str):
        if tracker not in _KNOWN:
            raise UsageError(
                f"trackers: {tracker!r} is not one of {', '.join(_KNOWN)}"
                f"{did_you_mean(tracker, _KNOWN) or '.'}"
            )
        return _KNOWN[tracker]()
    missing = [name for name in ("start", "row", "finish") if not hasattr(tracker, name)]
    if missing or isinstance(tracker, type):
        what = f"has no {missing[0]}" if missing else "is a class, not an object of it"
        raise UsageError(
            f"trackers: {tracker!r} {what}; give a name, or an object with the methods start(run), "
            "row(row) and finish(summary)."
        )
    return tracker


def _reason(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        extra = ": pip install 'adabatch_jax[wandb]'" if package == "wandb" else ""
        return f"the package {package} isn't installed{extra}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error)
