"""The paper's figures, redrawn from the runs: outcomes, speed-up, and the schedules."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from adabatch_jax.reporting.plot_elements import (
    INK,
    STYLE,
    line_look,
    plain_number,
    set_batch_axis,
    set_value_axis,
)
from experiments.reproduction.measures import schedule_points, speedups
from experiments.reproduction.results import (
    DIVERGED,
    REFERENCE,
    ArmResult,
    Evaluation,
    ExperimentResult,
)
from experiments.reproduction.statistics import Estimate, estimate


@dataclasses.dataclass(frozen=True)
class _Axis:
    title: str
    label: str
    position: Callable[[Evaluation], float | None]


_EPOCHS = _Axis("Against epochs", "epochs", lambda evaluation: evaluation.epoch)
_TOKENS = _Axis("Against tokens", "tokens", lambda evaluation: evaluation.tokens)
_UPDATES = _Axis("Against updates", "updates", lambda evaluation: evaluation.step)
_TIME = _Axis("Against time", "seconds of training", lambda evaluation: evaluation.training_seconds)


def outcome_curves(experiment: ExperimentResult) -> Figure:
    """The outcome against epochs, or of texts tokens, updates and training seconds, all arms.

    A line is the mean of the finished runs, the band around it reaches from the lowest to the
    highest of them. Runs that didn't finish are thin lines; a cross is where one diverged.
    """
    with matplotlib.rc_context(STYLE):
        figure, panels = _panels(experiment, height=3.9, share_y=True)
        drawn = []
        of_text = experiment.sequence_length is not None
        kinds = (_TOKENS if of_text else _EPOCHS, _UPDATES, _TIME)
        for axes, axis in zip(panels, kinds, strict=True):
            for arm, look in _looks(experiment):
                drawn += _draw_finished(axes, arm, axis, look)
                drawn += _draw_others(axes, arm, axis, look)
            axes.set_title(axis.title)
            _set_x_axis(axes, axis.label)
        panels[0].set_ylabel(f"test {experiment.outcome.heading}")
        if drawn:
            _set_outcome_axis(panels[0], drawn)
    return figure


def speedup_bars(experiment: ExperimentResult) -> Figure:
    """Speed-up over the reference, and final outcome, with their 95 % intervals."""
    looks = list(_looks(experiment))
    with matplotlib.rc_context(STYLE):
        figure = _figure(height=0.9 + 0.36 * len(looks))
        speed, outcome = figure.subplots(1, 2, sharey=True)
        for row, (arm, look) in enumerate(looks):
            ratios = speedups(arm, experiment.reference) if experiment.reference else []
            _draw_bar(speed, row, estimate(ratios), look["color"])
            _draw_point(outcome, row, arm.outcomes, look["color"])
        speed.axvline(1, color=INK, linewidth=0.8, zorder=1)
        speed.set_title("Speed-up of the training")
        speed.set_xlabel(f"times as fast as {REFERENCE}")
        outcome.set_title(f"Final test {experiment.outcome.name}")
        outcome.set_xlabel(experiment.outcome.heading)
        speed.set_yticks(range(len(looks)), [_label(arm) for arm, _ in looks])
        speed.set_ylim(len(looks) - 0.5, -0.5)
        speed.set_xlim(left=0)
        for axes in (speed, outcome):
            axes.grid(False, axis="y")
            axes.xaxis.set_major_formatter(FuncFormatter(plain_number))
    return figure


def schedules(experiment: ExperimentResult) -> Figure:
    """Learning rate, batch size and their ratio against epochs, as the settings say."""
    quantities = {
        "Learning rate": lambda settings: settings.learning_rate,
        "Batch size (examples)": lambda settings: settings.batch_size,
        "Learning rate / batch size": lambda settings: settings.learning_rate / settings.batch_size,
    }
    with matplotlib.rc_context(STYLE):
        figure, panels = _panels(experiment, height=3.5)
        for axes, (title, quantity) in zip(panels, quantities.items(), strict=True):
            drawn = []
            # Equal lines lie on each other: the first are wide, so that all can be seen.
            widths = np.linspace(1.2 + 0.8 * (len(experiment.arms) - 1), 1.2, len(experiment.arms))
            for (arm, look), width in zip(_looks(experiment), widths, strict=True):
                epochs, values = _staircase(arm, quantity)
                drawn += values
                axes.plot(epochs, values, drawstyle="steps-post", **{**look, "linewidth": width})
            axes.set_title(title)
            _set_x_axis(axes, "epochs")
            if drawn and quantity is quantities["Batch size (examples)"]:
                set_batch_axis(axes, _apart(drawn))
            elif drawn:
                set_value_axis(axes, drawn, is_stepwise=True)
    return figure


def _figure(height: float) -> Figure:
    figure = Figure(figsize=(9.6, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.06)
    return figure


def _panels(
    experiment: ExperimentResult, height: float, share_y: bool = False
) -> tuple[Figure, Sequence[Axes]]:
    """Three panels side by side above a legend of the arms."""
    figure = _figure(height)
    panels = figure.subplots(1, 3, sharey=share_y)
    keys = [Line2D([], [], **look) for _, look in _looks(experiment)]
    labels = [_label(arm) for arm, _ in _looks(experiment)]
    figure.legend(keys, labels, loc="outside lower center", ncols=min(len(labels), 4))
    return figure, panels


def _looks(experiment: ExperimentResult) -> list[tuple[ArmResult, dict[str, Any]]]:
    looks = map(line_look, range(len(experiment.arms)))
    return [
        (arm, {"color": colour, "linestyle": style, "linewidth": 1.6})
        for arm, (colour, style) in zip(experiment.arms, looks)
    ]


def _label(arm: ArmResult) -> str:
    if arm.diverged:
        return f"{arm.name} ({len(arm.diverged)} of {len(arm.seeds)} diverged)"
    return arm.name


def _draw_finished(axes: Axes, arm: ArmResult, axis: _Axis, look: dict[str, Any]) -> list[float]:
    """Draws mean and band over the runs; they evaluate at the same updates."""
    curves = [_curve(run.evaluations, axis) for run in arm.finished]
    if not curves or len({curve.shape for curve in curves}) > 1:
        return []
    x, outcomes = np.mean(curves, axis=0)[:, 0], np.array(curves)[:, :, 1]
    low, high = outcomes.min(axis=0), outcomes.max(axis=0)
    if len(curves) > 1:
        axes.fill_between(x, low, high, color=look["color"], alpha=0.2, linewidth=0)
    axes.plot(x, outcomes.mean(axis=0), **look)
    return [*low, *high]


def _draw_others(axes: Axes, arm: ArmResult, axis: _Axis, look: dict[str, Any]) -> list[float]:
    drawn = []
    for run in arm.seeds:
        curve = _curve(run.evaluations, axis)
        if run in arm.finished or not len(curve):
            continue
        axes.plot(*curve.T, **{**look, "linewidth": 0.8})
        if run.state == DIVERGED:
            axes.plot(*curve[-1], marker="x", markersize=6, color=look["color"], clip_on=False)
        drawn += list(curve[:, 1])
    return drawn


def _curve(evaluations: Sequence[Evaluation], axis: _Axis) -> np.ndarray:
    """Positions and outcomes on the test set, shape (evaluations, 2)."""
    points = [(axis.position(e), e.test) for e in evaluations]
    return np.array([point for point in points if None not in point], float).reshape(-1, 2)


def _staircase(arm: ArmResult, quantity: Callable[[Any], float]) -> tuple[list[float], list[float]]:
    settings = schedule_points(arm)
    if not settings:
        return [], []
    epochs, values = [float(s.epoch) for s in settings], [quantity(s) for s in settings]
    end = arm.plan.num_samples / arm.plan.num_examples
    return [*epochs, end], [*values, values[-1]]


def _apart(sizes: Sequence[float]) -> list[float]:
    """The sizes that are far enough from each other to be labelled."""
    kept: list[float] = []
    for size in sorted(set(sizes)):
        if not kept or size / kept[-1] >= 1.35:
            kept.append(size)
    return kept


def _draw_bar(axes: Axes, row: int, speedup: Estimate, colour: str) -> None:
    if speedup.mean is None:
        _write(axes, row, "not measured")
        return
    axes.barh(row, speedup.mean, height=0.6, color=colour, alpha=0.55, linewidth=0)
    _draw_interval(axes, row, speedup, INK)


def _draw_point(axes: Axes, row: int, outcomes: Sequence[float], colour: str) -> None:
    """The mean with its interval, and the seeds as small dots."""
    if not outcomes:
        _write(axes, row, "no finished run")
        return
    axes.plot(
        outcomes, [row] * len(outcomes), "o", markersize=3, color=colour, alpha=0.45, zorder=2
    )
    axes.plot(np.mean(outcomes), row, "o", markersize=6, color=colour, zorder=4)
    _draw_interval(axes, row, estimate(outcomes), colour)


def _draw_interval(axes: Axes, row: int, measured: Estimate, colour: str) -> None:
    if measured.interval is not None and all(map(math.isfinite, measured.interval)):
        axes.hlines(row, *measured.interval, color=colour, linewidth=1.4, zorder=3)


def _write(axes: Axes, row: int, text: str) -> None:
    axes.text(0.02, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8.5)


def _set_outcome_axis(axes: Axes, outcomes: Sequence[float]) -> None:
    """Logarithmic, so that the last epochs' small differences can be seen beside the first's.

    Not where all lie close together, as bits per byte do: there would be two ticks.
    """
    if min(outcomes) <= 0 or max(outcomes) < 3 * min(outcomes):
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(plain_number))


def _set_x_axis(axes: Axes, label: str) -> None:
    axes.set_xlabel(label)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(plain_number))
    axes.grid(False, axis="x")
