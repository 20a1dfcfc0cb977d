"""Stops before a phase's first update: a run in several jobs is the run in one."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adabatch_jax.config import Layout, Operation
from adabatch_jax.data.mesh import data_mesh
from adabatch_jax.data.sources import array_source
from adabatch_jax.runs.due import Due
from adabatch_jax.runs.fit import fit
from adabatch_jax.runs.folder.run_folder import RunFolder
from adabatch_jax.schedules.learning_rate_schedule import coupled_learning_rate
from adabatch_jax.schedules.periods import every
from adabatch_jax.schedules.plan import make_plan
from adabatch_jax.system.errors import UsageError
from adabatch_jax.training.loss_functions import weighted_mean
from adabatch_jax.training.train_state import TrainState
from tests.runs.small_run import N, reproducible, train

# Phases begin with updates 0, 8 and 13, none of them where anything else is due.
PLAN = make_plan("4, 29sp: 6, 61sp: 10", N, "2.5ep")
STARTS = [0, 8, 13]
OTHERWISE = {"eval_every": "11st", "checkpoint_every": "5st", "log_every": "3st"}


def stopping(phase, **operation):
    return {"operation": Operation(stop_at_phase=phase, **operation)}


def summary_of(run):
    return json.loads((run / "summary.json").read_text())


def assert_same(result, whole):
    assert not result.stopped and "stopped_at_phase" not in result.summary
    assert repr(reproducible(result.history)) == repr(reproducible(whole.history))
    assert reproducible([result.summary]) == reproducible([whole.summary])


def test_the_plan_is_as_the_tests_need_it():
    assert [phase.start_step for phase in PLAN.phases] == STARTS
    for step in STARTS[1:]:
        assert step % 3 and step % 5 and step % 11


@pytest.mark.parametrize("layout", [Layout(None, steps_per_dispatch=3), Layout(4, "split")])
def test_each_phase_in_a_job_of_its_own_is_the_undisturbed_run(tmp_path, layout):
    options = {**OTHERWISE, "layout": layout}
    whole = train(PLAN, tmp_path / "whole", **options)
    cut = tmp_path / "cut"
    for phase, start in ((2, 8), (3, 13)):
        asked = phase if phase == 2 else "next"
        result = train(PLAN, cut, **options, **stopping(asked))
        assert result.stopped and result.state.step == result.summary["step"] == start
        assert result.summary["stopped_at_phase"] == summary_of(cut)["stopped_at_phase"] == phase
        assert (cut / "checkpoints" / str(start)).is_dir()
        assert [row["step"] for row in result.history] == [
            row["step"] for row in whole.history if row["step"] <= start
        ]
    assert_same(train(PLAN, cut, **options, **stopping("next")), whole)
    assert "stopped_at_phase" not in summary_of(cut)
    rows = [(run / "metrics.jsonl").read_text().splitlines() for run in (tmp_path / "whole", cut)]
    assert repr(reproducible(map(json.loads, rows[0]))) == repr(
        reproducible(map(json.loads, rows[1]))
    )
    kept = [
        sorted(p.name for p in (r / "checkpoints").iterdir()) for r in (tmp_path / "whole", cut)
    ]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("stood", [7, 8, 9])
def test_around_a_phases_first_update(tmp_path, stood):
    """Stopped by something else one update before, there, and one behind."""
    train(PLAN, tmp_path, **OTHERWISE, on_step=lambda finished, *_: finished == stood)
    files = {path: path.read_bytes() for path in tmp_path.glob("*.json*")}
    if stood == 9:
        with pytest.raises(UsageError, match="^stop_at_phase: phase 2 began with update 8, .* 9"):
            train(PLAN, tmp_path, **OTHERWISE, **stopping(2))
        assert {path: path.read_bytes() for path in tmp_path.glob("*.json*")} == files
        return
    result = train(PLAN, tmp_path, **OTHERWISE, **stopping(2))
    assert result.stopped and result.start_step == stood and result.state.step == 8
    assert summary_of(tmp_path)["stopped_at_phase"] == 2
    # Once more: nothing is left to do before that phase.
    again = train(PLAN, tmp_path, **OTHERWISE, **stopping(2))
    assert again.stopped and again.start_step == again.state.step == 8
    assert reproducible(again.history) == reproducible(result.history)
    assert reproducible([again.summary]) == [
        {name: summary_of(tmp_path)[name] for name in reproducible([again.summary])[0]}
    ]


def test_phases_that_there_are_not(tmp_path):
    with pytest.raises(UsageError, match="^stop_at_phase: there is no phase 4, the plan has 3"):
        train(PLAN, tmp_path / "run", **stopping(4))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    for wrong in (0, 1, -1, "last", 2.5, True):
        with pytest.raises(UsageError, match="^stop_at_phase: "):
            Operation(stop_at_phase=wrong)


@pytest.mark.parametrize("finished", range(16))
def test_the_next_stop_is_never_behind_the_phase(finished):
    period = every(PLAN, "5st")
    due = Due(PLAN.num_steps, None, period, every(PLAN, "3st"), phase_stop=8)
    expected = min(s for s in (5, 8, 10, 15, 20) if s > finished)
    assert due.next_stop(finished) == min(expected, PLAN.num_steps)
    assert not due.is_checkpoint(8)


def test_a_finished_run_stays_finished(tmp_path):
    whole = train(PLAN, tmp_path)
    before = (tmp_path / "summary.json").read_bytes()
    for phase in (2, 3, "next"):
        again = train(PLAN, tmp_path, **stopping(phase))
        assert not again.stopped and again.summary == whole.summary
    assert (tmp_path / "summary.json").read_bytes() == before


def test_a_rule_that_is_met_at_the_phase_ends_the_run(tmp_path):
    options = {"eval_every": "8st", "stop_when": "test_accuracy >= 0"}
    result = train(PLAN, tmp_path, **options, **stopping(2))
    assert not result.stopped and result.summary["stopped_by"]["step"] == 8
    assert "stopped_at_phase" not in result.summary


def test_an_evaluation_that_is_cut_off_there_is_made_before_the_run_has_stopped_there(tmp_path):
    options = {**OTHERWISE, "eval_every": "8st"}
    whole = train(PLAN, tmp_path / "whole", **options)
    asked = SimpleNamespace(requested=False, defer=lambda: None, expect=lambda seconds: None)

    def on_step(finished, *_):
        asked.requested = finished == 8

    run = tmp_path / "run"
    cut = train(PLAN, run, **options, on_step=on_step, **stopping(2, interruption=asked))
    assert cut.stopped and "stopped_at_phase" not in cut.summary
    assert not (run / "summary.json").exists()
    there = train(PLAN, run, **options, **stopping(2))
    assert there.summary["stopped_at_phase"] == 2 and there.history[-1]["step"] == 8
    assert "test_accuracy" in there.history[-1]
    assert_same(train(PLAN, run, **options), whole)


@pytest.mark.parametrize("bad", [8, 9])
def test_a_rollback_around_the_stop_is_the_same(tmp_path, faults, bad):
    """Which weights it goes back to, and what it leaves out, doesn't depend on the stop."""
    options = {**OTHERWISE, "eval_fn": None, "eval_source": None}
    faults(f"batch.ready:{bad}:nan")
    whole = train(PLAN, tmp_path / "whole", **options, operation=Operation("rollback"))
    assert [d["checkpoint"] for d in whole.summary["decisions"]] == [5]
    faults(f"batch.ready:{bad}:nan")
    first = train(PLAN, tmp_path / "cut", **options, **stopping(2, on_nan="rollback"))
    assert first.summary["step"] == 8
    faults("batch.ready:1:nan" if bad == 9 else "")
    result = train(PLAN, tmp_path / "cut", **options, operation=Operation("rollback"))
    faults("")
    assert_same(result, whole)


