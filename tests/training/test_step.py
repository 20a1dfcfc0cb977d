"""The train step alone: its results, its layout, its errors."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adabatch_jax.errors import UsageError
from adabatch_jax.training.loss_functions import sequential_model_state, weighted_mean
from adabatch_jax.training.mesh import batch_sharding, data_mesh, replicated
from adabatch_jax.training.state import TrainState
from adabatch_jax.training.step import make_train_step


def conv(x, w):
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def mlp(params, images):
    x = images.reshape(images.shape[0], -1)
    return jax.nn.relu(x @ params["w1"]) @ params["w2"]


def cnn(params, images):
    x = jax.nn.relu(conv(images, params["w1"]))
    return jax.nn.relu(conv(x, params["w2"])).mean(axis=(1, 2)) @ params["w3"]


SHAPES = {
    mlp: {"w1": (64, 32), "w2": (32, 10)},
    cnn: {"w1": (3, 3, 1, 8), "w2": (3, 3, 8, 16), "w3": (16, 10)},
}


def make_params(net, seed=0):
    rng = np.random.default_rng(seed)
    shapes = SHAPES[net]
    return {k: rng.normal(0, 0.2, s).astype(np.float32) for k, s in shapes.items()}


def make_loss(net):
    def loss_fn(params, model_state, batch, rng):
        logits = net(params, batch["image"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        hits = logits.argmax(-1) == batch["label"]
        accuracy = weighted_mean(hits, batch["weight"])
        return weighted_mean(losses, batch["weight"]), (model_state, {"accuracy": accuracy})

    return loss_fn


def make_batch(size, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(size=(size, 8, 8, 1)).astype(np.float32),
        "label": rng.integers(0, 10, size).astype(np.int32),
        "weight": np.ones(size, np.float32),
    }


def linear_loss(params, model_state, batch, rng):
    """A loss whose gradient is the batch's weighted mean of x."""
    mean = weighted_mean(batch["x"], batch["weight"])
    return params["w"] @ mean, (model_state, {"x": mean})


def linear_batch(weights):
    weights = np.asarray(weights, np.float32)
    x = np.arange(weights.size * 2, dtype=np.float32).reshape(weights.shape + (2,))
    return {"x": x, "weight": weights}


def linear_state(model_state=None):
    params = {"w": np.zeros(2, np.float32)}
    return TrainState.create(params=params, tx=optax.sgd(1.0), model_state=model_state)


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


@pytest.mark.parametrize("weights", [[1, 1, 1, 0], [0, 0, 0, 0], [0.5, 2, 0, 1]])
@pytest.mark.parametrize("trailing", [(), (3,), (3, 2)])
def test_weighted_mean(weights, trailing):
    values = np.random.default_rng(0).normal(size=(4,) + trailing).astype(np.float32)
    weights = np.array(weights, np.float32)
    expected = np.einsum("b,b...->...", weights, values) / max(weights.sum(), 1e-9)
    np.testing.assert_allclose(weighted_mean(values, weights), expected, atol=1e-6)


def test_compiles_once_on_a_mesh_from_a_state_on_one_device():
    mesh = data_mesh(jax.devices()[:4])
    step = make_train_step(linear_loss, optax.adam(0.1), mesh=mesh)
    params = {"w": np.zeros(2, np.float32)}
    state = TrainState.create(params=params, tx=optax.adam(0.1))
    state = jax.device_put(state, jax.devices()[0])
    for _ in range(3):
        state, _ = step(state, linear_batch([1] * 8), jax.random.key(0))
    assert state.params["w"].sharding.is_equivalent_to(replicated(mesh), 1)
    assert step.jitted._cache_size() == 1


def collectives(text):
    """Returns (name, type of the result) of every collective in a compiled program."""
    kinds = "all-gather|all-to-all|collective-permute|reduce-scatter|all-reduce"
    return [(m[2], m[1]) for m in re.finditer(rf" = (.*?) ({kinds})(?:-start)?\(", text)]


def lowered(num_devices, net, size, num_microbatches=None):
    mesh = data_mesh(jax.devices()[:num_devices]) if num_devices else None
    microbatch_size = size // num_microbatches if num_microbatches else None
    tx, batch = optax.sgd(0.1), make_batch(size)
    if num_microbatches:
        split = (num_microbatches, microbatch_size)
        batch = {k: v.reshape(split + v.shape[1:]) for k, v in batch.items()}
    step = make_train_step(make_loss(net), tx, mesh, microbatch_size)
    state = TrainState.create(params=make_params(net), tx=tx)
    abstract = jax.eval_shape(lambda *x: x, state, batch, jax.random.key(0))
    return step.lower(*abstract).compile()


