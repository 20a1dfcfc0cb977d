"""Feeds: resident or streaming, ahead of time or not, a piece holds what `batches` gives."""

import itertools
import math
import threading
import time

import jax
import numpy as np
import pytest

from adabatch_jax.data.batches import batches
from adabatch_jax.data.feeds import Feed, Piece
from adabatch_jax.data.mesh import data_mesh
from adabatch_jax.data.resident_examples import choose_placement, gather
from adabatch_jax.data.row_layout import Layouts
from adabatch_jax.data.sources import array_source
from adabatch_jax.schedules.plan import make_plan
from adabatch_jax.system.errors import StorageError, UsageError

N = 53
RNG = np.random.default_rng(0)
ARRAYS = {"image": RNG.integers(0, 256, (N, 2, 3), np.uint8), "label": np.arange(N)}
SOURCE = array_source(ARRAYS)
# Phases of batches that 8 devices divide and don't, that straddle epochs or end them short.
PLANS = [
    make_plan("8, 40sp: 12, 100sp: 20", N, "3ep", remainder) for remainder in ("carry", "partial")
]
GATHER = jax.jit(gather)


class NotInMemory:
    """A source that is no array source; counts what it reads."""

    def __init__(self, broken_from=None):
        self.broken_from, self.num_reads, self.rows = broken_from, 0, []

    def __len__(self):
        return N

    def read(self, indices):
        self.num_reads += 1
        self.rows.append(indices.tolist())
        if self.broken_from is not None and self.num_reads > self.broken_from:
            raise StorageError("the disk is gone.")
        return SOURCE.read(indices)


def mesh_of(num_devices):
    return None if num_devices is None else data_mesh(jax.devices()[:num_devices])


def pieces_of(plan, length, start_step=0):
    """At most `length` consecutive steps of one phase and of as many examples each."""
    for _, steps in itertools.groupby(plan.steps(start_step), lambda step: (step[1], step[4])):
        while chunk := tuple(itertools.islice(steps, length)):
            yield Piece(chunk)


def type_of(array, wanted_sharding=None):
    return array.shape, array.dtype, wanted_sharding and array.sharding


def whole_batch(feed, inputs, place=0):
    """The batch of one of a piece's updates."""
    at = int(inputs.first) + place
    return GATHER(feed.tables, {name: array[at] for name, array in inputs.arrays.items()})


def feed_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("feed")]


@pytest.mark.parametrize("available_bytes", [math.inf, 250])
@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("microbatch_size", [None, 5])
@pytest.mark.parametrize("num_devices", [None, 1, 8])
def test_every_kind_gives_the_batches(num_devices, microbatch_size, length, available_bytes):
    mesh = mesh_of(num_devices)
    if available_bytes == 250 and num_devices != 8:
        available_bytes = 1000  # only several devices can hold more than one of them
    for plan, kind in itertools.product(PLANS, ("resident", "streaming", "auto")):
        settings = {"mesh": mesh, "microbatch_size": microbatch_size}
        expected = batches(SOURCE, plan, 7, **settings)
        with Feed(
            SOURCE, plan, 7, kind=kind, steps_per_dispatch=length, **settings,
            available_bytes=available_bytes,
        ) as feed:  # fmt: skip
            is_resident = kind == "resident"  # a CPU streams from its memory, if it may choose
            assert feed.kind == ("resident" if is_resident else "streaming")
            assert feed.reason.startswith(feed.kind)
            for piece, inputs in feed.run(pieces_of(plan, length)):
                abstract = feed.abstract_inputs(feed.layouts.of(piece.steps[0].num_real))
                assert jax.tree.map(
                    lambda like: type_of(like, like.sharding), abstract[:3]
                ) == jax.tree.map(
                    lambda like, array: type_of(array, like.sharding), abstract[:3], inputs[:3]
                )
                assert int(inputs.count) == len(piece.steps) == len(inputs.digest_shares)
                assert set(inputs.arrays) == {"index", "epoch", "weight"} | (
                    set() if is_resident else set(ARRAYS)
                )
                for place in range(len(piece.steps)):
                    wanted = next(expected)
                    got = whole_batch(feed, inputs, place)
                    assert wanted.keys() == got.keys()
                    for name, array in got.items():
                        np.testing.assert_array_equal(array, wanted[name])
        assert next(expected, None) is None


