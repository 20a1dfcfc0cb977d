"""Any framework whose model is arrays and a function trains: a few lines of adapter each.

Every adapter trains one small network from the same weights, and must end where the one that
is written by hand ends.
"""

import functools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from adabatch_jax import Layout, array_source, data_mesh, fit, make_plan
from adabatch_jax.system.errors import UsageError
from adabatch_jax.training.loss_functions import weighted_mean
from adabatch_jax.training.train_state import TrainState
from adabatch_jax.training.train_step import make_train_step


def make_weights():
    rng = np.random.default_rng(0)
    shapes = {"w1": (12, 16), "b1": (16,), "w2": (16, 3), "b2": (3,)}
    return {k: rng.normal(0, 0.3, shape).astype(np.float32) for k, shape in shapes.items()}


def cross_entropy(logits, batch):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return weighted_mean(losses, batch["weight"])


def handwritten(weights):
    def loss_fn(params, model_state, batch, rng):
        hidden = jax.nn.relu(batch["x"] @ params["w1"] + params["b1"][None])
        logits = hidden @ params["w2"] + params["b2"][None]
        return cross_entropy(logits, batch), (model_state, {})

    return weights, {}, loss_fn


def from_linen(weights):
    class MLP(nn.Module):
        @nn.compact
        def __call__(self, x):
            hidden = nn.relu(nn.Dense(16)(x))
            return nn.Dense(3)(hidden)

    model = MLP()
    variables = {
        "params": {
            "Dense_0": {"kernel": weights["w1"], "bias": weights["b1"]},
            "Dense_1": {"kernel": weights["w2"], "bias": weights["b2"]},
        }
    }
    expected = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 12)))
    assert jax.tree.structure(expected) == jax.tree.structure(variables)

    def loss_fn(params, model_state, batch, rng):
        variables = {"params": params, **model_state}
        logits, model_state = model.apply(variables, batch["x"], mutable=list(model_state))
        return cross_entropy(logits, batch), (model_state, {})

    params = variables.pop("params")
    return params, variables, loss_fn


def split_with(weights, model):
    """An nnx module that has these weights, as `nnx.split` takes it apart."""
    for number, layer in enumerate((model.hidden, model.out), start=1):
        layer.kernel[...] = jnp.asarray(weights[f"w{number}"])
        layer.bias[...] = jnp.asarray(weights[f"b{number}"])
    return nnx.split(model, nnx.Param, ...)


def from_nnx(weights):
    class MLP(nnx.Module):
        def __init__(self, rngs):
            self.hidden, self.out = nnx.Linear(12, 16, rngs=rngs), nnx.Linear(16, 3, rngs=rngs)

        def __call__(self, x):
            return self.out(nnx.relu(self.hidden(x)))

    graphdef, params, model_state = split_with(weights, MLP(nnx.Rngs(0)))

    def loss_fn(params, model_state, batch, rng):
        model = nnx.merge(graphdef, params, model_state, copy=True)
        logits = model(batch["x"])
        return cross_entropy(logits, batch), (nnx.state(model, nnx.Not(nnx.Param)), {})

    return params, model_state, loss_fn


def from_equinox(weights):
    keys = jax.random.split(jax.random.key(0))
    layers = [eqx.nn.Linear(12, 16, key=keys[0]), eqx.nn.Linear(16, 3, key=keys[1])]
    model = eqx.nn.Sequential([layers[0], eqx.nn.Lambda(jax.nn.relu), layers[1]])
    model = eqx.tree_at(
        lambda m: [m[0].weight, m[0].bias, m[2].weight, m[2].bias],
        model,
        [weights["w1"].T, weights["b1"], weights["w2"].T, weights["b2"]],
    )

    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss_fn(params, model_state, batch, rng):
        logits = jax.vmap(eqx.combine(params, static))(batch["x"])
        return cross_entropy(logits, batch), (model_state, {})

    return params, {}, loss_fn


def batchnorm_by_hand(weights):
    """Normalized by the real rows; running statistics move by a tenth, as in all of them here."""

    def loss_fn(params, model_state, batch, rng):
        hidden = batch["x"] @ params["w1"] + params["b1"][None]
        mean = weighted_mean(hidden, batch["weight"])
        var = weighted_mean((hidden - mean[None]) ** 2, batch["weight"])
        hidden = jax.nn.relu((hidden - mean[None]) / jnp.sqrt(var + 1e-5)[None])
        logits = hidden @ params["w2"] + params["b2"][None]
        state = {"mean": 0.9 * model_state["mean"] + 0.1 * mean}
        state["var"] = 0.9 * model_state["var"] + 0.1 * var
        return cross_entropy(logits, batch), (state, {})

    return weights, {"mean": np.zeros(16, np.float32), "var": np.ones(16, np.float32)}, loss_fn


