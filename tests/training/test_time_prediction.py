"""T(B) = a + b B: the fit against a search; predicted seconds against adding up updates."""

import json

import numpy as np
import pytest

from adabatch_jax import make_plan
from adabatch_jax.system.errors import UsageError
from adabatch_jax.training.time_prediction import (
    Prediction,
    UpdateCost,
    fit_update_cost,
    largest_paying_size,
    predict,
)

LINE = UpdateCost(0.5, 0.01)


def counted_seconds(plan, seconds):
    """Each update on its own, by phase; a partial one as much shorter as the line says."""
    phases, cost = {}, fit_update_cost(seconds)
    for step in plan.steps():
        share = cost.update_seconds(step.num_real) / cost.update_seconds(step.batch_size)
        phases[step.phase] = phases.get(step.phase, 0) + share * seconds[step.batch_size]
    return phases


@pytest.mark.parametrize("remainder", ["carry", "partial", "drop"])
@pytest.mark.parametrize("schedule", ["30 x2 every 2ep max 240", "64, 1ep: 100, 3ep: 64", "77"])
def test_all_updates_add_up(schedule, remainder):
    plan = make_plan(schedule, 1000, "7ep", remainder)
    # As if the machine took something odd for each size: what is measured is believed.
    odd = {size: 1 + (size * 7919 % 13) for size in plan.batch_sizes}
    prediction = predict(plan, odd)
    counted = counted_seconds(plan, odd)
    assert {p.phase: p.phase_seconds for p in prediction.phases} == pytest.approx(counted)
    assert prediction.total_seconds == pytest.approx(sum(counted.values()))
    assert all(phase.is_measured for phase in prediction.phases)
    first = plan.phases[0].batch_size
    fixed = make_plan(first, 1000, f"{plan.num_samples}sp", remainder)
    line = prediction.cost
    alone = sum(
        odd[first] * line.update_seconds(step.num_real) / line.update_seconds(first)
        for step in fixed.steps()
    )
    assert prediction.fixed_seconds == pytest.approx(alone)
    assert prediction.speedup == pytest.approx(alone / sum(counted.values()))


def test_sizes_that_were_not_measured_come_from_the_line():
    plan = make_plan("16 x2 every 1ep max 128", 1000, "4ep")
    prediction = predict(plan, {size: LINE.update_seconds(size) for size in (16, 64, 999)})
    assert [p.is_measured for p in prediction.phases] == [True, False, True, False]
    assert [p.update_seconds for p in prediction.phases] == pytest.approx([0.66, 0.82, 1.14, 1.78])
    speedups = [prediction.phase_speedup(phase) for phase in prediction.phases]
    assert speedups == pytest.approx([1, 2 * 66 / 82, 4 * 66 / 114, 8 * 66 / 178])
    assert prediction.cost.saturating_batch_size == 450
    assert prediction.largest_paying_size == 128


def test_a_fixed_batch_gains_nothing():
    prediction = predict(make_plan("50", 1000, "3ep"), {50: 0.25})
    assert prediction.total_seconds == prediction.fixed_seconds == 15
    assert prediction.speedup == 1 and prediction.largest_paying_size == 50


def test_an_endless_stream_is_predicted_too():
    plan = make_plan([("0sp", 10), ("100sp", 20)], None, "300sp")
    assert predict(plan, {10: 1.0, 20: 1.5}).total_seconds == 10 * 1.0 + 10 * 1.5


def test_json_gives_it_back_and_names_its_seconds():
    plan = make_plan("16 x2 every 1ep max 64", 1000, "4ep")
    prediction = predict(plan, {16: 0.5, 64: 0.9})
    content = json.loads(json.dumps(prediction.to_dict()))
    assert Prediction.from_dict(content) == prediction
    # What isn't a time is the same on every machine.
    other = predict(plan, {16: 0.1, 64: 0.7}).to_dict()
    for ours, theirs in zip([content, *content["phases"]], [other, *other["phases"]], strict=True):
        for key, value in ours.items():
            assert key == "phases" or key.endswith("_seconds") or value == theirs[key]


