"""Sources of nested arrays, streams that are read once, and sources that end before their time."""

import jax
import numpy as np
import optax
import pytest

import adabatch_jax as ab
from adabatch_jax.data.mesh import data_mesh
from adabatch_jax.data.sources import contents_digests, in_memory
from adabatch_jax.system.errors import ExampleError, UsageError

N = 22
X = np.linspace(-1, 1, N, dtype=np.float32)
Y = np.stack([X**2, 3 * X], axis=1)
FLAT = ab.array_source({"x": X, "y": Y, "n": np.arange(N)})
NESTED = {"x": X, "index": (np.arange(N),), "more": {"y": Y, "weight": X}}  # reserved at the top
NESTED["of"] = {"index": NESTED.pop("index")}
PLAN = ab.make_plan("4, 1ep: 6", N, "2.5ep")


class Reads:
    """`NESTED`, read as it is asked for."""

    def __len__(self):
        return N

    def read(self, indices):
        return jax.tree.map(lambda array: array[indices], NESTED)


@pytest.mark.parametrize("options", [{}, {"microbatch_size": 3}, {"mesh": 2}, {"prefetch": 2}],
                         ids=str)  # fmt: skip
def test_batches_of_nested_arrays_have_the_rows_of_flat_ones(options):
    if "mesh" in options:
        options = {"mesh": data_mesh(jax.devices()[: options["mesh"]])}
    flat = list(ab.batches(FLAT, PLAN, seed=1, **options))
    for source in (Reads(), ab.array_source(NESTED), in_memory(Reads(), block_size=5)):
        nested = list(ab.batches(source, PLAN, seed=1, **options))
        for one, other in zip(flat, nested, strict=True):
            for name in ("x", "index", "epoch", "weight"):
                np.testing.assert_array_equal(one[name], other[name])
            np.testing.assert_array_equal(one["n"], other["of"]["index"][0])
            np.testing.assert_array_equal(one["y"], other["more"]["y"])
            np.testing.assert_array_equal(one["x"], other["more"]["weight"])


def flat_loss(params, model_state, batch, rng):
    errors = ((batch["x"][:, None] * params["w"] - batch["y"]) ** 2).sum(-1)
    return ab.weighted_mean(errors, batch["weight"]), (model_state, {})


def nested_loss(params, model_state, batch, rng):
    return flat_loss(params, model_state, {**batch, "y": batch["more"]["y"]}, rng)


def fit(loss_fn, source, plan=PLAN, **options):
    tx = optax.sgd(0.1)
    state = ab.TrainState.create(params={"w": np.zeros((1, 2), np.float32)}, tx=tx)
    return ab.fit(loss_fn, tx, state, source, plan, seed=1, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"layout": ab.Layout(3, input="resident")},
        {"layout": ab.Layout(3, "split", input="streaming")},
        {"layout": ab.Layout(input="resident"), "mesh": 2},
    ],
    ids=str,
)
def test_runs_of_nested_arrays_are_those_of_flat_ones(options):
    if "mesh" in options:
        options = options | {"mesh": data_mesh(jax.devices()[: options["mesh"]])}

    def evaluated(loss_fn):
        return lambda params, state, batch: {"loss": loss_fn(params, state, batch, None)[0]}

    results = [
        fit(loss_fn, source, eval_fn=evaluated(loss_fn), eval_source=source, **options)
        for loss_fn, source in ((flat_loss, FLAT), (nested_loss, Reads()))
    ]
    for name in ("weights_digest", "train_loss", "test_loss"):
        assert results[0].summary[name] == results[1].summary[name], name


def test_nested_arrays_have_a_digest_and_are_checked():
    source = ab.array_source(NESTED)
    assert contents_digests(source) == contents_digests(in_memory(Reads()))
    changed = {**NESTED, "more": {"y": Y + 1, "weight": X}}
    assert contents_digests(source) != contents_digests(ab.array_source(changed))
    with pytest.raises(UsageError, match=r"'more\.y': 3"):
        ab.array_source({"x": X, "more": {"y": Y[:3]}})
    with pytest.raises(UsageError, match="'index', which batches add"):
        next(ab.batches(ab.array_source({"index": X}), PLAN))


class Live:
    """A stream that gives what comes next, and takes down what it was asked for."""

    def __init__(self):
        self.asked = []

    def read(self, indices):
        self.asked += indices.tolist()
        x = np.sin(indices).astype(np.float32)
        return {"x": x, "y": np.stack([x, 3 * x], axis=1)}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layout": ab.Layout(3)},  # with a padded micro-batch
        {"layout": ab.Layout(3, "split")},
        {"layout": ab.Layout(steps_per_dispatch=4), "mesh": 3},  # padded, and the last is partial
    ],
    ids=str,
)
def test_each_example_of_a_stream_is_read_once_and_in_order(options, tmp_path):
    if "mesh" in options:
        options = options | {"mesh": data_mesh(jax.devices()[: options["mesh"]])}
    plan, stream = ab.make_plan("4, 16sp: 8", None, "59sp"), Live()
    fit(flat_loss, stream, plan, log_every="3st", **options)
    assert stream.asked == list(range(59))


def test_a_stream_goes_on_where_the_run_stopped(tmp_path):
    plan = ab.make_plan("4, 16sp: 8", None, "64sp")
    options = {"layout": ab.Layout(steps_per_dispatch=1), "workdir": tmp_path,
               "checkpoint_every": "2st", "log_every": "3st"}  # fmt: skip
    fit(flat_loss, Live(), plan, on_step=lambda finished, *_: finished == 5, **options)
    rest = Live()
    fit(flat_loss, rest, plan, **options)
    assert rest.asked == list(range(plan.samples_at(5), 64))


class Ends(Live):
    def __init__(self, error):
        super().__init__()
        self._error = error

    def __len__(self):
        return N

    def read(self, indices):
        if 13 in indices:
            raise self._error
        return super().read(indices)


@pytest.mark.parametrize("error", [StopIteration, GeneratorExit])
def test_a_source_that_ends_before_its_time_is_told(error):
    told = rf"Ends\.read raised {error.__name__} when asked for example \d+ and \d+ more"
    for make in (
        lambda: list(ab.batches(Ends(error), PLAN)),
        lambda: list(ab.batches(Ends(error), PLAN, prefetch=2)),
        lambda: fit(flat_loss, Ends(error)),
        lambda: ab.evaluate(
            lambda params, state, batch: {"x": ab.weighted_mean(batch["x"], batch["weight"])},
            ab.TrainState.create(params={}, tx=optax.sgd(0.1)), Ends(error), 4,
        ),
    ):  # fmt: skip
        with pytest.raises(ExampleError, match=told):
            make()


def test_what_read_returns_is_named():
    class Tuples(Reads):
        def read(self, indices):
            return X[indices], Y[indices]

    with pytest.raises(UsageError, match=r"Tuples\.read must return a dict of arrays, got tuple"):
        next(ab.batches(Tuples(), PLAN))