# A chain of jobs on more and more devices.


def expected_ids(seed, num_samples):
    """Which examples come when: numpy alone, as the page on data tells it."""
    epochs = []
    for epoch in range(-(-num_samples // N)):
        bits = np.random.Philox(np.random.SeedSequence([seed, epoch, N])).random_raw(N)
        epochs.append(np.argsort(bits, kind="stable"))
    return np.concatenate(epochs)[:num_samples]


NUM_SAMPLES = PLAN.num_samples


def noting_loss(params, model_state, batch, rng):
    """Notes the examples that it gets, in their order, beside its loss."""
    real = batch["weight"] > 0
    place = jnp.where(real, model_state["position"] + jnp.cumsum(real) - 1, NUM_SAMPLES)
    noted = model_state["noted"].at[place].set(batch["index"].astype(jnp.int32), mode="drop")
    errors = (batch["x"] @ params["w"] - batch["y"]) ** 2
    state = {"noted": noted, "position": model_state["position"] + real.sum()}
    return weighted_mean(errors, batch["weight"]), (state, {})


def noting_run(
    workdir, num_devices, phase=None, layout=Layout(None, steps_per_dispatch=1), state=None
):
    random = np.random.default_rng(3)
    x = random.normal(size=(N, 4)).astype(np.float32)
    source = array_source({"x": x, "y": x.sum(1)})
    lr = coupled_learning_rate(PLAN, 0.01)
    tx = optax.sgd(lr, momentum=0.9)
    state = state or TrainState.create(
        params={"w": jnp.zeros(4)}, tx=tx,
        model_state={"noted": jnp.full(NUM_SAMPLES, -1), "position": jnp.int32(0)},
    )  # fmt: skip
    mesh = data_mesh(jax.devices()[:num_devices]) if num_devices > 1 else None
    return fit(
        noting_loss, tx, state, source, PLAN, learning_rate=lr, seed=7, mesh=mesh, workdir=workdir,
        log_every="2st", layout=layout, operation=Operation(stop_at_phase=phase),
        sequential_model_state=True,
    )  # fmt: skip


@pytest.mark.parametrize("layout", [Layout(None, steps_per_dispatch=1), Layout(4)])
def test_a_chain_of_jobs_on_1_2_and_4_devices_sees_every_example_as_one_job_does(tmp_path, layout):
    whole = noting_run(tmp_path / "whole", 1, layout=layout)
    for num_devices, phase in ((1, "next"), (2, 3), (4, None)):
        result = noting_run(tmp_path / "chain", num_devices, phase, layout)
    assert not result.stopped
    ids = expected_ids(7, NUM_SAMPLES)
    for run in (whole, result):
        np.testing.assert_array_equal(run.state.model_state["noted"], ids)
    noted = np.asarray(result.state.model_state["noted"])
    for epoch in range(2):
        assert sorted(noted[epoch * N : (epoch + 1) * N]) == list(range(N))
    same = ("step", "samples", "batch_size", "phase", "learning_rate", "examples_digest")
    assert [[row[k] for k in same] for row in result.history] == [
        [row[k] for k in same] for row in whole.history
    ]
    losses = [[row["train_loss"] for row in run.history] for run in (result, whole)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    devices = [d for d in result.summary["decisions"] if d["setting"] == "batch_shards"]
    assert [(d["step"], d["from"], d["to"]) for d in devices] == [(8, 1, 2), (13, 2, 4)]


def test_without_a_folder_the_state_goes_on():
    first = noting_run(None, 1, 2)
    assert first.stopped and first.summary["stopped_at_phase"] == 2 and first.state.step == 8
    again = noting_run(None, 1, 2, state=first.state)
    assert again.summary["stopped_at_phase"] == 2 and again.start_step == again.state.step == 8
    result = noting_run(None, 1, state=again.state)
    np.testing.assert_array_equal(result.state.model_state["noted"], expected_ids(7, NUM_SAMPLES))
    assert not result.stopped


def test_ended_between_the_last_save_and_the_summary(tmp_path, monkeypatch):
    whole = train(PLAN, tmp_path / "whole", **OTHERWISE)
    run = tmp_path / "run"
    with monkeypatch.context() as killed:
        killed.setattr(RunFolder, "write_summary", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(PLAN, run, **OTHERWISE, **stopping(2))
    assert (run / "checkpoints" / "8").is_dir() and not (run / "summary.json").exists()
    again = train(PLAN, run, **OTHERWISE, **stopping(2))
    assert again.start_step == 8 and summary_of(run)["stopped_at_phase"] == 2
    assert_same(train(PLAN, run, **OTHERWISE), whole)
