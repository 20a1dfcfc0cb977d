"""What a source must not return is one sentence that names the array, in `batches` as in `fit`."""

import jax
import numpy as np
import optax
import pytest

import adabatch_jax as ab
from adabatch_jax.data.sources import in_memory
from adabatch_jax.system.errors import ExampleError, UsageError

N = 40
X, Y = np.linspace(-1, 1, N, dtype=np.float32), np.arange(N, dtype=np.int32)
PLAN = ab.make_plan("4 x2 every 1ep", N, "2ep")


class Reads:
    def __init__(self, read):
        self.read = read

    def __len__(self):
        return N


def loss_fn(params, model_state, batch, rng):
    return ab.weighted_mean(params["w"] * batch["x"], batch["weight"]), (model_state, {})


def fit(source, plan=PLAN, on_step=None, loss_fn=loss_fn, **options):
    tx = optax.sgd(0.1)
    state = ab.TrainState.create(params={"w": np.float32(0)}, tx=tx)
    return ab.fit(loss_fn, tx, state, source, plan, on_step=on_step, **options)


def evaluate(source):
    state = ab.TrainState.create(params={}, tx=optax.sgd(0.1))
    return ab.evaluate(
        lambda params, state, batch: {"x": ab.weighted_mean(batch["x"], batch["weight"])},
        state, source, 4,
    )  # fmt: skip


WAYS = {
    "batches": lambda source: list(ab.batches(source, PLAN)),
    "ahead": lambda source: list(ab.batches(source, PLAN, microbatch_size=3, prefetch=2)),
    "fit": fit,
    "resident": lambda source: fit(source, layout=ab.Layout(input="resident")),
    "in memory": lambda source: in_memory(source, block_size=8),
    "evaluate": evaluate,
}


def late(i):
    return N - 1 in i  # an example that isn't the one that shapes and dtypes are taken from


WRONG = {
    "scalar": (lambda i: {"x": X[i], "t": 3.0}, UsageError, "a scalar as 't' when asked for"),
    "one short": (lambda i: {"x": X[i], "y": Y[i][:-1]}, UsageError, r"\d rows as 'y' when asked"),
    "all short": (lambda i: {"x": X[i][:-1]}, UsageError, r"\d rows as 'x' when asked for \d+ ex"),
    "nested": (lambda i: {"x": X[i], "a": {"b": Y[:1]}}, UsageError, "1 rows as 'a.b' when asked"),
    "key": (
        lambda i: {"x": X[i], "k": jax.random.split(jax.random.key(0), len(i))},
        UsageError,
        "'k', which is no array: .*key_data",
    ),
    "ragged": (lambda i: {"x": X[i], "l": [[1], [1, 2]]}, UsageError, "'l', which is no array: .*"),
    "dtype": (
        lambda i: {"x": X[i].astype(np.float16) if late(i) else X[i]},
        ExampleError,
        r"when asked for example \d+ and \d+ more: 'x' became float16\[\], and was float32\[\];",
    ),
    "shape": (
        lambda i: {"x": X[i], "y": np.zeros((len(i), 3 if late(i) else 2))},
        ExampleError,
        r"'y' became float64\[3\], and was float64\[2\]",
    ),
    "more": (lambda i: {"x": X[i]} | ({"z": Y[i]} if late(i) else {}), ExampleError, "'z' is new"),
    "less": (
        lambda i: {"x": X[i]} | ({} if late(i) else {"z": Y[i]}), ExampleError, "'z' is missing",
    ),
}  # fmt: skip


# Nothing can change where all is read at once.
CASES = [
    (wrong, way)
    for wrong, (_, kind, _) in WRONG.items()
    for way in WAYS
    if way != "resident" or kind is not ExampleError
]


@pytest.mark.parametrize(("wrong", "way"), CASES)
def test_what_read_returns(wrong, way):
    read, kind, told = WRONG[wrong]
    if way in ("fit", "resident") and wrong in ("one short", "all short"):
        read_all, read = read, lambda i: read_all(i) if len(i) > 1 else {"x": X[i], "y": Y[i]}
    with pytest.raises(kind, match=rf"^Reads\.read returned .*{told}") as error:
        WAYS[way](Reads(read))
    assert "\n" not in str(error.value)


def test_texts_are_for_numpy_alone():
    source = Reads(lambda i: {"x": X[i], "s": np.array([f"{j}" * (j + 1) for j in i])})
    texts = [batch["s"].tolist() for batch in ab.batches(source, PLAN)]
    indices = ab.batch_indices(PLAN)
    assert texts == [[f"{j}" * (j + 1) for j in batch] for batch in indices]
    for way in (
        fit,
        evaluate,
        WAYS["resident"],
        lambda source: next(ab.batches(source, PLAN, mesh=ab.data_mesh(jax.devices()[:2]))),
    ):
        with pytest.raises(UsageError, match="array 's' is of <U.*, which devices can't hold"):
            way(source)


