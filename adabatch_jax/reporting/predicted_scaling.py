"""How far a finished run would scale: its own times as predictions for more devices."""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from adabatch_jax.data.row_layout import Layouts
from adabatch_jax.reporting.planning.scaling_efficiency import (
    COUNTS,
    Efficiency,
    Network,
    RowTimes,
    predicted_efficiency,
)
from adabatch_jax.reporting.plot_elements import COLOURS, STYLE, plain_number
from adabatch_jax.reporting.saved_run import Run

# Fewer updates were perhaps disturbed, as by what else happens when a phase begins.
_FEWEST_UPDATES = 10
_BYTES_PER_PARAMETER = 4  # gradients are float32


class PhaseScaling(NamedTuple):
    """What is predicted of a phase, by the number of devices."""

    phase: int
    batch_size: int
    by_devices: Mapping[int, Efficiency]


def measured_times(run: Run) -> RowTimes | None:
    """Seconds of an update by the rows on each device, as the run took them, input included.

    Of several phases with as many rows the fastest; None where nothing is known of any phase.
    Phases of few updates, and those in which the number of devices changed, say nothing.
    """
    seconds = (run.summary or {}).get("phase_training_seconds") or []
    by_rows: dict[int, float] = {}
    for phase, taken in zip(run.plan["phases"], seconds):
        count = _only_count(run, phase["start_step"], phase["stop_step"])
        num_updates = phase["stop_step"] - phase["start_step"]
        if count is not None and num_updates >= _FEWEST_UPDATES and taken:
            rows = Layouts(None, count).of(phase["batch_size"]).rows_per_device
            by_rows[rows] = min(taken / num_updates, by_rows.get(rows, math.inf))
    return RowTimes(by_rows) if by_rows else None


def predicted_phases(run: Run, network: Network = Network()) -> list[PhaseScaling]:
    """What is predicted of each phase, of those about which anything is for more than one device.

    A number of devices of which each would have fewer rows than the run ever had is left out, and
    so is one above the batch.
    """
    times, num_parameters = measured_times(run), run.final("num_parameters")
    if times is None or type(num_parameters) is not int:
        return []
    phases = []
    for phase in run.plan["phases"]:
        size, by_devices = phase["batch_size"], {}
        for count in (1, 2, 4, *COUNTS):
            efficiency = predicted_efficiency(
                Layouts(None, count).of(size), times, _BYTES_PER_PARAMETER * num_parameters, network
            )
            if efficiency is not None and count <= size:
                by_devices[count] = efficiency
        if max(by_devices, default=1) > 1:
            phases.append(PhaseScaling(phase["index"], size, by_devices))
    return phases


def scaling_figure(phases: Sequence[PhaseScaling]) -> Figure:
    """Draws the predicted range of each phase against the number of devices."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.4))
        figure.subplots_adjust(left=0.1, right=0.98, bottom=0.15, top=0.88)
        axes = figure.subplots()
        for phase in phases:
            colour = COLOURS[phase.phase % len(COLOURS)]
            counts = list(phase.by_devices)
            low = [100 * e.none_hidden for e in phase.by_devices.values()]
            high = [100 * e.all_hidden for e in phase.by_devices.values()]
            axes.fill_between(counts, low, high, color=colour, alpha=0.25, linewidth=0)
            axes.plot(counts, high, color=colour, marker="o", markersize=2.8)
            axes.plot(counts, low, color=colour, marker="o", markersize=2.8, linestyle="dashed")
            axes.annotate(
                f"{phase.batch_size:,}", (counts[-1], high[-1]), xytext=(4, 2),
                textcoords="offset points", fontsize=8, color=colour,
            ).set_in_layout(False)  # fmt: skip
        axes.set_title("Predicted efficiency by batch size (%)")
        axes.set_xlabel("devices")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(plain_number))
        axes.set_ylim(0, 105)
    return figure


def scaling_csv(phases: Sequence[PhaseScaling]) -> str:
    """What the figure shows as CSV: a line for each phase and number of devices."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ("none_hidden", "all_hidden", "compute_seconds", "all_reduce_seconds")
    writer.writerow(["phase", "batch_size", "devices", *(f"predicted_{name}" for name in names)])
    for phase in phases:
        for count, efficiency in phase.by_devices.items():
            values = [getattr(efficiency, name) for name in names]
            writer.writerow([phase.phase + 1, phase.batch_size, count, *values])
    return text.getvalue()


def _only_count(run: Run, start_step: int, stop_step: int) -> int | None:
    """The number of devices that shared the batches of some updates; None where it isn't one."""
    counts = {
        count for begin, end, count in _device_counts(run) if begin < stop_step and end > start_step
    }
    return counts.pop() if len(counts) == 1 else None


def _device_counts(run: Run) -> Iterator[tuple[int, float, int]]:
    """From which update to which how many devices shared a batch, as far as the folder tells."""
    changes: list[Mapping[str, Any]] = [
        decision
        for decision in (run.summary or {}).get("decisions") or []
        if decision.get("setting") == "batch_shards"
    ]
    last = (run.environment.get("layout") or {}).get("batch_shards")
    begin, count = 0, changes[0]["from"] if changes else last
    for change in changes:
        yield begin, change["step"], count
        begin, count = change["step"], change["to"]
    if count is not None:
        yield begin, math.inf, count
