"""Optimizers that want more than gradients, or that don't count as a plan does."""

import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
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
    with pytest.raises(UsageError, match=r"'value_fn'; take.*linesearch=None"):
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
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in ab.batches(SOURCE, ab.make_plan(4, 24, "16sp"), seed=3):
            state, _ = step(state, batch, jax.random.key(0))
            weights.append(float(state.params["w"]))
    assert weights[0] == 0 != weights[1] == weights[2] != weights[3]


def test_multi_steps_of_whole_batches_are_told():
    tx = optax.MultiSteps(optax.sgd(0.1), 2)
    state, step = new_state(tx), ab.make_train_step(loss_fn, tx)
    small, large = (next(ab.batches(SOURCE, ab.make_plan(size, 24, "1ep"))) for size in (4, 8))
    state, _ = step(state, small, jax.random.key(0))
    with pytest.warns(UserWarning, match="8 examples after one with 4: optax.MultiSteps"):
        step(state, large, jax.random.key(0))
    step = ab.make_train_step(loss_fn, tx, microbatch_size=2)
    batch = next(ab.batches(SOURCE, PLAN, microbatch_size=2))
    with pytest.raises(UsageError, match="MultiSteps with microbatch_size in `make_train_step`"):
        step(new_state(tx), batch, jax.random.key(0))


def test_multi_steps_of_micro_batches_are_on_the_plans_clock():
    rate = ab.coupled_learning_rate(PLAN, ab.parse_learning_rate("0.1 x0.5 every 1ep"))
    tx = optax.MultiSteps(optax.sgd(rate), ab.accumulation_schedule(PLAN, 4))
    state, step = new_state(tx), ab.make_train_step(loss_fn, tx)
    for batch in ab.batches(SOURCE, PLAN, seed=3, microbatch_size=4):
        for k in range(len(batch["weight"])):
            rows = {name: array[k] for name, array in batch.items()}
            state, _ = step(state, rows, jax.random.key(0))
    whole = ab.fit(loss_fn, optax.sgd(rate), new_state(optax.sgd(rate)), SOURCE, PLAN, seed=3).state
    assert state.opt_state.gradient_step == PLAN.num_steps == whole.step < state.step
    np.testing.assert_allclose(state.params["w"], whole.params["w"], rtol=1e-5)


def sam_in_numpy(plan, rate, radius):
    w, true = np.zeros(2), np.zeros(2)
    for count, batch in enumerate(ab.batches(SOURCE, plan, seed=3)):
        x, y = (batch[name].astype(np.float64) for name in "xy")
        errors = w[0] * x + w[1] - y
        gradient = 2 * np.array([np.mean(errors * x), np.mean(errors)])
        if count % 2 == 0:
            true, w = w, w + radius * gradient / np.linalg.norm(gradient)
        else:
            w = true - rate(count) * gradient
    return w


@pytest.mark.parametrize("around", [lambda tx: tx, lambda tx: optax.chain(optax.zero_nans(), tx)])
@pytest.mark.parametrize("microbatch_size", [None, 3])
def test_sam_does_not_know_the_loss(around, microbatch_size):
    worst = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    rate = ab.coupled_learning_rate(PLAN, ab.parse_learning_rate("0.1 x0.5 every 1ep"))
    tx = around(optax.contrib.sam(optax.sgd(lambda count: rate(2 * count + 1)), worst))
    layout = ab.Layout(microbatch_size=microbatch_size)
    state = ab.fit(loss_fn, tx, new_state(tx), SOURCE, PLAN, seed=3, layout=layout).state
    assert PLAN.num_steps % 2 == 0
    ours = [state.params["w"], state.params["b"]]
    np.testing.assert_allclose(ours, sam_in_numpy(PLAN, rate, 0.05), rtol=1e-5)


def test_what_a_part_needs_and_another_refuses_is_named():
    worst = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    sam = optax.contrib.sam(optax.sgd(0.1), worst)
    plateau = optax.contrib.reduce_on_plateau()
    with pytest.raises(UsageError, match=r"params \(a part of it takes no .*'value'; take"):
        tx = optax.chain(sam, plateau)
        ab.fit(loss_fn, tx, new_state(tx), SOURCE, PLAN)
    tx = optax.chain(optax.GradientTransformation(sam.init, sam.update), plateau)
    assert ab.fit(loss_fn, tx, new_state(tx), SOURCE, PLAN).state.step == PLAN.num_steps
    tx = optax.contrib.sam(optax.sgd(0.1), worst, opaque_mode=True)
    with pytest.raises(UsageError, match="grad_fn must be provided"):
        ab.fit(loss_fn, tx, new_state(tx), SOURCE, PLAN)


