"""Batches at a position: every example once, in one order, on any layout, after any restart."""

import threading
import time
import tracemalloc

import jax
import numpy as np
import pytest

from adabatch_jax.data.batches import batches
from adabatch_jax.data.epoch_order import example_indices
from adabatch_jax.data.mesh import data_mesh
from adabatch_jax.data.row_layout import Layouts, host_rows, host_table
from adabatch_jax.data.sources import array_source
from adabatch_jax.schedules.plan import make_plan
from adabatch_jax.system.errors import UsageError

N = 103
SOURCE = array_source({"image": np.arange(N * 4, dtype=np.uint8).reshape(N, 2, 2)})
SCHEDULES = ["8 x2 every 1ep max 64", "64 x0.5 every 0.7ep min 8", "5, 40sp: 24, 11st: 7, 60%: 50"]


def real_rows(batch):
    """(epoch, index) of the real rows, in order."""
    weight = np.asarray(batch["weight"]).ravel() > 0
    columns = (np.asarray(batch[name]).ravel()[weight] for name in ("epoch", "index"))
    return list(zip(*(c.tolist() for c in columns), strict=True))


def ids(sequence):
    return [row for batch in sequence for row in real_rows(batch)]


def expected(plan, seed):
    """The ids from the plan's steps alone."""
    rows = []
    for step in plan.steps():
        index = example_indices(N, seed, step.start_sample, step.num_real)
        epoch = (step.start_sample + np.arange(step.num_real)) // N
        rows += zip(epoch.tolist(), index.tolist(), strict=True)
    return rows


