"""The loop against a hand-written one, and a stopped run against an uninterrupted one."""

import dataclasses
import json
import os
import shutil

import jax
import numpy as np
import optax
import pytest

from adabatch_jax.config import Layout
from adabatch_jax.data.batches import batches
from adabatch_jax.data.mesh import data_mesh
from adabatch_jax.reporting.saved_run import load_run
from adabatch_jax.runs.fit import fit
from adabatch_jax.schedules.learning_rate_schedule import coupled_learning_rate
from adabatch_jax.schedules.plan import make_plan
from adabatch_jax.system.errors import DivergedError, RestoreError, StorageError, UsageError
from adabatch_jax.training.evaluation import evaluate
from adabatch_jax.training.loss_functions import weighted_mean
from adabatch_jax.training.time_prediction import Prediction
from adabatch_jax.training.train_state import TrainState
from adabatch_jax.training.weights_digest import weights_digest
from tests.runs.small_run import (
    PLAIN,
    TEST,
    TRAIN,
    N,
    X,
    Y,
    apply,
    eval_fn,
    loss_fn,
    make_params,
    reproducible,
    train,
)


class Killed(Exception):
    pass


def kill_after(step):
    def on_step(finished, state, metrics):
        if finished == step:
            raise Killed

    return on_step


def test_a_constant_schedule_equals_a_hand_written_loop_bit_for_bit():
    plan = make_plan(6, N, "3ep")
    tx = optax.adam(1e-2)

    def quiet_loss(params, model_state, batch, rng):
        losses = optax.softmax_cross_entropy_with_integer_labels(
            apply(params, batch["x"]), batch["y"]
        )
        return weighted_mean(losses, batch["weight"]), (model_state, {})

    @jax.jit
    def update(params, opt_state, batch):
        loss, grads = jax.value_and_grad(lambda p: quiet_loss(p, {}, batch, None)[0])(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    params = make_params()
    opt_state, losses = tx.init(params), []
    for batch in batches(TRAIN, plan, seed=3):
        params, opt_state, loss = update(params, opt_state, batch)
        losses.append(float(loss))
    state = TrainState.create(params=make_params(), tx=tx)
    result = fit(quiet_loss, tx, state, TRAIN, plan, seed=3, log_every="1st", layout=PLAIN)
    assert [row["train_loss"] for row in result.history] == losses
    jax.tree.map(np.testing.assert_array_equal, result.state.params, params)


PLANS = {
    "carry": make_plan("4, 1ep: 7, 2.3ep: 16", N, "4.2ep"),
    # The size changes within an epoch, and neither size divides what is left of one.
    "partial": make_plan("7, 1.3ep: 16", N, "4.2ep", "partial"),
    "drop": make_plan("7, 1.3ep: 16", N, "4.2ep", "drop"),
}


def modification_times(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.name != ".lock"}


@pytest.mark.parametrize("remainder", PLANS)
def test_killed_and_resumed_equals_uninterrupted(remainder, tmp_path):
    plan = PLANS[remainder]
    whole = train(plan, tmp_path / "whole", checkpoint_every="3st")
    assert whole.state.step == plan.num_steps
    edges = {p.start_step + d for p in plan.phases for d in (-1, 0, 1)}
    kills = sorted(
        {1, 2, plan.num_steps - 4, plan.num_steps - 1}
        | {s for s in edges if 0 < s < plan.num_steps}
    )
    for step in kills:
        with pytest.raises(Killed):
            train(plan, tmp_path / "cut", checkpoint_every="3st", on_step=kill_after(step))
    cut = train(plan, tmp_path / "cut", checkpoint_every="3st")
    assert reproducible(cut.history) == reproducible(whole.history)
    assert cut.summary["weights_digest"] == whole.summary["weights_digest"]
    assert cut.summary["examples_digest"] == whole.summary["examples_digest"]
    environment = json.loads((tmp_path / "cut" / "environment.json").read_text())
    assert environment["restarts"] >= 3
    reproducible_summaries = reproducible([whole.summary, cut.summary])
    assert reproducible_summaries[0] == reproducible_summaries[1]
    before = modification_times(tmp_path / "cut")
    lines = [(tmp_path / d / "metrics.jsonl").read_text().splitlines() for d in ("whole", "cut")]
    whole_rows, cut_rows = ([json.loads(line) for line in file] for file in lines)
    assert reproducible(cut_rows) == reproducible(whole_rows)
    again = train(plan, tmp_path / "cut", checkpoint_every="3st")
    assert again.summary["weights_digest"] == whole.summary["weights_digest"]
    assert reproducible(again.history) == reproducible(whole.history)
    assert modification_times(tmp_path / "cut") == before


def test_a_state_in_the_middle_goes_on_from_there():
    plan = PLANS["carry"]
    whole = train(plan)
    half = train(plan, on_step=lambda finished, *_: finished == 13)
    lr = coupled_learning_rate(plan, 0.05)
    rest = fit(loss_fn, optax.sgd(lr, momentum=0.9), half.state, TRAIN, plan, seed=5, layout=PLAIN)
    assert rest.summary["weights_digest"] == whole.summary["weights_digest"]
    # What was trained on before isn't known, and isn't looked up: both parts make the whole.
    parts = [half.summary["examples_digest"], rest.summary["examples_digest"]]
    lanes = [[int(part[at : at + 16], 16) for at in (0, 16)] for part in parts]
    both = "".join(f"{sum(lane) % 2**64:016x}" for lane in zip(*lanes, strict=True))
    assert both == whole.summary["examples_digest"]
    short = make_plan(4, N, "1ep")
    with pytest.raises(UsageError, match="34 updates.* 15"):
        fit(loss_fn, optax.sgd(lr, momentum=0.9), rest.state, TRAIN, short, seed=5)


def test_resuming_with_micro_batches_on_a_mesh(tmp_path):
    plan = make_plan("4, 1.3ep: 7", N, "2.2ep")  # less than a micro-batch, and one and a part
    layout = dict(mesh=data_mesh(jax.devices()[:3]), layout=Layout(5, steps_per_dispatch=1))
    whole = train(plan, tmp_path / "whole", checkpoint_every="5st", **layout)
    with pytest.raises(Killed):
        train(plan, tmp_path / "cut", checkpoint_every="5st", on_step=kill_after(22), **layout)
    cut = train(plan, tmp_path / "cut", checkpoint_every="5st", **layout)
    assert cut.summary["weights_digest"] == whole.summary["weights_digest"]
    plain = train(plan)
    assert whole.summary["examples_digest"] == plain.summary["examples_digest"]


def test_every_layout_trains_to_the_same_weights():
    # Micro-batches and devices divide one of the sizes, or neither, or are more than its examples.
    plan = make_plan("4, 1ep: 15", N, "2.3ep")

    def quiet_loss(params, model_state, batch, rng):
        losses = (apply(params, batch["x"])[:, 0] - batch["y"]) ** 2
        return weighted_mean(losses, batch["weight"]), (model_state, {})

    def weights(devices=None, microbatch_size=None):
        mesh = devices and data_mesh(jax.devices()[:devices])
        tx = optax.sgd(0.1, momentum=0.9)
        state = TrainState.create(params=make_params(), tx=tx)
        layout = Layout(microbatch_size)
        return fit(quiet_loss, tx, state, TRAIN, plan, mesh=mesh, layout=layout).state.params

    plain = weights()
    for layout in [(4, None), (None, 5), (3, 5), (8, 6)]:
        laid_out = weights(*layout)
        for name, wanted in plain.items():
            np.testing.assert_allclose(laid_out[name], wanted, rtol=1e-4, atol=1e-5)


def test_rows_come_where_they_are_due_with_the_last_update_in_them():
    plan = PLANS["carry"]
    result = train(plan)
    steps = range(1, plan.num_steps + 1)
    passed = {s for s in steps if plan.samples_at(s) // N > plan.samples_at(s - 1) // N}
    evaluated = passed | {plan.num_steps}
    logged = evaluated | {s for s in steps if s % 4 == 0}
    assert [row["step"] for row in result.history] == sorted(logged)
    for row in result.history:
        step = row["step"]
        assert row["samples"] == plan.samples_at(step)
        assert row["epoch"] == plan.samples_at(step) / N
        assert row["batch_size"] == plan.batch_size_at(step - 1)
        assert row["phase"] == plan.phase_at(step - 1).index
        assert row["learning_rate"] == float(coupled_learning_rate(plan, 0.05)(step - 1))
        assert ("test_accuracy" in row) == (step in evaluated)
    first = result.history[0]
    assert list(first)[:8] == [
        "step", "samples", "epoch", "phase", "batch_size", "learning_rate", "train_loss",
        "examples_digest",
    ]  # fmt: skip


def test_each_batch_size_is_compiled_once():
    plan = make_plan("4, 1ep: 7, 2.3ep: 16, 3ep: 4", N, "4.2ep", "partial")
    traces = []

    def counted(params, model_state, batch, rng):
        traces.append(batch["x"].shape)
        return loss_fn(params, model_state, batch, rng)

    tx = optax.sgd(0.1)
    state = TrainState.create(params=make_params(), tx=tx, model_state={"seen": 0})
    assert plan.has_partial_batches
    fit(counted, tx, state, TRAIN, plan, layout=PLAIN)
    # The first and the largest at once, then the others.
    assert traces == [(4, 5), (16, 5), (7, 5)]


def test_on_step_stops_and_saves(tmp_path):
    plan = PLANS["carry"]
    whole = train(plan)
    result = train(plan, tmp_path, on_step=lambda finished, *_: finished == 11)
    assert result.stopped and result.state.step == 11
    assert (tmp_path / "checkpoints" / "11").is_dir()
    assert not (tmp_path / "summary.json").exists()
    rest = train(plan, tmp_path)
    assert not rest.stopped
    assert rest.summary["weights_digest"] == whole.summary["weights_digest"]


def test_without_workdir_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(PLANS["carry"])
    assert list(tmp_path.iterdir()) == []


def test_endless_streams():
    class Stream:
        def read(self, indices):
            return {"x": X[indices % N], "y": Y[indices % N]}

    plan = make_plan("4, 40sp: 8", None, "100sp")
    tx = optax.sgd(0.1)
    state = TrainState.create(params=make_params(), tx=tx, model_state={"seen": 0})
    result = fit(loss_fn, tx, state, Stream(), plan, log_every="5st")
    assert [row["samples"] for row in result.history] == [20, 40, 80, 100]
    assert "epoch" not in result.history[0]
    with pytest.raises(UsageError, match="'1ep'"):
        fit(loss_fn, tx, result.state, Stream(), plan, eval_fn=eval_fn, eval_source=TEST)
    with pytest.raises(UsageError, match="`state`"):
        fit(loss_fn, tx, state, Stream(), plan)


def test_the_files_of_a_run(tmp_path):
    plan = PLANS["carry"]
    result = train(plan, tmp_path)
    written = json.loads((tmp_path / "plan.json").read_text())
    prediction = Prediction.from_dict(written.pop("prediction"))
    assert written == plan.to_dict()
    assert [p.num_updates for p in prediction.phases] == [p.num_steps for p in plan.phases]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["weights_digest"] == weights_digest(result.state)
    assert summary["num_parameters"] == 5 * 8 + 8 + 8 * 2
    assert summary["samples"] == plan.num_samples
    assert summary["test_accuracy"] == result.history[-1]["test_accuracy"]
    for name in ("compile", "step", "input", "evaluation", "checkpoint", "total"):
        assert summary[f"{name}_seconds"] >= 0
    training_seconds = summary["step_seconds"] + summary["input_seconds"]
    assert sum(summary["phase_training_seconds"]) == pytest.approx(training_seconds)
    assert load_run(tmp_path).final("test_accuracy") == summary["test_accuracy"]
    assert (tmp_path / "metrics.csv").read_text().startswith("step,samples,epoch,phase")
    assert list((tmp_path / "tensorboard").iterdir())
    steps = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert len(steps) == 3 and steps[-1] == plan.num_steps


def test_divergence_names_the_step_and_saves_nothing(tmp_path):
    plan = make_plan("4", N, "2ep")
    tx = optax.sgd(1e38)
    state = TrainState.create(params=make_params(), tx=tx, model_state={"seen": 0})
    with pytest.raises(DivergedError, match=r"the loss is (nan|inf) after update 2 .*batch size 4"):
        fit(loss_fn, tx, state, TRAIN, plan, workdir=tmp_path, log_every="4st")
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_longer_run_and_an_edited_future_go_on(tmp_path):
    short = make_plan("4, 1ep: 8", N, "2ep")
    train(short, tmp_path)
    # The last of the 23 updates had 4 of 8 examples; that stays so.
    longer = short.continued("4, 1ep: 8, 3ep: 20", short.num_samples, "4ep")
    result = train(longer, tmp_path)
    assert result.state.step == longer.num_steps
    assert result.summary["weights_digest"] == train(longer).summary["weights_digest"]


def test_another_past_is_refused_by_name(tmp_path):
    train(make_plan("4, 1ep: 8", N, "2ep"), tmp_path)
    for plan, kwargs, message in [
        (make_plan("6, 1ep: 8", N, "2ep"), {}, "phase 1 .*batch_size 4 .* 6 "),
        (make_plan("4, 1.5ep: 8", N, "2ep"), {}, "phase 2 .*start_sample 60 .* 92"),
        (make_plan("4, 1ep: 8", N, "1ep"), {}, "120 samples in 2 phases .* 60 in 1"),
        (make_plan("4, 1ep: 8", N, "2ep", "drop"), {}, "remainder='carry' .*'drop'"),
        (make_plan("4, 1ep: 8", N, "2ep"), {"seed": 6}, "seed 5, not 6"),
    ]:
        with pytest.raises(RestoreError, match=message):
            train(plan, tmp_path, **kwargs)


def test_another_model_is_refused_by_name(tmp_path):
    plan = make_plan("4", N, "1ep")
    train(plan, tmp_path)
    tx = optax.adam(1e-3)
    state = TrainState.create(params=make_params(), tx=tx, model_state={"seen": 0})
    with pytest.raises(RestoreError, match="opt_state"):
        fit(loss_fn, tx, state, TRAIN, plan, workdir=tmp_path, seed=5)


def test_mistakes(tmp_path):
    plan = make_plan("4", N, "1ep")
    with pytest.raises(UsageError, match="`eval_fn` .*`eval_source`"):
        train(plan, eval_source=None)
    with pytest.raises(UsageError, match="0st"):
        train(plan, log_every="0st")
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StorageError, match="file"):
        train(plan, blocked / "run")


def test_checkpoints_that_vanish_while_the_run_goes_on_are_made_again(tmp_path):
    def take_them_away(step, *_):
        if step == 2:
            shutil.rmtree(tmp_path / "checkpoints")

    plan = make_plan("4", N, "2ep")
    result = train(plan, tmp_path, on_step=take_them_away)
    assert str(plan.num_steps) in [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert train(plan, tmp_path).summary == result.summary
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(RestoreError, match="metrics.jsonl"):
        train(plan, tmp_path)
    lost = {"decisions": [{"kind": "rows_lost", "step": plan.num_steps}]}
    for allowed in (("rows",), ()):  # it need be said once
        again = train(plan, tmp_path, allow_change=allowed)
        assert again.summary == result.summary | lost and again.history == []


def test_the_current_folder_may_change_meanwhile(tmp_path, monkeypatch):
    plan = make_plan("4", N, "2ep")
    whole = train(plan)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    result = train(plan, "run", on_step=lambda *_: os.chdir(tmp_path / "elsewhere"))
    assert result.summary["weights_digest"] == whole.summary["weights_digest"]
    assert not any((tmp_path / "elsewhere").iterdir())
    assert (tmp_path / "run" / "checkpoints" / str(plan.num_steps)).is_dir()


@pytest.mark.parametrize("is_replaced", [False, True], ids=["moved", "replaced"])
def test_a_folder_that_is_taken_away_is_not_filled_anew(tmp_path, is_replaced):
    run, away = tmp_path / "run", tmp_path / "away"

    def take_it_away(step, *_):
        if step == 20:
            run.rename(away)
            if is_replaced:  # as where a disk was mounted
                run.mkdir()

    plan = make_plan("4", N, "2ep")
    whole = train(plan)
    with pytest.raises(StorageError, match="run isn't the folder any more|run/.* can't be written"):
        train(plan, run, on_step=take_it_away, checkpoint_every="3st")
    assert not (run.exists() and list(run.rglob("*")))
    shutil.rmtree(run, ignore_errors=True)
    away.rename(run)
    result = train(plan, run)
    assert result.start_step in (15, 18)  # it may have been about to be saved
    assert result.summary["weights_digest"] == whole.summary["weights_digest"]


def test_nothing_is_trained_that_is_not_compiled(tmp_path):
    with jax.disable_jit(), pytest.raises(UsageError, match="compile nothing.*JAX_DISABLE_JIT"):
        train(make_plan("4", N, "1ep"), tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("allowed", "said"), [("rows", r"give \('rows',\)"), (("row",), "did you mean 'rows'")]
)
def test_what_is_allowed_to_change_is_checked(allowed, said, tmp_path):
    with pytest.raises(UsageError, match=f"^allow_change: .*{said}"):
        train(make_plan("4", N, "2ep"), tmp_path, allow_change=allowed)


def test_sources_to_evaluate_on_have_names(tmp_path):
    plan = make_plan("4", N, "2ep")
    alone = train(plan)
    both = train(plan, tmp_path, eval_source={"test": TEST, "holdout": TRAIN})
    assert reproducible(alone.history) == [
        {key: value for key, value in row.items() if not key.startswith("holdout_")}
        for row in reproducible(both.history)
    ]
    expected = evaluate(eval_fn, both.state, TRAIN, 5)
    assert both.summary["holdout_accuracy"] == expected["accuracy"]
    seconds = [row["training_seconds"] for row in both.history]
    assert seconds == sorted(seconds) and 0 < seconds[-1] < both.history[-1]["elapsed_seconds"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("layout", 3), ("keep", None), ("operation", None), ("mesh", 3), ("plan", "8"), ("identity", 3),
     ("identity", {"a": object()}), ("eval_source", {})],
)  # fmt: skip
def test_arguments_that_cannot_work_are_refused_by_name(name, value):
    arguments = {"plan": make_plan("4", N, "1ep")} | {name: value}
    tx = optax.sgd(0.1)
    state = TrainState.create(params=make_params(), tx=tx, model_state={"seen": 0})
    arguments = {"eval_fn": eval_fn, "eval_source": TEST} | arguments
    with pytest.raises(UsageError, match=f"^`{name}` "):
        fit(loss_fn, tx, state, TRAIN, **arguments)


def test_a_state_before_the_first_update_is_refused():
    tx = optax.sgd(0.1)
    state = TrainState.create(params=make_params(), tx=tx, model_state={"seen": 0})
    state = dataclasses.replace(state, step=jax.numpy.int32(-3))
    with pytest.raises(UsageError, match="^`state.step` must be at least 0, got -3"):
        fit(loss_fn, tx, state, TRAIN, make_plan("4", N, "1ep"))
