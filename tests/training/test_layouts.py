"""The compiled update on several devices: who computes what, and what they tell each other."""

import re

import jax
import numpy as np
import optax
import pytest

from adabatch_jax.data.mesh import batch_sharding, data_mesh, replicated
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


def test_compiles_once_on_a_mesh_from_a_state_on_one_device(compilations):
    mesh = data_mesh(jax.devices()[:4])
    step = make_train_step(linear_loss, optax.adam(0.1), mesh=mesh)
    params = {"w": np.zeros(2, np.float32)}
    state = TrainState.create(params=params, tx=optax.adam(0.1))
    state = jax.device_put(state, jax.devices()[0])
    batch, rng, numbers = linear_batch([1] * 8), jax.random.key(0), []
    for _ in range(3):
        before = len(compilations)
        state, _ = step(state, batch, rng)
        numbers.append(len(compilations) - before)
    assert state.params["w"].sharding.is_equivalent_to(replicated(mesh), 1)
    assert numbers[0] >= 1 and numbers[1:] == [0, 0]


def collectives(text):
    """Returns (name, type of the result) of every collective in a compiled program."""
    kinds = "all-gather|all-to-all|collective-permute|reduce-scatter|all-reduce"
    return [(m[2], m[1]) for m in re.finditer(rf" = (.*?) ({kinds})(?:-start)?\(", text)]


def compiled(num_devices, net, size, num_microbatches=None, num_rows=None):
    mesh = data_mesh(jax.devices()[:num_devices]) if num_devices else None
    microbatch_size = size // num_microbatches if num_microbatches else None
    tx, batch = optax.sgd(0.1), make_batch(size)
    if num_microbatches:
        split = (num_microbatches, microbatch_size)
        batch = {k: v.reshape(split + v.shape[1:]) for k, v in batch.items()}
    step = make_train_step(make_loss(net), tx, mesh, microbatch_size, independent_groups=num_rows)
    state = TrainState.create(params=make_params(net), tx=tx)
    abstract = jax.eval_shape(lambda *x: x, state, batch, jax.random.key(0))
    return step.lower(*abstract).compile()


@pytest.mark.parametrize("net", [mlp, cnn])
@pytest.mark.parametrize(
    ("num_devices", "num_microbatches", "num_rows", "once"),
    [
        (4, None, None, True),
        (8, 1, 4, True),
        # Four rows of a micro-batch on each device.
        (8, 3, 1, True),
        (8, 3, 4, True),
        (8, 3, 8, False),
        (4, 3, None, False),
    ],
)
def test_gradients_are_reduced_once_where_no_group_spans_devices(
    net, num_devices, num_microbatches, num_rows, once
):
    """And nothing else is moved, in any case."""
    text = compiled(num_devices, net, 96, num_microbatches, num_rows).as_text()
    assert {name for name, _ in collectives(text)} == {"all-reduce"}
    gradients = {mlp: r"f32\[(64,128|128,64)\]", cnn: r"f32\[3,3,8,16\]"}[net]
    *_, entry = text.split("\nENTRY ")
    in_all, outside_loops = (
        [kind for _, kind in collectives(part) if re.search(gradients, kind)]
        for part in (text, entry)
    )
    assert len(in_all) == 1
    assert len(outside_loops) == once
    rows = 96 // (num_microbatches or 1)
    assert not re.search(rf"f32\[(\d,)?{rows},8,8,1\]", text)
    assert re.search(rf"f32\[(\d,)?{rows // num_devices},8,8,1\]", text)


def test_each_device_does_its_share_of_the_work():
    whole, shared = compiled(None, mlp, 512), compiled(8, mlp, 512)
    share = shared.cost_analysis()["flops"] / whole.cost_analysis()["flops"]
    assert share == pytest.approx(1 / 8, rel=0.1)


def test_batches_that_lie_on_the_mesh_are_taken_as_they_are():
    mesh = data_mesh(jax.devices()[:4])
    batch = jax.device_put(linear_batch([[1] * 4] * 2), batch_sharding(mesh, True))
    step = make_train_step(linear_loss, optax.sgd(1.0), mesh, microbatch_size=4)
    state, _ = step(linear_state(), batch, jax.random.key(0))
    np.testing.assert_allclose(-state.params["w"], np.asarray(batch["x"]).mean((0, 1)))
