"""Batch size and rate of each update, from the plan; rows are sparse here on purpose."""

import json
import math

import numpy as np
import pytest

from adabatch_jax import make_plan
from adabatch_jax.reporting.planned_values import batch_sizes, known_rates, positions
from adabatch_jax.reporting.plots import AXES, LEARNING_RATE, curves, panel_csv
from adabatch_jax.reporting.saved_run import load_run


@pytest.fixture
def planned_run(make_run):
    """A run of a plan with few rows; its `learning_rate` is `rate(step)` where that is given."""

    def make(plan, steps, rate=None, **settings):
        rows = [
            {
                "step": step,
                "samples": plan.samples_at(step),
                "epoch": plan.epoch_at(step),
                "elapsed_seconds": step / 7,
                "train_loss": 1 / step,
            }
            | ({} if rate is None else {"learning_rate": rate(step - 1)})
            for step in steps
        ]
        directory = make_run(rows=rows, finished=False, **settings)
        (directory / "plan.json").write_text(json.dumps(plan.to_dict()))
        return load_run(directory)

    return make


def test_a_batch_that_grows_between_two_rows_does_so_where_it_was_planned(planned_run):
    """Rows every 100 updates: 256 isn't in any of them, and 512 begins at epoch 16.09."""
    plan = make_plan("32 x2 every 4ep max 512", 1442, "20ep")
    run = planned_run(plan, (100, 200, 300, 351))
    x, y = curves([run], AXES[0]).axes[1].get_lines()[0].get_data()
    assert list(zip(x[::2], y[::2], strict=True)) == [
        (phase.start_sample / 1442, phase.batch_size) for phase in plan.phases
    ]
    assert round(x[-2], 2) == 16.09 and list(y[-2:]) == [512, 512]


@pytest.mark.parametrize("remainder", ["carry", "partial", "drop"])
def test_positions_are_the_plans(planned_run, remainder):
    plan = make_plan("30, 2ep: 70, 5ep: 130", 1000, "8ep", remainder=remainder)
    run = planned_run(plan, (plan.num_steps,))
    steps = np.arange(plan.num_steps + 1)
    assert positions(run, steps, "samples").tolist() == [plan.samples_at(s) for s in steps]
    assert positions(run, steps, "epoch").tolist() == [plan.epoch_at(s) for s in steps]
    assert positions(run, steps, "elapsed_seconds") == pytest.approx(steps / 7)


def test_unfinished_and_unlogged_runs(planned_run):
    plan = make_plan("30, 2ep: 70", 1000, "4ep")
    assert batch_sizes(planned_run(plan, ())).steps.tolist() == [0, 67, 67, plan.num_steps]


def test_a_run_that_came_as_far_as_its_rows(planned_run):
    plan = make_plan("30, 2ep: 70", 1000, "4ep")
    line = batch_sizes(planned_run(plan, (20, 70)))
    assert line.steps.tolist() == [0, 67, 67, 70] and line.values.tolist() == [30, 30, 70, 70]


def test_the_rate_of_the_settings_is_drawn_to_the_update(planned_run):
    plan = make_plan("30, 2ep: 60", 1000, "4ep")
    change = plan.phases[1].start_step
    run = planned_run(
        plan, (change - 5, plan.num_steps), lambda step: np.float32(0.1 if step < change else 0.2).item(),
        lr="0.1", coupling="linear",
    )  # fmt: skip
    rates = known_rates(run)
    assert rates.since == 0 and len(rates.logged.steps) == 0
    line = rates.line(plan.num_steps)
    before, after = line.steps[line.values < 0.15], line.steps[line.values > 0.15]
    assert before.max() == after.min() == change and line.steps[-1] == plan.num_steps


def test_a_smooth_rate_is_that_of_its_formula(planned_run):
    plan = make_plan("50", 1000, "10ep")
    run = planned_run(plan, (), lr="0.1 cosine warmup 1ep", coupling="none")
    line = known_rates(run).line(plan.num_steps)
    for step, value in zip(line.steps[:-1].tolist(), line.values.tolist(), strict=False):
        cosine = 0.05 * (1 + math.cos(math.pi * step / plan.num_steps))
        assert value == pytest.approx(cosine * min(1, step / 20), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("settings", [{"lr": None}, {"lr": 0.1}, {"lr": "fast"}, {"lr": "0.3"}])
def test_a_rate_that_no_setting_tells_is_points(planned_run, settings):
    """Of `fit` with a rate of one's own, whatever else is called "lr" there."""
    plan = make_plan("50", 1000, "10ep")
    run = planned_run(plan, (10, 100, 200), lambda step: 0.5 / (1 + step), **settings)
    rates = known_rates(run)
    assert rates.resolved is None and rates.logged.steps.tolist() == [10, 100, 200]
    points, line = curves([run], AXES[1]).axes[2].get_lines()
    assert points.get_linestyle() == "None" and points.get_marker() == "o"
    assert points.get_ydata().tolist() == [0.5 / 10, 0.5 / 100, 0.5 / 200]
    assert len(line.get_xdata()) == 0
    assert rates.of_phases(run.plan["phases"]) == [0.5 / 10]


def test_a_rate_that_was_changed_is_drawn_from_there_on(planned_run):
    plan = make_plan("50", 1000, "10ep")
    run = planned_run(
        plan, (50, 100, 150, 200), lambda step: 0.1 if step < 120 else np.float32(0.02).item(), lr="0.02"
    )  # fmt: skip
    rates = known_rates(run)
    assert rates.logged.steps.tolist() == [50, 100] and rates.since == 100
    assert rates.line(200).steps[0] == 100 and rates.of_phases(run.plan["phases"]) == [0.1]
    lines = panel_csv([run], LEARNING_RATE).splitlines()
    assert lines[0] == "run,step,samples,epoch,elapsed_seconds,learning_rate"
    assert lines[1].endswith(",50,2500,2.5,7.142857142857143,0.1")
