"""Lists of indices: those of `batches`, for whatever is read by index."""

import pickle

import numpy as np
import pytest

from adabatch_jax.data.batch_indices import batch_indices
from adabatch_jax.data.batches import batches
from adabatch_jax.data.sources import array_source
from adabatch_jax.schedules.plan import make_plan
from adabatch_jax.system.errors import UsageError

N = 103
SOURCE = array_source({"x": np.arange(N)})


@pytest.mark.parametrize("remainder", ["carry", "partial", "drop"])
@pytest.mark.parametrize("schedule", ["8 x2 every 1ep max 64", "5, 40sp: 24, 11st: 7, 60%: 50"])
def test_they_are_the_examples_of_batches(schedule, remainder):
    plan = make_plan(schedule, N, "3ep", remainder)
    wanted = [batch["index"][batch["weight"] > 0].tolist() for batch in batches(SOURCE, plan, 3)]
    assert list(batch_indices(plan, seed=3)) == wanted
    for step in range(plan.num_steps + 1):
        tail = batch_indices(plan, 3, start_sample=plan.samples_at(step))
        for _ in range(2):  # as often as wanted
            assert list(tail) == wanted[step:]
        assert len(tail) == len(wanted) - step
    assert all(type(index) is int for index in wanted[0])


def test_each_example_once_an_epoch():
    plan = make_plan("8 x2 every 1ep", N, "3ep")
    flat = np.concatenate([np.array(indices) for indices in batch_indices(plan)])
    for epoch in flat.reshape(3, N):
        assert sorted(epoch.tolist()) == list(range(N))


def test_endless_streams_give_positions_of_any_size():
    start = 2**31 + 4
    plan = make_plan(4, None, f"{start + 6}sp")
    assert list(batch_indices(plan, start_sample=start)) == [
        [*range(start, start + 4)],
        [start + 4, start + 5],
    ]


def test_they_can_be_sent_to_another_process():
    indices = batch_indices(make_plan(8, N, "1ep"), seed=1)
    assert list(pickle.loads(pickle.dumps(indices))) == list(indices)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "`seed` must be from 0"),
        ({"start_sample": 5}, "begins at start_sample=5.* 0 and 8"),
        ({"start_sample": 104}, "outside the plan's 103 samples"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(UsageError, match=message):
        batch_indices(make_plan(8, N, "1ep"), **options)
