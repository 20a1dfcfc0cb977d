import json

import numpy as np
import pytest

from experiments.reproduction.figures import error_curves, schedules, speedup_bars
from experiments.reproduction.results import load_study
from tests.experiments.conftest import study_arms

NAMES = ("fixed_small", "adaptive", "goyal")
SEEDS = (0, 1, 2)


@pytest.fixture
def experiment(write_run, write_study):
    arms = {name: study_arms()[name] for name in NAMES}
    for name, config in arms.items():
        for seed in SEEDS:
            state = "diverged" if (name, seed) == ("goyal", 1) else "finished"
            write_run("digits_cnn", name, config, seed, error=8 + seed, state=state)
    return load_study(write_study({"digits_cnn": arms}, seeds=SEEDS)).experiments[0]


def measured(folder, key, arm, seeds=SEEDS):
    """An array (seeds, evaluations) from the files."""
    runs = []
    for seed in seeds:
        file = folder / f"runs/digits_cnn/{arm}/seed{seed}/metrics.jsonl"
        runs.append([json.loads(line)[key] for line in file.read_text().splitlines()])
    return np.array(runs)


@pytest.mark.parametrize(
    "panel, key", [(0, "epoch"), (1, "step"), (2, "training_seconds")], ids=str
)
def test_curves_are_means_over_the_seeds(experiment, tmp_path, panel, key):
    axes = error_curves(experiment).axes[panel]
    for line, band, arm in zip(axes.get_lines(), axes.collections, NAMES[:2], strict=False):
        x, y = line.get_data()
        errors = 100 - 100 * measured(tmp_path, "test_accuracy", arm)
        np.testing.assert_allclose(x, measured(tmp_path, key, arm).mean(axis=0))
        np.testing.assert_allclose(y, errors.mean(axis=0))
        edges = band.get_paths()[0].get_extents()
        assert edges.ymin == pytest.approx(errors.min())
        assert edges.ymax == pytest.approx(errors.max())


def test_diverged_runs_are_drawn_to_their_end_and_left_out_of_the_mean(experiment, tmp_path):
    figure = error_curves(experiment)
    mean, diverged, cross = figure.axes[0].get_lines()[2:]
    errors = 100 - 100 * measured(tmp_path, "test_accuracy", "goyal", (0, 2))
    np.testing.assert_allclose(mean.get_ydata(), errors.mean(axis=0))
    single = 100 - 100 * measured(tmp_path, "test_accuracy", "goyal", (1,))[0]
    np.testing.assert_allclose(diverged.get_ydata(), single)
    assert cross.get_marker() == "x" and cross.get_ydata() == pytest.approx(single[-1:])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["fixed_small", "adaptive", "goyal (1 of 3 diverged)"]


def test_bars_are_speedups_with_intervals(experiment, tmp_path):
    speed, error = speedup_bars(experiment).axes
    ends = {arm: measured(tmp_path, "training_seconds", arm)[:, -1] for arm in NAMES[:2]}
    ratios = ends["fixed_small"] / ends["adaptive"]
    widths = [bar.get_width() for bar in speed.patches]
    assert widths[:2] == pytest.approx([1, ratios.mean()])
    (low, _), (high, _) = speed.collections[0].get_segments()[0]
    reach = 4.30265 * ratios.std(ddof=1) / np.sqrt(3)
    assert (low, high) == pytest.approx((ratios.mean() - reach, ratios.mean() + reach), rel=1e-5)
    dots = error.get_lines()[0].get_xdata()
    finals = 100 - 100 * measured(tmp_path, "test_accuracy", "fixed_small")[:, -1]
    np.testing.assert_allclose(dots, finals)


def test_schedules_are_staircases_to_the_end(experiment):
    rate, batch, ratio = schedules(experiment).axes
    x, y = batch.get_lines()[1].get_data()
    assert list(x) == [0, 1, 2, 3, 4] and list(y) == [20, 40, 80, 160, 160]
    assert batch.get_lines()[1].get_drawstyle() == "steps-post"
    fixed, adaptive = (line.get_ydata() for line in ratio.get_lines()[:2])
    np.testing.assert_allclose(fixed, adaptive, rtol=1e-6)
    expected = [0.05 * 0.75**k for k in (0, 1, 2, 3, 3)]
    np.testing.assert_allclose(rate.get_lines()[1].get_ydata(), expected, rtol=1e-6)


@pytest.mark.parametrize("draw", [error_curves, speedup_bars, schedules])
def test_figures_of_a_study_that_has_not_begun(write_study, draw):
    out = write_study({"digits_cnn": {"adaptive": study_arms()["adaptive"]}})
    draw(load_study(out).experiments[0]).draw_without_rendering()
