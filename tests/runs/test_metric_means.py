"""A row's training metrics are means over the examples since the row before, to the bit."""

import math

import jax
import numpy as np
import pytest

from adabatch_jax.config import Layout, Operation
from adabatch_jax.runs.metric_means import MetricMeans
from adabatch_jax.schedules.plan import make_plan
from adabatch_jax.training.dispatch import Dispatched
from adabatch_jax.training.loss_functions import weighted_mean
from tests.runs import small_run
from tests.runs.small_run import N, reproducible

PLAN = make_plan("4, 1ep: 7, 2.3ep: 16", N, "3.1ep")  # 15 + 12 updates, and 3, the last partial
NOTHING_MEASURED = {"eval_fn": None, "eval_source": None}


def loss_fn(params, model_state, batch, rng):
    loss, (model_state, _) = small_run.loss_fn(params, model_state, batch, rng)
    return loss, (model_state, {"x": weighted_mean(batch["x"][:, 0], batch["weight"])})


def train(workdir=None, plan=PLAN, **options):
    return small_run.train(plan, workdir, loss_fn, **NOTHING_MEASURED | options)


def means_by_numpy(plan, recorded, ends, left_out=()):
    """Of what `on_step` saw, by the update behind which a row stands."""
    means, begin = {}, 0
    for end in ends:
        updates = [update for update in range(begin, end) if update not in left_out]
        weights = [step.num_real for step in plan.steps() if step.index in updates]
        for name in ("loss", "x"):
            values = [float(recorded[update][name]) for update in updates]
            if values:
                means[end, name] = np.average(values, weights=weights)
        begin = end
    return means


def means_of(history):
    return {
        (row["step"], name): row[f"train_{name}"]
        for row in history
        for name in ("loss", "x")
        if f"train_{name}" in row
    }


@pytest.mark.parametrize("layout", [small_run.PLAIN, Layout(3, "split")], ids=str)
def test_means_are_those_of_numpy(layout):
    recorded = {}

    def on_step(finished, state, metrics):
        recorded[finished - 1] = jax.device_get(metrics)

    history = train(log_every="4st", on_step=on_step, layout=layout).history
    ends = [*range(4, PLAN.num_steps, 4), PLAN.num_steps]
    wanted = means_by_numpy(PLAN, recorded, ends)
    assert means_of(history) == pytest.approx(wanted, rel=1e-14)
    assert any(row["train_loss"] != recorded[row["step"] - 1]["loss"] for row in history)
    if layout == small_run.PLAIN:
        other = train(log_every="4st", layout=Layout(None, steps_per_dispatch=7)).history
        assert means_of(other) == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def test_an_evaluation_is_a_row_and_begins_anew():
    recorded = {}

    def on_step(finished, state, metrics):
        recorded[finished - 1] = jax.device_get(metrics)

    options = {"eval_fn": small_run.eval_fn, "eval_source": small_run.TEST, "eval_every": "6st"}
    plan = make_plan(4, N, "11st")
    history = train(None, plan, log_every="4st", on_step=on_step, **options).history
    assert [row["step"] for row in history] == [4, 6, 8, 11]
    wanted = means_by_numpy(plan, recorded, [4, 6, 8, 11])
    assert means_of(history) == pytest.approx(wanted, rel=1e-14)


@pytest.mark.parametrize("layout", [Layout(steps_per_dispatch=5), Layout(3, "split")], ids=str)
def test_restarts_change_no_bit(layout, tmp_path, faults):
    plan = make_plan("4, 9st: 7", N, "15st")
    options = {"plan": plan, "layout": layout, "log_every": "6st", "checkpoint_every": "2st"}
    whole = train(tmp_path / "whole", **options)
    for kill in (3, 2, 2):  # the updates since the newest checkpoint are done again
        faults(f"step.end:{kill}:raise")
        with pytest.raises(Exception, match="step.end"):
            train(tmp_path / "cut", **options)
    faults("")
    cut = train(tmp_path / "cut", **options)
    assert cut.start_step > 0 and reproducible(cut.history) == reproducible(whole.history)


def test_an_update_that_is_left_out_counts_in_no_row(faults):
    plan, recorded = make_plan(4, N, "9st"), {}

    def on_step(finished, state, metrics):
        recorded[finished - 1] = jax.device_get(metrics)

    faults("batch.ready:5:nan,batch.ready:7:nan")
    options = {"operation": Operation(on_nan="skip:2"), "layout": Layout(steps_per_dispatch=1)}
    history = train(None, plan, log_every="3st", on_step=on_step, **options).history
    wanted = means_by_numpy(plan, recorded, [3, 6, 9], left_out={4, 6})
    assert means_of(history) == pytest.approx(wanted, rel=1e-14)
    faults("batch.ready:2:nan")
    history = train(None, plan, log_every="1st", **options).history
    assert [row["step"] for row in history if "train_loss" not in row] == [2]


@pytest.mark.parametrize("log_every, of_the_row", [("9st", {0, 1, 2, 3}), ("5st", set())])
def test_a_rollback_goes_back_to_the_sums_of_the_checkpoint(
    log_every, of_the_row, tmp_path, faults
):
    """Unless they are in a row already: behind update 5, where one is due."""
    plan, recorded = make_plan(4, N, "15st"), {}

    def on_step(finished, state, metrics):
        recorded[finished - 1] = jax.device_get(metrics)

    faults("batch.ready:6:nan")
    options = {"operation": Operation(on_nan="rollback"), "checkpoint_every": "4st"}
    options |= {"plan": plan, "on_step": on_step, "layout": Layout(steps_per_dispatch=1)}
    result = train(tmp_path, log_every=log_every, **options)
    (decision,) = result.summary["decisions"]
    assert decision["checkpoint"] == 4
    lost = set(range(4, decision["left_out_until"]))
    row = next(row for row in result.history if row["step"] > decision["left_out_until"])
    counted = {*of_the_row, *range(row["step"])} - lost
    counted -= set() if of_the_row else {0, 1, 2, 3}
    losses = [float(recorded[update]["loss"]) for update in sorted(counted)]
    assert row["train_loss"] == pytest.approx(np.mean(losses), rel=1e-14)


def test_weights_count_and_saved_sums_lose_nothing():
    random = np.random.default_rng(0)
    whole, parts = MetricMeans(), MetricMeans()
    values = random.normal(size=(300, 3)).astype(np.float32)
    weights = random.integers(0, 2000, (300, 3)).astype(np.float32)
    for update in range(300):
        for place in range(2):  # the third was none
            dispatched = Dispatched(None, {"loss": values[update]}, None, weights[update], None)
            whole.add(dispatched, place)
            parts.add(dispatched, place)
            if update % 7 == place:
                saved = parts.to_dict()
                parts = MetricMeans()
                parts.restore(saved)
    wanted = np.average(values[:, :2].astype(float), weights=weights[:, :2])
    (mean,) = parts.take().values()
    assert mean == whole.take()["loss"] == pytest.approx(wanted, rel=1e-12)
    assert parts.take() == {}
    parts.add(Dispatched(None, {"loss": 1.0, "odd": np.nan}, None, 4.0, None), 0)
    saved, parts = parts.to_dict(), MetricMeans()
    parts.restore(saved)
    means = parts.take()
    assert means["loss"] == 1.0 and math.isnan(means["odd"])
