"""Micro-batches: how their gradients, metrics and model states combine."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adabatch_jax.training.loss_functions import sequential_model_state, weighted_mean
from adabatch_jax.training.state import TrainState
from adabatch_jax.training.step import make_train_step
from tests.training.losses import (
    cnn,
    linear_batch,
    linear_loss,
    linear_state,
    make_batch,
    make_loss,
    make_params,
)


def test_one_microbatch_gives_the_bits_of_none():
    tx, batch, rng = optax.sgd(0.1), make_batch(12), jax.random.key(0)
    params = make_params(cnn)
    plain, _ = make_train_step(make_loss(cnn), tx)(
        TrainState.create(params=params, tx=tx), batch, rng
    )
    stacked = {k: v[None] for k, v in batch.items()}
    step = make_train_step(make_loss(cnn), tx, microbatch_size=32)
    one, metrics = step(TrainState.create(params=params, tx=tx), stacked, rng)
    jax.tree.map(np.testing.assert_array_equal, plain.params, one.params)
    assert metrics["loss"].shape == ()


@pytest.mark.parametrize(
    "weights",
    [
        [[1, 1], [1, 1], [1, 1]],
        [[1, 1], [1, 1], [1, 0]],
        [[1, 0], [0, 0], [0, 1]],
        [[2, 1], [0.5, 0], [0, 0]],
    ],
)
def test_microbatches_weigh_by_their_weights(weights):
    batch = linear_batch(weights)
    expected = np.average(batch["x"].reshape(-1, 2), axis=0, weights=np.ravel(weights))
    step = make_train_step(linear_loss, optax.sgd(1.0), microbatch_size=2)
    state, metrics = step(linear_state(), batch, jax.random.key(0))
    np.testing.assert_allclose(-state.params["w"], expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["x"], expected, rtol=1e-6)


def test_a_padded_microbatch_is_left_out_even_with_nan():
    def loss_fn(params, model_state, batch, rng):
        mean = (batch["x"] * batch["weight"][:, None]).sum(0) / batch["weight"].sum()
        state = {"mean": mean, "count": model_state["count"] + 1}
        return params["w"] @ mean, (state, {"x": mean})

    batch = linear_batch([[1, 1], [0, 0]])
    state = linear_state({"mean": np.full(2, 7.0, np.float32), "count": np.int32(4)})
    step = make_train_step(loss_fn, optax.sgd(1.0), microbatch_size=2)
    state, metrics = step(state, batch, jax.random.key(0))
    for got in (-state.params["w"], metrics["x"], state.model_state["mean"]):
        np.testing.assert_array_equal(got, [1.0, 2.0])
    assert state.model_state["count"] == 5


def test_without_a_real_example_nothing_changes():
    state = linear_state({"mean": np.full(2, 7.0, np.float32)})
    step = make_train_step(linear_loss, optax.sgd(1.0), microbatch_size=2)
    state, metrics = step(state, linear_batch([[0, 0], [0, 0]]), jax.random.key(0))
    np.testing.assert_array_equal(state.params["w"], [0, 0])
    np.testing.assert_array_equal(state.model_state["mean"], [7, 7])
    np.testing.assert_array_equal(metrics["x"], [0, 0])


def test_sequential_model_state():
    """Each micro-batch begins where the one before ended; one of padding leaves no trace."""

    @sequential_model_state
    def loss_fn(params, model_state, batch, rng):
        mean = weighted_mean(batch["x"], batch["weight"])
        state = {
            "mean": 0.9 * model_state["mean"] + 0.1 * mean,
            "count": model_state["count"] + 1,
        }
        return params["w"] @ mean, (state, {})

    batch = linear_batch([[1, 1], [0, 0], [1, 0]])
    start = {"mean": jnp.ones(2), "count": jnp.int32(0)}
    step = make_train_step(loss_fn, optax.sgd(1.0), microbatch_size=2)
    state, _ = step(linear_state(start), batch, jax.random.key(0))
    x = np.asarray(batch["x"])
    expected = 0.9 * (0.9 * 1 + 0.1 * x[0].mean(0)) + 0.1 * x[2, 0]
    np.testing.assert_allclose(state.model_state["mean"], expected, rtol=1e-6)
    assert state.model_state["count"] == 2
    # The gradient is the weighted mean in any case.
    whole = (2 * x[0].mean(0) + x[2, 0]) / 3
    np.testing.assert_allclose(state.params["w"], linear_state().params["w"] - whole, rtol=1e-6)


def test_model_state_combines():
    """Floats as weighted means from the same incoming state, the rest from the last real one."""

    def loss_fn(params, model_state, batch, rng):
        mean = weighted_mean(batch["x"], batch["weight"])
        state = {
            "mean": 0.9 * model_state["mean"] + 0.1 * mean,
            "last": batch["x"][0, 0].astype(jnp.int32),
            "half": mean.astype(jnp.bfloat16),
        }
        return params["w"] @ mean, (state, {})

    batch = linear_batch([[1, 1], [1, 0], [0, 0]])
    start = {"mean": jnp.ones(2), "last": jnp.int32(0), "half": jnp.zeros(2, jnp.bfloat16)}
    step = make_train_step(loss_fn, optax.sgd(1.0), microbatch_size=2)
    state, _ = step(linear_state(start), batch, jax.random.key(0))
    expected = 0.9 + 0.1 * np.array([2.0, 3.0])
    np.testing.assert_allclose(state.model_state["mean"], expected, rtol=1e-6)
    assert state.model_state["last"] == 4
    assert state.model_state["half"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(state.model_state["half"], [2, 3])


def test_bfloat16_gradients_are_summed_in_float32():
    def loss_fn(params, model_state, batch, rng):
        return (params["w"] * weighted_mean(batch["x"], batch["weight"])).sum(), ({}, {})

    x = np.full((300, 1, 2), 1.0, np.float32)
    batch = {"x": x.astype(jnp.bfloat16), "weight": np.ones((300, 1), jnp.bfloat16)}
    state = TrainState.create(params={"w": jnp.zeros(2, jnp.bfloat16)}, tx=optax.sgd(1.0))
    step = make_train_step(loss_fn, optax.sgd(1.0), microbatch_size=1)
    state, _ = step(state, batch, jax.random.key(0))
    assert state.params["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(state.params["w"].astype(np.float32), [-1, -1])
