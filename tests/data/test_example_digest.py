"""What two loops saw is the same or not, and the same as `fit` says."""

import jax
import numpy as np
import optax
import pytest

from adabatch_jax import (
    ExamplesDigest,
    Layout,
    TrainState,
    array_source,
    batches,
    data_mesh,
    fit,
    make_plan,
    rebatch,
    weighted_mean,
)
from adabatch_jax.data.epoch_order import epoch_order
from adabatch_jax.system.errors import UsageError

SOURCE = array_source({"x": np.arange(50, dtype=np.float32)})
LAYOUTS = {
    "plain": {},
    "devices": {"mesh": data_mesh(jax.devices()[:4])},
    "micro-batches": {"microbatch_size": 3},
}


def plan_of(remainder):
    return make_plan("4, 1ep: 7, 2ep: 12", 50, "2.5ep", remainder)


def seen(plan, start_step=0, digest=None, **layout):
    digest = ExamplesDigest() if digest is None else digest
    for batch in batches(SOURCE, plan, 3, plan.samples_at(start_step), **layout):
        digest.update(batch)
    return digest


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("remainder", ["carry", "partial", "drop"])
def test_an_own_loop_has_the_digest_of_fit(remainder, layout):
    plan, tx = plan_of(remainder), optax.sgd(0.0)

    def loss_fn(params, model_state, batch, rng):
        return weighted_mean(params["w"] * batch["x"], batch["weight"]), (model_state, {})

    state = TrainState.create(params={"w": np.float32(1)}, tx=tx)
    result = fit(loss_fn, tx, state, SOURCE, plan, seed=3, log_every="1st")
    assert str(seen(plan, **layout)) == result.summary["examples_digest"]
    half = plan.num_steps // 2
    before = sum(step.num_real for step in plan.steps() if step.index < half)
    assert plan.examples_at(half) == before
    digest = ExamplesDigest(result.history[half - 1]["examples_digest"], before)
    assert str(seen(plan, half, digest, **layout)) == result.summary["examples_digest"]


@pytest.mark.parametrize("remainder", ["carry", "partial", "drop"])
def test_updates_of_one_dispatch_are_numbered_as_one_by_one(remainder):
    plan, tx = plan_of(remainder), optax.sgd(0.0)

    def loss_fn(params, model_state, batch, rng):
        return weighted_mean(params["w"] * batch["x"], batch["weight"]), (model_state, {})

    state = TrainState.create(params={"w": np.float32(1)}, tx=tx)
    result = fit(
        loss_fn,
        tx,
        state,
        SOURCE,
        plan,
        seed=3,
        layout=Layout(steps_per_dispatch=5),
        log_every="1st",
    )
    digest, steps = ExamplesDigest(), plan.steps()
    for row, step, batch in zip(result.history, steps, batches(SOURCE, plan, 3), strict=True):
        assert digest.num_examples == plan.examples_at(step.index)
        digest.update(batch)
        assert row["examples_digest"] == str(digest)
    assert plan.examples_at(plan.num_steps) == plan.num_samples - plan.num_dropped


def test_digests_are_equal_where_the_same_was_seen():
    one, other = seen(plan_of("carry")), seen(plan_of("carry"), microbatch_size=3)
    assert one == other and one is not other and one != ExamplesDigest() and one != str(one)
    with pytest.raises(TypeError, match="unhashable"):
        hash(one)


def test_a_loader_that_numbers_its_examples_has_the_digest_of_batches():
    plan = plan_of("carry")
    rows = [(i, e) for e in range(3) for i in epoch_order(50, 3, e)[0:50]]
    loader = [{"index": np.array([i for i, _ in rows[at : at + 30]])} for at in range(0, 150, 30)]
    digest = ExamplesDigest()
    for batch in rebatch(iter(loader), plan):
        digest.update(batch)
    assert digest == seen(plan)
    with pytest.raises(UsageError, match="no 'index'; those of `rebatch` have an index where"):
        digest.update(next(rebatch([{"x": np.arange(50)}], plan)))


def test_other_examples_or_another_order_are_another_digest():
    index, epoch = np.array([1, 2, 3]), np.zeros(3, int)
    digests = set()
    for order in [[0, 1, 2], [1, 0, 2], [0, 1, 1], [0, 1], [0, 2]]:
        digest = ExamplesDigest()
        digest.update({"index": index[order], "epoch": epoch[: len(order)]})
        digests.add(str(digest))
    assert len(digests) == 5


def test_padding_is_no_example_and_one_that_weighs_nothing_is():
    """The same index in another epoch is another example."""
    plain, padded = ExamplesDigest(), ExamplesDigest()
    index, epoch = np.array([4, 5, 4]), np.array([0, 0, 1])
    plain.update({"index": index, "epoch": epoch, "weight": np.ones(3)})
    rows = np.array([[0, 1], [2, 0], [0, 0]])
    padded.update({"index": index[rows], "epoch": epoch[rows], "weight": np.zeros((3, 2))})
    assert str(padded) == str(plain) and padded.num_examples == plain.num_examples == 3


def test_a_batch_without_its_indices_is_refused():
    with pytest.raises(UsageError, match="has no 'index'"):
        ExamplesDigest().update({"x": np.ones(3), "epoch": np.ones(3)})
