"""Weighted means, and what is known of the losses of networks."""

import numpy as np
import pytest
from flax import nnx

from adabatch_jax import models
from adabatch_jax.models.layers import BatchNorm, Linear
from adabatch_jax.training.loss_functions import weighted_mean


@pytest.mark.parametrize("weights", [[1, 1, 1, 0], [0, 0, 0, 0], [0.5, 2, 0, 1]])
@pytest.mark.parametrize("trailing", [(), (3,), (3, 2)])
def test_weighted_mean(weights, trailing):
    values = np.random.default_rng(0).normal(size=(4,) + trailing).astype(np.float32)
    weights = np.array(weights, np.float32)
    expected = np.einsum("b,b...->...", weights, values) / max(weights.sum(), 1e-9)
    np.testing.assert_allclose(weighted_mean(values, weights), expected, atol=1e-6)


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
