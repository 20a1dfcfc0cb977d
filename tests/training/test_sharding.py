"""Parameters and optimizer state spread over the devices (FSDP)."""

import jax
import numpy as np
import optax
import pytest

from adabatch_jax.data.mesh import batch_sharding, data_mesh
from adabatch_jax.runs.checkpoints.restoring import restore
from adabatch_jax.system.errors import UsageError
from adabatch_jax.training.loss_functions import weighted_mean
from adabatch_jax.training.parameter_sharding import SMALLEST_SHARDED, sharded_axis
from adabatch_jax.training.train_state import TrainState
from adabatch_jax.training.train_step import TrainStep, make_train_step
from adabatch_jax.training.update import Update
from adabatch_jax.training.weights_digest import weights_digest
from tests.runs.checkpoints.conftest import written
from tests.training.small_problem import make_batch, make_loss, make_params, mlp

TX = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-2))


def loss_fn(params, model_state, batch, rng):
    loss, (_, metrics) = make_loss(mlp)(params, model_state, batch, rng)
    x = batch["image"].reshape(batch["image"].shape[0], -1)
    mean = weighted_mean(x, batch["weight"])
    return loss, ({"mean": 0.9 * model_state["mean"] + 0.1 * mean}, metrics | {"x": mean})


def new_state():
    state = {"mean": np.zeros(64, np.float32)}
    return TrainState.create(params=make_params(mlp), tx=TX, model_state=state)


def split(batch, microbatch_size):
    if microbatch_size is None:
        return batch
    return {k: v.reshape(-1, microbatch_size, *v.shape[1:]) for k, v in batch.items()}


def bytes_per_device(tree):
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("independent_groups", "microbatch_size"), [(None, None), (None, 16), (1, 16)]
)
def test_sharded_equals_one_device_in_an_eighth_of_the_memory(
    independent_groups, microbatch_size, compilations
):
    whole_step = make_train_step(loss_fn, TX)
    update = Update(
        loss_fn, TX, data_mesh(), microbatch_size,
        independent_groups=independent_groups, shard_params=True,
    )  # fmt: skip
    step = TrainStep(update)
    whole, state = new_state(), step.place(new_state())
    rng, whole_rng = step.place(jax.random.key(0)), jax.random.key(0)
    sharding = batch_sharding(data_mesh(), microbatch_size is not None)
    for i in range(3):
        batch = make_batch(32, seed=i)
        batch["weight"][29:] = 0
        whole, expected = whole_step(whole, batch, whole_rng)
        batch = jax.device_put(split(batch, microbatch_size), sharding)
        before, num_compilations = state, len(compilations)
        state, metrics = step(state, batch, rng)
        assert before.params["w1"].is_deleted()
        assert before.opt_state[1][0].mu["w2"].is_deleted()
        assert (len(compilations) > num_compilations) == (i == 0)
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6),
        jax.device_get((state, metrics)),
        jax.device_get((whole, expected)),
    )
    lies = jax.tree.map(lambda leaf: leaf.sharding, state)
    assert lies == update.state_shardings(state)
    share = bytes_per_device((state.params, state.opt_state)) / bytes_per_device(
        (whole.params, whole.opt_state)
    )
    assert share <= 0.15
    assert state.model_state["mean"].sharding.is_fully_replicated


def test_a_sharded_update_in_parts(compiled_once):
    update = Update(loss_fn, TX, data_mesh(), 16, shard_params=True)
    step = TrainStep(update)
    rng, state = step.place(jax.random.key(0)), step.place(new_state())
    batch = split(make_batch(32), 16)
    microbatches = [
        jax.device_put({k: v[j] for k, v in batch.items()}, batch_sharding(update.mesh))
        for j in range(2)
    ]
    sums = jax.jit(update.begin)(state, microbatches[0], rng, update.constants)
    add = compiled_once(jax.jit(update.add, donate_argnums=0))
    for j, microbatch in enumerate(microbatches):
        number = step.place(np.int32(j))
        sums = add(sums, state, microbatch, rng, number, update.constants)
    assert bytes_per_device(sums.grads) == bytes_per_device(state.params)
    parts, metrics, *_ = jax.jit(update.finish)(state, sums)
    whole, expected = step(state, batch, rng)
    assert parts.params["w1"].sharding == whole.params["w1"].sharding
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7),
        jax.device_get((parts.params, metrics)),
        jax.device_get((whole.params, expected)),
    )


@pytest.mark.parametrize("num_devices", [None, 4])
def test_a_sharded_checkpoint_is_restored_on_other_devices(tmp_path, num_devices):
    eight = make_train_step(loss_fn, TX, data_mesh(), shard_params=True)
    saved, _ = eight(eight.place(new_state()), make_batch(32), jax.random.key(0))
    found = written(tmp_path, saved)
    mesh = None if num_devices is None else data_mesh(jax.devices()[:num_devices])
    step = make_train_step(loss_fn, TX, mesh, shard_params=mesh is not None)
    restored = restore(found, step.place(new_state()))
    jax.tree.map(np.testing.assert_array_equal, restored, saved)
    assert weights_digest(restored) == weights_digest(saved)
    if mesh is not None:
        assert restored.params["w1"].sharding.shard_shape((64, 128)) == (64, 32)
    batch = make_batch(32, seed=1)
    results = [
        step_of(state, batch, jax.random.key(0))[0].params
        for step_of, state in ((eight, saved), (step, restored))
    ]
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6),
        *map(jax.device_get, results),
    )


def test_which_axis_is_sharded():
    assert sharded_axis((3, 3, 16, 64), 8) == 3
    assert sharded_axis((1000, 64, 9), 8) == 0
    assert sharded_axis((1001, 64, 9), 8) == 1
    assert sharded_axis((1001, 63, 9), 8) is None
    assert sharded_axis((SMALLEST_SHARDED,), 8) == 0
    assert sharded_axis((SMALLEST_SHARDED - 8,), 8) is None
    assert sharded_axis((), 8) is None


def test_there_must_be_devices_to_shard_over():
    with pytest.raises(UsageError, match="shard_params=True .*mesh"):
        make_train_step(loss_fn, TX, shard_params=True)