def batchnorm_of_linen(weights, is_masked=True):
    class MLP(nn.Module):
        @nn.compact
        def __call__(self, x, weight):
            mask = (weight > 0)[:, None] if is_masked else None
            x = nn.BatchNorm(
                use_running_average=False, momentum=0.9, use_bias=False, use_scale=False
            )(nn.Dense(16)(x), mask=mask)
            return nn.Dense(3)(nn.relu(x))

    model = MLP()
    params = {
        f"Dense_{i}": {"kernel": weights[f"w{i + 1}"], "bias": weights[f"b{i + 1}"]}
        for i in range(2)
    }
    model_state = {
        "BatchNorm_0": {"mean": np.zeros(16, np.float32), "var": np.ones(16, np.float32)}
    }

    def loss_fn(params, model_state, batch, rng):
        variables = {"params": params, "batch_stats": model_state}
        logits, changed = model.apply(
            variables, batch["x"], batch["weight"], mutable=["batch_stats"]
        )
        return cross_entropy(logits, batch), (changed["batch_stats"], {})

    return params, model_state, loss_fn


def batchnorm_of_nnx(weights, is_masked=True):
    class MLP(nnx.Module):
        def __init__(self, rngs):
            self.hidden, self.out = nnx.Linear(12, 16, rngs=rngs), nnx.Linear(16, 3, rngs=rngs)
            self.norm = nnx.BatchNorm(16, momentum=0.9, use_bias=False, use_scale=False, rngs=rngs)

        def __call__(self, x, mask):
            return self.out(nnx.relu(self.norm(self.hidden(x), mask=mask)))

    graphdef, params, model_state = split_with(weights, MLP(nnx.Rngs(0)))

    def loss_fn(params, model_state, batch, rng):
        model = nnx.merge(graphdef, params, model_state, copy=True)
        mask = (batch["weight"] > 0)[:, None] if is_masked else None
        logits = model(batch["x"], mask)
        return cross_entropy(logits, batch), (nnx.state(model, nnx.Not(nnx.Param)), {})

    return params, model_state, loss_fn


class MaskedBatchNorm(eqx.Module):
    """equinox's BatchNorm takes the mean of all rows; this one gets each row's weight."""

    statistics: eqx.nn.StateIndex

    def __init__(self, size):
        self.statistics = eqx.nn.StateIndex((jnp.zeros(size), jnp.ones(size)))

    def __call__(self, x, weight, state):
        total = jax.lax.psum(weight, "batch")
        mean = jax.lax.psum(x * weight, "batch") / total
        var = jax.lax.psum((x - mean) ** 2 * weight, "batch") / total
        old = state.get(self.statistics)
        new = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, old, (mean, var))
        return (x - mean) / jnp.sqrt(var + 1e-5), state.set(self.statistics, new)


class EquinoxMLP(eqx.Module):
    hidden: eqx.nn.Linear
    norm: eqx.Module
    out: eqx.nn.Linear

    def __call__(self, x, weight, state):
        x = self.hidden(x)
        if isinstance(self.norm, MaskedBatchNorm):
            x, state = self.norm(x, weight, state)
        else:
            x, state = self.norm(x, state)
        return self.out(jax.nn.relu(x)), state


def batchnorm_of_equinox(weights, is_masked=True):
    keys = jax.random.split(jax.random.key(0))
    norm = MaskedBatchNorm(16)
    if not is_masked:
        norm = eqx.nn.BatchNorm(16, "batch", channelwise_affine=False, momentum=0.9, mode="batch")
    model = EquinoxMLP(eqx.nn.Linear(12, 16, key=keys[0]), norm, eqx.nn.Linear(16, 3, key=keys[1]))
    model = eqx.tree_at(
        lambda m: [m.hidden.weight, m.hidden.bias, m.out.weight, m.out.bias],
        model,
        [weights["w1"].T, weights["b1"], weights["w2"].T, weights["b2"]],
    )
    statistics, structure = jax.tree.flatten(eqx.nn.State(model))
    params, static = eqx.partition(eqx.nn.delete_init_state(model), eqx.is_inexact_array)

    def loss_fn(params, model_state, batch, rng):
        model = eqx.combine(params, static)
        state = jax.tree.unflatten(structure, model_state)
        over_rows = jax.vmap(model, axis_name="batch", in_axes=(0, 0, None), out_axes=(0, None))
        logits, state = over_rows(batch["x"], batch["weight"], state)
        return cross_entropy(logits, batch), (jax.tree.leaves(state), {})

    return params, statistics, loss_fn


