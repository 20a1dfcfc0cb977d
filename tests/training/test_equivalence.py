"""One batch gives one gradient, however it is cut into micro-batches and spread over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from adabatch_jax import models
from adabatch_jax.data.augmentation import random_crop, random_flip
from adabatch_jax.data.mesh import batch_sharding, data_mesh
from adabatch_jax.models.initialization import he_normal, initialize, torch_default
from adabatch_jax.models.layers import BatchNorm, Conv, Linear
from adabatch_jax.training.train_state import TrainState
from adabatch_jax.training.train_step import make_train_step

# An optimizer that changes nothing and keeps the gradient, free of cancellation.
keep_gradient = optax.GradientTransformation(
    init=lambda params: jax.tree.map(jnp.zeros_like, params),
    update=lambda grads, state, params: (jax.tree.map(jnp.zeros_like, grads), grads),
)

# (microbatch_size, number of devices); the last ones divide nothing.
LAYOUTS = [(32, None), (None, 4), (32, 4), (36, 5), (7, 3)]


def make_batch(image_shape, num_real, size=96):
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (size, *image_shape)).astype(np.uint8),
        "label": rng.integers(0, 10, size).astype(np.int32),
        "index": rng.permutation(1000)[:size].astype(np.int32),
        "epoch": np.sort(rng.integers(0, 2, size)).astype(np.int32),
        "weight": (np.arange(size) < num_real).astype(np.float32),
    }
    for name in ("image", "label", "index", "epoch"):
        batch[name][num_real:] = batch[name][0]
    return batch


def lay_out(batch, microbatch_size, num_devices):
    """Cuts and pads a batch as the contract says, with loops."""
    size = len(batch["weight"])
    pieces = []
    for start in range(0, size, microbatch_size or size):
        rows = list(range(start, min(start + (microbatch_size or size), size)))
        num_rows = -(-(microbatch_size or size) // num_devices) * num_devices
        num_padding = num_rows - len(rows)
        piece = {name: array[rows + [0] * num_padding] for name, array in batch.items()}
        piece["weight"] = piece["weight"] * (np.arange(num_rows) < len(rows))
        piece["weight"] = piece["weight"].astype(np.float32)
        pieces.append(piece)
    if microbatch_size is None:
        return pieces[0]
    return {name: np.stack([piece[name] for piece in pieces]) for name in batch}


def gradient(functions, batch, microbatch_size=None, num_devices=None):
    """Returns (gradient, model state, metrics) of one step."""
    params, model_state, loss_fn, properties = functions
    mesh = None if num_devices is None else data_mesh(jax.devices()[:num_devices])
    batch = lay_out(batch, microbatch_size, num_devices or 1)
    if mesh is not None:
        batch = jax.device_put(batch, batch_sharding(mesh, microbatch_size is not None))
    state = TrainState.create(params=params, tx=keep_gradient, model_state=model_state)
    step = make_train_step(loss_fn, keep_gradient, mesh, microbatch_size, **properties)
    state, metrics = step(state, batch, jax.random.key(0))
    return jax.device_get((state.opt_state, state.model_state, metrics))


def distance(tree, reference):
    """Returns ||tree - reference|| / ||reference||."""
    flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (tree, reference)]
    a, b = (x.astype(np.float64) for x in flat)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def augment(keys, images):
    return random_flip(keys, random_crop(keys, images, padding=2))


def functions_of(module, dtype="float32", augment=None):
    params, model_state, loss_fn, _ = models.functions(
        module, augment=augment, normalize=lambda images: images.astype(dtype) / 255
    )
    as_dtype = functools.partial(jax.tree.map, lambda leaf: np.asarray(leaf, dtype))
    properties = models.loss_properties(module)
    return as_dtype(params), as_dtype(model_state), loss_fn, properties


@functools.cache
def cnn(dtype="float32"):
    module = models.create("cnn_digits", image_shape=(8, 8, 1))
    assert module.dropout.rate > 0
    return functions_of(module, dtype, augment)


@functools.cache
def cnn_in_one_piece(num_real, dtype="float32"):
    # The shorter batch, without any padding, is what a padded one must equal.
    batch = {name: array[:num_real] for name, array in make_batch((8, 8, 1), num_real).items()}
    return gradient(cnn(dtype), batch)


@pytest.mark.parametrize(
    ("num_real", "layout"),
    [(96, layout) for layout in LAYOUTS[:3]]
    + [(85, layout) for layout in [(None, None), *LAYOUTS]]
    + [(30, (40, 8)), (30, (96, 5))],
)
def test_cnn_in_float32(num_real, layout):
    expected = cnn_in_one_piece(num_real)
    grads, _, metrics = gradient(cnn(), make_batch((8, 8, 1), num_real), *layout)
    assert distance(grads, expected[0]) <= 1e-6
    assert distance(metrics, expected[2]) <= 1e-6


@pytest.mark.parametrize("layout", [(32, 4), (36, 5)])
def test_cnn_in_float64(layout):
    with jax.enable_x64(True):
        expected = cnn_in_one_piece(85, "float64")
        grads, _, metrics = gradient(cnn("float64"), make_batch((8, 8, 1), 85), *layout)
    assert grads["conv1"]["kernel"].dtype == metrics["loss"].dtype == np.float64
    assert distance(grads, expected[0]) <= 1e-12
    assert distance(metrics, expected[2]) <= 1e-12


class NormalizedCNN(nnx.Module):
    rules = {Conv: he_normal, Linear: torch_default}

    def __init__(self, group_size):
        self.conv1, self.norm1 = Conv(1, 4, 3), BatchNorm(4, group_size=group_size)
        self.conv2, self.norm2 = Conv(4, 8, 3, stride=2), BatchNorm(8, group_size=group_size)
        self.head = Linear(8, 10)
        initialize(self, 0)

    def __call__(self, images, mask=None, keys=None, train=True):
        features = jax.nn.relu(self.norm1(self.conv1(images), mask, train))
        features = jax.nn.relu(self.norm2(self.conv2(features), mask, train))
        return self.head(features.mean((1, 2)))


@pytest.mark.parametrize(
    ("group_size", "layouts"),
    [
        (32, [(32, None), (None, 4), (32, 4)]),
        (4, [(36, 5), (12, 3)]),
        # The padding for the devices begins a group, or completes one.
        (10, [(None, 8), (30, 4)]),
    ],
)
def test_batchnorm_groups_may_span_devices(group_size, layouts):
    """In float64: a group summed in another order moves all its activations by a rounding error.

    In float32 that makes about one ReLU in ten million change its sign, and one is enough to
    move ResNet-20's gradient by 1e-3.
    """
    batch = make_batch((8, 8, 1), 85)
    with jax.enable_x64(True):
        *functions, properties = functions_of(NormalizedCNN(group_size), "float64")
        assert properties["independent_groups"] is None  # only the module's author knows
        network = *functions, properties | {"independent_groups": group_size}
        expected = gradient(network, batch)
        for layout in layouts:
            got = gradient(network, batch, *layout)
            for tree, reference in zip(got, expected, strict=True):
                assert distance(tree, reference) <= 1e-12


@pytest.mark.slow
def test_resnet20_over_the_same_batchnorm_groups():
    network = functions_of(models.create("resnet20_cifar", 10, (28, 28, 1), group_size=8))
    batch = make_batch((28, 28, 1), 85)
    expected, got = gradient(network, batch), gradient(network, batch, 32, 4)
    for tree, reference in zip(got, expected, strict=True):
        assert distance(tree, reference) <= 1e-5


def test_the_same_layout_gives_the_same_bits():
    batch = make_batch((8, 8, 1), 85)
    one, other = (gradient(cnn(), batch, 32, 4) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, one, other)
