"""Losses and gradients that aren't finite: they are found, and leave nothing where skipped."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from adabatch_jax import TrainState, array_source, data_mesh, make_plan
from adabatch_jax.data.feeds import Feed
from adabatch_jax.data.mesh import batch_sharding
from adabatch_jax.training.dispatch import FusedDispatch, SplitDispatch
from adabatch_jax.training.finite_checks import all_finite, poisoned, rolled_back
from adabatch_jax.training.loss_functions import weighted_mean
from adabatch_jax.training.update import Update
from tests.training.small_problem import make_batch as make_images
from tests.training.small_problem import make_loss, make_params, mlp
from tests.training.test_layouts import collectives

X = np.random.default_rng(0).normal(size=(48, 4)).astype(np.float32)


def loss_fn(params, model_state, batch, rng):
    """Where an example's bump is 0, the loss is finite and one number of "v"'s gradient is not."""
    errors = (batch["x"] @ params["w"] - 1.0) ** 2
    values = errors + jnp.sqrt(params["v"][700] * batch["bump"])
    state = {"mean": model_state["mean"] + weighted_mean(batch["x"][:, 0], batch["weight"])}
    return weighted_mean(values, batch["weight"]), (state, {})


def new_state(tx):
    params = {"w": np.zeros(4, np.float32), "v": np.ones(1024, np.float32)}
    return TrainState.create(params=params, tx=tx, model_state={"mean": np.zeros((), np.float32)})


def make_batch(rows=48, bump=1.0, at=None):
    bumps = np.ones(rows, np.float32)
    if at is not None:
        bumps[at] = bump
    return {"x": X[:rows], "bump": bumps, "weight": np.ones(rows, np.float32)}


def floats(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(other))


LAYOUTS = {
    "plain": (None, None, {}),
    "micro-batches": (None, 12, {"sequential_model_state": True}),
    "mesh": (4, None, {}),
    "mesh, micro-batches": (4, 12, {}),
    "one reduction": (4, 12, {"independent_groups": 1}),
    "sharded": (4, None, {"shard_params": True}),
    "sharded, micro-batches": (4, 12, {"shard_params": True}),
    "sharded, one reduction": (4, 12, {"shard_params": True, "independent_groups": 1}),
}


@functools.cache
def layout(name, skip_nonfinite=True, tx=optax.sgd(0.1, momentum=0.9)):
    """A step, and a function that places a batch for it."""
    num_devices, microbatch_size, options = LAYOUTS[name]
    mesh = data_mesh(jax.devices()[:num_devices]) if num_devices else None
    step = Update(loss_fn, tx, mesh, microbatch_size, skip_nonfinite=skip_nonfinite, **options)

    def place(batch):
        if microbatch_size:
            batch = {k: v.reshape(-1, microbatch_size, *v.shape[1:]) for k, v in batch.items()}
        where = None if mesh is None else batch_sharding(mesh, bool(microbatch_size))
        return jax.device_put(batch, where)

    return step, place, step.place(new_state(tx)), step.place(jax.random.key(0))


@pytest.mark.parametrize("name", LAYOUTS)
def test_one_bad_number_on_one_device_is_known_to_all_of_them(name):
    step, place, state, rng = layout(name)
    update = jax.jit(step)
    good = make_batch()
    bad_gradient, bad_loss = make_batch(bump=0.0, at=29), make_batch(bump=np.inf, at=47)
    for batch, wanted in ((good, True), (bad_gradient, False), (bad_loss, False)):
        batch = place(batch)
        after, metrics, is_finite, _ = update(state, batch, rng, step.constants)
        assert [bool(shard.data) for shard in is_finite.addressable_shards] == (
            [wanted] * len(jax.tree.leaves(state.params)[0].sharding.device_set)
        )
        assert is_finite.dtype == bool and is_finite.shape == ()
        assert bool(jnp.isfinite(metrics["loss"])) == (batch["bump"].max() < np.inf)
        assert after.step == 1
        if not wanted:
            for part in ("params", "model_state", "opt_state"):
                assert_same(getattr(after, part), getattr(state, part))


@pytest.mark.parametrize("name", ["mesh", "one reduction", "sharded", "sharded, one reduction"])
def test_the_flag_costs_at_most_one_number_to_tell(name):
    step, place, state, rng = layout(name, skip_nonfinite=False)
    plain, checked = (
        collectives(
            jax.jit(function).lower(state, place(make_batch()), rng, step.constants)
            .compile().as_text()
        )
        for function in (lambda *arguments: step(*arguments)[:2], lambda *arguments: step(*arguments)[:3])
    )  # fmt: skip
    for collective in plain:
        checked.remove(collective)
    assert checked == ([("all-reduce", "s32[]")] if step.shard_params else [])


@pytest.mark.parametrize(
    "tx",
    [
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.05, momentum=0.9)),
        optax.adamw(optax.linear_schedule(1e-2, 1e-3, 20)),
    ],
    ids=["sgd", "adamw"],
)
def test_checked_updates_have_the_bits_of_a_handwritten_loop(tx):
    loss_fn = make_loss(mlp)

    @jax.jit
    def handwritten(params, opt_state, batch):
        (loss, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, {}, batch, None)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    params, rng = jax.tree.map(jnp.asarray, make_params(mlp)), jax.random.key(0)
    opt_state = tx.init(params)
    steps = [Update(loss_fn, tx, skip_nonfinite=skip) for skip in (False, True)]
    states = [TrainState.create(params=params, tx=tx) for _ in steps]
    updates = [jax.jit(step, donate_argnums=0) for step in steps]
    for i in range(20):
        batch = make_images(32, seed=i)
        params, opt_state, loss = handwritten(params, opt_state, batch)
        for which, update in enumerate(updates):
            states[which], metrics, is_finite, _ = update(states[which], batch, rng, ())
            assert metrics["loss"] == loss and is_finite
    for state in states:
        assert_same((state.params, state.opt_state), (params, opt_state))


@pytest.mark.parametrize("name", ["plain", "micro-batches", "one reduction"])
def test_poisoned_inputs_spoil_the_loss_and_the_gradients(name):
    step, place, state, rng = layout(name, skip_nonfinite=False)
    batch = place(make_batch())
    batch |= {"weight": poisoned(batch["weight"])}
    after, metrics, is_finite, _ = jax.jit(step)(state, batch, rng, step.constants)
    assert not is_finite and not jnp.isfinite(metrics["loss"])
    assert not jnp.isfinite(after.params["w"]).any()


# Also first, and two in a row.
BAD_STEPS = (0, 3, 4)


def train_with_bad_steps(tx):
    """The states before and after each of 8 updates."""
    step, _, state, rng = layout("plain", tx=tx)
    update, states = jax.jit(step), [state]
    for i in range(8):
        batch = make_batch(16, bump=np.inf, at=[5] if i in BAD_STEPS else [])
        batch["x"] = X[i : i + 16]
        states.append(update(states[-1], batch, rng, step.constants)[0])
    return states


def rate(count):
    return 0.02 + 0.01 * count


def test_a_skipped_step_of_sgd_is_what_numpy_leaves_out():
    tx = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(rate, momentum=0.9))
    states = train_with_bad_steps(tx)
    w, momentum = np.zeros(4), np.zeros(4)
    for i, state in enumerate(states[1:]):
        if i not in BAD_STEPS:
            x = X[i : i + 16].astype(np.float64)
            grad = 2 * ((x @ w - 1.0)[:, None] * x).mean(0) + 0.1 * w
            momentum = 0.9 * momentum + grad
            w = w - rate(i) * momentum
        np.testing.assert_allclose(state.params["w"], w, rtol=1e-5, atol=1e-7)
        assert state.step == i + 1


def newer_counts_and_keys(path, old, new):
    return new if any(name in str(path[-1]) for name in ("count", "key")) else old


def without_keys(tree):
    """Random keys as the numbers that they are."""

    def numbers(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    return jax.tree.map(numbers, tree)


@pytest.mark.parametrize(
    "tx",
    [
        optax.adamw(rate, weight_decay=0.1),
        optax.inject_hyperparams(optax.adam)(learning_rate=rate),
        optax.chain(optax.add_noise(1e-3, 0.5, jax.random.key(7)), optax.sgd(rate, momentum=0.9)),
    ],
    ids=["adamw", "inject_hyperparams", "noise"],
)
def test_after_a_skipped_step_only_counts_and_keys_are_new(tx):
    """Against the optimizer alone, whose state is put together by the names of its parts."""
    states = train_with_bad_steps(tx)
    value_and_grad = jax.jit(jax.value_and_grad(lambda *a: loss_fn(*a)[0]))
    params, opt_state = states[0].params, states[0].opt_state
    for i, state in enumerate(states[1:]):
        batch = make_batch(16) | {"x": X[i : i + 16]}
        _, grads = value_and_grad(params, states[0].model_state, batch, None)
        updates, after = tx.update(grads, opt_state, params)
        if i in BAD_STEPS:
            opt_state = jax.tree_util.tree_map_with_path(newer_counts_and_keys, opt_state, after)
            assert_same(state.params, states[i].params)
            assert_same(floats(state.opt_state), floats(states[i].opt_state))
        else:
            params, opt_state = optax.apply_updates(params, updates), after
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6),
            without_keys((state.params, state.opt_state)),
            without_keys((params, opt_state)),
        )


def test_a_state_is_rolled_back_to_its_place_in_the_plan():
    states = train_with_bad_steps(optax.adamw(rate))
    saved, current = states[2], states[7]
    state = rolled_back(saved, current)
    assert state.step == 7
    counts = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.dtype == jnp.int32]
    assert counts == [7, 7]
    assert_same(
        (state.params, state.model_state, state.opt_state[0].mu, state.opt_state[0].nu),
        (saved.params, saved.model_state, saved.opt_state[0].mu, saved.opt_state[0].nu),
    )


PLAN = make_plan("8, 24sp: 12", num_examples=30, duration="60sp")
SOURCE = array_source({"x": X[:30], "bump": np.ones(30, np.float32)})


@pytest.mark.parametrize(
    ("name", "kind", "steps_per_dispatch", "is_split", "bad_piece", "bad_step"),
    [
        ("plain", "resident", 1, False, 3, 3),
        ("micro-batches", "streaming", 1, False, 4, 4),
        ("plain", "resident", 2, False, 2, 3),  # the pieces are updates 0 1, 2, 3 4, 5
        ("mesh", "streaming", 2, False, 0, 0),
        ("mesh, micro-batches", "resident", 1, True, 3, 3),
        ("sharded, micro-batches", "streaming", 1, True, 5, 5),
    ],
)
def test_each_dispatch_tells_which_update_was_poisoned(
    name, kind, steps_per_dispatch, is_split, bad_piece, bad_step
):
    step, _, state, rng = layout(name)
    state, found = jax.tree.map(jnp.copy, state), []  # the copy is donated
    shape = () if steps_per_dispatch == 1 else (steps_per_dispatch,)
    with Feed(
        SOURCE, PLAN, 0, mesh=step.mesh, microbatch_size=step.microbatch_size,
        steps_per_dispatch=steps_per_dispatch, kind=kind, split=is_split,
    ) as feed:  # fmt: skip
        arguments = (step, feed, PLAN, 0, state, rng)
        dispatch = (
            SplitDispatch(*arguments)
            if is_split
            else FusedDispatch(*arguments, steps_per_dispatch=steps_per_dispatch)
        )
        pieces = dispatch.pieces(0, lambda finished: PLAN.num_steps)
        for number, (piece, inputs) in enumerate(feed.run(pieces)):
            before = jax.device_get(state.params)
            if number == bad_piece:
                weight = poisoned(inputs.arrays["weight"], int(inputs.first))
                inputs = inputs._replace(arrays=inputs.arrays | {"weight": weight})
            state, metrics, is_finite, *_ = dispatch(piece, state, inputs)
            assert (metrics is None) == (is_finite is None)
            if is_finite is None:
                continue
            assert is_finite.shape == metrics["loss"].shape == shape
            flags = np.atleast_1d(is_finite)
            assert flags[len(piece.steps) :].all()
            found += [piece.steps[i].index for i in np.flatnonzero(~flags)]
            if not flags[: len(piece.steps)].any():
                assert_same(state.params, before)
    assert found == [bad_step]
    assert state.step == PLAN.num_steps
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_a_spread_leaf_is_looked_at_where_it_lies():
    mesh = data_mesh(jax.devices()[:4])
    spread = NamedSharding(mesh, PartitionSpec(None, None, None, "data"))
    leaf = jax.ShapeDtypeStruct((3, 3, 8, 16), jnp.float32, sharding=spread)
    program = jax.jit(all_finite).lower({"w": leaf}).compile()
    assert "all-gather" not in program.as_text()
    for place in [None, (0, 1, 2, 3), (2, 2, 7, 15)]:
        values = np.ones(leaf.shape, np.float32)
        if place is not None:
            values[place] = np.nan
        assert bool(program({"w": jax.device_put(values, spread)})) == (place is None)
