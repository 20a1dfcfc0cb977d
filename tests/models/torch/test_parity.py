"""Our networks against their PyTorch originals, by fixtures that `make_reference` has written.

Weights and images are drawn anew, see `draws`. What PyTorch computed, it computed in float64:
in float32 a rounding can flip a ReLU, and gradients of two right programs differ by a percent.
So logits are compared in float32, as they are used, and training in float64, to 1e-8.
"""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from adabatch_jax.config import TrainConfig
from adabatch_jax.models import create, functions, load_torch_weights, to_torch_arrays
from adabatch_jax.runs.configured_optimizer import make_optimizer
from adabatch_jax.training.train_state import TrainState
from adabatch_jax.training.train_step import make_train_step
from tests.models.torch import draws

FIXTURES = Path(__file__).parent / "fixtures"
SMALL = ["alexnet_cifar", "vgg11_cifar", "vgg19_bn_cifar", "resnet20_cifar"]


def slow(name):
    return pytest.param(name, marks=pytest.mark.slow)


@dataclasses.dataclass(frozen=True)
class Original:
    """A network's fixture; `expected` has the arrays that `make_reference` computed."""

    weights: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]

    @property
    def num_classes(self) -> int:
        return self.expected["eval_logits"].shape[1]

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        num_rows, size = int(self.expected["num_rows"]), int(self.expected["size"])
        images, labels = draws.batch(step, num_rows, size, self.num_classes)
        return images.transpose(0, 2, 3, 1), labels

    def ours(self, name: str) -> nnx.Module:
        size = int(self.expected["size"])
        model = create(name, self.num_classes, (size, size, 3))
        load_torch_weights(model, self.weights)
        return model


def original(name: str) -> Original:
    with np.load(FIXTURES / f"{name}.npz") as file:
        expected = dict(file)
    return Original(draws.weights(json.loads(str(expected.pop("shapes")))), expected)


def running(arrays):
    return {name: array for name, array in arrays.items() if "running_" in name}


def trained(arrays):
    return {name: array for name, array in arrays.items() if "running_" not in name}


def assert_close(summary, expected, relative):
    """Norm and component of each array, to a share of its norm."""
    # The gradient of a bias before BatchNorm is 0 but for rounding.
    norms = np.maximum(expected[:, :1], 1e-3)
    np.testing.assert_allclose(summary / norms, expected / norms, rtol=0, atol=relative)


@pytest.mark.parametrize(
    "name", [*SMALL, slow("resnet44_cifar"), "alexnet", "resnet50", slow("vgg19_bn")]
)
def test_logits_and_running_statistics(name):
    reference = original(name)
    model = reference.ours(name)
    graphdef, state = nnx.split(model)

    @jax.jit
    def forward(state, images):
        network = nnx.merge(graphdef, state)
        logits = network(images, train=False), network(images, keys=None, train=True)
        return logits, nnx.state(network)

    (evaluation, training), state = forward(state, reference.batch(0)[0])
    for logits, mode in ((evaluation, "eval_logits"), (training, "train_logits")):
        expected = reference.expected[mode]
        np.testing.assert_allclose(
            logits, expected, rtol=0, atol=1e-4 * min(1, abs(expected).max()), err_msg=mode
        )
    nnx.update(model, state)
    statistics = draws.summary(running(to_torch_arrays(model)))
    assert_close(statistics, reference.expected["statistics"], 1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "alexnet_cifar",
        "vgg19_bn_cifar",
        "resnet20_cifar",
        slow("vgg11_cifar"),
        slow("resnet44_cifar"),
    ],
)
def test_gradients_and_five_sgd_steps(name):
    reference = original(name)
    with jax.enable_x64(True):
        check_training(reference, reference.ours(name))


def check_training(reference: Original, model: nnx.Module) -> None:
    params, model_state, loss_fn, _ = functions(model, normalize=lambda images: images)
    params, model_state = jax.tree.map(
        lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), (params, model_state)
    )
    config = TrainConfig(momentum=draws.MOMENTUM, weight_decay=draws.WEIGHT_DECAY)
    tx = make_optimizer(config, optax.constant_schedule(draws.LEARNING_RATE))
    start = jax.tree.map(np.array, params)
    state = TrainState.create(params=params, tx=tx, model_state=model_state)
    train_step = make_train_step(loss_fn, tx)

    def by_name(params, model_state):
        nnx.update(model, params, model_state)
        return to_torch_arrays(model)

    losses = []
    for step in range(draws.NUM_STEPS):
        images, labels = reference.batch(step)
        rows = np.arange(len(labels))
        batch = {
            "image": images.astype(np.float64),
            "label": labels,
            "index": rows,
            "epoch": 0 * rows,
            "weight": np.ones(len(rows)),
        }
        state, metrics = train_step(state, batch, jax.random.key(0))
        losses.append(float(metrics["loss"]))
        if step == 0:
            # The first step's momentum is the gradient and the decay that was added to it.
            trace = optax.tree_utils.tree_get(state.opt_state, "trace")
            grads = jax.tree.map(lambda t, p: np.array(t) - draws.WEIGHT_DECAY * p, trace, start)
            gradients = draws.summary(trained(by_name(grads, state.model_state)))
    after = by_name(state.params, state.model_state)
    change = {name: after[name] - array for name, array in reference.weights.items()}

    assert_close(gradients, reference.expected["gradients"], 1e-8)
    np.testing.assert_allclose(losses, reference.expected["losses"], rtol=1e-8)
    assert_close(draws.summary(change), reference.expected["change"], 1e-8)