@pytest.mark.parametrize("num_devices", [None, 8])
@pytest.mark.parametrize("kind", ["resident", "streaming", "auto"])
def test_a_piece_may_be_one_micro_batch(kind, num_devices):
    plan, mesh = PLANS[1], mesh_of(num_devices)
    settings = {"mesh": mesh, "microbatch_size": 5}
    pieces = [
        Piece((step,), microbatch)
        for step in plan.steps(3)
        for microbatch in range(Layouts(5).of(step.num_real).num_microbatches)
    ]
    with Feed(SOURCE, plan, 2, kind=kind, split=True, **settings) as feed:
        got = [(piece, whole_batch(feed, inputs)) for piece, inputs in feed.run(pieces)]
        abstract = feed.abstract_inputs(feed.layouts.of(20)).arrays
    assert {name: a.shape[:2] for name, a in abstract.items()} == {
        name: (1, 5 if mesh is None else 8) for name in abstract
    }
    assert [piece for piece, _ in got] == pieces
    start_sample = plan.samples_at(3)
    got = iter(got)
    for whole in batches(SOURCE, plan, 2, start_sample, **settings):
        for microbatch in range(len(whole["weight"])):
            piece, arrays = next(got)
            assert piece.microbatch == microbatch
            for name, array in arrays.items():
                np.testing.assert_array_equal(array, np.asarray(whole[name])[microbatch])


def test_the_host_prepares_two_pieces_ahead_and_no_more():
    source, plan = NotInMemory(), make_plan(4, N, "4ep")
    with Feed(source, plan, 0) as feed:
        before = source.num_reads
        running = feed.run(pieces_of(plan, 1))
        for number in range(1, 6):
            next(running)
            until = time.monotonic() + 60
            while source.num_reads - before < number + 2 and time.monotonic() < until:
                time.sleep(0.001)
            time.sleep(0.005)
            assert source.num_reads - before == number + 2


def test_examples_are_read_once_and_padding_reads_none_again():
    source, plan = NotInMemory(), make_plan(20, N, "1ep", "partial")
    with Feed(source, plan, 0, mesh=mesh_of(8), microbatch_size=6) as feed:
        source.rows.clear()
        list(feed.run(pieces_of(plan, 1)))
    assert [len(rows) for rows in source.rows] == [20, 20, 13]
    assert sorted(sum(source.rows, [])) == list(range(N))


def test_an_error_of_the_source_is_raised_in_its_turn():
    plan = make_plan(8, N, "3ep")
    done = []
    with pytest.raises(StorageError, match="the disk is gone"):
        # One read tells the arrays' shapes.
        with Feed(NotInMemory(broken_from=4), plan, 0) as feed:
            done += (piece for piece, _ in feed.run(pieces_of(plan, 1)))
    assert feed_threads() == []
    with Feed(NotInMemory(broken_from=4), plan, 0) as feed:
        running = feed.run(pieces_of(plan, 1))
        assert [next(running)[0].steps[0].index for _ in range(3)] == [0, 1, 2]
        with pytest.raises(StorageError):
            next(running)
        assert next(running, None) is None


def test_the_thread_ends_however_the_consumer_does():
    plan = make_plan(8, N, "3ep")
    with Feed(NotInMemory(), plan, 0) as feed:
        for _ in feed.run(pieces_of(plan, 1)):
            assert len(feed_threads()) == 1
            break
    assert feed_threads() == []
    with pytest.raises(ZeroDivisionError):
        with Feed(NotInMemory(), plan, 0) as feed:
            for _ in feed.run(pieces_of(plan, 1)):
                1 / 0
    assert feed_threads() == []
    feed.close()  # again is fine


def test_a_stop_ends_the_wait_for_a_piece(monkeypatch):
    monkeypatch.setattr("adabatch_jax.data.prefetching._CLOSE_SECONDS", 0.01)
    gate, stop = threading.Event(), threading.Event()

    class Hangs(NotInMemory):
        def read(self, indices):
            # One read tells the arrays' shapes; the third piece doesn't come.
            return super().read(indices) if self.num_reads < 3 else gate.wait()

    plan = make_plan(8, N, "3ep")
    with Feed(Hangs(), plan, 0) as feed:
        running = feed.run(pieces_of(plan, 1), stop.is_set)
        assert [next(running)[0].steps[0].index for _ in range(2)] == [0, 1]
        threading.Timer(0.05, stop.set).start()
        assert next(running, None) is None
    (behind,) = feed_threads()
    gate.set()
    behind.join(60)
    assert feed_threads() == []


def test_nothing_is_transferred_implicitly():
    plan = PLANS[0]
    for kind in ("resident", "streaming"):
        with Feed(SOURCE, plan, 0, kind=kind, mesh=mesh_of(8), steps_per_dispatch=2) as feed:
            running = feed.run(pieces_of(plan, 2))
            jax.block_until_ready(GATHER(feed.tables, next(running)[1].arrays))
            jax.config.update("jax_transfer_guard", "disallow")  # of all threads
            try:
                for _, inputs in itertools.islice(running, 3):
                    jax.block_until_ready(GATHER(feed.tables, inputs.arrays))
            finally:
                jax.config.update("jax_transfer_guard", "allow")


