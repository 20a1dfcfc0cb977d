"""Meshes of several axes: parameters stay as their user sharded them, results are one device's."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from adabatch_jax import TrainState, array_source, data_mesh, evaluate, fit, make_plan
from adabatch_jax.config import Layout, Operation
from adabatch_jax.data.batches import batches
from adabatch_jax.system.errors import UsageError
from adabatch_jax.training.evaluation import Evaluator
from adabatch_jax.training.loss_functions import weighted_mean
from adabatch_jax.training.train_step import make_train_step
from tests.training.small_problem import make_batch, make_loss, make_params, mlp
from tests.training.test_layouts import collectives

N = 90
BATCH = make_batch(N)
SOURCE = array_source({"image": BATCH["image"], "label": BATCH["label"]})
PLAN = make_plan("10, 50sp: 24", N, "2ep")
TX = optax.adam(1e-2)
LOSS = make_loss(mlp)
MEGATRON = {"w1": P(None, "model"), "w2": P("model", None)}


def eval_fn(params, model_state, batch):
    loss, (_, metrics) = LOSS(params, model_state, batch, None)
    return {"loss": loss, **metrics}


def mesh_of(*shape, names=("data", "model")):
    return Mesh(np.array(jax.devices()).reshape(shape), names)


def state_on(mesh=None, specs=MEGATRON):
    params = make_params(mlp)
    if mesh is not None:
        params = {k: jax.device_put(v, NamedSharding(mesh, specs[k])) for k, v in params.items()}
    return TrainState.create(params=params, tx=TX)


def train(state, mesh=None, loss_fn=LOSS, **options):
    return fit(
        loss_fn, TX, state, SOURCE, PLAN, mesh=mesh, eval_fn=eval_fn, eval_source=SOURCE,
        eval_every="40sp", **options,
    )  # fmt: skip


def specs_of(tree):
    return jax.tree.map(lambda leaf: leaf.sharding.spec, tree)


def assert_close(tree, other):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        *map(jax.device_get, (tree, other)),
    )


def assert_rows_close(rows, others):
    for row, other in zip(rows, others, strict=True):
        assert row["examples_digest"] == other["examples_digest"]
        names = [name for name in row if name.endswith(("_loss", "_accuracy"))]
        assert_close({k: row[k] for k in names}, {k: other[k] for k in names})


@pytest.fixture(scope="module")
def alone():
    return train(state_on())


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 4), {"layout": Layout(microbatch_size=7), "independent_groups": 1}),
        ((4, 2), {"layout": Layout(microbatch_size=6, accumulation="split", shard_params=True)}),
        ((2, 4), {"layout": Layout(input="resident", steps_per_dispatch=2)}),
    ],
    ids=["micro-batches", "split", "resident"],
)
def test_a_run_keeps_parameters_as_they_come_also_over_a_restart(shape, options, alone, tmp_path):
    mesh = mesh_of(*shape)
    sharding = NamedSharding(mesh, P("data"))
    stop = {"on_step": lambda finished, *_: finished >= 4}
    begun = train(state_on(mesh), sharding, workdir=tmp_path, **stop, **options)
    assert begun.stopped
    result = train(state_on(mesh), sharding, workdir=tmp_path, **options)
    assert result.start_step == begun.state.step
    for state in (begun.state, result.state):
        assert specs_of(state.params) == MEGATRON
        assert specs_of(state.opt_state[0].mu) == specs_of(state.opt_state[0].nu) == MEGATRON
        for name, leaf in state.params.items():
            assert leaf.addressable_shards[0].data.size * shape[1] == leaf.size, name
    assert_close(result.state.params, alone.state.params)
    assert_rows_close(result.history, alone.history)
    # What it leaves is evaluated as it lies.
    once = evaluate(eval_fn, result.state, SOURCE, 32, sharding)
    assert once["loss"] == pytest.approx(result.history[-1]["test_loss"], rel=1e-6)


def test_a_rollback_keeps_them(faults, tmp_path):
    mesh = mesh_of(4, 2)
    faults("batch.ready:6:nan")
    result = train(
        state_on(mesh), NamedSharding(mesh, P("data")), workdir=tmp_path, checkpoint_every="3st",
        layout=Layout(microbatch_size=None, steps_per_dispatch=1),
        operation=Operation(on_nan="rollback"),
    )  # fmt: skip
    assert [d["kind"] for d in result.summary["decisions"]] == ["rollback"]
    assert specs_of(result.state.params) == MEGATRON


@pytest.mark.parametrize(
    ("names", "spec", "specs", "shard_params", "independent_groups"),
    [
        (("data", "model"), P("data"), {"w1": P(), "w2": P()}, True, 1),
        # Sharded by the user over the data axis, over both, and whole.
        (("data", "model"), P("data"), {"w1": P("data", "model"), "w2": P("data")}, False, None),
        (("data", "model"), P("data"), {"w1": P("data", "model"), "w2": P("data")}, False, 1),
        (("data", "model"), P(("data", "model")), {"w1": P(), "w2": P()}, True, 1),
        (("model", "data"), P("data"), MEGATRON, False, 1),
        (("data", "model"), P(), MEGATRON, False, 1),
    ],
)
def test_one_update_equals_one_device(names, spec, specs, shard_params, independent_groups):
    mesh = NamedSharding(mesh_of(4, 2, names=names), spec)
    step = make_train_step(
        LOSS, TX, mesh, 8, independent_groups=independent_groups, shard_params=shard_params
    )
    batch = {k: v.reshape(3, 8, *v.shape[1:]) for k, v in make_batch(24).items()}
    batch["weight"][2, 3:] = 0
    state, metrics = step(state_on(mesh.mesh, specs), batch, jax.random.key(0))
    expected = make_train_step(LOSS, TX, None, 8)(state_on(), batch, jax.random.key(0))
    assert_close((state.params, metrics), (expected[0].params, expected[1]))
    if shard_params:
        share = state.params["w1"].addressable_shards[0].data.size / (64 * 128)
        assert share == 1 / (8 if len(spec[0]) == 2 else 4)
    else:
        assert specs_of(state.params) == specs
    before = specs_of(state)
    assert specs_of(step(state, batch, jax.random.key(0))[0]) == before


@pytest.mark.parametrize(
    ("num_microbatches", "groups", "once"), [(None, None, True), (3, 1, True), (3, None, False)]
)
def test_no_batch_is_gathered_and_gradients_are_reduced_once(num_microbatches, groups, once):
    mesh, size = mesh_of(4, 2), None if num_microbatches is None else 96 // num_microbatches
    batch = make_batch(96)
    if size:
        batch = {k: v.reshape(-1, size, *v.shape[1:]) for k, v in batch.items()}
    step = make_train_step(
        LOSS, TX, NamedSharding(mesh, P("data")), size, independent_groups=groups
    )
    text = step.lower(state_on(mesh), batch, jax.random.key(0)).compile().as_text()
    assert {name for name, _ in collectives(text)} == {"all-reduce"}
    rows = size or 96
    assert not re.search(rf"f32\[(\d,)?{rows},8,8,1\]", text)
    assert re.search(rf"f32\[(\d,)?{rows // 4},8,8,1\]", text)
    *_, entry = text.split("\nENTRY ")
    gradients = r"f32\[(64,64|64,10)\]"  # the devices' parts of them
    in_all, outside_loops = (
        [kind for _, kind in collectives(part) if re.search(gradients, kind)]
        for part in (text, entry)
    )
    assert len(in_all) == 1 and len(outside_loops) == once


def test_an_evaluation_takes_parameters_as_they_lie():
    mesh = mesh_of(4, 2)
    state = state_on(mesh, {"w1": P("data", "model"), "w2": P("model")})
    with Evaluator(eval_fn, SOURCE, 32, NamedSharding(mesh, P("data"))) as evaluator:
        compiled = evaluator.lower(state, 32).compile()
        got = evaluator(state)
    taken = {name: lies.spec for name, lies in compiled.input_shardings[0][0].items()}
    assert taken == {"w1": P("data", "model"), "w2": P("model")}
    assert got["loss"] == pytest.approx(evaluate(eval_fn, state_on(), SOURCE, 32)["loss"], rel=1e-6)


def test_sequences_are_sharded_too():
    """A mean over tokens of rows that are cut in four, against numpy."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 12, 3)).astype(np.float32)
    plan = make_plan("6", 20, "1ep")

    def loss_fn(params, model_state, batch, rng):
        assert batch["x"].shape[1:] == (12, 3)
        errors = (batch["x"] @ params["w"] - batch["t"]) ** 2
        return weighted_mean(errors.mean(1), batch["weight"]), (model_state, {})

    source = array_source({"x": x, "t": x.sum(2) + 1})
    sharding = NamedSharding(mesh_of(2, 4, names=("data", "seq")), P("data", "seq"))
    tx, w = optax.sgd(0.1), np.array([0.3, 0.2, 0.1], np.float32)
    state = TrainState.create(params={"w": w}, tx=tx)
    step = make_train_step(loss_fn, tx, sharding)
    for rows, batch in zip(
        batches(source, plan), batches(source, plan, sharding=sharding), strict=True
    ):
        assert batch["x"].sharding.spec == P("data", "seq")
        assert batch["x"].addressable_shards[0].data.shape[1] == 3
        rows = {name: array[rows["weight"] > 0] for name, array in rows.items()}
        error = rows["x"] @ w - rows["t"]
        state, metrics = step(state, batch, jax.random.key(0))
        np.testing.assert_allclose(metrics["loss"], (error**2).mean(), rtol=1e-5)
        w = w - 0.1 * 2 * (error[..., None] * rows["x"]).mean((0, 1))
        np.testing.assert_allclose(state.params["w"], w, rtol=1e-4)


