"""A loss that sees rows of weight 0 is refused before it counts, and no other one is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adabatch_jax import (
    Layout,
    Operation,
    TrainState,
    array_source,
    batches,
    check_padding,
    data_mesh,
    evaluate,
    fit,
    make_plan,
    weighted_mean,
)
from adabatch_jax.models import create, functions, loss_properties
from adabatch_jax.system.errors import UsageError

N = 40
X = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
SOURCE = array_source({"x": X, "label": np.arange(N) % 5})
TX = optax.sgd(1.0)


def mean_over(values, batch, is_masked):
    return weighted_mean(values, batch["weight"]) if is_masked else values.mean(0)


def normalizing(is_masked):
    """Normalizes over the batch, as batch normalization does."""

    def loss_fn(params, model_state, batch, rng):
        x = params["w"] * batch["x"]
        mean = mean_over(x, batch, is_masked)
        std = jnp.sqrt(mean_over((x - mean[None]) ** 2, batch, is_masked) + 1e-3)
        losses = jnp.tanh((x - mean[None]) / std[None] - 1).sum(1)
        state = {"mean": 0.9 * model_state["mean"] + 0.1 * mean}
        return weighted_mean(losses**2, batch["weight"]), (state, {})

    return loss_fn


CROSS_ENTROPY = optax.softmax_cross_entropy_with_integer_labels
ZEROS = np.zeros((3, 5), np.float32)
NORMAL = np.random.default_rng(2).normal(size=ZEROS.shape).astype(np.float32)


def classifying(mean, metrics=lambda logits, batch: {}):
    """A linear classifier, of which `mean(logits, batch)` is the loss."""

    def loss_fn(params, model_state, batch, rng):
        logits = batch["x"] @ params["w"]
        return mean(logits, batch), (model_state, metrics(logits, batch))

    return loss_fn


def weighted(logits, batch):
    return weighted_mean(CROSS_ENTROPY(logits, batch["label"]), batch["weight"])


def classifier(weights):
    return TrainState.create(params={"w": weights}, tx=TX)


def in_numpy(x):
    std = np.sqrt(((x - x.mean(0)) ** 2).mean(0) + 1e-3)
    return (np.tanh((x - x.mean(0)) / std - 1).sum(1) ** 2).mean()


def new_state(**model_state):
    model_state = model_state or {"mean": np.zeros(3, np.float32)}
    return TrainState.create(params={"w": np.ones(())}, tx=TX, model_state=model_state)


def run(loss_fn, plan, devices=1, microbatch_size=None, state=None, **layout):
    mesh = None if devices == 1 else data_mesh(jax.devices()[:devices])
    layout = {"steps_per_dispatch": 1} | layout
    return fit(
        loss_fn, TX, state or new_state(), SOURCE, plan, mesh=mesh, log_every="1st",
        layout=Layout(microbatch_size, **layout),
    )  # fmt: skip


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_a_batch_that_is_normalized_is_that_of_numpy_or_refused(devices):
    plan = make_plan(10, N, "20sp")
    examples = [X[batch["index"]] for batch in batches(SOURCE, plan)]
    for is_masked in (False, True):
        if not is_masked and devices > 2:
            with pytest.raises(UsageError, match="sees padding: with other examples .* the loss"):
                run(normalizing(is_masked), plan, devices)
            continue
        result = run(normalizing(is_masked), plan, devices)
        assert result.history[0]["train_loss"] == pytest.approx(in_numpy(examples[0]), rel=1e-5)


@pytest.mark.parametrize("remainder", ["carry", "partial"])
def test_a_partial_batch_is_not_padded_where_nothing_forces_it(remainder):
    plan = make_plan(12, N, f"{N + 14}sp", remainder)
    sizes = [12, 12, 12, 4, 12, 2] if remainder == "partial" else [12, 12, 12, 12, 6]
    assert [step.num_real for step in plan.steps()] == sizes
    shapes = []

    def seen(params, model_state, batch, rng):
        shapes.append(batch["x"].shape[0])
        return normalizing(False)(params, model_state, batch, rng)

    last = [X[batch["index"]] for batch in batches(SOURCE, plan)][-1]
    for number in (1, 3):
        result = run(seen, plan, steps_per_dispatch=number)
        w = result.history[-2]  # the row before has the weights that the last update begins with
        assert np.isfinite(w["train_loss"])
    assert set(shapes) == set(sizes)
    # w is a factor that normalization takes out again, but for the 1e-3.
    assert result.history[-1]["train_loss"] == pytest.approx(in_numpy(last), rel=0.02)
    with pytest.raises(UsageError, match="sees padding"):
        run(normalizing(False), plan, microbatch_size=5)  # ragged: 5, 5, 2 of 5


def test_what_divides_by_the_rows_is_found_by_doubling():
    def loss_fn(params, model_state, batch, rng):
        return (params["w"] * batch["x"][:, 0] ** 2 * batch["weight"]).mean(), (model_state, {})

    with pytest.raises(UsageError, match=r"with all weights doubled the loss changes from \S+ to"):
        run(loss_fn, make_plan(10, N, "20sp"), 4)
    run(loss_fn, make_plan(8, N, "16sp"), 4)  # nothing is padded, and nothing wrong


@pytest.mark.parametrize(
    ("microbatch_size", "devices", "size", "ways"),
    [
        (None, 8, 10, "let update 1 have 8 or 16 examples instead of 10"),
        (4, 1, 10, "let update 1 have 8 or 12 examples instead of 10"),
        (6, 4, 12, "let microbatch_size be 4 or 8, which 4 devices divide"),
        (None, 4, 12, r"let update 4 have 4 examples instead of 2; .*remainder=\"drop\""),
    ],
)
def test_the_ways_out_are_named_and_are_ones(microbatch_size, devices, size, ways):
    plan = make_plan(size, N, "38sp" if "update 4" in ways else f"{2 * size}sp")
    with pytest.raises(UsageError, match=r'mask=batch\["weight"\].*' + ways):
        run(normalizing(False), plan, devices, microbatch_size)


def test_nothing_is_tried_where_nothing_is_padded():
    traces = []

    def loss_fn(params, model_state, batch, rng):
        traces.append(1)
        return normalizing(False)(params, model_state, batch, rng)

    run(loss_fn, make_plan(10, N, "40sp"))
    assert len(traces) == 1
    run(loss_fn, make_plan(8, N, "40sp"), devices=4)
    assert len(traces) == 2


def test_a_single_example_tells_nothing_and_the_next_phase_does():
    """One row on two devices is padded with itself, and normalized with itself alone."""
    plan = make_plan("1, 3sp: 3", N, "12sp")
    with pytest.raises(UsageError, match="sees padding"):
        run(normalizing(False), plan, 2)
    assert not run(normalizing(True), plan, 2).stopped


def test_what_was_tried_does_not_stay_on_the_devices():
    plan = make_plan(10, N, "80sp")
    first = X[next(batches(SOURCE, plan))["index"]]
    kept = []

    def on_step(finished, state, metrics):
        if finished == plan.num_steps:
            rows = (leaf for leaf in jax.live_arrays() if leaf.shape == (1, 12, 3))
            kept.append([np.array_equal(leaf[0, :10], first) for leaf in rows])

    fit(
        normalizing(True), TX, new_state(), SOURCE, plan, mesh=data_mesh(jax.devices()[:4]),
        layout=Layout(None, steps_per_dispatch=1, input="streaming"), on_step=on_step,
    )  # fmt: skip
    (are_first,) = kept
    assert are_first and not any(are_first)


def test_split_and_resident_runs_are_tried_too():
    plan = make_plan(10, N, "20sp")
    for layout in ({"accumulation": "split", "microbatch_size": 4}, {"input": "resident"}):
        with pytest.raises(UsageError, match="sees padding"):
            run(normalizing(False), plan, 4, **layout)


@pytest.mark.parametrize(
    "mean",
    [
        lambda logits, batch: CROSS_ENTROPY(logits, batch["label"]).mean(),
        lambda logits, batch: weighted(logits - logits.mean(0)[None], batch),
    ],
    ids=["mean", "centred"],
)
@pytest.mark.parametrize(("devices", "microbatch_size"), [(8, None), (1, 3)])
def test_weights_that_begin_at_zero_hide_nothing(mean, devices, microbatch_size):
    """All examples have the same loss then, whatever is in the padding."""
    with pytest.raises(UsageError, match="and params perturbed the loss changes"):
        run(
            classifying(mean), make_plan(10, N, "20sp"), devices, microbatch_size, classifier(ZEROS)
        )


@pytest.mark.parametrize("num_real", [8, 7, 6, 5])
@pytest.mark.parametrize(
    "mean",
    [
        lambda z, b: 0.7 * weighted(z, b) + 0.3 * weighted(z, b | {"label": b["label"][::-1]}),
        lambda z, b: weighted_mean(jax.nn.relu(1 + (z * jnp.roll(z, 1, 0)).sum(1)), b["weight"]),
        lambda z, b: weighted(z + z[-1:], b),
    ],
    ids=["flipped", "rolled", "last"],
)
def test_the_order_of_rows_is_seen_in_full_and_padded_batches(mean, num_real):
    padded = list(batches(SOURCE, make_plan(8, N, f"{num_real}sp"), pad=True))[0]
    assert padded["weight"].sum() == num_real
    with pytest.raises(UsageError, match="with other examples in rows of weight 0"):
        check_padding(classifying(mean), classifier(NORMAL), padded, jax.random.key(0))


@pytest.mark.parametrize("bad", [0, 3])
@pytest.mark.parametrize("number", [1, 2])
def test_what_is_not_finite_is_no_padding_and_the_next_examples_tell(bad, number):
    """Update 1 has an example that is NaN, in its first micro-batch."""
    plan = make_plan(10, N, "40sp")
    x = X.copy()
    x[next(batches(SOURCE, plan))["index"][bad]] = np.nan
    source = array_source({"x": x, "label": np.arange(N) % 5})

    def skipping(loss_fn):
        return fit(
            loss_fn, TX, classifier(ZEROS), source, plan, log_every="1st",
            layout=Layout(4, steps_per_dispatch=number), operation=Operation(on_nan="skip:5"),
        )  # fmt: skip

    assert skipping(classifying(weighted)).state.step == 4
    with pytest.raises(UsageError, match="sees padding"):
        skipping(classifying(lambda z, b: CROSS_ENTROPY(z, b["label"]).mean()))
    batch = next(batches(source, plan))
    alone = {name: array[[bad, bad]] for name, array in batch.items()}
    with pytest.raises(UsageError, match="no finite loss"):
        check_padding(classifying(weighted), classifier(ZEROS), alone, jax.random.key(0))


def test_accuracies_that_are_the_same_by_chance_are_tried_on():
    """Of 100 classes hardly any prediction is right in the first update."""
    source = array_source({"x": X, "label": np.arange(N) * 2})
    weights = 0.01 * np.random.default_rng(1).normal(size=(3, 100)).astype(np.float32)

    def trained(accuracy):
        loss_fn = classifying(weighted, accuracy)
        return fit(
            loss_fn,
            TX,
            classifier(weights),
            source,
            make_plan(10, N, "80sp"),
            mesh=data_mesh(),
            log_every="1st",
        )

    for right in (
        lambda z, b: {"accuracy": weighted_mean(z.argmax(1) == b["label"], b["weight"])},
        lambda z, b: {"constant": jnp.float32(2), "finite": jnp.isfinite(z).all()},
    ):
        assert trained(right).state.step == 8
    with pytest.raises(UsageError, match=r"the metric \['accuracy'\] changes"):
        trained(lambda z, b: {"accuracy": (z.argmax(1) == b["label"]).mean()})


def test_examples_that_weigh_nothing_are_others_too():
    """The first micro-batch has one example that weighs something."""
    plan = make_plan(10, N, "40sp")
    weight = np.ones(N, np.float32)
    weight[next(batches(SOURCE, plan))["index"][:9]] = 0
    source = array_source({"x": X, "weight": weight})
    fit(normalizing(True), TX, new_state(), source, plan, mesh=data_mesh())
    with pytest.raises(UsageError, match="sees padding"):
        fit(normalizing(False), TX, new_state(), source, plan, mesh=data_mesh())


def with_state(change):
    """A loss whose only fault may be what `change` makes of the state and the metrics."""

    def loss_fn(params, model_state, batch, rng):
        losses = (params["w"] * batch["x"]).sum(1) ** 2
        model_state, metrics = change(model_state, batch, rng)
        return weighted_mean(losses, batch["weight"]), (model_state, metrics)

    return loss_fn


def real(batch):
    return batch["weight"][:, None] > 0


def unbiased_variance(batch):
    """torch's running variance divides by one less than the examples."""
    centred = batch["x"] - weighted_mean(batch["x"], batch["weight"])[None]
    return weighted_mean(centred**2, batch["weight"]) * (
        batch["weight"].sum() / jnp.maximum(batch["weight"].sum() - 1, 1)
    )


