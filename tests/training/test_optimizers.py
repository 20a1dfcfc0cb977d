"""Optimizers that want more than gradients, or that don't count as a plan does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adabatch_jax as ab
from adabatch_jax.data.mesh import data_mesh
from adabatch_jax.system.errors import UsageError

X = np.linspace(-1, 1, 24, dtype=np.float32)
Y = 3 * X + np.cos(5 * X)
SOURCE = ab.array_source({"x": X, "y": Y})
PLAN = ab.make_plan("4, 2ep: 8", 24, "6ep")


def loss_fn(params, model_state, batch, rng):
    errors = (params["w"] * batch["x"] + params["b"] - batch["y"]) ** 2
    return ab.weighted_mean(errors, batch["weight"]), (model_state, {})


def new_state(tx):
    return ab.TrainState.create(params={"w": 0.0, "b": 0.0}, tx=tx)


def polyak_in_numpy(plan):
    """Polyak's step size: loss / |gradient|**2."""
    w = b = 0.0
    for batch in ab.batches(SOURCE, plan, seed=3):
        x, y = (batch[name].astype(np.float64) for name in "xy")
        errors = w * x + b - y
        gradient = 2 * np.array([np.mean(errors * x), np.mean(errors)])
        w, b = np.array([w, b]) - np.mean(errors**2) / np.sum(gradient**2) * gradient
    return w, b


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layout": ab.Layout(microbatch_size=3)},
        {"layout": ab.Layout(microbatch_size=3, accumulation="split")},
        {"layout": ab.Layout(steps_per_dispatch=5)},
        {"mesh": 2, "layout": ab.Layout(microbatch_size=4)},
        {"operation": ab.Operation(on_nan="skip:2")},
    ],
    ids=str,
)
def test_the_loss_of_the_whole_batch_reaches_the_optimizer(options):
    if "mesh" in options:
        options = options | {"mesh": data_mesh(jax.devices()[: options["mesh"]])}
    tx, plan = optax.polyak_sgd(max_learning_rate=10.0), ab.make_plan("4, 2ep: 8", 24, "3ep")
    state = ab.fit(loss_fn, tx, new_state(tx), SOURCE, plan, seed=3, **options).state
    w, b = polyak_in_numpy(plan)
    np.testing.assert_allclose([state.params["w"], state.params["b"]], [w, b], rtol=2e-5)


def test_a_plateau_is_followed_as_in_a_loop_by_hand():
    tx = optax.chain(optax.adam(0.3), optax.contrib.reduce_on_plateau(0.5, patience=2))

    @jax.jit
    def update(params, opt_state, batch):
        loss, grads = jax.value_and_grad(lambda p: loss_fn(p, {}, batch, None)[0])(params)
        updates, opt_state = tx.update(grads, opt_state, params, value=loss)
        return optax.apply_updates(params, updates), opt_state

    params = {"w": jnp.zeros(()), "b": jnp.zeros(())}
    opt_state = tx.init(params)
    for batch in ab.batches(SOURCE, PLAN, seed=3):
        params, opt_state = update(params, opt_state, batch)
    state = ab.fit(loss_fn, tx, new_state(tx), SOURCE, PLAN, seed=3).state
    assert float(state.opt_state[1].scale) == float(opt_state[1].scale) < 0.1
    np.testing.assert_allclose(state.params["w"], params["w"], rtol=1e-5)


def test_an_argument_that_cannot_be_given_is_named():
    tx = optax.lbfgs()
    with pytest.raises(UsageError, match=r"needs 'value_fn'.*linesearch=None"):
        ab.fit(loss_fn, tx, new_state(tx), SOURCE, PLAN)
    tx = optax.lbfgs(0.05, linesearch=None)
    assert ab.fit(loss_fn, tx, new_state(tx), SOURCE, PLAN).state.step == PLAN.num_steps


@pytest.mark.parametrize(
    "tx",
    [
        optax.MultiSteps(optax.sgd(0.1), 2),
        optax.chain(optax.clip(1.0), optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()),
    ],
    ids=["bare", "inside"],
)
def test_multi_steps_are_for_loops_of_ones_own(tx):
    with pytest.raises(UsageError, match=r"MultiSteps.*microbatch_size.*accumulation_schedule"):
        ab.fit(loss_fn, tx, new_state(tx), SOURCE, PLAN)
    state, step = new_state(tx), ab.make_train_step(loss_fn, tx)
    weights = []
    for batch in ab.batches(SOURCE, ab.make_plan(4, 24, "16sp"), seed=3):
        state, _ = step(state, batch, jax.random.key(0))
        weights.append(float(state.params["w"]))
    assert weights[0] == 0 != weights[1] == weights[2] != weights[3]


def test_multi_steps_hand_the_loss_on():
    tx = optax.MultiSteps(optax.polyak_sgd(max_learning_rate=10.0), 1)
    state, step = new_state(tx), ab.make_train_step(loss_fn, tx)
    plan = ab.make_plan(4, 24, "1ep")
    for batch in ab.batches(SOURCE, plan, seed=3):
        state, _ = step(state, batch, jax.random.key(0))
    w, b = polyak_in_numpy(plan)
    np.testing.assert_allclose([state.params["w"], state.params["b"]], [w, b], rtol=2e-5)
