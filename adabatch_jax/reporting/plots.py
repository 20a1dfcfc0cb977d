"""Curves of runs: batch size and learning rate as planned, and every metric that was measured."""

import csv
import dataclasses
import io
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from adabatch_jax.reporting.measured_metrics import (
    by_quantity,
    is_of_training,
    is_share,
    metric_keys,
    title_of,
)
from adabatch_jax.reporting.planned_values import (
    Line,
    batch_sizes,
    end_step,
    known_rates,
    positions,
)
from adabatch_jax.reporting.plot_elements import (
    BAND,
    COLOURS,
    INK,
    STYLE,
    line_look,
    plain_number,
    set_batch_axis,
    set_value_axis,
)
from adabatch_jax.reporting.saved_run import Run, run_labels
from adabatch_jax.system.number_texts import printable

MOST_BANDS = 400  # of more, none would be wider than a dot or two
MOST_QUANTITIES = 16  # the CSV file and the tables have the others
_FEW_POINTS = 60  # that get a marker each
_WIDTH, _HEIGHT = 4.8, 2.95  # inches, of a panel


@dataclasses.dataclass(frozen=True)
class Axis:
    """What curves are drawn against."""

    name: str
    key: str
    label: str


@dataclasses.dataclass(frozen=True)
class Panel:
    """One of the small plots.

    Attributes:
      title: what is drawn.
      keys: the metrics in it; of "batch_size" and "learning_rate" the plan is drawn.
      is_error: whether accuracies are drawn as errors in percent.
    """

    title: str
    keys: tuple[str, ...]
    is_error: bool = False

    @property
    def is_planned(self) -> bool:
        """Whether it is drawn from the plan."""
        return self.keys in (BATCH_SIZE.keys, LEARNING_RATE.keys)


class _Curve(NamedTuple):
    """What is drawn of one run, and of one metric, in a panel."""

    run: int
    key: str
    line: Line
    is_joined: bool = True  # else single points, between which nothing is known


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
TOKENS = Axis("tokens", "tokens", "tokens")
BATCH_SIZE = Panel("Batch size (examples)", ("batch_size",))
LEARNING_RATE = Panel("Learning rate", ("learning_rate",))


def axes_of(runs: Sequence[Run]) -> tuple[Axis, ...]:
    """What curves of some runs are drawn against: tokens too where all know them."""
    has_tokens = all(run.plan.get("tokens_per_example") for run in runs)
    return (*AXES, TOKENS) if has_tokens else AXES


def panels_of(runs: Sequence[Run]) -> list[Panel]:
    """What there is to draw of some runs: the metrics that any has, batch size, learning rate."""
    panels = []
    for keys in by_quantity(metric_keys(runs))[:MOST_QUANTITIES]:
        values = [row[key] for run in runs for row in run.rows for key in keys if key in row]
        is_error = is_share(keys[0], values)
        title = title_of(keys[0] if len(keys) == 1 else keys[0].partition("_")[2])
        if is_error:
            title = f"{title[: -len('accuracy')]}error (%)"
        panels.append(Panel(title[:1].upper() + title[1:], tuple(keys), is_error))
    return [*panels, BATCH_SIZE, LEARNING_RATE]


