"""The train step alone: its results, its errors, what it donates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adabatch_jax.data.mesh import data_mesh
from adabatch_jax.system.errors import UsageError
from adabatch_jax.training.train_state import TrainState
from adabatch_jax.training.train_step import make_train_step
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


@pytest.mark.parametrize("net", [mlp, cnn])
@pytest.mark.parametrize(
    "tx", [optax.sgd(0.05, momentum=0.9), optax.adamw(1e-3)], ids=["sgd", "adamw"]
)
def test_same_bits_as_a_handwritten_loop(net, tx):
    loss_fn = make_loss(net)

    @jax.jit
    def handwritten(params, opt_state, batch):
        (loss, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, {}, batch, None)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    params = jax.tree.map(jnp.asarray, make_params(net))
    opt_state = tx.init(params)
    step, rng = make_train_step(loss_fn, tx), jax.random.key(0)
    state = TrainState.create(params=params, tx=tx)
    for i in range(60):
        batch = make_batch(32, seed=i)
        params, opt_state, loss = handwritten(params, opt_state, batch)
        state, metrics = step(state, batch, rng)
        assert metrics["loss"] == loss
    assert state.step == 60
    jax.tree.map(np.testing.assert_array_equal, params, state.params)
    jax.tree.map(np.testing.assert_array_equal, opt_state, state.opt_state)


def test_create_copies_and_the_step_donates():
    params = {"w": jnp.zeros(2)}
    state = TrainState.create(params=params, tx=optax.sgd(1.0))
    make_train_step(linear_loss, optax.sgd(1.0))(state, linear_batch([1, 1]), jax.random.key(0))
    assert state.params["w"].is_deleted()
    assert not params["w"].is_deleted()


def test_optimizers_that_keep_the_parameters_can_be_donated():
    keeping = optax.GradientTransformation(lambda p: p, lambda g, s, p: (g, p))
    state = TrainState.create(params={"w": jnp.zeros(2)}, tx=keeping)
    step = make_train_step(linear_loss, keeping)
    state, _ = step(state, linear_batch([1, 1]), jax.random.key(0))
    assert state.step == 1


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_rng_is_folded_with_step_and_microbatch(make_key):
    def loss_fn(params, model_state, batch, rng):
        draw = jax.random.uniform(rng)
        return draw + 0 * params["w"].sum(), (model_state, {"draw": draw})

    rng, batch = make_key(3), linear_batch([[1], [1]])
    step = make_train_step(loss_fn, optax.sgd(1.0), microbatch_size=1)
    state = linear_state()
    for i in range(2):
        state, metrics = step(state, batch, rng)
        keys = [jax.random.fold_in(jax.random.fold_in(rng, i), j) for j in range(2)]
        expected = np.mean([jax.random.uniform(key) for key in keys])
        np.testing.assert_allclose(metrics["draw"], expected, rtol=1e-6)
    plain = make_train_step(loss_fn, optax.sgd(1.0))
    _, metrics = plain(linear_state(), linear_batch([1]), rng)
    key = jax.random.fold_in(jax.random.fold_in(rng, 0), 0)
    np.testing.assert_array_equal(metrics["draw"], jax.random.uniform(key))


def test_bad_arguments_and_loss_functions():
    for name in ("microbatch_size", "independent_groups"):
        with pytest.raises(UsageError, match=f"{name} .* 0"):
            make_train_step(linear_loss, optax.sgd(1.0), **{name: 0})

    def with_loss(params, model_state, batch, rng):
        return linear_loss(params, model_state, batch, rng)[0], (model_state, {"loss": 1.0})

    step = make_train_step(with_loss, optax.sgd(1.0))
    with pytest.raises(UsageError, match="'loss'"):
        step(linear_state(), linear_batch([1]), jax.random.key(0))

    def other_state(params, model_state, batch, rng):
        return linear_loss(params, model_state, batch, rng)[0], ({"n": jnp.ones(3)}, {})

    step = make_train_step(other_state, optax.sgd(1.0))
    with pytest.raises(UsageError, match=r"model_state\['n'\] was absent and is float32\[3\]"):
        step(linear_state(), linear_batch([1]), jax.random.key(0))


def test_errors_of_the_loss_function_pass():
    def broken(params, model_state, batch, rng):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        make_train_step(broken, optax.sgd(1.0))(
            linear_state(), linear_batch([1]), jax.random.key(0)
        )


@pytest.mark.parametrize("num_devices", [None, 2])
def test_what_a_partial_binds_is_no_constant_of_the_program(num_devices):
    def scaled(scale, params, model_state, batch, rng):
        loss, aux = linear_loss(params, model_state, batch, rng)
        return scale * loss, aux

    mesh = None if num_devices is None else data_mesh(jax.devices()[:num_devices])
    batch, texts = linear_batch([1, 1, 1, 0]), set()
    for scale in (1.0, 3.0):
        loss_fn = jax.tree_util.Partial(scaled, np.float32(scale))
        step = make_train_step(loss_fn, optax.sgd(1.0), mesh)
        rng = jax.random.key(0)
        texts.add(step.lower(linear_state(), batch, rng).as_text())
        state, _ = step(linear_state(), batch, rng)
        expected = -scale * np.asarray(batch["x"])[:3].mean(0)
        np.testing.assert_allclose(state.params["w"], expected, rtol=1e-6)
    assert len(texts) == 1
