"""Layers against formulas in numpy, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from adabatch_jax.models.layers import BatchNorm, Conv, Dropout, Linear
from adabatch_jax.system.errors import UsageError


def make_images(num_rows, seed=0):
    return np.random.default_rng(seed).normal(2, 3, (num_rows, 4, 5, 3)).astype(np.float32)


def make_norm(group_size=None, reference_size=None):
    norm = BatchNorm(3, group_size=group_size, reference_size=reference_size)
    norm.scale[...] = jnp.array([1.0, 2.0, -0.5])
    norm.bias[...] = jnp.array([0.0, 0.3, 1.0])
    norm.mean[...] = jnp.array([0.1, 0.2, 0.3])
    norm.var[...] = jnp.array([1.0, 2.0, 3.0])
    return norm


def reference(images, groups, reference_size=None):
    """PyTorch's BatchNorm2d of one group of rows after another; outputs and new statistics."""
    images, scale, bias = images.astype(np.float64), [1.0, 2.0, -0.5], [0.0, 0.3, 1.0]
    outputs = np.zeros_like(images)
    running_mean, running_var = np.array([0.1, 0.2, 0.3]), np.array([1.0, 2.0, 3.0])
    for rows in groups:
        group = images[rows]
        mean, var = group.mean((0, 1, 2)), group.var((0, 1, 2))
        outputs[rows] = (group - mean) / np.sqrt(var + 1e-5) * scale + bias
        keep = 0.9 if reference_size is None else 0.9 ** (len(rows) / reference_size)
        running_mean = keep * running_mean + (1 - keep) * mean
        running_var = keep * running_var + (1 - keep) * group.var((0, 1, 2), ddof=1)
    return outputs, running_mean, running_var


