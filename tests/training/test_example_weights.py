"""Examples with weights of their own: means over tokens are the same whole and in micro-batches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adabatch_jax import (
    Layout,
    TrainState,
    array_source,
    batches,
    data_mesh,
    evaluate,
    fit,
    make_plan,
    make_train_step,
    rebatch,
    weighted_mean,
)
from adabatch_jax.data.abstract_arrays import abstract_batch, example_types
from adabatch_jax.data.example_weights import example_weights
from adabatch_jax.system.errors import UsageError

N, T = 24, 6
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, T + 1, N)
TOKENS[3] = 0
X = RNG.normal(size=(N, T)).astype(np.float32)
MASK = np.arange(T) < TOKENS[:, None]
SOURCE = array_source({"x": X, "mask": MASK, "weight": TOKENS})
# More than one update, so that a wrong mean shows in what comes after it.
PLAN = make_plan(12, N, "36sp")
TX = optax.sgd(0.1)


def per_token(w, x):
    return (w * x - 1) ** 2 + w


def token_mean(params, model_state, batch, rng):
    """Written without a look at the weights, as language models' losses are."""
    mask = batch["mask"] * (batch["weight"] > 0)[:, None]
    total = (per_token(params["w"], batch["x"]) * mask).sum()
    state = {"mean": 0.5 * model_state["mean"] + 0.5 * (batch["x"] * mask).sum() / mask.sum()}
    return total / mask.sum(), (state, {"x": (batch["x"] * mask).sum() / mask.sum()})


def mean_of_examples(params, model_state, batch, rng):
    """Means per example, which batches weigh."""
    count = jnp.maximum(batch["mask"].sum(1), 1)

    def mean(values):
        return weighted_mean((values * batch["mask"]).sum(1) / count, batch["weight"])

    x = mean(batch["x"])
    state = {"mean": 0.5 * model_state["mean"] + 0.5 * x}
    return mean(per_token(params["w"], batch["x"])), (state, {"x": x})


def in_numpy():
    """Loss by update, the last update's mean of x, and what is left in the end."""
    w, state, losses = 0.5, 0.0, []
    for batch in batches(array_source({"i": np.arange(N)}), PLAN):
        x = X.astype(np.float64)[batch["i"]][MASK[batch["i"]]]
        losses.append(per_token(w, x).mean())
        w -= 0.1 * (2 * (w * x - 1) * x + 1).mean()
        state = 0.5 * state + 0.5 * x.mean()
    return losses, x.mean(), w, state


def new_state():
    state = {"mean": np.zeros((), np.float32)}
    return TrainState.create(params={"w": np.float32(0.5)}, tx=TX, model_state=state)


@pytest.mark.parametrize("loss_fn", [token_mean, mean_of_examples])
@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("options", [(None, {}), (4, {}), (1, {}), (5, {"accumulation": "split"})])
def test_a_mean_over_tokens_is_that_of_numpy(options, devices, loss_fn):
    microbatch_size, layout = options
    losses, x, w, mean = in_numpy()
    mesh = data_mesh(jax.devices()[:4]) if devices == 4 else None
    inputs = ("resident", "streaming") if not layout and devices == 1 else ("auto",)
    digests = set()
    for input in inputs:
        result = fit(
            loss_fn, TX, new_state(), SOURCE, PLAN, mesh=mesh, log_every="1st",
            layout=Layout(microbatch_size, steps_per_dispatch=1, input=input, **layout),
        )  # fmt: skip
        assert [row["train_loss"] for row in result.history] == pytest.approx(losses, rel=2e-6)
        assert result.history[-1]["train_x"] == pytest.approx(x, rel=1e-5)
        assert float(result.state.params["w"]) == pytest.approx(w, rel=2e-6)
        assert float(result.state.model_state["mean"]) == pytest.approx(mean, rel=1e-5)
        digests.add((result.summary["weights_digest"], result.summary["examples_digest"]))
    assert len(digests) == 1


@pytest.mark.parametrize("microbatch_size", [None, 4, 1])
def test_an_own_loop_has_the_same(microbatch_size):
    losses, _, w, _ = in_numpy()
    step, state = make_train_step(token_mean, TX, microbatch_size=microbatch_size), new_state()
    for batch, wanted in zip(
        batches(SOURCE, PLAN, microbatch_size=microbatch_size), losses, strict=True
    ):
        rows = batch["index"]
        np.testing.assert_array_equal(batch["weight"], TOKENS[rows].astype(np.float32))
        state, metrics = step(state, batch, jax.random.key(0))
        assert float(metrics["loss"]) == pytest.approx(wanted, rel=2e-6)
    assert float(state.params["w"]) == pytest.approx(w, rel=2e-6)


