"""Curves of runs: loss, test error, batch size and learning rate, as figures, PNG and SVG."""

import dataclasses
import io
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from adabatch_jax.reporting.saved_run import Run, run_labels

# Okabe and Ito's colours, which the colour-blind can tell apart too, the pale yellow left out.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LINE_STYLES = ("solid", "dashed", "dotted", "dashdot")
# Each colour occurs for one purpose only: on a page it follows the page's theme by its name.
INK, FAINT, BAND = "#24292e", "#d8dbe0", "#f2f4f6"
MOST_BANDS = 400  # of more, none would be wider than a dot or two

STYLE = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of runs are not mathematics
}


@dataclasses.dataclass(frozen=True)
class Axis:
    """What curves are drawn against."""

    name: str
    key: str
    label: str


@dataclasses.dataclass(frozen=True)
class Panel:
    """One of the small plots: a metric, its title and its unit."""

    key: str
    title: str
    scale: float = 1.0
    offset: float = 0.0
    is_stepwise: bool = False


class _Band(NamedTuple):
    """A phase on an axis."""

    index: int
    batch_size: int
    start: float
    stop: float


AXES = (
    Axis("epochs", "epoch", "epochs"),
    Axis("updates", "step", "updates"),
    Axis("seconds", "elapsed_seconds", "seconds of training"),
)
PANELS = (
    Panel("train_loss", "Training loss"),
    Panel("test_accuracy", "Test error (%)", scale=-100.0, offset=100.0),
    Panel("batch_size", "Batch size (examples)", is_stepwise=True),
    Panel("learning_rate", "Learning rate", is_stepwise=True),
)


def curves(runs: Sequence[Run], axis: Axis) -> Figure:
    """Draws the four panels of one or several runs against one axis.

    Phases are shaded where all runs have the same ones, and not too many to see; several runs are
    overlaid, one colour each. What was not measured, or not finite, is left out.
    """
    if axis.key == "epoch" and any(run.plan["num_examples"] is None for run in runs):
        axis = Axis(axis.name, "samples", "examples")  # of a stream, which has no epochs
    phases = _common_phases(runs, axis)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 5.9), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
        grid = figure.subplots(2, 2, sharex=True)
        for axes, panel in zip(grid.flat, PANELS, strict=True):
            _draw_panel(axes, runs, panel, axis)
            _shade_phases(axes, phases)
        for axes in grid[0]:
            _name_phases(axes, phases)
        for axes in grid[-1]:
            axes.set_xlabel(axis.label)
        if len(runs) > 1:
            _add_legend(figure, runs)
    return figure


def png(figure: Figure) -> bytes:
    """Returns a figure as a PNG file."""
    content = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        FigureCanvasAgg(figure)
        figure.savefig(content, format="png", dpi=150)
    return content.getvalue()


def inline_svg(figure: Figure, name: str) -> str:
    """Returns a figure as an `<svg>` element for a page, in the page's own text colour.

    The name tells the identifiers inside from those of the page's other figures.
    """
    content = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        FigureCanvasSVG(figure)
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    svg = content.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', svg)
    svg = svg.replace("xlink:href", "href")
    themed = {INK: "ink", FAINT: "faint", BAND: "band"}
    themed |= {colour: f"line-{number}" for number, colour in enumerate(COLOURS)}
    for colour, variable in themed.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg


def _draw_panel(axes: Axes, runs: Sequence[Run], panel: Panel, axis: Axis) -> None:
    axes.set_title(panel.title)
    drawn = []
    for number, run in enumerate(runs):
        x, y = _points(run, panel, axis)
        drawn.extend(y[np.isfinite(y)])
        axes.plot(x, y, **_line(number, panel, num_points=np.isfinite(y).sum()))
    if not drawn:
        _write(axes, 0.5, 0.5, "not measured", transform=axes.transAxes, va="center")
        axes.set_yticks([])
    elif panel.key == "batch_size":
        set_batch_axis(axes, drawn)
    else:
        set_value_axis(axes, drawn, is_stepwise=panel.is_stepwise)
    ends = (row.get(axis.key, 0) for run in runs for row in run.rows[-1:])
    axes.set_xlim(0, 1.01 * max(ends, default=0) or 1)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(plain_number))
    axes.grid(False, axis="x")


def _points(run: Run, panel: Panel, axis: Axis) -> tuple[np.ndarray, np.ndarray]:
    rows = [row for row in run.rows if panel.key in row and axis.key in row]
    x = np.array([row[axis.key] for row in rows], float)
    y = panel.offset + panel.scale * np.array([row[panel.key] for row in rows], float)
    if panel.is_stepwise and len(x):
        # A row tells of the update that it follows: the first value holds from the start on.
        x, y = np.concatenate([[0.0], x]), np.concatenate([y[:1], y])
    return x, np.where(np.isfinite(y), y, np.nan)