def test_examples_are_spread_where_they_have_to_be():
    # 53 examples of 6 + 4 bytes; 7 of them on each of 8 devices.
    def chosen(num_devices, available_bytes, platform="gpu"):
        return choose_placement(SOURCE, 53, "auto", num_devices, available_bytes, platform)

    assert chosen(1, 1060) == (
        "resident",
        "resident: 530 bytes of examples fit on the device",
        False,
        False,
    )
    assert chosen(8, 1060)[1:3] == (
        "resident: 530 bytes of examples fit on each of 8 devices", False
    )  # fmt: skip
    assert chosen(8, 1059)[1:3] == ("resident: 530 bytes of examples, spread over 8 devices", True)
    kind, reason, *_ = chosen(8, 139)
    assert kind == "streaming"
    assert reason.endswith("don't fit in half of the 139 bytes on each of 8 devices")
    reason = "streaming: 530 bytes of examples are in memory already"
    assert chosen(8, 1060, "cpu") == ("streaming", reason, False, True)
    assert chosen(8, 1059, "cpu") == ("streaming", reason, False, False)


def test_resident_examples_lie_whole_or_spread_on_the_devices():
    mesh, plan = mesh_of(8), PLANS[0]

    def opened(**settings):
        with Feed(SOURCE, plan, 0, kind="resident", **settings) as feed:
            return {name: a.addressable_shards[0].data.shape for name, a in feed.tables.items()}

    whole, spread = {"image": (53, 2, 3), "label": (53,)}, {"image": (7, 2, 3), "label": (7,)}
    assert opened(mesh=mesh, available_bytes=530) == whole
    assert opened(mesh=mesh, available_bytes=70) == spread
    assert opened(available_bytes=530) == whole
    with pytest.raises(
        UsageError, match="can't be resident: .* take 530 bytes on the device, wh.*529"
    ):
        opened(available_bytes=529)
    with pytest.raises(UsageError, match="take 70 bytes on each of 8 devices, where 69 are free"):
        opened(mesh=mesh, available_bytes=69)


def test_images_stay_bytes_on_the_device():
    with Feed(SOURCE, PLANS[0], 0, kind="resident") as feed:
        assert {name: a.dtype.name for name, a in feed.tables.items()} == {
            "image": "uint8",
            "label": "int32",
        }
        np.testing.assert_array_equal(feed.tables["image"], ARRAYS["image"])


def test_the_default_device_is_that_of_whoever_opened_the_feed():
    device = jax.devices()[3]
    with jax.default_device(device), Feed(SOURCE, PLANS[0], 0, kind="streaming") as feed:
        _, inputs = next(feed.run(pieces_of(PLANS[0], 1)))
    assert inputs.arrays["image"].devices() == {device}


def test_sources_that_are_not_in_memory_are_streamed_unless_asked():
    with Feed(NotInMemory(), PLANS[0], 0) as feed:
        assert (feed.kind, feed.reason) == ("streaming", "streaming: the examples aren't in memory")
    with Feed(NotInMemory(), PLANS[0], 0, kind="resident") as feed:
        np.testing.assert_array_equal(feed.tables["label"], ARRAYS["label"])


def test_endless_streams():
    class Squares:
        def read(self, indices):
            return {"x": indices**2}

    plan = make_plan("4, 8sp: 6", None, "20sp")
    with Feed(Squares(), plan, 0) as feed:
        assert feed.reason == "streaming: the examples never end"
        got = [inputs.arrays["x"][0].tolist() for _, inputs in feed.run(pieces_of(plan, 1))]
    assert sum(got, []) == [i**2 for i in range(20)]
    with pytest.raises(UsageError, match="resident"):
        Feed(Squares(), plan, 0, kind="resident")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps_per_dispatch": 0}, "`steps_per_dispatch` must be at least 1, got 0"),
        ({"split": True}, "`split` needs a `microbatch_size`"),
        ({"microbatch_size": 0}, "`microbatch_size` must be at least 1"),
        ({"source": array_source({"epoch": np.zeros(N)})}, "array named 'epoch'.*rename"),
        (
            {"source": array_source({"weight": np.full(N, -1)})},
            "'weight' must .* at least 0, got -1",
        ),
        ({"source": array_source({"x": np.zeros(9)})}, "9 examples and the plan num_examples=53"),
    ],
)
def test_mistakes(settings, message):
    with pytest.raises(UsageError, match=message):
        Feed(**{"source": SOURCE, "plan": PLANS[0], "seed": 0, **settings})