def test_what_is_no_prediction_is_refused():
    with pytest.raises(UsageError, match="this is no prediction"):
        Prediction.from_dict({"phases": [{}]})


def relative_error(cost, seconds_by_size):
    return sum((cost.update_seconds(b) / t - 1) ** 2 for b, t in seconds_by_size.items())


def test_exact_times_give_the_line_back():
    cost = fit_update_cost({b: 0.02 + 0.003 * b for b in (32, 64, 1024)})
    assert cost.overhead_seconds == pytest.approx(0.02, rel=1e-9)
    assert cost.example_seconds == pytest.approx(0.003, rel=1e-9)


@pytest.mark.parametrize(
    "seconds_by_size",
    [
        {32: 0.11, 64: 0.14, 128: 0.3, 512: 0.9},
        {32: 0.1, 128: 0.5, 512: 3.2, 1024: 9.5},  # faster than B: a is held at 0
        {32: 0.3, 128: 0.2, 512: 0.1},  # falls: b is held at 0
        {128: 0.5},
    ],
    ids=["inside", "no overhead", "no cost of examples", "one size"],
)
def test_no_other_line_is_better(seconds_by_size):
    cost = fit_update_cost(seconds_by_size)
    assert cost.overhead_seconds >= 0 and cost.example_seconds >= 0
    best = relative_error(cost, seconds_by_size)
    steps = np.linspace(0, 2, 201)
    for a in steps * max(seconds_by_size.values()):
        for b in steps * max(t / b for b, t in seconds_by_size.items()):
            assert relative_error(UpdateCost(a, b), seconds_by_size) >= best - 1e-9


def test_relative_errors_count_not_absolute_ones():
    # An outlier among the long updates hardly moves the small sizes.
    cost = fit_update_cost({1: 1.0, 2: 2.0, 4: 4.0, 1000: 1200.0})
    assert cost.update_seconds(1) == pytest.approx(1.05, abs=0.06)


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.25), (0.0, 1.0), (3.0, 0.125), (0.01, 1.0)])
def test_saturation_is_the_first_size_at_90_percent(a, b):
    size = UpdateCost(a, b).saturating_batch_size
    assert size == next(n for n in range(1, 1000) if n / (a + b * n) >= 0.9 / b - 1e-12)


def test_without_cost_of_examples_every_growth_pays():
    assert UpdateCost(0.1, 0.0).saturating_batch_size is None


@pytest.mark.parametrize(
    ("rates", "size"),
    [
        ({64: 100, 128: 200, 256: 390, 512: 400, 1024: 405}, 256),
        ({64: 100, 128: 106, 256: 111}, 128),  # 111 / 106 is less than 5 %
        ({64: 100, 128: 90, 256: 80}, 64),
        ({64: 100, 128: 60, 256: 98}, 64),  # a slow size makes no hero of the next
        ({64: 100, 128: 98, 256: 150}, 256),
        ({64: 100, 4096: 130}, 64),  # six doublings should have given 34 %
        ({128: 7}, 128),
    ],
)
def test_the_largest_size_that_pays(rates, size):
    seconds = {b: b / rate for b, rate in rates.items()}
    assert largest_paying_size(seconds) == size
    assert largest_paying_size(dict(reversed(seconds.items()))) == size


def test_where_it_ends_is_near_saturation_for_an_exact_line():
    cost = UpdateCost(0.03, 0.001)
    seconds = {2**k: cost.update_seconds(2**k) for k in range(14)}
    # Doubling from B gains 5 % up to B = 9.5 a / b = 285; 90 % are reached at 9 a / b = 270.
    assert largest_paying_size(seconds) == 512 and cost.saturating_batch_size == 270