BAD = {
    r"the metric \['hits'\]": lambda s, b, r: (s, {"hits": (b["label"] < 3).mean()}),
    r"model_state\['mean'\]": lambda s, b, r: (s | {"mean": b["x"].mean(0)}, {}),
    r"the metric \['sum'\]": lambda s, b, r: (s, {"sum": b["weight"].sum()}),
    r"model_state\['mean'\] .* a count as an integer": lambda s, b, r: (
        s | {"mean": s["mean"] + b["weight"].sum()},
        {},
    ),
    r"the metric \['most'\]": lambda s, b, r: (s, {"most": b["label"].max()}),
}
GOOD = {
    "random": lambda s, b, r: (s, {"noise": jax.random.normal(r, b["weight"].shape)[0]}),
    "counts": lambda s, b, r: (s | {"n": s["n"] + b["weight"].sum().astype(jnp.int32)}, {}),
    "bfloat16": lambda s, b, r: (
        s,
        {"mean": weighted_mean(b["x"].astype(jnp.bfloat16), b["weight"].astype(jnp.bfloat16))[0]},
    ),
    "keys": lambda s, b, r: (s | {"key": jax.random.split(s["key"])[0]}, {}),
    "nan": lambda s, b, r: (s, {"nan": jnp.nan * weighted_mean(b["x"], b["weight"])[0]}),
    "unbiased": lambda s, b, r: (s | {"mean": unbiased_variance(b)}, {}),
    "dropout": lambda s, b, r: (
        s,
        {
            "kept": weighted_mean(jax.random.bernoulli(r, 0.5, b["x"].shape) * b["x"], b["weight"])[
                0
            ]
        },
    ),
    "half precision": lambda s, b, r: (
        s,
        {
            "power": jnp.exp(
                weighted_mean(b["x"].astype(jnp.float16), b["weight"].astype(jnp.float16))[0]
            )
        },
    ),
    "contrastive": lambda s, b, r: (
        s,
        {
            "loss_of_pairs": weighted_mean(
                CROSS_ENTROPY(
                    jnp.where(real(b).T, b["x"] @ b["x"].T, -1e9), jnp.arange(len(b["x"]))
                ),
                b["weight"],
            )
        },
    ),
    "maximum": lambda s, b, r: (s, {"most": jnp.where(b["weight"] > 0, b["label"], 0).max()}),
}


