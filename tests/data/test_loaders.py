"""What a loader may be: indexed, examples or batches, with samplers, a function of nothing."""

import jax
import numpy as np
import pytest

from adabatch_jax.data.rebatching import rebatch
from adabatch_jax.schedules.plan import make_plan
from adabatch_jax.system.errors import UsageError
from tests.data.test_rebatching import N, cut, expected, ids, pass_order


def in_order(plan):
    """The ids of each batch where each pass is in order."""
    return [
        [p % N for p in range(s.start_sample, s.start_sample + s.num_real)] for s in plan.steps()
    ]


class Indexed:
    """As torch's datasets: a length, and no end that `[]` tells."""

    def __init__(self, length, item):
        self.length, self.item = length, item

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return {"id": self.item(index)}


@pytest.mark.parametrize("prefetch", [0, 2])
def test_what_is_indexed_is_read_to_its_length(prefetch):
    plan = make_plan("5 x2 every 1ep", N, "3ep")
    wanted = in_order(plan)
    examples = rebatch(Indexed(N, lambda i: i), plan, prefetch=prefetch, batched=False)
    assert ids(examples) == wanted
    batches = Indexed(5, lambda i: np.arange(N)[5 * i : 5 * i + 5])  # and [] behind the last
    assert ids(rebatch(batches, plan, prefetch=prefetch)) == wanted


TOKENS = [{"input": np.arange(8), "target": np.arange(8)} for _ in range(N)]


@pytest.mark.parametrize(
    "loader",
    [
        TOKENS,
        Indexed(N, lambda i: np.arange(8)),
        np.zeros((N, 8)),
        np.zeros((N, 1)),
        [{"x": np.zeros((28, 28)), "y": np.zeros(28)}] * N,
    ],
    ids=["tokens", "indexed", "array", "column", "images"],
)
def test_examples_that_are_taken_for_batches_are_refused(loader):
    plan = make_plan("5", N, "2ep")
    with pytest.raises(UsageError, match="gives 23 items, as many .* batched=False if its items"):
        next(rebatch(loader, plan))
    (batch, *_) = rebatch(loader, plan, batched=False)
    for leaf in jax.tree.leaves(batch):
        assert len(leaf) == 5


def test_examples_without_a_length_are_refused_where_their_pass_ends():
    batches = rebatch(lambda epoch: iter(TOKENS), make_plan("5", N, "9ep"), prefetch=0)
    with pytest.raises(UsageError, match="gives 23 items, as many as the plan .* with 8 rows"):
        list(batches)


@pytest.mark.parametrize("num_items", [N - 1, N + 1])
def test_batches_as_many_as_examples_or_nearly_are_batches(num_items):
    plan = make_plan("5", N, "9ep")
    items = [{"id": np.arange(8)}] * num_items
    assert next(rebatch(items, plan))["id"].tolist() == [0, 1, 2, 3, 4]
    ones = [{"id": np.array([i])} for i in range(N)]  # as torch's DataLoader gives by default
    assert ids(rebatch(ones, plan))[0] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("where", ["sampler", "batch_sampler", "sampler of batch_sampler"])
def test_samplers_are_told_their_epoch(where):
    class Sampler:
        epoch = None

        def set_epoch(self, epoch):
            self.epoch = epoch

    class Holder:
        sampler = None

    class DataLoader:
        def __init__(self):
            self.told = Sampler()
            self.sampler = self.told if where == "sampler" else object()
            self.batch_sampler = self.told if where == "batch_sampler" else Holder()
            if where == "sampler of batch_sampler":
                self.batch_sampler.sampler = self.told

        def __iter__(self):
            return cut(pass_order(self.told.epoch), 1)

    plan = make_plan("5", N, "3ep")
    assert ids(rebatch(DataLoader(), plan)) == expected(plan)
    with pytest.warns(UserWarning, match="^4 rows of the loader"):  # of its own epoch
        assert ids(rebatch(DataLoader(), plan, start_step=10)) == expected(plan)[10:]


def test_a_function_of_nothing_is_called_for_each_epoch():
    calls = []

    def loader():
        calls.append(None)
        return cut(np.arange(N), 1)

    plan = make_plan("5", N, "3ep")
    wanted = in_order(plan)
    assert ids(rebatch(loader, plan)) == wanted and len(calls) == 3
    with pytest.warns(UserWarning, match="^50 rows of the loader"):
        assert ids(rebatch(loader, plan, start_step=10)) == wanted[10:]
    with pytest.raises(UsageError, match=r"`loader` is called as loader\(epoch\), but: missing"):
        rebatch(lambda a, b: [], plan)
    assert ids(rebatch(lambda epoch=7: cut(pass_order(epoch), 1), plan)) == expected(plan)
