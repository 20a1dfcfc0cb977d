"""Loading arrays by PyTorch's names: what is accepted, what comes back, what is refused."""

import jax
import numpy as np
import pytest
from flax import nnx

from adabatch_jax import models
from adabatch_jax.models import create, load_torch_weights, to_torch_arrays
from adabatch_jax.system.errors import UsageError


@pytest.fixture(scope="module")
def arrays():
    return to_torch_arrays(create("resnet20_cifar", seed=1))


@pytest.fixture
def model():
    return create("resnet20_cifar", seed=2)


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


def test_names_and_layout_are_pytorchs(arrays):
    assert len(arrays) == 21 * 5 + 2  # Convolutions with BatchNorm, and the linear layer.
    assert arrays["conv1.weight"].shape == (16, 3, 3, 3)
    assert arrays["layer3.0.downsample.1.running_var"].shape == (64,)
    ours = create("resnet20_cifar", seed=1)
    kernel = np.asarray(ours.layer2_0.conv1.kernel[...])
    assert kernel.shape == (3, 3, 16, 32)
    assert arrays["layer2.0.conv1.weight"][5, 4, 2, 1] == kernel[2, 1, 4, 5]
    np.testing.assert_array_equal(arrays["fc.weight"], np.asarray(ours.fc.kernel[...]).T)


@pytest.mark.parametrize(
    "wrapped", ["{}", "module.{}", "{0[0]}.module.{0[1]}"], ids=["plain", "front", "inside"]
)
def test_module_segments_are_left_out(arrays, model, wrapped):
    def rename(name):
        return wrapped.format(name.split(".", 1) if "0[" in wrapped else name)

    load_torch_weights(model, {rename(name): array for name, array in arrays.items()})
    assert_same(to_torch_arrays(model), arrays)


def test_counters_are_ignored_and_other_types_cast(arrays, model):
    doubles = {name: array.astype(np.float64) for name, array in arrays.items()}
    load_torch_weights(model, {**doubles, "bn1.num_batches_tracked": np.array(7)})
    assert_same(to_torch_arrays(model), arrays)


def test_archives_are_mappings(arrays, model, tmp_path):
    np.savez(tmp_path / "weights.npz", **arrays)
    with np.load(tmp_path / "weights.npz") as archive:
        load_torch_weights(model, archive)
    assert_same(to_torch_arrays(model), arrays)


def test_arrays_are_copies(arrays, model):
    load_torch_weights(model, arrays)
    to_torch_arrays(model)["bn1.weight"][:] = 7
    assert_same(to_torch_arrays(model), arrays)


def without(arrays, *names):
    return {name: array for name, array in arrays.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda a: {**a, "module.fc.weight": a["fc.weight"]},
            "the arrays 'fc.weight' and 'module.fc.weight' are the same parameter.",
        ),
        (
            lambda a: {**a, "fc.weight": np.zeros((100, 64))},
            "the array 'fc.weight' has the shape (100, 64), but the network's is (10, 64).",
        ),
        (
            lambda a: {**a, "conv1.weight": a["conv1.weight"].transpose(2, 3, 1, 0)},
            "the array 'conv1.weight' has the shape (3, 3, 3, 16)"
            + ", but the network's is (16, 3, 3, 3).",
        ),
        (
            lambda a: without(a, "bn1.running_mean", "bn1.running_var", "fc.bias"),
            "the arrays lack 'bn1.running_mean', 'bn1.running_var' and 1 more.",
        ),
        (
            lambda a: {**without(a, "fc.bias"), "module.fc.bais": a["fc.bias"]},
            "the arrays lack 'fc.bias' and hold 'module.fc.bais', which the network doesn't have"
            + "; did you mean 'fc.bias'?",
        ),
        (
            lambda a: {"epoch": 9, "state_dict": a},
            "the arrays lack 'bn1.bias', 'bn1.running_mean' and 105 more"
            + " and hold 'epoch', 'state_dict', which the network doesn't have.",
        ),
        (
            lambda a: {**a, "fc.bias": np.array(["a"] * 10)},
            "the array 'fc.bias' can't be read as float32.",
        ),
    ],
    ids=["twice", "classes", "layout", "missing", "misspelled", "checkpoint", "text"],
)
def test_what_does_not_fit_is_refused_in_one_sentence(arrays, model, change, sentence):
    before = to_torch_arrays(model)
    with pytest.raises(UsageError) as refusal:
        load_torch_weights(model, change(arrays))
    assert str(refusal.value) == sentence
    assert_same(to_torch_arrays(model), before)


def test_arrays_of_another_network_are_refused(model):
    with pytest.raises(UsageError, match=r"^the arrays lack .* and hold 'classifier.bias', .*\.$"):
        load_torch_weights(model, to_torch_arrays(create("alexnet_cifar")))
    deeper = to_torch_arrays(create("resnet32_cifar"))
    with pytest.raises(UsageError, match=r"^the arrays hold 'layer1.3.bn1.bias', .* more, which"):
        load_torch_weights(model, deeper)


def test_trained_arrays_come_back_through_update(model):
    params, model_state, _, _ = models.functions(model)
    trained = jax.tree.map(lambda leaf: leaf + 1, (params, model_state))
    before = to_torch_arrays(model)
    nnx.update(model, *trained)
    assert_same(to_torch_arrays(model), {name: array + 1 for name, array in before.items()})
