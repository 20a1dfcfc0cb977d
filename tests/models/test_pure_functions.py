"""What the loss says of examples that it can't mean: labels, types, numbers that aren't finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adabatch_jax as ab
from adabatch_jax.models import create, functions
from adabatch_jax.system.errors import DivergedError, UsageError

NUM_EXAMPLES = 32


def examples(**changed):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM_EXAMPLES, 8, 8, 1), dtype=np.uint8)
    return {"image": images, "label": rng.integers(0, 10, NUM_EXAMPLES)} | changed


def fitted(train, test, normalize=None):
    params, model_state, loss_fn, eval_fn = functions(
        create("cnn_digits", image_shape=(8, 8, 1)), normalize=normalize
    )
    tx = optax.sgd(0.01)
    return ab.fit(
        loss_fn, tx, ab.TrainState.create(params=params, tx=tx, model_state=model_state),
        ab.array_source(train), ab.make_plan("16", NUM_EXAMPLES, "1ep"),
        eval_fn=eval_fn, eval_source=ab.array_source(test),
    )  # fmt: skip


@pytest.mark.parametrize("label", [10, -1, 255, -(2**31)])
def test_a_label_that_is_no_class_is_found(label):
    labels = examples()["label"]
    labels[5] = label
    with pytest.raises(DivergedError, match="the loss is nan.*labels that are no class"):
        fitted(examples(label=labels), examples())
    with pytest.raises(DivergedError, match="test.*is not finite.*labels that are no class"):
        fitted(examples(), examples(label=labels))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_pixel_that_is_not_finite_is_found(value):
    images = examples()["image"] / np.float32(255)
    spoiled = images.copy()
    spoiled[5, 0, 0, 0] = value
    fitted(examples(image=images), examples(image=images), lambda images: images)
    with pytest.raises(DivergedError, match="the loss is nan.*NaN in the examples"):
        fitted(examples(image=spoiled), examples(image=images), lambda images: images)
    with pytest.raises(DivergedError, match="test.*is not finite"):
        fitted(examples(image=images), examples(image=spoiled), lambda images: images)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, bool])
def test_only_uint8_is_scaled_without_being_asked(dtype):
    with pytest.raises(UsageError, match="images are of type .* `normalize`"):
        fitted(examples(image=examples()["image"].astype(dtype)), examples())


@pytest.mark.parametrize(
    "labels", [np.zeros(32, np.float32), np.zeros((32, 1), int), np.eye(32)], ids=str
)
def test_labels_of_another_kind_are_refused(labels):
    with pytest.raises(UsageError, match="labels must be one integer for each image"):
        fitted(examples(label=labels), examples())


def test_a_number_that_jax_would_cut_is_refused():
    labels = examples()["label"]
    labels[5] = 2**32 + 3  # 3 in 32 bits
    with pytest.raises(UsageError, match="'label' holds 4294967299"):
        fitted(examples(label=labels), examples())
    with pytest.raises(UsageError, match="'label' holds 4294967299"):
        fitted(examples(), examples(label=labels))


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63, 2**64, 1.5, "1", None])
def test_a_seed_that_is_none_is_refused_everywhere(seed):
    def loss_fn(params, model_state, batch, rng):
        return ab.weighted_mean(params["w"] * batch["x"], batch["weight"]), (model_state, {})

    source, plan = ab.array_source({"x": np.ones(8)}), ab.make_plan("4", 8, "1ep")
    tx = optax.sgd(0.1)
    state = ab.TrainState.create(params={"w": jnp.ones(())}, tx=tx)
    network = create("cnn_digits", image_shape=(8, 8, 1))
    for use in (
        lambda: ab.fit(loss_fn, tx, state, source, plan, seed=seed),
        lambda: ab.batches(source, plan, seed=seed),
        lambda: create("cnn_digits", image_shape=(8, 8, 1), seed=seed),
        lambda: functions(network, seed=seed),
    ):
        with pytest.raises(UsageError, match="`seed` must be"):
            use()


def test_the_largest_seed_works_everywhere():
    seed = 2**32 - 1
    network = create("cnn_digits", image_shape=(8, 8, 1), seed=seed)
    _, _, loss_fn, _ = functions(network, seed=seed)
    assert jax.tree.leaves(loss_fn)[0] == seed
    source, plan = ab.array_source({"x": np.ones(8)}), ab.make_plan("4", 8, "1ep")
    assert len(list(ab.batches(source, plan, seed=seed))) == 2
