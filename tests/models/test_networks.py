"""The networks: sizes, initial weights, names, functions for training."""

import re
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from adabatch_jax import models
from adabatch_jax.data.augmentation import example_keys
from adabatch_jax.models.alexnet import AlexNet
from adabatch_jax.models.initialization import initialize
from adabatch_jax.models.layers import Layers
from adabatch_jax.models.resnet import CifarResNet
from adabatch_jax.system.errors import UsageError
from tests.sentences import says


def num_parameters(module):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


def num_statistics(module):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.BatchStat)))


@pytest.mark.parametrize(
    ("name", "num_classes", "parameters", "statistics"),
    [
        ("alexnet_cifar", 10, 2_472_266, 0),
        ("alexnet_cifar", 100, 2_495_396, 0),
        ("vgg19_bn_cifar", 10, 20_040_522, 11_008),
        ("vgg19_bn_cifar", 100, 20_086_692, 11_008),
        ("resnet20_cifar", 10, 272_474, 1_568),
        ("resnet20_cifar", 100, 278_324, 1_568),
        ("resnet32_cifar", 10, 466_906, None),
        ("resnet44_cifar", 10, 684_058, None),
        ("resnet110_cifar", 10, 1_704_154, None),
    ],
)
def test_sizes_of_networks_for_cifar(name, num_classes, parameters, statistics):
    module = models.create(name, num_classes)
    assert num_parameters(module) == parameters
    assert statistics in (None, num_statistics(module))


@pytest.mark.parametrize(
    ("name", "parameters", "statistics"),
    [
        ("alexnet", 61_100_840, 0),
        ("resnet18", 11_689_512, 9_600),
        ("resnet50", 25_557_032, 53_120),
        ("vgg19_bn", 143_678_248, 11_008),
    ],
)
def test_sizes_of_networks_for_imagenet(name, parameters, statistics):
    start = time.perf_counter()
    module = models.create(name, 1000, (224, 224, 3))
    assert time.perf_counter() - start < 60
    assert num_parameters(module) == parameters
    assert num_statistics(module) == statistics


def test_initial_weights_have_the_official_distributions():
    params, model_state, _, _ = models.functions(models.create("resnet20_cifar"))
    kernel = params["layer3_2"]["conv1"]["kernel"]
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.02)
    assert abs(kernel.mean()) < 1e-3
    head = params["fc"]
    assert abs(head["kernel"]).max() == pytest.approx(1 / 8, rel=0.01)
    assert head["kernel"].std() == pytest.approx(1 / 8 / np.sqrt(3), rel=0.05)
    assert 0 < abs(head["bias"]).max() <= 1 / 8
    np.testing.assert_array_equal(params["bn1"]["scale"], np.ones(16))
    np.testing.assert_array_equal(params["bn1"]["bias"], np.zeros(16))
    np.testing.assert_array_equal(model_state["bn1"]["mean"], np.zeros(16))
    np.testing.assert_array_equal(model_state["bn1"]["var"], np.ones(16))


def test_initial_weights_of_vgg_and_alexnet():
    vgg = models.functions(models.create("vgg11_bn_cifar"))[0]
    kernel = vgg["features_25"]["kernel"]
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 512)), rel=0.01)
    assert not vgg["features_25"]["bias"].any()
    assert vgg["classifier"]["kernel"].std() == pytest.approx(0.01, rel=0.05)
    assert not vgg["classifier"]["bias"].any()
    alexnet = models.functions(models.create("alexnet_cifar"))[0]
    for name, fan_in in (("features_3", 25 * 64), ("classifier", 256)):
        bound = 1 / np.sqrt(fan_in)
        for leaf in ("kernel", "bias"):
            assert 0.9 * bound < abs(alexnet[name][leaf]).max() <= bound
        assert alexnet[name]["kernel"].std() == pytest.approx(bound / np.sqrt(3), rel=0.05)


def test_the_seed_gives_the_weights():
    one, same, other = (
        models.functions(models.create("cnn_digits", image_shape=(8, 8, 1), seed=seed))[0]
        for seed in (1, 1, 2)
    )
    jax.tree.map(np.testing.assert_array_equal, one, same)
    assert (one["conv1"]["kernel"] != other["conv1"]["kernel"]).all()
    assert len({float(layer["kernel"].ravel()[0]) for layer in one.values()}) == 3


def cifar_resnet(depth, num_classes, image_shape):
    network = CifarResNet(depth, num_classes, image_shape, Layers())
    initialize(network, seed=0)
    return network


def test_layers_keep_their_weights_when_others_are_added():
    small, large = (cifar_resnet(depth, 10, (32, 32, 3)) for depth in (8, 14))
    np.testing.assert_array_equal(
        small.layer3_0.conv1.kernel[...], large.layer3_0.conv1.kernel[...]
    )


