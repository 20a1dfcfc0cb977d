"""Progress of training: a live display on a terminal, plain lines elsewhere, or nothing."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from adabatch_jax.runs.display.pace import Pace
from adabatch_jax.runs.display.status import aligned_line, is_evaluation, status_parts
from adabatch_jax.system.output_streams import ForgivingStream, can_be_redrawn

if TYPE_CHECKING:
    from adabatch_jax.schedules.plan import BatchPlan

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_LOOKS = 0.25


class Progress(Protocol):
    """What the training loop tells while it runs; a context manager around the loop."""

    def __enter__(self) -> "Progress": ...

    def __exit__(self, *exception: object) -> None: ...

    def log(self, row: Mapping[str, Any]) -> None:
        """Takes a row of metrics."""

    def tick(self, step: int) -> None:
        """Takes the number of steps dispatched so far; cheap enough to be called after each."""

    def message(self, text: str) -> None:
        """Prints a line that stays: a change of phase, a checkpoint, a warning."""


class NullProgress:
    """Shows nothing: training as a library call."""

    def __enter__(self) -> "NullProgress":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def log(self, row: Mapping[str, Any]) -> None:
        pass

    def tick(self, step: int) -> None:
        pass

    def message(self, text: str) -> None:
        pass


class LineProgress:
    """Plain lines: the first row, each evaluation, otherwise one every ten seconds at most.

    Args:
      plan: the run's plan.
      stream: where the lines go.
      clock: seconds that never run backwards.
    """

    def __init__(
        self, plan: "BatchPlan", stream: TextIO, clock: Callable[[], float] = time.monotonic
    ):
        self._plan, self._stream, self._clock = plan, stream, clock
        self._pace = Pace(clock)
        self._row: Mapping[str, Any] = {}
        self._next_look = 0.0
        self._next_line = clock() + SECONDS_BETWEEN_LINES

    def __enter__(self) -> "LineProgress":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

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
            training = {key: value for key, value in self._row.items() if key[:5] != "test_"}
            self._print_line(training, step)

    def message(self, text: str) -> None:
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def _print_line(self, row: Mapping[str, Any], step: int) -> None:
        parts = status_parts(self._plan, row, step, self._pace.examples_per_second)
        self.message(aligned_line(parts))
        self._next_line = self._clock() + SECONDS_BETWEEN_LINES


def make_progress(plan: "BatchPlan", *, stream: TextIO | None = None) -> Progress:
    """Chooses how to show progress on a stream.

    A live display needs a terminal that can move its cursor; a file, a pipe, a notebook and
    `TERM=dumb` get plain lines. `NO_COLOR` takes the colours away and leaves the display. A
    stream that breaks (`| head`, a closed terminal) ends the display, never the training.

    Args:
      plan: the run's plan.
      stream: where to show it; standard output if not given.
    """
    stream = sys.stdout if stream is None else stream
    if stream is None:  # started with standard output closed
        return NullProgress()
    stream = ForgivingStream(stream)
    if not can_be_redrawn(stream):
        return LineProgress(plan, stream)
    from adabatch_jax.runs.display.live import LiveProgress

    return LiveProgress(plan, stream)