def curves(runs: Sequence[Run], axis: Axis) -> Figure:
    """Draws all panels of one or several runs against one axis, in two columns.

    Phases are shaded where all runs have the same ones, and not too many to see; several runs are
    overlaid, one colour each. What was not measured, or not finite, is left out.
    """
    panels = panels_of(runs)
    num_rows = -(-len(panels) // 2)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2 * _WIDTH, num_rows * _HEIGHT), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
        grid = figure.subplots(num_rows, 2, squeeze=False).ravel()
        for axes, panel in zip(grid, panels):
            _draw_panel(axes, runs, panel, axis)
        for axes in grid[len(panels) :]:
            axes.remove()
        if len(runs) > 1:
            _add_legend(figure, runs)
    return figure


def panel_figure(runs: Sequence[Run], panel: Panel, axis: Axis) -> Figure:
    """Draws one panel, for a page that has a key of the runs."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, _HEIGHT))
        # A layout that measures all texts takes half of the time of a page.
        figure.subplots_adjust(left=0.14, right=0.97, bottom=0.16, top=0.84)
        _draw_panel(figure.subplots(), runs, panel, axis)
    return figure


def panel_csv(runs: Sequence[Run], panel: Panel) -> str:
    """What a panel shows as CSV: a line for each point, with its position on every axis."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    places = ["step", "samples", *(axis.key for axis in axes_of(runs) if axis.key != "step")]
    writer.writerow(["run", *places, *map(printable, panel.keys)])
    for run, label in zip(runs, run_labels(runs), strict=True):
        if panel.is_planned:
            lines = [curve.line for curve in _curves([run], panel)]
            steps = np.concatenate([line.steps for line in lines])
            values = np.concatenate([line.values for line in lines])
            columns = [positions(run, steps, key) for key in places]
            columns[:2] = [column.astype(np.int64) for column in columns[:2]]
            rows = zip(*(column.tolist() for column in columns), values.tolist(), strict=True)
        else:
            keys = (*places, *panel.keys)
            measured = [row for row in run.rows if any(key in row for key in panel.keys)]
            rows = ([row.get(key, "") for key in keys] for row in measured)
        writer.writerows([label, *row] for row in rows)
    return text.getvalue()


def _curves(runs: Sequence[Run], panel: Panel) -> Iterator[_Curve]:
    for number, run in enumerate(runs):
        if panel == BATCH_SIZE:
            yield _Curve(number, "batch_size", batch_sizes(run))
        elif panel == LEARNING_RATE:
            rates = known_rates(run)
            yield _Curve(number, "learning_rate", rates.logged, is_joined=False)
            yield _Curve(number, "learning_rate", rates.line(end_step(run)))
        else:
            for key in panel.keys:
                rows = [row for row in run.rows if key in row]
                steps = np.array([row["step"] for row in rows], np.int64)
                yield _Curve(number, key, Line(steps, np.array([row[key] for row in rows], float)))


def _draw_panel(axes: Axes, runs: Sequence[Run], panel: Panel, axis: Axis) -> None:
    if axis.key == "epoch" and any(run.plan["num_examples"] is None for run in runs):
        axis = Axis(axis.name, "samples", "examples")  # of a stream, which has no epochs
    axes.set_title(panel.title)
    axes.set_xlabel(axis.label)
    drawn = []
    for curve in _curves(runs, panel):
        x = positions(runs[curve.run], curve.line.steps, axis.key)
        y = 100 - 100 * curve.line.values if panel.is_error else curve.line.values
        y = np.where(np.isfinite(y) & np.isfinite(x), y, np.nan)
        drawn.extend(y[np.isfinite(y)])
        axes.plot(x, y, **_look(curve, panel, len(runs), num_points=int(np.isfinite(y).sum())))
    if not drawn:
        _write(axes, 0.5, 0.5, "not known", transform=axes.transAxes, va="center")
        axes.set_yticks([])
    elif panel == BATCH_SIZE:
        set_batch_axis(axes, drawn)
    else:
        set_value_axis(axes, drawn, is_stepwise=panel.is_planned)
    ends = [positions(run, np.array([end_step(run)]), axis.key).item() for run in runs]
    axes.set_xlim(0, 1.01 * max(filter(math.isfinite, ends), default=0) or 1)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(plain_number))
    axes.grid(False, axis="x")
    if len(panel.keys) > 1:
        _name_metrics(axes, panel, len(runs))
    _shade_phases(axes, _common_phases(runs, axis))


def _look(curve: _Curve, panel: Panel, num_runs: int, num_points: int) -> dict[str, Any]:
    """A colour for each run, or for each metric of a single one; training's lines are thin."""
    source = panel.keys.index(curve.key)
    colour, style = line_look(curve.run + len(COLOURS) * source if num_runs > 1 else source)
    # Not clipped, a marker at the edge stays whole; without a point there is no extent at all.
    is_thin = is_of_training(curve.key)
    few = 0 < num_points <= (1 if is_thin or panel.is_planned and curve.is_joined else _FEW_POINTS)
    has_marker = few or not curve.is_joined
    return {
        "color": colour,
        "linestyle": style if curve.is_joined else "none",
        "marker": "o" if has_marker else None,
        "markersize": 2.8 if few else 1.4,
        "clip_on": not few,
        "linewidth": 1.1 if is_thin else 1.6,
        "zorder": 3,
    }


def _name_metrics(axes: Axes, panel: Panel, num_runs: int) -> None:
    """Which line is which metric, inside of the panel."""
    keys = [
        {**_look(_Curve(0, key, Line(None, None)), panel, num_runs, 0), "marker": None}
        for key in panel.keys
    ]
    if num_runs > 1:
        keys = [{**look, "color": INK} for look in keys]
    handles = [Line2D([], [], **look) for look in keys]
    names = [title_of(key).rpartition(" ")[0] or title_of(key) for key in panel.keys]
    axes.legend(handles, names, fontsize=8, loc="best", handlelength=1.8)


def _write(axes: Axes, x: float, y: float, text: str, **options: Any) -> None:
    """Writes without claiming room: a text wider than its panel must not squeeze the panels."""
    axes.text(x, y, text, ha="center", **options).set_in_layout(False)


def _shade_phases(axes: Axes, phases: Sequence[_Band]) -> None:
    """A band for every second phase, and the batch sizes above, where there is room."""
    for band in phases if len(phases) <= MOST_BANDS else ():
        if band.index % 2:
            axes.axvspan(band.start, band.stop, color=BAND, linewidth=0, zorder=0)
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
    longest = max(runs, key=end_step)
    steps = np.array([[phase["start_step"], phase["stop_step"]] for phase in phases], np.int64)
    edges = positions(longest, np.minimum(steps, end_step(longest)).ravel(), axis.key)
    bands = [
        _Band(phase["index"], phase["batch_size"], *edge)
        for phase, edge in zip(phases, edges.reshape(-1, 2).tolist(), strict=True)
    ]
    bands = [band for band in bands if band.stop > band.start]
    return bands if len(bands) > 1 else []


def _add_legend(figure: Figure, runs: Sequence[Run]) -> None:
    looks = map(line_look, range(len(runs)))
    handles = [Line2D([], [], color=colour, linestyle=style) for colour, style in looks]
    # matplotlib leaves out labels with a leading underscore; a zero-width space saves them.
    labels = [f"\u200b{label}" if label[:1] == "_" else label for label in run_labels(runs)]
    columns = 3 if max(map(len, labels)) < 30 else 1
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(runs), columns))
