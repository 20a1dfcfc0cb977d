"""Runs that a rule ends: where, over restarts too, and what follows when they are asked again."""

import numpy as np
import pytest

from adabatch_jax.config.settings import Operation
from adabatch_jax.runs.due import Due
from adabatch_jax.runs.early_stop import EarlyStop
from adabatch_jax.schedules.periods import every
from adabatch_jax.schedules.plan import make_plan
from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.stop_requests import Interruption
from tests.runs import small_run

PLAN = make_plan("4, 3ep: 7", small_run.N, "12ep")  # epochs end inside of updates


def ended(stop_when, rows, plan=PLAN, eval_every="1ep"):
    """The step at which a run with these rows ends."""
    due = Due(plan.num_steps, every(plan, eval_every), None, every(plan, "1st"), True)
    rule = EarlyStop(stop_when, plan, due)
    for row in rows:
        rule.see(row)
        if rule.ends_at(row["step"]):
            return row["step"]
    return None


def evaluations(values, plan=PLAN, eval_every="1ep"):
    period, step, rows = every(plan, eval_every), 0, []
    for value in values:
        step = min(period.next(step), plan.num_steps)
        rows.append({"step": step, "samples": plan.samples_at(step), "test_loss": value})
    return rows


@pytest.mark.parametrize("patience", [1, 2, 3])
@pytest.mark.parametrize("seed", range(6))
def test_patience_is_a_number_of_evaluations(seed, patience):
    """As every other library counts it, wherever epochs end inside of updates."""
    values = np.random.default_rng(seed).integers(0, 6, 12).tolist()
    rows = evaluations(values)
    best, waited, expected = float("inf"), 0, None
    for row, value in zip(rows, values):
        best, waited = (value, 0) if value < best else (best, waited + 1)
        if waited == patience:
            expected = row["step"]
            break
    assert ended(f"no lower test_loss for {patience}ep", rows) == expected


def test_patience_in_steps_and_figures_that_are_missing():
    plan = make_plan(6, small_run.N, "10ep")
    rows = [{"step": s, "samples": 6 * s, "test_loss": 1.0} for s in range(1, 20)]
    for length in (1, 4, 5):
        assert ended(f"no lower test_loss for {length}st", rows, plan, "1st") == 1 + length
    for row in rows[:3]:
        del row["test_loss"]
    rows[5]["test_loss"] = float("nan")
    assert ended("no lower test_loss for 4st", rows, plan, "1st") == 8


def test_the_run_ends_at_the_first_evaluation_behind_the_row():
    rows = evaluations([3, 2, 1, 0])
    between = {"step": rows[1]["step"] - 3, "train_loss": 0.1}
    assert ended("train_loss < 0.2", [rows[0], between, *rows[1:]]) == rows[1]["step"]
    assert ended("train_loss < 0.2 or test_loss <= 2", rows) == rows[1]["step"]
    assert ended(lambda row: row.get("test_loss") == 1, rows) == rows[2]["step"]


def train(workdir, stop_when="test_accuracy >= 0.9", **options):
    return small_run.train(PLAN, workdir, stop_when=stop_when, **options)


def first_met(history, threshold=0.9):
    return next(row for row in history if row.get("test_accuracy", 0) >= threshold)


@pytest.fixture(scope="module")
def whole():
    return small_run.train(PLAN)


def test_a_run_ends_finished_and_is_left_alone(tmp_path, whole):
    row = first_met(whole.history)
    result = train(tmp_path)
    assert not result.stopped and result.state.step == row["step"] < PLAN.num_steps
    assert result.summary["stopped_by"] == {"rule": "test_accuracy >= 0.9", "step": row["step"]}
    n = len(result.history)
    assert small_run.reproducible(result.history) == small_run.reproducible(whole.history[:n])
    written = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock"}
    again = train(tmp_path)
    assert again.start_step == row["step"] and again.summary == result.summary
    assert written == {p: p.read_bytes() for p in written}


@pytest.mark.parametrize("rule", [None, "test_accuracy >= 2", "test_loss < 0"])
def test_with_another_rule_it_goes_on(tmp_path, whole, rule):
    train(tmp_path)
    if rule is not None and "loss" in rule:
        with pytest.raises(UsageError, match="no row has a figure 'test_loss'; they have train_"):
            train(tmp_path, rule)
        return
    if rule is not None:
        rule = lambda row: row.get("test_accuracy", 0) >= 2  # noqa: E731
    result = train(tmp_path, rule)
    assert result.state.step == PLAN.num_steps and "stopped_by" not in result.summary
    assert result.summary["weights_digest"] == whole.summary["weights_digest"]
    assert small_run.reproducible(result.history) == small_run.reproducible(whole.history)


@pytest.mark.parametrize(
    "stop_when", ["no better result for 3ep", "train_loss < 0.35", lambda row: row["epoch"] > 5]
)  # fmt: skip
@pytest.mark.parametrize("update", [3, 40, 72])
def test_restarts_change_nothing(tmp_path, stop_when, update, faults):
    """Checkpoints lie between the evaluations too."""
    straight = train(None, stop_when)
    assert 0 < straight.state.step < PLAN.num_steps
    faults(f"step.end:{update}:raise,eval.mid:{2 + update // 15}:raise")
    starts = 0
    while True:
        try:
            result = train(tmp_path, stop_when, checkpoint_every="11st")
            break
        except RuntimeError:
            starts += 1
    assert starts >= 1
    assert result.summary["stopped_by"] == straight.summary["stopped_by"]
    assert result.summary["weights_digest"] == straight.summary["weights_digest"]
    assert small_run.reproducible(result.history) == small_run.reproducible(straight.history)


def test_a_stop_in_the_evaluation_that_would_end_it(tmp_path, faults, whole):
    row = first_met(whole.history)
    num = [r["step"] for r in whole.history if "test_accuracy" in r].index(row["step"])
    faults(f"eval.mid:{3 * num + 1}:sigterm")  # three batches each
    with Interruption() as interruption:
        result = train(tmp_path, operation=Operation(interruption=interruption))
    assert result.stopped and result.state.step == row["step"]
    faults("")
    result = train(tmp_path)
    assert not result.stopped and result.state.step == result.start_step == row["step"]
    assert result.history[-1]["test_accuracy"] == row["test_accuracy"]
    assert train(tmp_path).summary == result.summary


def test_without_evaluations_it_ends_at_the_row():
    none = {"eval_fn": None, "eval_source": None, "log_every": "4st"}
    result = train(None, lambda row: row["step"] >= 22, **none)
    assert result.state.step == 24 and result.summary["stopped_by"]["step"] == 24


def test_a_figure_that_no_row_has(tmp_path):
    said = "no row has a figure 'test_acuracy'; they have train_loss, test_accuracy; did you mean"
    with pytest.raises(UsageError, match=said):
        train(tmp_path, "test_acuracy >= 0.9")
    assert train(tmp_path).start_step == PLAN.step_at(60)  # what was trained until then isn't lost
    for wrong in (0.9, "soon"):
        with pytest.raises(UsageError, match="stop_when"):
            train(None, wrong)
