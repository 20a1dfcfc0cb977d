"""Any framework whose model is arrays and a function trains: a few lines of adapter each.

Every adapter trains one small network from the same weights, and must end where the one that
is written by hand ends.
"""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

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


def from_nnx(weights):
    class MLP(nnx.Module):
        def __init__(self, rngs):
            self.hidden, self.out = nnx.Linear(12, 16, rngs=rngs), nnx.Linear(16, 3, rngs=rngs)

        def __call__(self, x):
            return self.out(nnx.relu(self.hidden(x)))

    model = MLP(nnx.Rngs(0))
    for number, layer in enumerate((model.hidden, model.out), start=1):
        layer.kernel[...] = jnp.asarray(weights[f"w{number}"])
        layer.bias[...] = jnp.asarray(weights[f"b{number}"])

    graphdef, params, model_state = nnx.split(model, nnx.Param, ...)

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


@pytest.mark.parametrize("microbatch_size", [None, 8])
@pytest.mark.parametrize("adapter", [from_linen, from_nnx, from_equinox])
def test_frameworks_train_to_the_same_numbers(adapter, microbatch_size):
    expected_losses, expected = train(handwritten, microbatch_size)
    losses, params = train(adapter, microbatch_size)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-6)
    for leaf, wanted in zip(sorted_weights(params), sorted_weights(expected), strict=True):
        np.testing.assert_allclose(leaf, wanted, rtol=1e-6, atol=1e-6)
        if adapter is not from_equinox:
            # The same operations on the same layout: not even a rounding differs.
            np.testing.assert_array_equal(leaf, wanted)
