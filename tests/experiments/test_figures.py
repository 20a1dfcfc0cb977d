import dataclasses
import json

import numpy as np
import pytest

from adabatch_jax.config import TrainConfig
from experiments.reproduction.figures import outcome_curves, schedules, speedup_bars
from experiments.reproduction.measures import schedule_points
from experiments.reproduction.results import load_study
from tests.experiments.conftest import NUM_EXAMPLES, change_sealed, study_arms

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
    axes = outcome_curves(experiment).axes[panel]
    for line, band, arm in zip(axes.get_lines(), axes.collections, NAMES[:2], strict=False):
        x, y = line.get_data()
        errors = 100 - 100 * measured(tmp_path, "test_accuracy", arm)
        np.testing.assert_allclose(x, measured(tmp_path, key, arm).mean(axis=0))
        np.testing.assert_allclose(y, errors.mean(axis=0))
        edges = band.get_paths()[0].get_extents()
        assert edges.ymin == pytest.approx(errors.min())
        assert edges.ymax == pytest.approx(errors.max())


def test_diverged_runs_are_drawn_to_their_end_and_left_out_of_the_mean(experiment, tmp_path):
    figure = outcome_curves(experiment)
    mean, diverged, cross = figure.axes[0].get_lines()[2:]
    errors = 100 - 100 * measured(tmp_path, "test_accuracy", "goyal", (0, 2))
    np.testing.assert_allclose(mean.get_ydata(), errors.mean(axis=0))
    single = 100 - 100 * measured(tmp_path, "test_accuracy", "goyal", (1,))[0]
    np.testing.assert_allclose(diverged.get_ydata(), single)
    assert cross.get_marker() == "x" and cross.get_ydata() == pytest.approx(single[-1:])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["fixed_small", "adaptive", "goyal (1 of 3 diverged)"]


def test_of_texts_the_first_panel_is_by_tokens(write_run, write_study, tmp_path):
    config = TrainConfig(dataset="text:corpus.txt", model="gpt_nano", epochs=4, log_every="1ep")
    arms = {"fixed_small": config}
    write_run("gpt", "fixed_small", config, 0)
    file = tmp_path / "runs/gpt/fixed_small/seed0/metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows = [row | {"tokens": 256 * row["samples"], "test_bits_per_byte": 2.0} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    change_sealed(file.parent / "summary.json", test_bits_per_byte=2.0)
    study = load_study(write_study({"gpt": arms}, seeds=[0], outcome="bits_per_byte"))
    axes = outcome_curves(study.experiments[0]).axes[0]
    assert axes.get_xlabel() == "tokens" and axes.get_ylabel() == "test bits per byte"
    x, y = axes.get_lines()[0].get_data()
    assert list(x) == [row["tokens"] for row in rows] and set(y) == {2.0}


def test_short_runs_have_a_point_for_each_hundredth(write_run, write_study):
    config = dataclasses.replace(study_arms()["adaptive"], epochs=2, lr="0.05 cosine")
    write_run("digits_cnn", "adaptive", config, 0)
    arm = load_study(write_study({"digits_cnn": {"adaptive": config}})).experiments[0].arms[0]
    expected, part = [], 2 * NUM_EXAMPLES / 100
    for number in range(100):
        steps = range(arm.plan.num_steps)
        begun = [s for s in steps if number * part <= arm.plan.samples_at(s) < (number + 1) * part]
        if begun:
            expected.append((number * part / NUM_EXAMPLES, arm.plan.batch_size_at(begun[0])))
    points = schedule_points(arm)
    assert [(float(point.epoch), point.batch_size) for point in points] == expected
    assert points[0].learning_rate == pytest.approx(0.05)


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


@pytest.mark.parametrize("draw", [outcome_curves, speedup_bars, schedules])
def test_figures_of_a_study_that_has_not_begun(write_study, draw):
    out = write_study({"digits_cnn": {"adaptive": study_arms()["adaptive"]}})
    draw(load_study(out).experiments[0]).draw_without_rendering()
