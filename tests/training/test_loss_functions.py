"""Weighted means, and what is known of the losses of networks."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from adabatch_jax import data_mesh, models
from adabatch_jax.models.layers import BatchNorm, Linear
from adabatch_jax.training.loss_functions import weighted_mean


@pytest.mark.parametrize("weights", [[1, 1, 1, 0], [0, 0, 0, 0], [0.5, 2, 0, 1]])
@pytest.mark.parametrize("trailing", [(), (3,), (3, 2)])
def test_weighted_mean(weights, trailing):
    values = np.random.default_rng(0).normal(size=(4,) + trailing).astype(np.float32)
    weights = np.array(weights, np.float32)
    expected = np.einsum("b,b...->...", weights, values) / max(weights.sum(), 1e-9)
    np.testing.assert_allclose(weighted_mean(values, weights), expected, atol=1e-6)


def test_devices_with_other_numbers_of_examples_share_one_mean():
    """As numpy's over all rows, and its derivative; a mean of means would be another number."""
    values = np.arange(16, dtype=np.float32) ** 2
    weight = np.array([0, *[1] * 12, 0, 0, 0], np.float32)
    expected = np.average(values, weights=weight)
    spec, mesh = PartitionSpec("data"), data_mesh(jax.devices()[:4])

    def mean(scale, values, weight):
        return weighted_mean(scale * values, weight, "data")

    def averaged(*shares):
        return mean(*shares), jax.lax.pmean(jax.grad(mean)(*shares), "data")

    pmapped = jax.pmap(averaged, "data", in_axes=(None, 0, 0), devices=jax.devices()[:4])
    for result in pmapped(1.0, values.reshape(4, 4), weight.reshape(4, 4)):
        np.testing.assert_allclose(result, expected, rtol=1e-6)
    for function, is_checked in [(jax.value_and_grad(mean), True), (averaged, False)]:
        specs = {"in_specs": (PartitionSpec(), spec, spec), "out_specs": PartitionSpec()}
        sharded = jax.shard_map(function, mesh=mesh, check_vma=is_checked, **specs)
        for result in jax.jit(sharded)(1.0, values, weight):
            np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "group_size", "expected"),
    [("cnn_digits", None, 1), ("cnn_fashion", None, None), ("cnn_fashion", 12, 12)],
)
def test_networks_say_which_rows_they_compute_apart(name, group_size, expected):
    options = {} if group_size is None else {"group_size": group_size}
    module = models.create(name, image_shape=(8, 8, 1), **options)
    properties = {"sequential_model_state": True, "independent_groups": expected}
    assert models.loss_properties(module) == properties


def test_a_module_of_the_user_promises_nothing():
    class Mine(nnx.Module):
        def __init__(self):
            self.norm, self.head = BatchNorm(4, group_size=2), Linear(4, 10)

    assert models.loss_properties(Mine())["independent_groups"] is None