@pytest.mark.parametrize("reference_size", [None, 1, 4, 1000])
@pytest.mark.parametrize(
    ("group_size", "num_real", "groups"),
    [
        (None, 8, [range(8)]),
        (None, 5, [range(5)]),
        (8, 8, [range(8)]),
        (4, 8, [range(4), range(4, 8)]),
        (4, 6, [range(4), [4, 5]]),
        (2, 3, [[0, 1], [2]]),
        (2, 8, [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ],
)
def test_batchnorm_over_groups_and_padding(group_size, num_real, groups, reference_size):
    images, mask = make_images(8), (np.arange(8) < num_real).astype(np.float32)
    norm = make_norm(group_size, reference_size)
    outputs = norm(images, mask, train=True)
    expected, mean, var = reference(images, [list(rows) for rows in groups], reference_size)
    np.testing.assert_allclose(outputs[:num_real], expected[:num_real], atol=1e-5)
    np.testing.assert_allclose(norm.mean[...], mean, rtol=1e-6)
    np.testing.assert_allclose(norm.var[...], var, rtol=1e-6)
    assert np.isfinite(outputs).all()


def test_batchnorm_without_a_mask_takes_all_rows_as_real():
    images, masked, plain = make_images(6), make_norm(), make_norm()
    np.testing.assert_array_equal(
        plain(images, None, True), masked(images, np.ones(6, np.float32), True)
    )
    np.testing.assert_array_equal(plain.var[...], masked.var[...])


@pytest.mark.parametrize("group_size", [None, 4])
def test_padding_touches_neither_outputs_nor_statistics(group_size):
    images, mask = make_images(8), np.array([1] * 5 + [0] * 3, np.float32)
    noisy = images.copy()
    noisy[5:] = 1e6
    one, other = make_norm(group_size), make_norm(group_size)
    np.testing.assert_array_equal(one(images, mask, True)[:5], other(noisy, mask, True)[:5])
    np.testing.assert_array_equal(one.mean[...], other.mean[...])
    np.testing.assert_array_equal(one.var[...], other.var[...])


def test_nothing_but_padding_leaves_statistics_alone_and_gradients_finite():
    norm = make_norm()
    graphdef, state = nnx.split(norm)

    def loss(images):
        norm = nnx.merge(graphdef, state, copy=True)
        outputs = norm(images, np.zeros(4, np.float32), True)
        return (outputs**2).sum(), (norm.mean[...], norm.var[...])

    (_, (mean, var)), gradient = jax.value_and_grad(loss, has_aux=True)(make_images(4))
    np.testing.assert_array_equal(mean, norm.mean[...])
    np.testing.assert_array_equal(var, norm.var[...])
    assert np.isfinite(gradient).all()


def test_padding_does_not_grow_through_many_layers():
    images, mask = make_images(8), np.array([1] * 4 + [0] * 4, np.float32)
    for _ in range(40):
        images = BatchNorm(3, group_size=4)(images, mask, train=True)
    assert np.isfinite(images).all()


def test_batchnorm_evaluates_with_running_statistics():
    norm, images = make_norm(4), make_images(3)
    expected = (images - [0.1, 0.2, 0.3]) / np.sqrt(np.array([1, 2, 3]) + 1e-5)
    expected = expected * [1, 2, -0.5] + [0, 0.3, 1]
    np.testing.assert_allclose(norm(images, None, train=False), expected, atol=1e-5)
    np.testing.assert_array_equal(norm.var[...], [1, 2, 3])


def test_batchnorm_refuses_groups_that_do_not_divide():
    with pytest.raises(UsageError, match="group_size=4 must divide the 6 rows"):
        make_norm(4)(make_images(6), None, True)


@pytest.mark.parametrize("num_real", [4, 5, 6])
def test_batchnorm_completes_a_group_with_padding(num_real):
    whole, cut = make_norm(4), make_norm(4)
    images = make_images(8)
    mask = (np.arange(8) < num_real).astype(np.float32)
    expected = whole(images, mask, train=True)
    got = cut(images[:6], mask[:6], train=True)
    np.testing.assert_allclose(got[:num_real], expected[:num_real], rtol=1e-6)
    for name in ("mean", "var"):
        np.testing.assert_allclose(getattr(cut, name)[...], getattr(whole, name)[...], rtol=1e-6)


def test_batchnorm_computes_bfloat16_statistics_in_float32():
    images = make_images(8)
    outputs = make_norm()(images.astype(jnp.bfloat16), None, True)
    assert outputs.dtype == jnp.bfloat16
    expected, _, _ = reference(images, [list(range(8))])
    np.testing.assert_allclose(outputs.astype(np.float32), expected, atol=0.05)


def test_conv_adds_its_bias():
    conv = Conv(3, 2, 1)
    conv.kernel[...] = jnp.arange(6.0).reshape(1, 1, 3, 2)
    conv.bias[...] = jnp.array([10.0, 20.0])
    images = make_images(2)
    expected = images @ np.arange(6.0).reshape(3, 2) + [10, 20]
    np.testing.assert_allclose(conv(images), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding", "shape"),
    [(3, 1, None, (4, 5)), (3, 2, None, (2, 3)), (1, 2, None, (2, 3)), (3, 1, 0, (2, 3))],
)
def test_conv_shapes(kernel_size, stride, padding, shape):
    conv = Conv(3, 7, kernel_size, stride=stride, padding=padding, use_bias=False)
    assert conv(make_images(2)).shape == (2, *shape, 7)


def test_linear():
    linear = Linear(3, 2)
    linear.kernel[...] = jnp.arange(6.0).reshape(3, 2)
    linear.bias[...] = jnp.array([1.0, 2.0])
    np.testing.assert_array_equal(linear(jnp.ones((1, 3))), [[7, 11]])


def test_dropout_belongs_to_the_example():
    dropout, other = Dropout(0.25, number=1), Dropout(0.25, number=2)
    keys, inputs = jax.random.split(jax.random.key(0), 16), jnp.ones((16, 500))
    dropped = np.asarray(dropout(inputs, keys, True))
    np.testing.assert_array_equal(dropout(inputs[3:5], keys[3:5], True), dropped[3:5])
    assert set(np.unique(dropped)) == {0, np.float32(1 / 0.75)}
    assert np.mean(dropped == 0) == pytest.approx(0.25, abs=0.02)
    assert np.mean((dropped == 0) & (other(inputs, keys, True) == 0)) == pytest.approx(
        0.0625, abs=0.02
    )


@pytest.mark.parametrize(("keys", "train"), [(None, True), (True, False)])
def test_dropout_is_off(keys, train):
    keys = jax.random.split(jax.random.key(0), 2) if keys else None
    inputs = make_images(2)
    np.testing.assert_array_equal(Dropout(0.5, 1)(inputs, keys, train), inputs)
