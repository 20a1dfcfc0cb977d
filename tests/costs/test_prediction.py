"""Predicted seconds against adding up one update after the other."""

import json

import pytest

from adabatch_jax import make_plan
from adabatch_jax.costs import Prediction, UpdateCost, predict
from adabatch_jax.errors import UsageError

LINE = UpdateCost(0.5, 0.01)


def counted_seconds(plan, seconds):
    """Each update on its own, by phase."""
    phases = {}
    for step in plan.steps():
        phases[step.phase] = phases.get(step.phase, 0) + seconds(step.batch_size)
    return phases


@pytest.mark.parametrize("remainder", ["carry", "partial", "drop"])
@pytest.mark.parametrize("schedule", ["30 x2 every 2ep max 240", "64, 1ep: 100, 3ep: 64", "77"])
def test_all_updates_add_up(schedule, remainder):
    plan = make_plan(schedule, 1000, "7ep", remainder)
    # As if the machine took something odd for each size: what is measured is believed.
    odd = {size: 1 + (size * 7919 % 13) for size in plan.batch_sizes}
    prediction = predict(plan, odd)
    counted = counted_seconds(plan, odd.get)
    assert {p.phase: p.seconds for p in prediction.phases} == pytest.approx(counted)
    assert prediction.total_seconds == pytest.approx(sum(counted.values()))
    assert all(phase.is_measured for phase in prediction.phases)
    first = plan.phases[0].batch_size
    fixed = make_plan(first, 1000, f"{plan.num_samples}sp", remainder)
    alone = sum(counted_seconds(fixed, odd.get).values())
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