def _line(number: int, panel: Panel, num_points: int) -> dict[str, Any]:
    # Not clipped, a marker at the edge stays whole; without a point there is no extent at all.
    few = 0 < num_points <= (60 if panel.key == "test_accuracy" else 1)
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINE_STYLES[number // len(COLOURS) % len(LINE_STYLES)],
        "drawstyle": "steps-pre" if panel.is_stepwise else "default",
        "marker": "o" if few else None,
        "markersize": 2.8,
        "clip_on": not few,
        "linewidth": 1.1 if panel.key == "train_loss" else 1.6,
        "zorder": 3,
    }


def set_batch_axis(axes: Axes, sizes: Sequence[float]) -> None:
    """A logarithmic y axis with a tick at each batch size, as far as there is room."""
    axes.set_yscale("log", base=2)
    ticks = sorted(set(sizes))
    if len(ticks) > 7:
        axes.yaxis.set_major_locator(LogLocator(base=2, numticks=7))
    else:
        axes.set_yticks(ticks)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(plain_number))
    axes.set_ylim(min(sizes) / 1.5, max(sizes) * 1.5)


def set_value_axis(axes: Axes, values: Sequence[float], is_stepwise: bool) -> None:
    """A logarithmic axis where the values span a decade, else a linear one."""
    low, high = min(values), max(values)
    if low > 0 and high / low >= 10:
        axes.set_yscale("log")
        subs = (1.0,) if high / low > 1000 else (1.0, 2.0, 5.0)
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=subs))
        axes.yaxis.set_minor_locator(NullLocator())
    elif is_stepwise and low >= 0:
        axes.set_ylim(0, 1.12 * high or 1)
    axes.yaxis.set_major_formatter(FuncFormatter(plain_number))


def plain_number(value: float, _position: int | None = None) -> str:
    """A tick's label without superfluous digits."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:,.6g}M"
    return f"{value:.0e}" if 0 < abs(value) < 1e-4 else f"{value:,.10g}"


def _write(axes: Axes, x: float, y: float, text: str, **options: Any) -> None:
    """Writes without claiming room: a text wider than its panel must not squeeze the panels."""
    axes.text(x, y, text, ha="center", **options).set_in_layout(False)


def _shade_phases(axes: Axes, phases: Sequence[_Band]) -> None:
    """A band for every second phase."""
    for band in phases if len(phases) <= MOST_BANDS else ():
        if band.index % 2:
            axes.axvspan(band.start, band.stop, color=BAND, linewidth=0, zorder=0)


def _name_phases(axes: Axes, phases: Sequence[_Band]) -> None:
    """The batch sizes above the bands, where there is room."""
    if phases:
        axes.set_title(axes.get_title(loc="left"), pad=20)
    for band in phases:
        text = f"{band.batch_size:,}"
        if (band.stop - band.start) / phases[-1].stop > 0.022 * (len(text) + 1):
            center, top = (band.start + band.stop) / 2, axes.get_xaxis_transform()
            _write(axes, center, 1.02, text, transform=top, fontsize=8, alpha=0.75)


def _common_phases(runs: Sequence[Run], axis: Axis) -> list[_Band]:
    """The phases on an axis, as far as the longest run has come; none where runs have others."""
    phases = runs[0].plan["phases"]
    if any(run.plan["phases"] != phases for run in runs):
        return []
    longest = max(runs, key=lambda run: run.last_row.get("step", 0))
    last_step = longest.last_row.get("step", 0)
    steps = [[phase["start_step"], phase["stop_step"]] for phase in phases]
    edges = np.minimum(np.array(steps, float), last_step)
    if axis.key != "step":
        rows = [row for row in longest.rows if math.isfinite(row.get(axis.key, math.nan))]
        known = [0, *(row["step"] for row in rows)]
        edges = np.interp(edges, known, [0.0, *(row[axis.key] for row in rows)])
    bands = [
        _Band(phase["index"], phase["batch_size"], *edge)
        for phase, edge in zip(phases, edges.tolist(), strict=True)
    ]
    bands = [band for band in bands if band.stop > band.start]
    return bands if len(bands) > 1 else []


def _add_legend(figure: Figure, runs: Sequence[Run]) -> None:
    lines = figure.axes[0].get_lines()
    # matplotlib leaves out labels with a leading underscore; a zero-width space saves them.
    labels = [f"\u200b{label}" if label[:1] == "_" else label for label in run_labels(runs)]
    columns = 3 if max(map(len, labels)) < 30 else 1
    figure.legend(lines, labels, loc="outside lower center", ncols=min(len(runs), columns))