def constrained(spec):
    def loss_fn(params, model_state, batch, rng):
        hidden = jax.nn.relu(batch["image"].reshape(-1, 64) @ params["w1"])
        logits = lax.with_sharding_constraint(hidden, spec) @ params["w2"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        accuracy = weighted_mean(logits.argmax(-1) == batch["label"], batch["weight"])
        return weighted_mean(losses, batch["weight"]), (model_state, {"accuracy": accuracy})

    return loss_fn


def test_a_loss_function_may_say_where_its_arrays_lie(alone):
    """By names alone, in each phase's program, and also where it runs on a device's own rows."""
    mesh = mesh_of(4, 2)
    sharding, specs = NamedSharding(mesh, P("data")), P("data", "model")
    result = train(state_on(mesh), sharding, constrained(specs))
    assert_close(result.state.params, alone.state.params)
    apart = {"microbatch_size": 8, "independent_groups": 1}
    batch = {k: v.reshape(3, 8, *v.shape[1:]) for k, v in make_batch(24).items()}
    rng, expected = jax.random.key(0), make_train_step(LOSS, TX, None, 8)
    expected, _ = expected(state_on(), batch, rng)
    step = make_train_step(constrained(P(None, "model")), TX, sharding, **apart)
    assert_close(step(state_on(mesh), batch, rng)[0].params, expected.params)
    named = make_train_step(constrained(NamedSharding(mesh, specs)), TX, sharding, 8)
    assert_close(named(state_on(mesh), batch, rng)[0].params, expected.params)
    for spec in (specs, NamedSharding(mesh, specs)):
        step = make_train_step(constrained(spec), TX, sharding, **apart)
        with pytest.raises(UsageError, match="^loss_fn says where .*without 'data'"):
            step(state_on(mesh), batch, rng)


def test_what_cannot_be_kept_is_refused():
    sharded, rng = state_on(mesh_of(4, 2)), jax.random.key(0)
    with pytest.raises(UsageError, match=r"^params\['w1'\] is sharded as .*'model'.*'data': 8"):
        make_train_step(LOSS, TX, data_mesh())(sharded, make_batch(8), rng)
    odd = state_on(mesh_of(4, 2), {"w1": P(), "w2": P("model")})
    three = Mesh(np.array(jax.devices()[:3]), ("model",))
    with pytest.raises(UsageError, match=r"^state\[0\]\['w2'\] is sharded as"):
        evaluate(eval_fn, odd, SOURCE, 9, three)
    with pytest.raises(UsageError, match="^`mesh` has the axes"):
        make_train_step(LOSS, TX, mesh_of(4, 2))
    with pytest.raises(UsageError, match="^`mesh` has the axes"):
        evaluate(eval_fn, sharded, SOURCE, 9, mesh_of(4, 2))
    with pytest.raises(UsageError, match="^`mesh` has the axes"):
        train(sharded, mesh_of(4, 2))
    explicit = jax.make_mesh((4, 2), ("data", "model"))
    with jax.set_mesh(explicit), pytest.raises(UsageError, match="Explicit axes"):
        train(sharded, NamedSharding(explicit, P("data")))


def test_a_state_on_explicit_axes_is_taken_as_it_is():
    mesh, batch, rng = jax.make_mesh((4, 2), ("data", "model")), make_batch(16), jax.random.key(0)
    step = make_train_step(LOSS, TX, NamedSharding(mesh, P("data")))
    state, _ = step(state_on(mesh), batch, rng)
    assert specs_of(state.params) == MEGATRON
    assert_close(state.params, make_train_step(LOSS, TX)(state_on(), batch, rng)[0].params)


class LinenMLP(linen.Module):
    @linen.compact
    def __call__(self, x):
        init = linen.initializers.lecun_normal()
        x = linen.Dense(32, kernel_init=linen.with_partitioning(init, (None, "model")))(x)
        return linen.Dense(4, kernel_init=linen.with_partitioning(init, ("model", None)))(x)


class NNXMLP(nnx.Module):
    def __init__(self, rngs):
        init = nnx.initializers.lecun_normal()
        self.first = nnx.Linear(
            8, 32, kernel_init=nnx.with_partitioning(init, (None, "model")), rngs=rngs
        )
        self.last = nnx.Linear(
            32, 4, kernel_init=nnx.with_partitioning(init, ("model", None)), rngs=rngs
        )

    def __call__(self, x):
        return self.last(self.first(x))


def linen_parts(mesh):
    model = LinenMLP()
    make = lambda: model.init(jax.random.key(0), jnp.ones((1, 8)))
    specs = linen.get_partition_spec(jax.eval_shape(make))
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    return jax.jit(make, out_shardings=shardings)(), model.apply


def nnx_parts(mesh):
    with jax.set_mesh(mesh):
        graph, params = nnx.split(NNXMLP(nnx.Rngs(0)))
        specs = nnx.get_partition_spec(params)
        params = jax.device_put(params, jax.tree.map(lambda s: NamedSharding(mesh, s), specs))
    return params, lambda params, x: nnx.merge(graph, params, copy=True)(x)


@pytest.mark.parametrize("parts", [linen_parts, nnx_parts])
def test_networks_of_flax_as_their_annotations_shard_them(parts):
    mesh = mesh_of(4, 2)
    mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(jax.sharding.AxisType.Auto,) * 2)
    params, apply = parts(mesh)

    def loss_fn(params, model_state, batch, rng):
        losses = (apply(params, batch["x"]) ** 2).mean(1)
        return weighted_mean(losses, batch["weight"]), (model_state, {})

    x, results = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32), []
    for laid_out in (NamedSharding(mesh, P("data")), None):
        if laid_out is None:
            params = jax.device_get(params)
        state, step = (
            TrainState.create(params=params, tx=TX),
            make_train_step(loss_fn, TX, laid_out),
        )
        for _ in range(2):
            state, _ = step(state, {"x": x, "weight": np.ones(12, np.float32)}, jax.random.key(0))
        results.append(state.params)
    assert_close(*results)
    kernels = [leaf for leaf in jax.tree.leaves(results[0]) if leaf.ndim == 2]
    assert {leaf.sharding.spec for leaf in kernels} == {P(None, "model"), P("model", None)}