def state_of_all_kinds():
    return new_state(mean=np.zeros(3, np.float32), n=np.int32(3), key=jax.random.key(5))


def example_batch():
    return next(batches(SOURCE, make_plan(8, N, "8sp")))


@pytest.mark.parametrize("what", BAD)
def test_what_changes_is_named(what):
    with pytest.raises(UsageError, match=f"loss_fn sees padding: .* {what}"):
        check_padding(
            with_state(BAD[what]), state_of_all_kinds(), example_batch(), jax.random.key(0)
        )


@pytest.mark.parametrize("what", GOOD)
def test_a_loss_that_takes_weighted_means_passes(what):
    state = state_of_all_kinds()
    check_padding(with_state(GOOD[what]), state, example_batch(), jax.random.key(0))
    check_padding(with_state(GOOD[what]), state, example_batch(), jax.random.key(0))  # as it was
    whole = jax.device_put(state, jax.NamedSharding(data_mesh(), jax.P()))
    sharded = jax.device_put(example_batch(), jax.NamedSharding(data_mesh(), jax.P("data")))
    check_padding(with_state(GOOD[what]), whole, sharded, jax.random.key(0))


def test_own_loops_give_what_they_have():
    microbatched = next(batches(SOURCE, make_plan(7, N, "7sp"), microbatch_size=4))
    for batch in (microbatched, example_batch()):
        check_padding(normalizing(True), new_state(), batch, jax.random.key(0))
        with pytest.raises(UsageError, match="or pad no batch"):
            check_padding(normalizing(False), new_state(), batch, jax.random.key(0))
    alone = {name: array[:1] for name, array in example_batch().items()}
    with pytest.raises(UsageError, match="at least two examples"):
        check_padding(normalizing(True), new_state(), alone, jax.random.key(0))
    with pytest.raises(UsageError, match="needs a 'weight'"):
        check_padding(normalizing(True), new_state(), {"x": X}, jax.random.key(0))


