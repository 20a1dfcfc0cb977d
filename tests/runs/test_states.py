"""States of all kinds through a whole run: random keys in them, other weights to evaluate, kept."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from adabatch_jax.config import Layout, Operation
from adabatch_jax.data.mesh import data_mesh
from adabatch_jax.runs.fit import fit
from adabatch_jax.schedules.plan import make_plan
from adabatch_jax.system.errors import UsageError
from adabatch_jax.training.evaluation import evaluate
from adabatch_jax.training.loss_functions import weighted_mean
from adabatch_jax.training.train_state import TrainState
from adabatch_jax.training.weights_digest import weights_digest
from tests.runs.small_run import TEST, TRAIN, N, apply, eval_fn, make_params, reproducible

PLAN = make_plan("4, 1ep: 8", N, "2ep")


def mean_loss(params, batch, x):
    losses = optax.softmax_cross_entropy_with_integer_labels(apply(params, x), batch["y"])
    return weighted_mean(losses, batch["weight"])


def noisy_loss(params, model_state, batch, rng):
    """Noise from keys of its own, typed and raw, as nnx's Dropout has them."""
    new, key = jax.random.split(model_state["key"])
    raw = jax.random.split(model_state["raw"])[0]
    noise = jax.random.normal(key, (5,)) + jax.random.normal(raw, (5,))
    loss = mean_loss(params, batch, batch["x"] + 0.1 * noise[None])
    return loss, ({"key": new, "raw": raw}, {})


def train(workdir=None, tx=None, loss_fn=noisy_loss, model_state=None, **options):
    tx = tx or optax.chain(optax.add_noise(0.01, 0.5, jax.random.key(2)), optax.adam(0.01))
    if model_state is None:
        model_state = {"key": jax.random.key(0), "raw": jax.random.PRNGKey(1)}
    state = TrainState.create(params=make_params(), tx=tx, model_state=model_state)
    options = {"eval_fn": eval_fn, "eval_source": TEST, "log_every": "4st", **options}
    return fit(loss_fn, tx, state, TRAIN, PLAN, workdir=workdir, **options)


@pytest.mark.parametrize("is_split", [False, True])
def test_random_keys_in_a_state_survive_a_restart(is_split, tmp_path):
    """On a mesh, sharded, in micro-batches, where updates may be left out, and evaluated."""
    layout = Layout(4, "split" if is_split else "fused", 1, shard_params=True)
    options = {"mesh": data_mesh(jax.devices()[:2]), "operation": Operation(on_nan="skip:2")}
    options |= {"layout": layout, "checkpoint_every": "4st"}
    whole = train(tmp_path / "whole", **options)
    assert train(tmp_path / "cut", **options, on_step=lambda n, *_: n == 6).stopped
    cut = train(tmp_path / "cut", **options)
    assert cut.start_step == 6 and reproducible(cut.history) == reproducible(whole.history)
    # They move once per update, also in micro-batches, where the last one's stay.
    key = jax.random.key(0)
    for _ in range(PLAN.num_steps):
        key = jax.random.split(key)[0]
    np.testing.assert_array_equal(*map(jax.random.key_data, (cut.state.model_state["key"], key)))
    assert cut.summary["weights_digest"] == whole.summary["weights_digest"]
    others = {**cut.state.model_state, "key": jax.random.key(9)}
    state = dataclasses.replace(cut.state, model_state=others)
    assert weights_digest(state) != cut.summary["weights_digest"]


def test_dropout_of_nnx_in_the_model_state(tmp_path):
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.hidden, self.out = nnx.Linear(5, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.out(self.dropout(nnx.relu(self.hidden(x))))

    graph, params, rest = nnx.split(Network(nnx.Rngs(0)), nnx.Param, ...)

    def loss_fn(params, model_state, batch, rng):
        model = nnx.merge(graph, params, model_state, copy=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"])
        loss = weighted_mean(losses, batch["weight"])
        return loss, (nnx.state(model, nnx.Not(nnx.Param)), {})

    def run(workdir, **options):
        tx = optax.adam(0.01)
        state = TrainState.create(params=params, tx=tx, model_state=rest)
        return fit(loss_fn, tx, state, TRAIN, PLAN, workdir=workdir,
                   checkpoint_every="5st", layout=Layout(steps_per_dispatch=1), **options)  # fmt: skip

    whole = run(tmp_path / "whole")
    run(tmp_path / "cut", on_step=lambda n, *_: n == 7)
    assert run(tmp_path / "cut").summary["weights_digest"] == whole.summary["weights_digest"]
    counts = jax.tree.leaves(whole.state.model_state["dropout"]["rngs"]["count"])
    assert [int(count) for count in counts] == [PLAN.num_steps]


def test_schedule_free_weights_are_evaluated_and_the_others_kept():
    tx = optax.contrib.schedule_free_sgd(0.5)
    options = dict(tx=tx, loss_fn=lambda params, model_state, batch, rng:
                   (mean_loss(params, batch, batch["x"]), (model_state, {})),
                   model_state={}, eval_fn=lambda params, model_state, batch:
                   {"loss": mean_loss(params, batch, batch["x"])})  # fmt: skip
    eval_params = optax.contrib.schedule_free_eval_params
    for mesh in (None, data_mesh(jax.devices()[:2])):
        result = train(eval_params=eval_params, mesh=mesh, **options)
        state = result.state
        weights = jax.jit(eval_params)(state.opt_state, state.params)
        batch = {**TEST.arrays, "weight": np.ones(17)}
        by_hand = float(jax.jit(mean_loss)(weights, batch, TEST.arrays["x"]))
        np.testing.assert_allclose(result.summary["test_loss"], by_hand, rtol=1e-5)
        trained = evaluate(options["eval_fn"], state, TEST, 17, mesh)["loss"]
        assert abs(trained - by_hand) > 1e-3
        assert result.summary["weights_digest"] == weights_digest(state)
        again = evaluate(options["eval_fn"], state, TEST, 5, mesh, eval_params=eval_params)
        np.testing.assert_allclose(again["loss"], by_hand, rtol=1e-5)
    with pytest.raises(UsageError, match="eval_params.*eval_fn"):
        train(eval_params=eval_params, **{**options, "eval_fn": None, "eval_source": None})


def test_a_callback_may_keep_copies_of_the_state(tmp_path):
    kept = {}

    def on_step(finished, state, metrics):
        kept[finished] = jax.tree.map(jnp.copy, state)
        kept[-finished] = state

    train(tmp_path, on_step=on_step, layout=Layout(3, "split"), checkpoint_every="3st")
    for finished in range(1, PLAN.num_steps + 1):
        assert int(kept[finished].step) == finished
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept[finished].params))
    with pytest.raises(RuntimeError, match="deleted"):
        np.asarray(kept[-3].params["w1"])


def test_metrics_of_eval_fn_that_are_none_are_named():
    def quiet_loss(params, model_state, batch, rng):
        return mean_loss(params, batch, batch["x"]), (model_state, {})

    def no_dict(params, model_state, batch):
        return weighted_mean(batch["x"][:, 0], batch["weight"])

    with pytest.raises(UsageError, match=r"eval_fn must return a dict of metrics, got a \w+\."):
        train(tx=optax.sgd(0.1), loss_fn=quiet_loss, model_state={}, eval_fn=no_dict)
