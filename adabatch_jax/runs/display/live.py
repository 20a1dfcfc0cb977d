"""The live display of progress on a terminal, drawn by a thread of its own."""

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from adabatch_jax.runs.display.pace import Pace
from adabatch_jax.runs.display.progress import Progress
from adabatch_jax.runs.display.status import (
    aligned_line,
    evaluated_labels,
    is_evaluation,
    status_parts,
)
from adabatch_jax.system.number_texts import printable
from adabatch_jax.system.output_streams import is_terminal

if TYPE_CHECKING:
    from adabatch_jax.schedules.plan import BatchPlan

REFRESHES_PER_SECOND = 4
_MIN_BAR_WIDTH = 8
# What a line of history does without first where the terminal is narrow.
_EXPENDABLE = ("phase", "lr", "step", "batch")


class LiveProgress(Progress):
    """A bar with the phases marked and the latest figures; each evaluation leaves a line above."""

    def __init__(self, plan: "BatchPlan", stream: TextIO):
        self._plan = plan
        self._pace = Pace(time.monotonic)
        self._latest: Mapping[str, Any] = {}
        self._step: int | None = None
        self._console = Console(file=stream, highlight=False)
        self._live = Live(
            console=self._console,
            get_renderable=self._render,
            refresh_per_second=REFRESHES_PER_SECOND,
            # What other code prints goes above the display, unless the user sent it elsewhere.
            redirect_stdout=is_terminal(sys.stdout),
            redirect_stderr=is_terminal(sys.stderr),
        )

    def __enter__(self) -> "LiveProgress":
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def log(self, row: Mapping[str, Any]) -> None:
        self._latest = {**self._latest, **row}
        if is_evaluation(row):
            parts = status_parts(self._plan, row, row["step"], None)
            self._console.print(_history_line(parts, self._console.width))

    def tick(self, step: int) -> None:
        self._step = step  # the drawing thread does the rest

    def message(self, text: str) -> None:
        self._console.print(printable(text), markup=False, style="dim")

    def _render(self) -> Group:
        step = self._step
        if step is None:
            step = self._latest.get("step", 0)
        else:
            self._pace.observe(self._plan.samples_at(step))
        parts = status_parts(self._plan, self._latest, step, self._pace.examples_per_second)
        width, ascii_only = self._console.width, self._console.options.ascii_only
        return Group(
            _bar_line(self._plan, step, parts, width, ascii_only),
            *_wrapped(_details(parts), width),
        )


def _history_line(parts: Mapping[str, str], width: int) -> Text:
    """What stays of an evaluation, as much as fits."""
    without = ["speed", "left"]
    expendable = iter(_EXPENDABLE)
    while len(line := aligned_line(parts, without)) > width:
        label = next(expendable, None)
        if label is None:
            break
        without.append(label)
    return Text(line, no_wrap=True, overflow="ellipsis")


def _details(parts: Mapping[str, str]) -> list[Text]:
    """The figures below the bar."""
    labels = ("phase", "batch", "lr", "loss", *evaluated_labels(parts), "speed")
    return [
        Text.assemble(("" if label == "speed" else f"{label} ", "dim"), parts[label].strip())
        for label in labels
        if label in parts
    ]


def _wrapped(cells: list[Text], width: int) -> list[Text]:
    """Joins cells to lines, broken between cells only."""
    lines = [Text()]
    for cell in cells:
        if lines[-1] and len(lines[-1]) + 3 + len(cell) > width:
            lines.append(Text())
        lines[-1].append("   " if lines[-1] else "").append_text(cell)
    return lines


def _bar_line(
    plan: "BatchPlan", step: int, parts: Mapping[str, str], width: int, ascii_only: bool
) -> Text:
    label = "epoch" if "epoch" in parts else "samples"
    left = Text.assemble((f"{label} ", "dim"), parts[label], "  ")
    share = plan.samples_at(step) / plan.num_samples
    percent = Text(f"  {100 * share:3.0f} %")
    right = percent + Text(f"  {parts.get('left', '').rjust(10)}")
    if width - len(left) - len(right) < _MIN_BAR_WIDTH:  # a narrow terminal
        left, right = Text(parts[label] + "  "), percent
    room = width - len(left) - len(right)
    line = left + _bar(plan, share, max(room, 0), ascii_only) + right
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _bar(plan: "BatchPlan", share: float, width: int, ascii_only: bool) -> Text:
    """A bar over the run's samples, with a mark where the batch size changes.

    Done and to come differ in their signs too, for terminals without colours.
    """
    signs = {True: "#|", False: "-|"} if ascii_only else {True: "━╋", False: "─┼"}
    marks = {int(phase.start_sample / plan.num_samples * width) for phase in plan.phases[1:]}
    if len(marks) > width // 4:
        marks = set()
    bar = Text()
    for column in range(width):
        is_done = column + 1 <= share * width
        bar.append(signs[is_done][column in marks], style="cyan" if is_done else "bright_black")
    return bar