@pytest.mark.parametrize("devices", [None, 4])
@pytest.mark.parametrize("batch_size", [1, 5, 24])
def test_an_evaluation_weighs_its_examples(batch_size, devices):
    def eval_fn(params, model_state, batch):
        loss, (_, metrics) = mean_of_examples(params, model_state, batch, None)
        return metrics | {"loss": loss}

    mesh = None if devices is None else data_mesh(jax.devices()[:devices])
    got = evaluate(eval_fn, new_state(), SOURCE, batch_size, mesh)
    x = X.astype(np.float64)[MASK]
    assert got == pytest.approx({"loss": per_token(0.5, x).mean(), "x": x.mean()}, rel=2e-6)


@pytest.mark.parametrize("microbatch_size", [None, 2])
def test_a_batch_that_weighs_nothing_is_left_out(microbatch_size):
    """0 / 0 included, in one piece as in micro-batches."""
    weight = np.array([1.0, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1], np.float32)
    x = np.arange(12, dtype=np.float32)
    order = np.argsort(next(batches(array_source({"i": x}), make_plan(12, 12, "1ep")))["index"])
    source = array_source({"x": x[order], "weight": weight[order]})

    def loss_fn(params, model_state, batch, rng):
        weight = batch["weight"]
        mean = (batch["x"] * weight).sum() / weight.sum()
        return params["w"] * mean, ({"mean": mean}, {})

    result = fit(
        loss_fn, TX, new_state(), source, make_plan(4, 12, "1ep"), log_every="1st",
        layout=Layout(microbatch_size, steps_per_dispatch=1),
    )  # fmt: skip
    assert ["train_loss" in row for row in result.history] == [True, False, True]
    assert float(result.state.params["w"]) == pytest.approx(0.5 - 0.1 * (1.5 + 9.5))
    assert float(result.state.model_state["mean"]) == 9.5
    assert len({row["examples_digest"] for row in result.history}) == 3


def test_one_that_weighs_nothing_at_all_is_refused():
    source = array_source({"x": X, "mask": MASK, "weight": np.zeros(N)})
    with pytest.raises(UsageError, match="all examples .* weigh 0"):
        evaluate(lambda *_: {"x": jnp.nan}, new_state(), source, 8)


@pytest.mark.parametrize(
    ("weight", "got"),
    [
        ([1, -0.5], "-0.5"),
        ([1, np.nan], "nan"),
        ([np.inf, 1], "inf"),
        ([[1, 1], [1, 1]], r"int64 of shape \(\d, 2\)"),
        (["a", "b"], "<U1"),
    ],
)
@pytest.mark.parametrize("how", ["batches", "resident", "streaming", "rebatch"])
def test_what_is_no_weight_is_refused_by_name(weight, got, how):
    arrays = {"x": np.zeros(2, np.float32), "weight": np.array(weight)}
    plan = make_plan(2, 2, "1ep")
    told = "'weight' (must hold one number .* got|is of)"  # no device takes texts, of any array
    with pytest.raises(UsageError, match=f"{told} {got}"):
        if how == "batches":
            list(batches(array_source(arrays), plan))
        elif how == "rebatch":
            list(rebatch([arrays], plan))
        else:
            fit(
                lambda p, s, b, r: (p["w"] * b["x"].mean(), (s, {})), TX, new_state(),
                array_source(arrays), plan, layout=Layout(None, input=how),
            )  # fmt: skip


def test_weights_of_any_kind_are_float32_and_once_in_a_batch():
    for weight in (np.arange(3), np.array([True, False, True]), np.ones(3, jnp.bfloat16)):
        assert example_weights(weight).tolist() == weight.astype(float).tolist()
    types = example_types(SOURCE)
    assert types["weight"] == jax.ShapeDtypeStruct((), np.float32)
    shapes = abstract_batch(types, (5,))
    assert set(shapes) == {"x", "mask", "index", "epoch", "weight"}
    assert (shapes["weight"].shape, shapes["weight"].dtype) == ((5,), np.float32)
    (batch,) = rebatch([{"x": X, "weight": TOKENS}], make_plan(N, N, "1ep"))
    assert batch["weight"].tolist() == TOKENS.tolist() and batch["weight"].dtype == np.float32