class NoLength:
    def read(self, indices):
        return {"x": X[indices]}


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({"x": X}, r"array_source\(.* but dict has no read\(\)\.$"),
        ([{"x": X}], r"list has no read\(\); what is iterated over, .*`make_train_step`"),
        (ab.rebatch([{"x": X}], PLAN), r"Rebatched has no read\(\); what is iterated over"),
        (NoLength(), r"NoLength has no __len__\(\)\.$"),
        (PLAN, r"BatchPlan has no read\(\)\.$"),
        (None, r"NoneType has no read\(\)\.$"),
    ],
    ids=["dict", "list", "rebatch", "no length", "plan", "none"],
)
def test_what_is_no_source(source, told):
    for way in [WAYS[name] for name in WAYS if name != "in memory"]:
        with pytest.raises(UsageError, match=rf"^`source` must have the methods .*{told}"):
            way(source)
    tx = optax.sgd(0.1)
    state = ab.TrainState.create(params={"w": np.float32(0)}, tx=tx)
    for given in (source, {"more": source}):
        if isinstance(source, dict) and given is source or source is None:
            continue
        with pytest.raises(UsageError, match=r"^`eval_source.*` must have the methods "):
            ab.fit(loss_fn, tx, state, Reads(lambda i: {"x": X[i]}), PLAN,
                   eval_fn=lambda p, s, b: {}, eval_source=given)  # fmt: skip


SOURCE = Reads(lambda i: {"x": X[i]})


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: ab.batches(SOURCE, "8"), "`plan` must be of type BatchPlan, got one of type str"),
        (lambda: ab.batches(PLAN, SOURCE), "`source` must have"),
        (lambda: ab.batch_indices("8"), "`plan` must be of type BatchPlan"),
        (lambda: ab.batch_size_schedule("8"), "`plan` must be of type BatchPlan"),
        (lambda: ab.accumulation_schedule(8, 4), "`plan` must be of type BatchPlan.* type int"),
        (lambda: ab.coupled_learning_rate("8", 0.1), "`plan` must be of type BatchPlan"),
        (lambda: ab.compile_ahead(jax.jit(lambda p, b: p), 8), "`plan` must be of type BatchPlan"),
        (lambda: ab.rebatch([{"x": X}], "3 x2"), "`plan` must be of type BatchPlan, got .* str; `m"),
        (lambda: ab.rebatch(PLAN, [{"x": X}]), "`loader` must be something to .* type BatchPlan"),
        (lambda: ab.rebatch({"x": X}, PLAN), r"`loader` is a dict, .*batches\(array_source\("),
        (lambda: ab.rebatch(SOURCE, PLAN), r"`loader` is a source, Reads, .*`batches\(source, pl"),
        (lambda: fit(SOURCE, on_step=lambda n, s: None), r"`on_step` is called as on_step\(finish"),
        (lambda: ab.array_source([X, Y]), "`arrays` must be of type Mapping, .* type list; name"),
        (lambda: fit(SOURCE, on_step=3), "`on_step` must be a function, got one of type int"),
        (lambda: fit(SOURCE, loss_fn=lambda p, m, b: 0), r"`loss_fn` is called as loss_fn\(params"),
        (lambda: ab.make_train_step(lambda b: 0, optax.sgd(0.1)), "`loss_fn` is called as loss_fn"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(call, told):
    with pytest.raises(UsageError, match=f"^{told}"):
        call()


def test_a_callback_that_raises_stop_iteration_is_told():
    def on_step(finished, state, metrics):
        if finished == 2:
            raise StopIteration

    with pytest.raises(UsageError, match="`on_step` raised StopIteration after update 2; .* True"):
        fit(SOURCE, on_step=on_step)


def test_a_state_of_the_same_name_is_told_by_its_package():
    class TrainState:
        pass

    with pytest.raises(UsageError, match=r"adabatch_jax\.training\.train_state\.TrainState, got one "
                       r"of type .*<locals>\.TrainState; make it with `TrainState\.create\("):  # fmt: skip
        ab.fit(loss_fn, optax.sgd(0.1), TrainState(), SOURCE, PLAN)


def test_periods_that_a_stream_does_not_have_are_named(tmp_path):
    plan = ab.make_plan("4", None, "40sp")
    with pytest.raises(UsageError, match="^`checkpoint_every`: the duration '1ep' is in epochs"):
        fit(NoLength(), plan, workdir=tmp_path / "run")