@pytest.mark.parametrize("size", [28, 32])
def test_resnet_on_both_sizes(size):
    module = cifar_resnet(8, 7, (size, size, 1))
    images = np.random.default_rng(0).normal(size=(2, size, size, 1)).astype(np.float32)
    logits = module(images, train=False)
    assert logits.shape == (2, 7)
    edge = (32 - size) // 2
    wide = cifar_resnet(8, 7, (32, 32, 1))
    padded = np.pad(images, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    np.testing.assert_array_equal(wide(padded, train=False), logits)


@pytest.mark.parametrize(
    ("size", "flat"), [((28, 28, 1), 7 * 7 * 32), ((32, 32, 3), 8 * 8 * 32), ((8, 8, 1), 128)]
)
def test_cnn_fashion(size, flat):
    module = models.create("cnn_fashion", 7, size)
    channels = size[-1]
    expected = 25 * channels * 16 + 9 * 16 * 32 + 2 * (16 + 32) + (flat + 1) * 7
    assert num_parameters(module) == expected
    assert module(np.zeros((2, *size), np.float32), train=False).shape == (2, 7)


@pytest.mark.parametrize(("name", "size"), [("cnn_fashion", 8), ("cnn_digits", 8)])
def test_bfloat16_computes_roughly_the_same_from_float32_parameters(name, size):
    images = np.random.default_rng(0).normal(size=(16, size, size, 1)).astype(np.float32)
    precise, rough = (
        models.create(name, 10, (size, size, 1), dtype=dtype) for dtype in ("float32", "bfloat16")
    )
    jax.tree.map(np.testing.assert_array_equal, nnx.state(precise), nnx.state(rough))
    expected, got = precise(images), rough(images)
    assert got.dtype == jnp.float32
    assert not np.array_equal(got, expected)
    np.testing.assert_allclose(got, expected, atol=0.02 * float(abs(expected).max()))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(rough))} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("name", "size", "num_convolutions"),
    [
        ("resnet20_cifar", 28, 21),
        ("resnet44_cifar", 32, 67),
        ("vgg19_bn_cifar", 32, 16),
        ("alexnet_cifar", 32, 5),
        ("resnet18", 224, 20),
    ],
)
def test_every_convolution_computes_in_bfloat16(name, size, num_convolutions):
    module = models.create(name, 7, (size, size, 3), dtype="bfloat16")
    graphdef, state = nnx.split(module)

    def apply(state, images):
        return nnx.merge(graphdef, state, copy=True)(images)

    images = jax.ShapeDtypeStruct((2, size, size, 3), "float32")
    jaxpr = jax.make_jaxpr(apply)(state, images)
    (logits,) = jaxpr.out_avals
    assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)
    types = re.findall(r":(\w+)\[[\d,]*\] = conv_general_dilated", str(jaxpr))
    assert types == ["bf16"] * num_convolutions


@pytest.mark.slow
def test_dropout_of_alexnet_belongs_to_the_example(monkeypatch):
    # Rows of features instead of images: its convolutions would take most of the time.
    monkeypatch.setattr(AlexNet, "features", lambda self, rows: rows)
    module = models.create("alexnet", 10, (224, 224, 1))
    rows = np.random.default_rng(0).normal(size=(2, 9216)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 2)
    logits = module(rows, keys=keys)
    np.testing.assert_allclose(module(rows[1:], keys=keys[1:]), logits[1:], atol=1e-5)
    plain = module(rows, keys=None)
    np.testing.assert_array_equal(module(rows, keys=keys, train=False), plain)
    assert abs(logits - plain).max() > 0.1


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        (
            "resnet20",
            {},
            "no model 'resnet20'; there are cnn_digits, … did you mean 'resnet20_cifar'?",
        ),
        ("resnet21_cifar", {}, "no model 'resnet21_cifar'; there are … did you mean 'resnet"),
        ("vgg19bn", {}, "no model 'vgg19bn'; there are … did you mean 'vgg19_bn'?"),
        ("perceptron", {}, "no model 'perceptron'; there are cnn_digits, … resnet152, … gpt_124m."),
        ("resnet32_cifar", {"image_shape": (224, 224, 3)}, "resnet32_cifar takes 32x32 or 28x28"),
        (
            "vgg11_cifar",
            {"image_shape": (28, 32, 3)},
            "vgg11_cifar takes 32x32 or 28x28 images, got 28x32.",
        ),
        (
            "alexnet_cifar",
            {"image_shape": (8, 8, 1)},
            "alexnet_cifar takes 32x32 or 28x28 images, got 8x8.",
        ),
        ("resnet50", {}, "resnet50 takes 224x224 images, got 32x32."),
        ("alexnet", {}, "alexnet takes 224x224 images, got 32x32."),
        ("vgg19_bn", {}, "vgg19_bn takes 224x224 images, got 32x32."),
        ("cnn_digits", {"image_shape": (9, 8, 1)}, "pools 2x2 pixels and takes no 9x8 images."),
        ("cnn_fashion", {"image_shape": (30, 28, 1)}, "are multiples of 4, got 30x28."),
        ("cnn_fashion", {"num_classes": 0}, "`num_classes` must be at least 1, got 0."),
        ("cnn_fashion", {"dtype": "float16"}, "`dtype` is 'float32' or 'bfloat16', got 'float16'."),
        ("cnn_fashion", {"group_size": 0}, "`group_size` must be at least 1, got 0."),
        (
            "cnn_fashion",
            {"batchnorm_reference_size": 0},
            "`batchnorm_reference_size` must be at least 1, got 0.",
        ),
    ],
)
def test_errors(name, options, sentence):
    with pytest.raises(UsageError) as caught:
        models.create(name, **options)
    assert re.search(says(sentence), str(caught.value))


