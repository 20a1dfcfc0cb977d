"""Progress of training as plain lines, or as nothing."""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from adabatch_jax.runs.display.pace import Pace
from adabatch_jax.runs.display.status import (
    aligned_line,
    is_evaluation,
    is_of_test_set,
    status_parts,
)
from adabatch_jax.system.number_texts import printable

if TYPE_CHECKING:
    from adabatch_jax.schedules.plan import BatchPlan

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_LOOKS = 0.25


class Progress:
    """Is told by the training loop how it goes, and shows nothing of it: a library call.

    A context manager around the loop; displays override what they show.
    """

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def log(self, row: Mapping[str, Any]) -> None:
        """Takes a row of metrics."""

    def tick(self, step: int) -> None:
        """Takes the number of steps dispatched so far; cheap enough to be called after each."""

    def message(self, text: str) -> None:
        """Shows a line that stays: a change of phase, a checkpoint, a warning."""


class LineProgress(Progress):
    """Plain lines: the first row, each evaluation, otherwise one every ten seconds at most."""

    def __init__(
        self, plan: "BatchPlan", stream: TextIO, clock: Callable[[], float] = time.monotonic
    ):
        self._plan, self._stream, self._clock = plan, stream, clock
        self._pace = Pace(clock)
        self._row: Mapping[str, Any] = {}
        self._next_look = 0.0
        self._next_line = clock() + SECONDS_BETWEEN_LINES

    def log(self, row: Mapping[str, Any]) -> None:
        is_first, self._row = not self._row, row
        if is_first or is_evaluation(row) or self._clock() >= self._next_line:
            self._print_line(row, row["step"])

    def tick(self, step: int) -> None:
        now = self._clock()
        if now < self._next_look:
            return
        self._next_look = now + SECONDS_BETWEEN_LOOKS
        self._pace.observe(self._plan.samples_at(step))
        if now >= self._next_line:
            training = {key: value for key, value in self._row.items() if not is_of_test_set(key)}
            self._print_line(training, step)

    def message(self, text: str) -> None:
        self._stream.write(f"{printable(text)}\n")
        self._stream.flush()

    def _print_line(self, row: Mapping[str, Any], step: int) -> None:
        parts = status_parts(self._plan, row, step, self._pace.examples_per_second)
        self.message(aligned_line(parts))
        self._next_line = self._clock() + SECONDS_BETWEEN_LINES