@pytest.mark.parametrize("remainder", ["carry", "partial", "drop"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_example_once_per_epoch_whatever_the_batches(schedule, remainder):
    plan = make_plan(schedule, N, "5ep", remainder)
    got = ids(batches(SOURCE, plan, seed=3))
    assert got == expected(plan, seed=3)
    assert len(set(got)) == len(got)
    if remainder != "drop":
        assert sorted(got) == [(e, i) for e in range(5) for i in range(N)]
        constant = make_plan(10, N, "5ep", remainder)
        assert got == ids(batches(SOURCE, constant, seed=3))


@pytest.mark.parametrize("remainder", ["carry", "partial", "drop"])
def test_a_restart_at_any_step_gives_the_tail(remainder):
    plan = make_plan(SCHEDULES[2], N, "3ep", remainder)
    whole = list(batches(SOURCE, plan, seed=1))
    for step in range(plan.num_steps + 1):
        tail = list(batches(SOURCE, plan, seed=1, start_sample=plan.samples_at(step)))
        assert len(tail) == plan.num_steps - step
        for a, b in zip(tail, whole[step:], strict=True):
            jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("prefetch", [1, 4])
@pytest.mark.parametrize("start_step", [0, 12, 13, 14])
def test_batches_that_are_read_ahead_are_the_same(prefetch, start_step):
    plan = make_plan("8 x2 every 1ep max 64", N, "2.5ep")
    assert plan.phases[1].start_step == 13
    start = plan.samples_at(start_step)
    here = list(batches(SOURCE, plan, 7, start))
    ahead = list(batches(SOURCE, plan, 7, start, prefetch=prefetch))
    assert len(here) == len(ahead) == plan.num_steps - start_step
    for one, other in zip(here, ahead, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


class FailsAtTheSixth:
    """A source that counts how often it was read."""

    def __init__(self):
        self.read_so_far = 0

    def __len__(self):
        return N

    def read(self, indices):
        self.read_so_far += 1
        if self.read_so_far == 6:
            raise OSError("no such example")
        return SOURCE.read(indices)


def test_reading_ahead_is_bounded_and_ends_with_the_iterator():
    source, threads = FailsAtTheSixth(), threading.active_count()
    taken = batches(source, make_plan("8", N, "1ep"), prefetch=2)
    next(taken), next(taken)
    deadline = time.monotonic() + 10
    while source.read_so_far < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert source.read_so_far == 4
    next(taken), next(taken), next(taken)
    with pytest.raises(OSError, match="no such example"):
        next(taken)
    assert threading.active_count() == threads
    taken = batches(FailsAtTheSixth(), make_plan("8", N, "1ep"), prefetch=2)
    next(taken)
    taken.close()
    assert threading.active_count() == threads


@pytest.mark.parametrize("pad", [False, True])
def test_shapes_padding_and_contents(pad):
    plan = make_plan("8, 50sp: 40", N, "1ep")
    assert [step.num_real for step in plan.steps()][-2:] == [40, 7]
    for step, batch in zip(plan.steps(), batches(SOURCE, plan, pad=pad), strict=True):
        size = step.batch_size if pad else step.num_real
        assert {name: array.dtype.name for name, array in batch.items()} == {
            "image": "uint8",
            "index": "int32",
            "epoch": "int32",
            "weight": "float32",
        }
        assert all(len(array) == size for array in batch.values())
        np.testing.assert_array_equal(batch["image"], SOURCE.read(batch["index"])["image"])
        padding = slice(step.num_real, None)
        assert (batch["index"][padding] == batch["index"][0]).all()
        assert (batch["weight"] == (np.arange(size) < step.num_real)).all()


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("devices", [1, 2, 3, 8])
@pytest.mark.parametrize("microbatch_size", [None, 1, 3, 16, 1000])
def test_any_mesh_and_micro_batch_hold_the_same_examples(devices, microbatch_size, pad):
    mesh = data_mesh(jax.devices()[:devices])
    plan = make_plan(SCHEDULES[2], N, "2ep")
    plain = list(batches(SOURCE, plan, seed=2))
    laid_out = batches(SOURCE, plan, 2, 0, mesh, microbatch_size, pad=pad)
    for step, a, b in zip(plan.steps(), plain, laid_out, strict=True):
        assert real_rows(a) == real_rows(b)
        layout = Layouts(microbatch_size, devices).of(step.batch_size if pad else step.num_real)
        leading = (layout.num_microbatches, layout.padded_size)
        shape = b["image"].shape
        assert shape[:-2] == (leading if microbatch_size else leading[1:])
        assert layout.padded_size % devices == 0
        shard = b["image"].addressable_shards[-1].data
        assert shard.shape[-3] * devices == shape[-3]
        image = SOURCE.read(np.asarray(b["index"]).ravel())["image"].reshape(shape)
        np.testing.assert_array_equal(b["image"], image)


@pytest.mark.parametrize("hosts", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("batch_size", [1, 7, 96, 100])
@pytest.mark.parametrize("microbatch_size", [None, 5, 32, 96, 200])
def test_hosts_share_the_rows(batch_size, microbatch_size, hosts):
    shares = [host_rows(batch_size, microbatch_size, h, hosts) for h in range(hosts)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(batch_size))
    m = min(microbatch_size or batch_size, batch_size)
    for k in range(-(-batch_size // m)):
        within = [share[(share >= k * m) & (share < (k + 1) * m)] for share in shares]
        wanted = np.arange(k * m, min((k + 1) * m, batch_size))
        np.testing.assert_array_equal(np.concatenate(within), wanted)


def test_hosts_of_several_devices_hold_whole_devices():
    layout = Layouts(6, num_devices=4).of(10)
    for host in range(2):
        columns = host_table(layout, (2 * host, 2 * host + 1))
        wanted = columns[columns >= 0]
        np.testing.assert_array_equal(host_rows(10, 6, host, 2, num_devices=4), wanted)


def test_endless_streams_are_read_in_their_own_order():
    class Squares:
        def read(self, indices):
            return {"x": indices**2}

    plan = make_plan("4, 8sp: 6", None, "20sp")
    first, *rest = batches(Squares(), plan, start_sample=8)
    np.testing.assert_array_equal(first["x"], np.arange(8, 14) ** 2)
    assert first["index"].tolist() == list(range(8, 14)) and len(rest) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: batches(SOURCE, make_plan(4, 50, "1ep")), "103 examples and the plan num_ex"),
        (lambda p: batches(SOURCE, p, start_sample=5), "begins at start_sample=5.* 0 and 8"),
        (lambda p: batches(SOURCE, p, start_sample=1000), "outside the plan's 103 samples"),
        (lambda p: batches(SOURCE, p, prefetch=-1), "`prefetch` must be at least 0, got -1"),
        (lambda p: batches(SOURCE, p, microbatch_size=0), "`microbatch_size` must be at least 1"),
        (
            lambda p: next(batches(array_source({"index": np.zeros(N)}), p)),
            "array named 'index'.*rename",
        ),
        (lambda p: array_source({}), "`arrays` is empty"),
        (lambda p: array_source({"x": np.zeros(3), "y": np.zeros(4)}), "same number of examples"),
        (lambda p: array_source({"x": np.zeros(())}), "'x' is a scalar"),
        (lambda p: host_rows(8, 4, 2, 2), "`process_index` must be from 0 to 1"),
        (lambda p: host_rows(8, 4, 0, 2, num_devices=3), "can't be shared evenly"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(UsageError, match=message):
        make(make_plan(8, N, "1ep"))


@pytest.mark.parametrize("view", ["C", "F", "transposed", "every other"])
def test_arrays_in_any_order_are_read_row_by_row(view):
    """And not copied whole first, which would make each batch as dear as the dataset is large."""
    whole = np.arange(4_000 * 16 * 16, dtype=np.int32).reshape(4_000, 16, 16)
    array = {
        "C": whole,
        "F": np.asfortranarray(whole),
        "transposed": whole.transpose(0, 2, 1),
        "every other": whole[::2],
    }[view]
    source, indices = array_source({"x": array}), np.array([5, 1, 1_999])
    tracemalloc.start()
    read = source.read(indices)["x"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(read, array[indices])
    assert peak < array.nbytes / 100
