"""The optimizers of the command, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adabatch_jax import models
from adabatch_jax.config import TrainConfig
from adabatch_jax.runs.configured_optimizer import make_optimizer
from adabatch_jax.system.errors import UsageError

RATE, DECAY = 0.1, 0.3
PARAMS = {"kernel": np.array([[1.0, -2.0], [3.0, 4.0]]), "bias": np.array([5.0, -6.0])}
GRADS = [
    {"kernel": np.array([[3.0, 0.5], [-1.0, 2.0]]), "bias": np.array([1.0, -4.0])},
    {"kernel": np.array([[-2.0, 1.5], [4.0, 0.25]]), "bias": np.array([2.0, 8.0])},
]


def trained(params=PARAMS, grads=GRADS, **settings):
    """The parameters after an update for each of the gradients."""
    config = TrainConfig(weight_decay=DECAY, coupling="none", **settings)
    tx = make_optimizer(config, optax.constant_schedule(RATE))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    state = tx.init(params)
    for grad in grads:
        grad = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), grad)
        updates, state = tx.update(grad, state, params)
        params = optax.apply_updates(params, updates)
    return params


def adamw_in_numpy(decayed, beta1=0.9, beta2=0.999, epsilon=1e-8, limit=np.inf):
    params = {name: array.copy() for name, array in PARAMS.items()}
    first = {name: 0 for name in PARAMS}
    second = {name: 0 for name in PARAMS}
    for count, grads in enumerate(GRADS, 1):
        norm = np.sqrt(sum((grad**2).sum() for grad in grads.values()))
        for name, grad in grads.items():
            grad = grad * min(1, limit / norm)
            first[name] = beta1 * first[name] + (1 - beta1) * grad
            second[name] = beta2 * second[name] + (1 - beta2) * grad**2
            mean, square = first[name] / (1 - beta1**count), second[name] / (1 - beta2**count)
            step = mean / (np.sqrt(square) + epsilon)
            params[name] -= RATE * (step + DECAY * params[name] * (name in decayed))
    return params


def assert_close(actual, expected):
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, rtol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"decayed": ["kernel", "bias"]}),
        ({"decay_on": "matrices"}, {"decayed": ["kernel"]}),
        ({"model": "gpt_nano"}, {"decayed": ["kernel"]}),
        ({"model": "gpt_nano", "decay_on": "all"}, {"decayed": ["kernel", "bias"]}),
        (
            {"beta1": 0.5, "beta2": 0.95, "epsilon": 0.1},
            {"decayed": ["kernel", "bias"], "beta1": 0.5, "beta2": 0.95, "epsilon": 0.1},
        ),
        # The gradients' norms are 5.59 and 9.50.
        ({"clip_norm": 7.0, "epsilon": 1.0}, {"decayed": ["kernel", "bias"], "limit": 7.0, "epsilon": 1.0}),
    ],
    ids=str,
)  # fmt: skip
def test_adamw(settings, expected):
    assert_close(trained(optimizer="adamw", **settings), adamw_in_numpy(**expected))


@pytest.mark.parametrize("limit", [None, 7.0])
def test_sgd_decays_behind_the_clipping(limit):
    params = {name: array.copy() for name, array in PARAMS.items()}
    trace = {name: 0 for name in PARAMS}
    for grads in GRADS:
        norm = np.sqrt(sum((grad**2).sum() for grad in grads.values()))
        for name, grad in grads.items():
            grad = grad * min(1, (limit or np.inf) / norm)
            decay = DECAY * params[name] * (name == "kernel")
            trace[name] = 0.9 * trace[name] + grad + decay
            params[name] -= RATE * trace[name]
    assert_close(trained(decay_on="matrices", clip_norm=limit), params)


def test_muon_turns_matrices_of_features_and_leaves_the_rest_to_adam():
    module = models.create("gpt_nano", 23, width=16, num_layers=1, num_heads=2, bias=True)
    params = models.functions(module)[0]
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), params)
    after = trained(params, [grads], optimizer="muon", model="gpt_nano")
    turned = []
    for path, old in jax.tree.leaves_with_path(params):
        names = [entry.key for entry in path]
        new = np.asarray(_at(after, names), np.float64)
        grad = np.asarray(_at(grads, names), np.float64)
        if names[-1] == "kernel" and names[0] != "lm_head":
            turned.append(".".join(names[:-1]))
            step = (old - new) / RATE - DECAY * old
            # Newton and Schulz change how long the directions are, and not the directions.
            left, lengths, right = np.linalg.svd(grad, full_matrices=False)
            lengths = lengths / np.linalg.norm(lengths)
            for _ in range(5):
                lengths = 3.4445 * lengths - 4.775 * lengths**3 + 2.0315 * lengths**5
            expected = 0.2 * np.sqrt(max(grad.shape)) * (left * lengths) @ right
            np.testing.assert_allclose(step, expected, atol=2e-4, err_msg=".".join(names))
        else:
            # Adam's first step, with Nesterov's momentum, has the length of the rate.
            step = (old - new) / RATE
            assert (np.sign(step) == np.sign(grad)).all() and np.ptp(abs(step)) < 0.01, names
    assert turned == ["h_0.attn.c_attn", "h_0.attn.c_proj", "h_0.mlp.c_fc", "h_0.mlp.c_proj"]


def _at(tree, names):
    for name in names:
        tree = tree[name]
    return tree


@pytest.mark.parametrize("name", ["beta1", "beta2", "epsilon"])
def test_sgd_has_no_betas(name):
    with pytest.raises(UsageError, match=f"{name}: sgd has none; give --optimizer adamw or muon"):
        TrainConfig(**{name: 0.5})
    assert getattr(TrainConfig(optimizer="muon", **{name: 0.5}), name) == 0.5
