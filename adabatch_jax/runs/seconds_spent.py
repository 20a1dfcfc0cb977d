"""Where a run's seconds go, over all its restarts."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from adabatch_jax.cluster.processes import ALONE, Processes
from adabatch_jax.system.watchdog import Watchdog

ACTIVITIES = ("compile", "step", "input", "evaluation", "checkpoint", "background_compile")
TRAINING = ("step", "input")

# What a watchdog says of them; a compilation may take as long as it likes.
_WATCHED = {
    "step": "an update",
    "input": "a batch",
    "evaluation": "a batch of the evaluation",
    "checkpoint": "a checkpoint",
}


class Clocks:
    """Accounts seconds to activities and phases, and lets a watchdog look at them.

    Args:
      num_phases: how many phases the plan has.
      watchdog: told what the run is at.
      processes: told when this one compiles, which may take as long as it likes.

    Attributes:
      phase: the phase that seconds of training are spent on now.
      phase_seconds: seconds of training in each phase.
    """

    def __init__(self, num_phases: int, watchdog: Watchdog, processes: Processes = ALONE):
        self._seconds: Counter[str] = Counter()
        self._watchdog, self._processes = watchdog, processes
        self._since = time.monotonic()
        self._activity: str | None = None
        self._began, self._watch = self._since, None
        self.phase = 0
        self.phase_seconds = [0.0] * num_phases

    def enter(self, activity: str | None) -> str | None:
        """From now on seconds belong to one of `ACTIVITIES`, or to none; returns the one before."""
        now, before = time.monotonic(), self._activity
        if before is not None:
            self._seconds[before] += now - self._began
            if before in TRAINING:
                self.phase_seconds[self.phase] += now - self._began
        if self._watch is not None:
            self._watchdog.end(self._watch)
        if "compile" in (activity, before) and activity != before:
            self._processes.say_busy(activity == "compile")
        watched = _WATCHED.get(activity)
        self._watch = None if watched is None else self._watchdog.begin(watched)
        self._activity, self._began = activity, now
        return before

    @contextlib.contextmanager
    def timed(self, activity: str) -> Iterator[None]:
        """Accounts the seconds inside to one of `ACTIVITIES`, and not to the one around."""
        before = self.enter(activity)
        try:
            yield
        finally:
            self.enter(before)

    def add(self, activity: str, seconds: float) -> None:
        """Accounts seconds that passed elsewhere, while training went on."""
        self._seconds[activity] += seconds

    def elapsed_seconds(self) -> float:
        """Seconds since the run began, over all restarts."""
        return self._seconds["total"] + time.monotonic() - self._since

    def training_seconds(self) -> float:
        """Seconds in updates and in waiting for their input, over all restarts."""
        return sum(self._seconds[activity] for activity in TRAINING)

    def of(self, activity: str) -> float:
        """Seconds in one of `ACTIVITIES`, over all restarts."""
        return self._seconds[activity]

    def to_dict(self) -> dict[str, Any]:
        """What `restore` takes, as JSON values."""
        seconds = {**self._seconds, "total": self.elapsed_seconds()}
        return {"seconds": seconds, "phase_seconds": list(self.phase_seconds)}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Goes on from what a run had spent before, as `to_dict` gave it."""
        self._seconds = Counter(saved["seconds"])
        for phase, seconds in enumerate(saved["phase_seconds"][: len(self.phase_seconds)]):
            self.phase_seconds[phase] = seconds
