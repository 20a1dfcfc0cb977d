"""Batches that a train step refuses."""

import jax
import optax
import pytest

from adabatch_jax.data.mesh import data_mesh
from adabatch_jax.system.errors import UsageError
from adabatch_jax.training.train_step import make_train_step
from tests.training.small_problem import (
    linear_batch,
    linear_loss,
    linear_state,
)

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
