"""One display for a whole study: live on a terminal, a line for each finished run elsewhere."""

import io
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, TextIO

from adabatch_jax.runs.display.pace import Pace
from adabatch_jax.runs.display.status import labelled, status_parts
from adabatch_jax.system.number_texts import duration_text, percent_text, seconds_text
from adabatch_jax.system.output_streams import ForgivingStream, can_be_redrawn, is_terminal
from experiments.reproduction.estimate import Estimate
from experiments.reproduction.jobs import Job, labels

SECONDS_BETWEEN_LINES = 120.0
SECONDS_BETWEEN_LOOKS = 0.25
REFRESHES_PER_SECOND = 4


class StudyDisplay:
    """Plain lines: one for each run that ends, and one every two minutes in between.

    A context manager around the study. It is the `Progress` of each of its runs too.

    Args:
      jobs: all runs of the study, in order.
      stream: where to show them.
      clock: seconds that never run backwards.
    """

    def __init__(
        self, jobs: Sequence[Job], stream: TextIO, clock: Callable[[], float] = time.monotonic
    ):
        self._stream, self._clock = stream, clock
        self._names = labels(jobs)
        self._numbers = _numbers(jobs)
        self._estimate = Estimate(jobs, clock)
        self._job: Job | None = None
        self._said: set[str] = set()
        self._next_look, self._next_line = 0.0, clock() + SECONDS_BETWEEN_LINES

    def start(self) -> None:
        """The study begins."""

    def stop(self) -> None:
        """The study ends, or is interrupted."""

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def begin(self, job: Job) -> None:
        """Takes the run that begins now."""
        self._row: Mapping[str, Any] = {}
        self._step, self._pace = 0, Pace(self._clock)
        self._next_look = 0.0
        self._estimate.begin(job)
        self._job = job

    def end(self) -> None:
        """The run that began last has come to its end, or has diverged."""
        job = self.leave()
        left = self._left()
        self.say("  ".join([self._title(job), result_text(job), *([left] if left else [])]))
        self._next_line = self._clock() + SECONDS_BETWEEN_LINES

    def leave(self) -> Job:
        """Takes leave of the run that began last, and returns it."""
        job, self._job = self._job, None
        if self._step:
            self._estimate.advance(self._step)
        self._estimate.end()
        return job

    # What follows is the `Progress` of a single run.

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def log(self, row: Mapping[str, Any]) -> None:
        self._row = {**self._row, **row}

    def tick(self, step: int) -> None:
        self._step = step
        now = self._clock()
        if now < self._next_look:
            return
        self._next_look = now + SECONDS_BETWEEN_LOOKS
        self._estimate.advance(step)
        self._pace.observe(self._job.plan.samples_at(step))
        if now >= self._next_line:
            self._next_line = now + SECONDS_BETWEEN_LINES
            self.say("  ".join([self._title(self._job), *self._details(), self._left()]).rstrip())

    def message(self, text: str) -> None:
        """What each run tells about its phases would drown the study; a warning is said once."""
        if text.startswith("warning") and text not in self._said:
            self._said.add(text)
            self.say(text)

    def _title(self, job: Job) -> str:
        return f"{self._numbers[job.folder]}  {self._names[job.folder]}"

    def _left(self) -> str:
        seconds = self._estimate.seconds_left()
        return f"{duration_text(seconds)} left" if seconds else ""

    def _details(self) -> list[str]:
        """Where the current run is."""
        pace = self._pace.examples_per_second
        parts = status_parts(self._job.plan, self._row, self._step, pace)
        return [labelled(k, v.strip()) for k, v in parts.items() if k not in ("step", "left")]


class LiveStudyDisplay(StudyDisplay):
    """A bar for the whole study and the current run's figures; ended runs leave a line above.

    Args:
      jobs: all runs of the study, in order.
      stream: a terminal.
    """

    def __init__(self, jobs: Sequence[Job], stream: TextIO):
        from rich.console import Console
        from rich.live import Live

        super().__init__(jobs, stream)
        self._console = Console(file=stream, highlight=False)
        self._live = Live(
            console=self._console,
            get_renderable=self._render,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,  # the lines above say all
            redirect_stdout=is_terminal(sys.stdout),
            redirect_stderr=is_terminal(sys.stderr),
        )
        self._next_line = float("inf")  # the live lines say it

    def start(self) -> None:
        self._live.start()

    def stop(self) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def end(self) -> None:
        job = self.leave()
        self.say(f"{self._title(job)}  {result_text(job)}")

    def _render(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        job, share = self._job, self._estimate.share_done
        bar = Table.grid(padding=(0, 2), expand=True)
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True, justify="right")
        title = "" if job is None else " ".join(self._title(job).split())
        bar.add_row(
            Text(title, style="bold"),
            ProgressBar(total=1.0, completed=share, complete_style="cyan", finished_style="cyan"),
            f"{percent_text(share, 0)}  {self._left():>12}",
        )
        if job is None:
            return bar
        line = "   ".join(self._details())
        return Group(bar, Text(line, style="dim", no_wrap=True, overflow="ellipsis"))


def make_display(jobs: Sequence[Job], stream: TextIO | None = None) -> StudyDisplay:
    """Chooses how to show a study: live where the stream is a terminal that can move its cursor.

    Args:
      jobs: all runs of the study, in order.
      stream: where to show it; standard output if not given.
    """
    stream = ForgivingStream(stream or sys.stdout or io.StringIO())  # it may have been closed
    display = LiveStudyDisplay if can_be_redrawn(stream) else StudyDisplay
    return display(jobs, stream)


def result_text(job: Job) -> str:
    """What came out of a run that is over, aligned with the others.

    The columns are the outcome on the test set, updates and seconds; or why it diverged.
    """
    if job.failure is not None:
        return f"diverged: {job.failure.partition(';')[0].rstrip('.')}"
    summary = job.summary
    outcome = job.outcome.text(job.outcome.of(summary, "test"))
    seconds = seconds_text(summary["total_seconds"])
    return f"test {job.outcome.name} {outcome:>7}  {summary['step']:>7,} updates  {seconds:>7}"


def _numbers(jobs: Sequence[Job]) -> dict:
    """By folder, "run  7 of 25"; the search for learning rates is counted apart."""
    numbers = {}
    for kind in ("tuning run", "run"):
        of_kind = [job for job in jobs if job.kind == kind]
        width = len(str(len(of_kind)))
        for number, job in enumerate(of_kind, 1):
            numbers[job.folder] = f"{kind} {number:>{width}} of {len(of_kind)}"
    return numbers
