"""A network's running statistics don't depend on how its batches are laid out."""

import jax
import numpy as np
import optax
import pytest

from adabatch_jax import models
from adabatch_jax.data.mesh import batch_sharding, data_mesh
from adabatch_jax.models.layers import BatchNorm
from adabatch_jax.training.train_state import TrainState
from adabatch_jax.training.train_step import make_train_step

NUM_ROWS, NUM_REAL = 64, 53


def make_batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (NUM_ROWS, 8, 8, 1)).astype(np.uint8),
        "label": rng.integers(0, 10, NUM_ROWS).astype(np.int32),
        "index": np.arange(NUM_ROWS, dtype=np.int32),
        "epoch": np.zeros(NUM_ROWS, np.int32),
        "weight": (np.arange(NUM_ROWS) < NUM_REAL).astype(np.float32),
    }


def make_network(reference_size):
    options = {"group_size": 4, "batchnorm_reference_size": reference_size}
    return models.create("cnn_fashion", image_shape=(8, 8, 1), **options)


def statistics_after_a_step(reference_size, microbatch_size, num_devices):
    network = make_network(reference_size)
    params, model_state, loss_fn, _ = models.functions(network)
    tx = optax.sgd(0.1)
    mesh = None if num_devices is None else data_mesh(jax.devices()[:num_devices])
    batch = make_batch()
    if microbatch_size is not None:
        batch = jax.tree.map(lambda x: x.reshape(-1, microbatch_size, *x.shape[1:]), batch)
    if mesh is not None:
        batch = jax.device_put(batch, batch_sharding(mesh, microbatch_size is not None))
    state = TrainState.create(params=params, tx=tx, model_state=model_state)
    properties = models.loss_properties(network)
    step = make_train_step(loss_fn, tx, mesh, microbatch_size, **properties)
    state, _ = step(state, batch, jax.random.key(0))
    return jax.device_get(state.model_state)


@pytest.mark.parametrize(
    # (microbatch_size, number of devices)
    ("reference_size", "layouts"),
    [(None, [(16, None), (None, 8)]), (32, [(16, 8)])],
)
def test_real_equals_accumulated_equals_sharded_equals_a_loop(reference_size, layouts):
    expected = statistics_after_a_step(reference_size, None, None)
    network, batch = make_network(reference_size), make_batch()
    features = np.asarray(network.conv1(batch["image"] / np.float32(255)), np.float64)[:NUM_REAL]
    mean, var = np.zeros(16), np.ones(16)
    for start in range(0, NUM_REAL, 4):
        group = features[start : start + 4]
        keep = 0.9 if reference_size is None else 0.9 ** (len(group) / reference_size)
        mean = keep * mean + (1 - keep) * group.mean((0, 1, 2))
        var = keep * var + (1 - keep) * group.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(expected["bn1"]["mean"], mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(expected["bn1"]["var"], var, rtol=1e-5)
    for layout in layouts:
        got = statistics_after_a_step(reference_size, *layout)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), got, expected
        )


def test_the_half_life_in_examples_is_constant_when_the_batch_grows():
    """The memory of the initial statistics after 64 examples, in steps of 8 and of 32."""

    def memory(batch_size, reference_size):
        norm = BatchNorm(1, reference_size=reference_size)
        norm.mean[...] = np.ones(1, np.float32)
        for _ in range(64 // batch_size):
            norm(np.zeros((batch_size, 1, 1, 1), np.float32), None, train=True)
        return float(norm.mean[...][0])

    assert memory(8, 8) == pytest.approx(0.9**8, rel=1e-6)
    assert memory(32, 8) == pytest.approx(0.9**8, rel=1e-6)
    assert memory(8, None) == pytest.approx(0.9**8, rel=1e-6)
    assert memory(32, None) == pytest.approx(0.9**2, rel=1e-6)
