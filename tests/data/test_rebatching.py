"""The plan's batches out of other loaders: every row once and in order, from any position on."""

import collections
import gc
import json
import threading
import warnings

import jax
import numpy as np
import pytest

from adabatch_jax.data.rebatching import rebatch
from adabatch_jax.schedules.plan import make_plan
from adabatch_jax.system.errors import UsageError

N = 23
SCHEDULES = ["2 x2 every 1ep max 8", "9 x0.5 every 0.7ep min 2", "3, 11sp: 7, 6st: 1, 60%: 23"]


def pass_order(epoch):
    return np.random.default_rng([7, epoch]).permutation(N)


def cut(ids, seed, largest=9):
    """Small batches of these ids, of random sizes, some of them empty."""
    rng, start = np.random.default_rng(seed), 0
    while start < len(ids):
        stop = start + int(rng.integers(0, largest))
        yield {"id": ids[start:stop]}
        start = stop


class Shuffled:
    """Another order at each pass, as of a loader that draws from a generator of its own."""

    def __init__(self, rows_per_pass=N):
        self.passes, self.rows_per_pass, self.items = 0, rows_per_pass, 0

    def __iter__(self):
        order = pass_order(self.passes)[: self.rows_per_pass]
        self.passes += 1
        for item in cut(order, self.passes):
            self.items += 1
            yield item


class Positionable(Shuffled):
    """Can be brought back by `get_state` and `set_state`, over passes; its state is one dict."""

    def __init__(self):
        super().__init__()
        self.state = {"pass": -1, "item": 0}

    def __iter__(self):
        if self.state["item"] == 0:
            self.state["pass"] += 1
        items = list(cut(pass_order(self.state["pass"]), self.state["pass"] + 1))
        while self.state["item"] < len(items):
            self.state["item"] += 1
            self.items += 1
            yield items[self.state["item"] - 1]
        self.state["item"] = 0

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = dict(state)


class Stateful(Positionable):
    """The names that torchdata and Hugging Face use."""

    state_dict, load_state_dict = Positionable.get_state, Positionable.set_state
    get_state = set_state = None


class WithEpoch(Shuffled):
    def set_epoch(self, epoch):
        self.passes = epoch


def of_epoch(epoch):
    return cut(pass_order(epoch), epoch + 1)


LOADERS = [Shuffled, Positionable, Stateful, WithEpoch, lambda: of_epoch]
KINDS = ["plain", "get_state", "state_dict", "set_epoch", "function"]