@pytest.mark.parametrize("options", [{}, {"group_size": 4, "batchnorm_reference_size": 4}])
def test_our_networks_pass(options):
    module = create("cnn_fashion", 5, (8, 8, 1), 0, **options)
    params, model_state, loss_fn, eval_fn = functions(module)
    assert loss_properties(module)["sequential_model_state"]
    images = np.random.default_rng(1).integers(0, 256, (N, 8, 8, 1), np.uint8)
    source = array_source({"image": images, "label": np.arange(N) % 5})
    state = TrainState.create(params=params, tx=TX, model_state=model_state)
    batch = next(batches(source, make_plan(14, N, "14sp")))
    check_padding(loss_fn, state, batch, jax.random.key(0))


def test_an_evaluation_is_exact_or_refused():
    """The last of 8, 8, ..., 8 or 7 examples is padded where the devices don't divide it."""
    source = array_source({"x": X[:15]})

    def eval_fn(params, model_state, batch):
        return {"x": batch["x"][:, 0].mean()}

    for mesh in (None, data_mesh(jax.devices()[:1])):
        got = evaluate(eval_fn, new_state(), source, 8, mesh)
        assert got["x"] == pytest.approx(X[:15, 0].mean(), rel=1e-6)
    with pytest.raises(UsageError, match=r"eval_fn sees padding: .* the metric \['x'\] changes"):
        evaluate(eval_fn, new_state(), source, 8, data_mesh(jax.devices()[:4]))
    got = evaluate(eval_fn, new_state(), array_source({"x": X}), 8, data_mesh(jax.devices()[:4]))
    assert got["x"] == pytest.approx(X[:, 0].mean(), rel=1e-6)