@pytest.mark.parametrize("num_devices", [4, 8])
@pytest.mark.parametrize("num_microbatches", [None, 1, 3])
@pytest.mark.parametrize("net", [mlp, cnn])
def test_compiled_program_reduces_gradients_once_and_moves_nothing_else(
    net, num_devices, num_microbatches
):
    text = lowered(num_devices, net, 96, num_microbatches).as_text()
    assert {name for name, _ in collectives(text)} == {"all-reduce"}
    assert len([kind for _, kind in collectives(text) if re.search(r"f32\[\d", kind)]) == 1
    rows = 96 // (num_microbatches or 1)
    assert not re.search(rf"f32\[(\d,)?{rows},8,8,1\]", text)
    assert re.search(rf"f32\[(\d,)?{rows // num_devices},8,8,1\]", text)


@pytest.mark.parametrize("num_devices", [4, 8])
def test_each_device_does_its_share_of_the_work(num_devices):
    whole, shared = lowered(None, mlp, 512), lowered(num_devices, mlp, 512)
    share = shared.cost_analysis()["flops"] / whole.cost_analysis()["flops"]
    assert share == pytest.approx(1 / num_devices, rel=0.1)


BAD_BATCHES = [
    (None, lambda b: {"x": b["x"]}, r"a batch needs a 'weight' .* got \['x'\]"),
    (2, lambda b: b, r"with microbatch_size=2 .* has the shape \(K, m\), got \(8,\)"),
    (None, lambda b: {k: v[None] for k, v in b.items()}, r"the shape \(B,\), got \(1, 8\)"),
    (None, lambda b: {**b, "y": b["x"][:4]}, r"batch\['y'\] has the shape \(4, 2\)"),
    (3, lambda b: {k: v[None] for k, v in b.items()}, r"at most microbatch_size=3 .* got 8 rows"),
]


@pytest.mark.parametrize(("microbatch_size", "change", "message"), BAD_BATCHES)
@pytest.mark.parametrize("num_devices", [1, 4])
def test_bad_batches(microbatch_size, change, message, num_devices):
    mesh = data_mesh(jax.devices()[:num_devices]) if num_devices > 1 else None
    step = make_train_step(linear_loss, optax.sgd(1.0), mesh, microbatch_size)
    batch = change(linear_batch([1] * 8))
    with pytest.raises(UsageError, match=message):
        step(linear_state(), batch, jax.random.key(0))
    with pytest.raises(UsageError, match=message):
        step.lower(linear_state(), batch, jax.random.key(0))


def test_a_batch_that_the_devices_do_not_divide():
    step = make_train_step(linear_loss, optax.sgd(1.0), data_mesh(jax.devices()[:4]))
    with pytest.raises(UsageError, match="multiple of the 4 devices, got 6 rows"):
        step(linear_state(), linear_batch([1] * 6), jax.random.key(0))


def test_bad_arguments_and_loss_functions():
    with pytest.raises(UsageError, match="microbatch_size must be at least 1, got 0"):
        make_train_step(linear_loss, optax.sgd(1.0), microbatch_size=0)

    def with_loss(params, model_state, batch, rng):
        return linear_loss(params, model_state, batch, rng)[0], (model_state, {"loss": 1.0})

    step = make_train_step(with_loss, optax.sgd(1.0))
    with pytest.raises(UsageError, match="must not have the key 'loss'"):
        step(linear_state(), linear_batch([1]), jax.random.key(0))

    def other_state(params, model_state, batch, rng):
        return linear_loss(params, model_state, batch, rng)[0], ({"n": jnp.ones(3)}, {})

    step = make_train_step(other_state, optax.sgd(1.0))
    with pytest.raises(UsageError, match=r"model_state .* \{\}, got \{'n': 'float32\[3\]'\}"):
        step(linear_state(), linear_batch([1]), jax.random.key(0))


def test_errors_of_the_loss_function_pass():
    def broken(params, model_state, batch, rng):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        make_train_step(broken, optax.sgd(1.0))(
            linear_state(), linear_batch([1]), jax.random.key(0)
        )


def test_batches_that_lie_on_the_mesh_are_taken_as_they_are():
    mesh = data_mesh(jax.devices()[:4])
    batch = jax.device_put(linear_batch([[1] * 4] * 2), batch_sharding(mesh, True))
    step = make_train_step(linear_loss, optax.sgd(1.0), mesh, microbatch_size=4)
    state, _ = step(linear_state(), batch, jax.random.key(0))
    np.testing.assert_allclose(-state.params["w"], np.asarray(batch["x"]).mean((0, 1)))


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