def expected(plan):
    """The ids of each batch, from the orders of the passes and the plan's steps alone."""
    stream = np.concatenate([pass_order(epoch) for epoch in range(-(-plan.num_samples // N))])
    steps = plan.steps()
    return [stream[s.start_sample : s.start_sample + s.num_real].tolist() for s in steps]


def ids(batches):
    return [batch["id"].tolist() for batch in batches]


@pytest.mark.parametrize("loader", LOADERS, ids=KINDS)
@pytest.mark.parametrize("remainder", ["carry", "partial", "drop"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_row_once_and_in_order(schedule, remainder, loader):
    plan = make_plan(schedule, N, "4ep", remainder)
    for prefetch in (0, 1, 4):
        batches = list(rebatch(loader(), plan, prefetch=prefetch))
        assert ids(batches) == expected(plan)
    for step, batch in zip(plan.steps(), batches, strict=True):
        position = np.arange(step.start_sample, step.start_sample + step.num_real)
        np.testing.assert_array_equal(batch["epoch"], position // N)
        np.testing.assert_array_equal(batch["weight"], np.ones(step.num_real))
        assert set(batch) == {"id", "epoch", "weight"}
        assert (batch["epoch"].dtype, batch["weight"].dtype) == (np.int32, np.float32)


@pytest.mark.parametrize("prefetch", [0, 1, 4])
@pytest.mark.parametrize("loader", LOADERS, ids=KINDS)
@pytest.mark.parametrize("remainder", ["carry", "partial", "drop"])
def test_a_restart_at_any_position_gives_the_tail(remainder, loader, prefetch):
    plan = make_plan(SCHEDULES[2], N, "3ep", remainder)
    whole = expected(plan)
    batches, states = rebatch(loader(), plan, prefetch=prefetch), []
    for _ in range(plan.num_steps):
        states.append(json.dumps(batches.get_state()))
        next(batches)
    states.append(json.dumps(batches.get_state()))
    with warnings.catch_warnings():
        warnings.simplefilter("error" if loader in (Positionable, Stateful) else "ignore")
        for step, state in enumerate(map(json.loads, states)):
            assert state["sample"] == plan.samples_at(step)
            again = rebatch(loader(), plan, prefetch=prefetch)
            again.set_state(state)
            assert again.get_state() == state
            assert ids(again) == whole[step:]
            assert [*again] == []


@pytest.mark.parametrize("loader", LOADERS, ids=KINDS)
@pytest.mark.filterwarnings("ignore:.* rows of the loader are read and dropped")
def test_start_step_gives_the_tail(loader):
    plan = make_plan(SCHEDULES[0], N, "3ep")
    for step in range(plan.num_steps + 1):
        assert ids(rebatch(loader(), plan, step)) == expected(plan)[step:]


@pytest.mark.parametrize("loader", [Positionable, WithEpoch], ids=["get_state", "set_epoch"])
@pytest.mark.filterwarnings("ignore:.* rows of the loader are read and dropped")
def test_one_iterator_goes_forth_and_back(loader):
    plan = make_plan("3 x2 every 1ep", N, "3ep")
    batches, states = rebatch(loader(), plan), []
    for _ in range(plan.num_steps):
        states.append(batches.get_state())
        next(batches)
    for step in (7, 0, plan.num_steps - 1, 3):
        batches.set_state(states[step])
        assert ids(batches) == expected(plan)[step:]


def test_little_is_read_again_where_a_loader_can_be_positioned():
    plan = make_plan("4", N, "3ep")
    batches = rebatch(Positionable(), plan, prefetch=0)
    for _ in range(13):
        next(batches)
    loader = Positionable()
    again = rebatch(loader, plan, prefetch=0)
    again.set_state(batches.get_state())
    next(again)
    most = 4 + 9 + 4  # a batch, an item, and the batch that is wanted
    assert again.get_state()["row"] <= most and loader.items <= most


def test_an_iterator_is_read_on_and_positioned_by_itself():
    class Counter:
        place = 0

        def __iter__(self):
            return self

        def __next__(self):
            self.place += 3
            return {"id": np.arange(self.place - 3, self.place) % N}

        def get_state(self):
            return self.place

        def set_state(self, place):
            self.place = place

    plan = make_plan("4, 1ep: 5", N, "2ep")
    wanted = [
        [p % N for p in range(s.start_sample, s.start_sample + s.num_real)] for s in plan.steps()
    ]
    batches, counter = rebatch(Counter(), plan, prefetch=4), Counter()
    assert [next(batches)["id"].tolist() for _ in range(5)] == wanted[:5]
    again = rebatch(counter, plan)
    again.set_state(batches.get_state())
    assert ids(again) == wanted[5:]
    with pytest.raises(UsageError, match="has no get_state"):
        stranger = rebatch(Shuffled(), plan)
        stranger.set_state(batches.get_state())
        next(stranger)


def test_endless_streams_have_an_index():
    plan = make_plan("4, 8sp: 6", None, "20sp")
    batches = list(rebatch(iter([(np.arange(30),)]), plan))
    assert [b[0].tolist() for b in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [*range(8, 14)], [*range(14, 20)]]  # fmt: skip
    named = list(rebatch(({"x": np.arange(5 * i, 5 * i + 5)} for i in range(9)), plan))
    for batch in named:
        np.testing.assert_array_equal(batch["index"], batch["x"])
        assert not batch["epoch"].any()


def test_single_examples():
    examples = [{"id": i, "text": "x" * i + "\0", "image": np.full((2, 2), i)} for i in range(N)]
    plan = make_plan("5 x2 every 1ep", N, "2ep")
    for start, batch in zip((0, 5, 10, 15), rebatch(examples, plan, batched=False), strict=False):
        wanted = [i % N for i in range(start, start + 5)]
        assert batch["id"].tolist() == wanted
        assert batch["text"].tolist() == ["x" * i + "\0" for i in wanted]
        assert batch["image"].shape == (5, 2, 2) and (batch["image"][:, 1, 0] == wanted).all()


def test_trees_keep_their_shape():
    Pair = collections.namedtuple("Pair", "a b")
    item = Pair(
        {"x": np.arange(6, dtype=np.int8).reshape(3, 2), "none": None},
        [jax.numpy.arange(3), (np.zeros((3, 0)),)],
    )
    (batch,) = rebatch([item], make_plan("3", 3, "1ep"))
    assert jax.tree.structure(batch) == jax.tree.structure(item)
    for a, b in zip(jax.tree.leaves(batch), jax.tree.leaves(item), strict=True):
        np.testing.assert_array_equal(a, b)
        assert isinstance(a, np.ndarray) and a.dtype == b.dtype


def test_the_loaders_own_names_are_kept():
    item = {"weight": np.array([0.5, 2.0]), "index": np.array([8, 9])}
    (batch,) = rebatch([item], make_plan("2", 2, "1ep"))
    assert batch["weight"].tolist() == [0.5, 2.0] and batch["index"].tolist() == [8, 9]


def test_a_loader_may_fill_its_own_array_anew():
    def reusing(epoch):
        array = np.zeros(3, np.int64)
        for start in range(0, 30, 3):
            array[:] = np.arange(start, start + 3)
            yield {"id": array}

    batches = rebatch(reusing, make_plan("4", 30, "1ep"), prefetch=4)
    assert [i for batch in ids(batches) for i in batch] == list(range(30))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_loader_that_leaves_the_tail_out_fits_drop_alone(prefetch):
    plan = make_plan("4", N, "3ep", "drop")
    batches, states = rebatch(Shuffled(20), plan, prefetch=prefetch), []
    wanted = [pass_order(e)[i : i + 4].tolist() for e in range(3) for i in range(0, 20, 4)]
    for indices in wanted:
        states.append(batches.get_state())
        assert next(batches)["id"].tolist() == indices
    assert [*batches] == []
    for step in (4, 5, 6, 14):
        again = rebatch(Shuffled(20), plan, prefetch=prefetch)
        with pytest.warns(UserWarning, match="are read and dropped"):
            again.set_state(states[step])
        assert ids(again) == wanted[step:]
    with pytest.raises(UsageError, match=r"after 20 of the 69 examples.*a pass over it has 20 ex"):
        list(rebatch(Shuffled(20), make_plan("4", N, "3ep"), prefetch=prefetch))


@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize(
    ("loader", "num_examples", "message"),
    [
        (lambda: Shuffled(19), N, "19 of the 69 .* has 19 examples and the plan num_examples=23"),
        (Shuffled, 22, "23 of the 69 .* has 23 examples and the plan num_examples=22"),
        (lambda: of_epoch(0), N, "23 of the 69 .* an iterator, which can't begin anew"),
        (Shuffled, None, "23 of the 69 .* as long as the loader, or let the loader repeat"),
        (list, N, "0 of the 69 .* a pass over it is empty"),
        (lambda: lambda epoch: [] if epoch else of_epoch(0), N, "23 of .* a pass over it is empty"),
    ],
)
def test_an_early_end_is_told(loader, num_examples, message, prefetch):
    batches = rebatch(loader(), make_plan("5", num_examples, "69sp"), prefetch=prefetch)
    for _ in range(2):  # and no end that looks like the plan's when it is asked again
        with pytest.raises(UsageError, match=f"the loader ended after {message}"):
            list(batches)


def test_a_loader_may_end_early():
    batches = rebatch(Shuffled(13), make_plan("5", N, "3ep"), may_end=True)
    assert [len(batch) for batch in ids(batches)] == [5, 5, 3]
    assert batches.get_state()["sample"] == 13


class Broken(Exception):
    pass


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_errors_of_the_loader_come_out_as_they_are(prefetch):
    error, read = Broken("no such file"), []

    def loader(epoch):
        for i in range(3):
            read.append(i)
            yield {"id": np.arange(4 * i, 4 * i + 4)}
        raise error

    batches = rebatch(loader, make_plan("5", N, "3ep"), prefetch=prefetch)
    assert [next(batches)["id"].tolist() for _ in range(2)] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    for _ in range(3):
        with pytest.raises(Broken) as caught:
            next(batches)
        assert caught.value is error
    assert read == [0, 1, 2] and batches.get_state()["sample"] == 10


def running():
    return [thread for thread in threading.enumerate() if thread.name == "rebatch"]


@pytest.mark.parametrize("end", ["close", "forget", "finish", "set_state", "fail"])
def test_the_thread_ends(end):
    plan = make_plan("3", N, "2ep")
    batches = rebatch(Shuffled() if end != "fail" else Shuffled(20), plan)
    next(batches)
    (thread,) = running()
    if end == "close":
        batches.close()
        batches.close()
        assert [*batches] == [] and batches.get_state()["sample"] == 3
    elif end == "finish":
        list(batches)
    elif end == "set_state":
        with pytest.warns(UserWarning, match="^3 rows of the loader are read and dropped"):
            batches.set_state(batches.get_state())
    elif end == "fail":
        with pytest.raises(UsageError):
            list(batches)
    else:
        del batches
        gc.collect()
    thread.join(60)
    assert not thread.is_alive()


def test_nothing_is_read_before_it_is_asked_for_and_no_thread_is_made():
    loader = Shuffled()
    batches = rebatch(loader, make_plan("3", N, "2ep"), prefetch=0)
    assert loader.passes == 0
    next(batches)
    assert loader.passes == 1 and running() == []


def test_no_more_is_read_ahead_than_asked_for():
    for prefetch in (1, 4):
        loader = Shuffled()
        batches = rebatch(loader, make_plan("9", N, "9ep"), prefetch=prefetch)
        next(batches)
        batches.close()
        assert loader.items <= 9 * (1 + prefetch)


def test_dropped_rows_are_told():
    plan = make_plan("5", N, "3ep")
    with pytest.warns(UserWarning, match="^50 rows of the loader .* to sample 50; a loader") as got:
        rebatch(Shuffled(), plan, start_step=10)
    assert got[0].filename == __file__
    with pytest.warns(UserWarning, match="^4 rows of the loader .* to sample 50"):
        rebatch(of_epoch, plan, start_step=10)
    state = {"sample": 50, "row": 4, "epoch": 2, "loader": None}
    with pytest.warns(UserWarning, match="^4 rows of the loader") as got:
        rebatch(of_epoch, plan).set_state(state)
    assert got[0].filename == __file__


def test_nothing_is_read_at_the_end():
    loader, plan = Shuffled(), make_plan("5", N, "3ep")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [*rebatch(loader, plan, plan.num_steps)] == []
    assert loader.passes == 0


def test_a_longer_or_edited_run_goes_on_by_samples():
    short = make_plan("5", N, "1ep", "partial")
    batches = rebatch(Positionable(), short)
    assert ids(batches) == expected(short)
    longer = short.continued("7", N, "3ep")
    again = rebatch(Positionable(), longer)
    again.set_state(batches.get_state())
    assert ids(again) == expected(longer)[5:]


PLAN = make_plan("5", N, "1ep")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rebatch(3, PLAN), "`loader` must be something to iterate over.*of type int"),
        (lambda: rebatch([], PLAN, 6), "`start_step` must be from 0 to the plan's 5 steps, got 6"),
        (lambda: rebatch([], PLAN, -1), "`start_step` must be from 0 to .* got -1"),
        (lambda: rebatch([], PLAN, prefetch=-1), "`prefetch` must not be negative, got -1"),
        (lambda: rebatch([], PLAN).set_state({"x": 1}), "no state as `get_state` gives it"),
        (
            lambda: rebatch([], PLAN).set_state(
                {"sample": 7, "row": 0, "epoch": 0, "loader": None}
            ),
            "no step begins at sample=7; the nearest ones begin at 5 and 10",
        ),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_an_iterator_that_was_read_cant_go_back():
    batches = rebatch(of_epoch(0), PLAN)
    state = batches.get_state()
    next(batches)
    with pytest.raises(UsageError, match="can't be positioned, and was read already"):
        batches.set_state(state)
    assert ids(batches) == expected(PLAN)[1:]