WITH_BATCHNORM = [batchnorm_of_linen, batchnorm_of_nnx, batchnorm_of_equinox]


def fit_padded(adapter, num_devices, **options):
    """Trains with batches of 21, which 4 devices pad to 24, and a partial one of 17."""
    params, model_state, loss_fn = adapter(make_weights(), **options)
    tx, generator = optax.sgd(0.1, momentum=0.9), np.random.default_rng(0)
    x = generator.normal(1, 2, size=(101, 12)).astype(np.float32)
    source = array_source({"x": x, "label": generator.integers(0, 3, 101).astype(np.int32)})
    state = TrainState.create(params=params, tx=tx, model_state=model_state)
    mesh = data_mesh(jax.devices()[:num_devices])
    plan = make_plan(21, 101, "1ep")
    result = fit(loss_fn, tx, state, source, plan, mesh=mesh, layout=Layout(None), log_every="1st")
    return [row["train_loss"] for row in result.history], result.state


@functools.cache
def by_hand():
    return fit_padded(batchnorm_by_hand, 1)


@pytest.mark.parametrize("num_devices", [1, 4])
@pytest.mark.parametrize("adapter", WITH_BATCHNORM)
def test_batch_normalization_leaves_padding_out(adapter, num_devices):
    expected_losses, expected = by_hand()
    losses, state = fit_padded(adapter, num_devices)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)
    got, wanted = (sorted_weights(tree.params) for tree in (state, expected))
    for leaf, like in zip(got, wanted, strict=True):
        np.testing.assert_allclose(leaf, like, rtol=1e-3, atol=1e-5)
    statistics = [np.asarray(s) for s in jax.tree.leaves(state.model_state) if np.shape(s) == (16,)]
    for like in jax.tree.leaves(expected.model_state):
        assert any(np.allclose(s, like, rtol=1e-3, atol=1e-5) for s in statistics)


@pytest.mark.parametrize("adapter", WITH_BATCHNORM)
def test_batch_normalization_without_a_mask_is_refused_where_it_is_padded(adapter):
    losses, _ = fit_padded(adapter, 1, is_masked=False)
    np.testing.assert_allclose(losses, by_hand()[0], rtol=1e-4)
    with pytest.raises(UsageError, match="loss_fn sees padding"):
        fit_padded(adapter, 4, is_masked=False)


def train(adapter, microbatch_size=None):
    params, model_state, loss_fn = adapter(make_weights())
    tx = optax.sgd(0.1, momentum=0.9)
    state = TrainState.create(params=params, tx=tx, model_state=model_state)
    step, rng = make_train_step(loss_fn, tx, microbatch_size=microbatch_size), jax.random.key(0)
    losses = []
    for i in range(20):
        generator = np.random.default_rng(i)
        batch = {
            "x": generator.normal(size=(24, 12)).astype(np.float32),
            "label": generator.integers(0, 3, 24).astype(np.int32),
            "weight": (np.arange(24) < 21).astype(np.float32),
        }
        if microbatch_size is not None:
            shape = (-1, microbatch_size)
            batch = {k: v.reshape(shape + v.shape[1:]) for k, v in batch.items()}
        state, metrics = step(state, batch, rng)
        losses.append(metrics["loss"])
    return np.array(losses), state.params


def sorted_weights(params):
    """The weights of any framework in one order: by size, matrices as (inputs, outputs)."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    leaves = [leaf.T if leaf.shape in ((16, 12), (3, 16)) else leaf for leaf in leaves]
    return sorted(leaves, key=np.size)


@functools.cache
def trained_by_hand(microbatch_size):
    return train(handwritten, microbatch_size)


@pytest.mark.parametrize("microbatch_size", [None, 8])
@pytest.mark.parametrize("adapter", [from_linen, from_nnx, from_equinox])
def test_frameworks_train_to_the_same_numbers(adapter, microbatch_size):
    expected_losses, expected = trained_by_hand(microbatch_size)
    losses, params = train(adapter, microbatch_size)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-6)
    for leaf, wanted in zip(sorted_weights(params), sorted_weights(expected), strict=True):
        np.testing.assert_allclose(leaf, wanted, rtol=1e-6, atol=1e-6)
        if adapter is not from_equinox:
            # The same operations on the same layout: not even a rounding differs.
            np.testing.assert_array_equal(leaf, wanted)
