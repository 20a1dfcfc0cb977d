"""Runs of `fit` that are loaded: like the state that they were begun with."""

import numpy as np
import optax
import pytest

import adabatch_jax as ab
from adabatch_jax.runs.weights import weights_of_run
from tests.runs.small_run import N, make_params, train


def begun():
    tx = optax.sgd(ab.coupled_learning_rate(PLAN, 0.05), momentum=0.9)
    return ab.TrainState.create(params=make_params(), tx=tx, model_state={"seen": 0})


PLAN = ab.make_plan("20 x2 every 2ep", N, "3ep")


def test_a_run_of_fit_is_loaded_like_a_state(tmp_path):
    result = train(PLAN, tmp_path / "run")
    run = ab.load_run(tmp_path / "run", like=begun())
    for name, array in result.state.params.items():
        np.testing.assert_array_equal(run.params[name], array)
    assert int(run.state.model_state["seen"]) == PLAN.num_steps == run.step
    assert run.plan == PLAN and run.model is run.config is run.class_names is None
    best = ab.load_run(tmp_path / "run", best=True, like=begun())
    scores = {row["step"]: row.get("test_accuracy") for row in result.history}
    assert scores[best.step] == max(score for score in scores.values() if score is not None)
    with pytest.raises(ab.UsageError, match="is one of `fit`; give `like=`"):
        ab.load_run(tmp_path / "run")
    with pytest.raises(ab.UsageError, match="has no module to predict with"):
        run.predict(np.zeros((1, 5)))
    other = ab.TrainState.create(params=make_params(), tx=optax.adam(0.1), model_state={"seen": 0})
    with pytest.raises(ab.RestoreError, match="belongs to another model or optimizer"):
        ab.load_run(tmp_path / "run", like=other)
    weights = weights_of_run(tmp_path / "run")
    assert set(weights.arrays) == {"params.b1", "params.w1", "params.w2", "model_state.seen"}
    np.testing.assert_array_equal(weights.arrays["params.w2"], result.state.params["w2"])


def test_a_run_that_has_saved_nothing_yet(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ab.UsageError, match="has saved no checkpoint yet"):
        ab.load_run(tmp_path)
