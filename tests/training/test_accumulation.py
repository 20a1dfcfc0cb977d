"""Micro-batches: how their gradients, metrics and model states combine."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adabatch_jax.data.mesh import batch_sharding, data_mesh, rows_of_all_devices
from adabatch_jax.training.loss_functions import weighted_mean
from adabatch_jax.training.train_state import TrainState
from adabatch_jax.training.train_step import make_train_step
from adabatch_jax.training.update import Update
from tests.training.small_problem import (
    cnn,
    linear_batch,
    linear_loss,
    linear_state,
    make_batch,
    make_loss,
    make_params,
    mlp,
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

    def loss_fn(params, model_state, batch, rng):
        mean = weighted_mean(batch["x"], batch["weight"])
        state = {
            "mean": 0.9 * model_state["mean"] + 0.1 * mean,
            "count": model_state["count"] + 1,
        }
        return params["w"] @ mean, (state, {})

    batch = linear_batch([[1, 1], [0, 0], [1, 0]])
    start = {"mean": jnp.ones(2), "count": jnp.int32(0)}
    step = make_train_step(loss_fn, optax.sgd(1.0), microbatch_size=2, sequential_model_state=True)
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


def moving_mean_loss(params, model_state, batch, rng):
    mean = weighted_mean(batch["x"], batch["weight"])
    state = {"mean": 0.9 * model_state["mean"] + 0.1 * mean}
    loss = (params["w"] - mean) @ (params["w"] - mean) + jax.random.uniform(rng)
    return loss, (state, {"hits": batch["x"][0, 0] > 2, "x": mean})


@pytest.mark.parametrize(("sequential", "num_devices"), [(False, None), (True, 2)])
def test_an_update_in_parts(sequential, num_devices, compiled_once):
    """begin + add * K + finish is the update of (K, m, ...), in three programs for any K."""
    mesh = None if num_devices is None else data_mesh(jax.devices()[:num_devices])
    tx, rng = optax.adam(0.1), jax.random.key(1)
    update = Update(moving_mean_loss, tx, mesh, 2, sequential_model_state=sequential)
    step = make_train_step(moving_mean_loss, tx, mesh, 2, sequential_model_state=sequential)
    begin = compiled_once(jax.jit(update.begin))
    add = compiled_once(jax.jit(update.add, donate_argnums=0))
    finish = compiled_once(jax.jit(update.finish, donate_argnums=0))

    def new_state():
        start = {"mean": jnp.ones(2)}
        params = {"w": np.zeros(2, np.float32)}
        return step.place(TrainState.create(params=params, tx=tx, model_state=start))

    whole, parts, rng = new_state(), new_state(), step.place(rng)
    for weights in ([[1, 1], [0, 0], [1, 0]], [[1, 1], [1, 0.5]], [[0, 1]]):
        batch = linear_batch(weights)
        whole, expected = step(whole, batch, rng)
        sums = None
        for j in range(len(weights)):
            microbatch = {name: array[j] for name, array in batch.items()}
            if mesh is not None:
                microbatch = jax.device_put(microbatch, batch_sharding(mesh))
            if sums is None:
                sums = begin(parts, microbatch, rng, update.constants)
            number = step.place(jnp.int32(j))
            sums = add(sums, parts, microbatch, rng, number, update.constants)
        parts, metrics, is_finite, weight = finish(parts, sums)
        assert is_finite and float(weight) == np.sum(weights)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
        jax.tree.map(close, (parts, metrics), (whole, {**expected, "hits": +expected["hits"]}))


def test_sums_of_devices_apart_leave_out_what_is_padding():
    """A device without a real example, and one that is left without any in a micro-batch."""

    def loss_fn(params, model_state, batch, rng):
        mean = (batch["x"] * batch["weight"][:, None]).sum(0) / batch["weight"].sum()
        return params["w"] @ mean, ({"mean": 0.5 * model_state["mean"] + mean}, {"x": mean})

    weights = np.array([[1, 1, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0.5]])
    batch = linear_batch(weights)
    expected = np.average(batch["x"].reshape(-1, 2), axis=0, weights=weights.ravel())
    mesh = data_mesh(jax.devices()[:4])
    step = make_train_step(loss_fn, optax.sgd(1.0), mesh, 4, independent_groups=1)
    state, metrics = step(linear_state({"mean": jnp.ones(2)}), batch, jax.random.key(0))
    for got in (-state.params["w"], metrics["x"], state.model_state["mean"] - 0.5):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_sequential_state_of_devices_apart():
    """All devices go on from the same state, also those without a real example."""

    def loss_fn(params, model_state, batch, rng):
        weight = rows_of_all_devices(batch["weight"])
        groups = rows_of_all_devices(batch["x"][:, 0])
        last = 10 * model_state["last"] + (groups * weight).sum()
        state = {"last": last, "count": model_state["count"] + 1}
        return params["w"] @ weighted_mean(batch["x"], batch["weight"]), (state, {})

    batch = linear_batch([[0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0]])
    mesh = data_mesh(jax.devices()[:4])
    step = make_train_step(loss_fn, optax.sgd(1.0), mesh, 4, True, independent_groups=1)
    start = {"last": jnp.float32(1), "count": jnp.int32(0)}
    state, _ = step(linear_state(start), batch, jax.random.key(0))
    for device in range(4):
        shards = jax.tree.map(lambda leaf: leaf.addressable_shards[device].data, state.model_state)
        assert shards == {"last": 10 * (10 * 1 + 6) + 18 + 20, "count": 2}


def test_micro_batches_need_no_second_optimizer_state():
    """Beside what one micro-batch needs there are the sums of the gradients, and no more."""
    tx = optax.adam(0.1)
    state = TrainState.create(params=make_params(mlp), tx=tx)
    step = make_train_step(make_loss(mlp), tx, microbatch_size=4)

    def memory(num_microbatches):
        batch = make_batch(4 * num_microbatches)
        batch = {k: v.reshape(-1, 4, *v.shape[1:]) for k, v in batch.items()}
        abstract = jax.eval_shape(lambda *x: x, state, batch, jax.random.key(0))
        return step.lower(*abstract).compile().memory_analysis()

    one, four = memory(1), memory(4)
    num_bytes = [sum(x.nbytes for x in jax.tree.leaves(t)) for t in (state.params, state)]
    assert num_bytes[1] > 3 * num_bytes[0]
    assert four.temp_size_in_bytes - one.temp_size_in_bytes < 1.2 * num_bytes[0]
    assert four.alias_size_in_bytes >= num_bytes[1]
