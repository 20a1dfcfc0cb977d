"""What a loss function may return: anything else is named in one sentence before it is compiled."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adabatch_jax.data.mesh import data_mesh
from adabatch_jax.system.errors import UsageError
from adabatch_jax.training.loss_functions import weighted_mean
from adabatch_jax.training.train_state import TrainState
from adabatch_jax.training.train_step import make_train_step

X = np.arange(6, dtype=np.float32)
BATCH = {"x": X, "weight": np.ones(6, np.float32)}


def step_of(returned, params=None, model_state=None, microbatch_size=None):
    def loss_fn(params, model_state, batch, rng):
        loss = weighted_mean(batch["x"] * params["w"], batch["weight"])
        return returned(loss, model_state, batch)

    tx = optax.sgd(0.1)
    state = TrainState.create(params=params or {"w": 1.0}, tx=tx, model_state=model_state)
    step = make_train_step(loss_fn, tx, microbatch_size=microbatch_size)
    batch = BATCH
    if microbatch_size is not None:
        batch = {name: array.reshape(-1, microbatch_size) for name, array in BATCH.items()}
    return step(state, batch, jax.random.key(0))


@pytest.mark.parametrize("microbatch_size", [None, 3])
@pytest.mark.parametrize(
    "returned, told",
    [
        (lambda loss, state, batch: loss, r"return \(loss, .*got float32\[\]\."),
        (lambda loss, state, batch: (loss, state, {}), r"got \(float32\[\], a dict, a dict\)\."),
        (lambda loss, state, batch: (loss, {"a": 1.0}), r"got \(float32\[\], a dict\)\."),
        (lambda loss, state, batch: (loss, [state]), r"got \(float32\[\], \(a dict\)\)\."),
        (lambda loss, state, batch: (loss * batch["x"], (state, {})), r"one .*got float32\[[36]\]"),
        (lambda loss, state, batch: (loss.astype(int), (state, {})), r"one .*got int32\[\]"),
        (lambda loss, state, batch: (None, (state, {})), r"one .*got a NoneType"),
        (lambda loss, state, batch: (loss, (state, [loss])), r"metrics must be a dict.*\(float32"),
        (lambda loss, state, batch: (loss, (state, None)), r"metrics must be a dict.*a NoneType"),
        (lambda loss, state, batch: (loss, (state, {"a": "b"})), r"metrics\['a'\] is a str"),
        (lambda loss, state, batch: (loss, (state, {"loss": loss})), r"the key 'loss'"),
        (
            lambda loss, state, batch: (loss, ({}, {})),
            r"model_state\['n'\] was int32\[\] and is absent now",
        ),
        (
            lambda loss, state, batch: (loss, ({"n": state["n"] + 0.5}, {})),
            r"model_state\['n'\] was int32\[\] and is float32\[\] now",
        ),
        (
            lambda loss, state, batch: (loss, ({**state, "m": "b"}, {})),
            r"model_state\['m'\] was absent and is a str now",
        ),
        (lambda loss, state, batch: (loss, ({**state, "m": None}, {})), "structure.*'m': None"),
    ],
)
def test_what_is_wrong_is_named(returned, told, microbatch_size):
    with pytest.raises(UsageError, match=told):
        step_of(returned, model_state={"n": 0}, microbatch_size=microbatch_size)


@pytest.mark.parametrize("microbatch_size", [None, 3])
def test_numbers_of_python_and_numpy_are_metrics_and_model_state(microbatch_size):
    def returned(loss, model_state, batch):
        return loss, ({"n": 2, "x": np.float32(0.5)}, {"a": 1.5, "b": np.int32(3), "c": True})

    model_state = {"n": 1, "x": 0.25}
    state, metrics = step_of(returned, None, model_state, microbatch_size)
    assert {name: float(value) for name, value in metrics.items()} == {
        "loss": 2.5,
        "a": 1.5,
        "b": 3.0,
        "c": 1.0,
    }
    assert (int(state.model_state["n"]), float(state.model_state["x"])) == (2, 0.5)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))


def test_parameters_that_cannot_be_trained_are_named():
    def returned(loss, state, batch):
        return loss, (state, {})

    with pytest.raises(UsageError, match=r"params\['n'\] is int32\[\], which has no gradient"):
        step_of(returned, {"w": 1.0, "n": 3})
    with pytest.raises(UsageError, match=r"params\['f'\]\[0\] is a function.*eqx\.partition"):
        step_of(returned, {"w": 1.0, "f": [lambda x: x]})
    with pytest.raises(UsageError, match=r"model_state\['mode'\] is a str"):
        step_of(returned, model_state={"mode": "train"})


@jax.tree_util.register_pytree_node_class
class Box:
    """A pytree of a class without `__eq__`, as equinox's State is."""

    def __init__(self, value, static):
        self.value, self.static = value, static

    def tree_flatten(self):
        return (self.value,), self.static

    @classmethod
    def tree_unflatten(cls, static, children):
        return cls(*children, static)


@pytest.mark.parametrize("microbatch_size", [None, 3])
def test_a_model_state_needs_no_comparison_of_its_class(microbatch_size):
    def returned(loss, box, batch):
        return loss, (Box(box.value + weighted_mean(batch["x"], batch["weight"]), box.static), {})

    state, _ = step_of(returned, None, Box(0.0, jax.nn.relu), microbatch_size)
    assert float(state.model_state.value) == 2.5
    with pytest.raises(UsageError, match="what is around them isn't.*static fields"):
        step_of(lambda loss, box, batch: (loss, (Box(box.value, lambda x: x), {})), None,
                Box(0.0, jax.nn.relu), microbatch_size)  # fmt: skip


def test_equinox_state_is_a_model_state():
    index = eqx.nn.StateIndex(jnp.zeros(()))
    box = eqx.nn.State(index)

    def returned(loss, state, batch):
        mean = weighted_mean(batch["x"], batch["weight"])
        return loss, (state.set(index, state.get(index) + mean), {})

    for microbatch_size in (None, 3):
        state, _ = step_of(returned, None, box, microbatch_size)
        assert float(state.model_state.get(index)) == 2.5


def test_a_state_that_was_made_by_hand_may_hold_numbers_of_the_host():
    def loss_fn(params, model_state, batch, rng):
        return weighted_mean(batch["x"] * params["w"], batch["weight"]), ({"n": 2.0}, {})

    tx = optax.sgd(0.1)
    for mesh in (None, data_mesh(jax.devices()[:2])):
        state = TrainState(0, {"w": 1.0}, {"n": np.float32(0)}, tx.init({"w": 1.0}))
        after, _ = make_train_step(loss_fn, tx, mesh)(state, BATCH, jax.random.key(0))
        assert (int(after.step), float(after.params["w"])) == (1, 0.75)