def test_multi_steps_hand_the_loss_on():
    tx = optax.MultiSteps(optax.polyak_sgd(max_learning_rate=10.0), 1)
    state, step = new_state(tx), ab.make_train_step(loss_fn, tx)
    plan = ab.make_plan(4, 24, "1ep")
    for batch in ab.batches(SOURCE, plan, seed=3):
        state, _ = step(state, batch, jax.random.key(0))
    w, b = polyak_in_numpy(plan)
    np.testing.assert_allclose([state.params["w"], state.params["b"]], [w, b], rtol=2e-5)


SGD = optax.sgd(0.1)
ARGUMENTS = {  # of optax's transformations, by the names of those that have no default
    "adv_optimizer": optax.chain(optax.contrib.normalize(), SGD), "args": SGD, "base_optimizer": SGD,
    "clipping": 1.0, "decay": 0.9, "eta": 0.1, "f": lambda updates, params: updates,
    "fast_optimizer": SGD, "freeze_mask": {"w": True, "b": False}, "gamma": 0.5, "inner": SGD,
    "inner_factory": optax.sgd, "l2_norm_clip": 1.0, "learning_rate": 0.1, "mask": True,
    "max_consecutive_errors": 2, "max_delta": 1.0, "max_linesearch_steps": 3, "max_norm": 1.0,
    "measure": lambda updates, **_: optax.tree.norm(updates), "measure_name": "norm",
    "max_backtracking_steps": 3, "noise_multiplier": 0.1, "optimizer": SGD,
    "param_labels": {"w": "a", "b": "a"}, "seed": 0, "should_transform_fn": lambda step: step > 0,
    "slow_step_size": 0.5, "step_size": 0.1, "step_size_fn": lambda step: 0.1, "sync_period": 2,
    "threshold": 1.0, "transforms": {"a": SGD}, "tx": SGD,
}  # fmt: skip
NO_OPTIMIZERS = {"differentially_private_aggregate", "dpsgd", "lookahead", "lbfgs", "sophia"} | {
    "measure_with_ema",    "scale_by_backtracking_linesearch", "scale_by_zoom_linesearch",
    "hutchinson_estimator_diag_hessian",
}  # fmt: skip


def transformations():
    """All of optax's, by name, each with simple arguments."""
    for module in (optax, optax.contrib):
        for name, function in vars(module).items():
            if name.startswith("_") or not inspect.isfunction(function):
                continue
            wanted = inspect.signature(function).parameters.values()
            wanted = [p for p in wanted if p.default is p.empty and p.kind != p.VAR_KEYWORD]
            if not {p.name for p in wanted} <= set(ARGUMENTS) or "schedule" in name:
                continue
            by_name = {p.name: ARGUMENTS[p.name] for p in wanted if p.kind != p.VAR_POSITIONAL}
            if name == "named_chain":
                made = function(("sgd", SGD))
            elif name == "inject_hyperparams" or name == "inject_stateful_hyperparams":
                made = function(optax.sgd)(learning_rate=0.1)
            else:
                made = function(*([SGD] * (len(wanted) - len(by_name))), **by_name)
            if isinstance(made, optax.GradientTransformation):
                yield name, made


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Specifying a key")
def test_each_of_optaxs_transformations_trains_or_is_refused_in_a_sentence():
    refused, num_made = {}, 0
    batch = {"x": X[:6].reshape(2, 3), "y": Y[:6].reshape(2, 3), "weight": np.ones((2, 3), "f")}
    for name, tx in transformations():
        num_made += 1
        params = {"w": jnp.zeros((3, 2)), "b": jnp.zeros(3)}
        try:
            with jax.numpy_rank_promotion("allow"):  # as in a user's program
                state = ab.TrainState.create(params=params, tx=tx)
                step = ab.make_train_step(wide_loss, tx, microbatch_size=3)
                lowered = step.lower(state, batch, jax.random.key(0))
            # What comes out can go in again.
            assert jax.tree.map(kind, lowered.out_info[0]) == jax.tree.map(kind, state), name
        except UsageError as error:
            refused[name] = str(error)
    assert num_made > 100
    assert set(refused) - {"scale_by_muon"} == NO_OPTIMIZERS  # which optax 0.2.8 can't run alone
    assert all(text.startswith("the optimizer") and "\n" not in text for text in refused.values())


def kind(array):
    return array.shape, array.dtype


def wide_loss(params, model_state, batch, rng):
    errors = params["w"].sum() * batch["x"] + params["b"].sum() - batch["y"]
    return ab.weighted_mean(errors**2, batch["weight"]), (model_state, {})