def test_depths_that_do_not_exist():
    with pytest.raises(UsageError, match="depth is 6n [+] 2, such as 20 or 32, got 18"):
        CifarResNet(18, 10, (32, 32, 3), Layers())


def test_unknown_attributes():
    with pytest.raises(AttributeError, match="no attribute 'training'"):
        _ = models.training


def test_looking_up_names_is_cheap():
    code = (
        "import sys; from adabatch_jax import models; models.names();"
        "sys.exit(bool({'jax', 'flax'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def make_batch(num_rows=6):
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (num_rows, 8, 8, 1)).astype(np.uint8),
        "label": rng.integers(0, 10, num_rows).astype(np.int32),
        "index": np.arange(num_rows, dtype=np.int32),
        "epoch": np.zeros(num_rows, np.int32),
        "weight": np.array([1] * (num_rows - 1) + [0], np.float32),
    }


def test_functions_give_weighted_cross_entropy_and_accuracy():
    module, batch = models.create("cnn_digits", image_shape=(8, 8, 1)), make_batch()
    params, model_state, _, eval_fn = models.functions(module)
    logits = np.asarray(module(batch["image"] / np.float32(255), train=False), np.float64)[:5]
    labels = batch["label"][:5]
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    metrics = eval_fn(params, model_state, batch)
    expected = -log_probabilities[np.arange(5), labels].mean()
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx((logits.argmax(-1) == labels).mean())


def test_augment_and_normalize_are_applied_where_they_belong():
    module, batch, seen = models.create("cnn_digits", image_shape=(8, 8, 1)), make_batch(), []

    def augment(keys, images):
        seen.append("augment")
        assert images.dtype == jnp.uint8
        assert (keys == example_keys(5, batch)).all()
        return images

    def normalize(images):
        seen.append("normalize")
        return images.astype(jnp.float32)

    params, state, loss_fn, eval_fn = models.functions(
        module, seed=5, normalize=normalize, augment=augment
    )
    loss_fn(params, state, batch, jax.random.key(0))
    assert seen == ["augment", "normalize"]
    eval_fn(params, state, batch)
    assert seen == ["augment", "normalize", "normalize"]


def test_training_depends_on_seed_epoch_and_example_but_not_on_the_step():
    module, batch = models.create("cnn_digits", image_shape=(8, 8, 1)), make_batch()
    params, state, loss_fn, _ = models.functions(module, seed=1)
    _, _, other_seed, _ = models.functions(module, seed=2)
    other_epoch = {**batch, "epoch": batch["epoch"] + 1}
    rngs = jax.random.split(jax.random.key(0), 2)
    loss = loss_fn(params, state, batch, rngs[0])[0]
    assert loss == loss_fn(params, state, batch, rngs[1])[0]
    assert loss != loss_fn(params, state, other_epoch, rngs[0])[0]
    assert loss != other_seed(params, state, batch, rngs[0])[0]
    shuffled = {name: array[[4, 2, 0, 1, 3, 5]] for name, array in batch.items()}
    np.testing.assert_allclose(loss_fn(params, state, shuffled, rngs[0])[0], loss, rtol=1e-6)


def test_params_and_state_are_dicts_with_text_keys():
    module = models.create("resnet20_cifar")
    params, model_state, _, _ = models.functions(module)
    for tree in (params, model_state):
        for path, leaf in jax.tree.leaves_with_path(tree):
            assert all(isinstance(entry.key, str) for entry in path)
            assert isinstance(leaf, jax.Array)
