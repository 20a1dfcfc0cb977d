"""The order of examples: golden values, permutations, independence."""

import hashlib
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from adabatch_jax import array_source, batches, make_plan
from adabatch_jax.data.epoch_order import (
    FeistelOrder,
    epoch_order,
    example_indices,
    order_digest,
    prepare_next_order,
)
from adabatch_jax.system.errors import UsageError


def test_golden_values():
    """A change of these numbers changes every run that is under way."""
    assert epoch_order(10, 0, 0)[0:10].tolist() == GOLDEN_10
    assert epoch_order(50_000, 7, 3)[:5].tolist() == GOLDEN_50K
    assert epoch_order(2**24 + 1, 0, 0)[:4].tolist() == GOLDEN_FEISTEL
    assert epoch_order(10**12, 1, 2)[10**11 : 10**11 + 2].tolist() == GOLDEN_TRILLION


GOLDEN_10 = [2, 9, 4, 3, 0, 5, 7, 6, 8, 1]
GOLDEN_50K = [32075, 26418, 37876, 22954, 22290]
GOLDEN_FEISTEL = [13861150, 2874798, 7774458, 15330363]
GOLDEN_TRILLION = [209713079611, 121847266969]


def test_golden_digests():
    """Checkpoints hold them."""
    ten = np.array(GOLDEN_10, "<i8").tobytes()
    assert order_digest(10, 0, 0) == hashlib.sha256(ten).hexdigest()[:16] == "7530ea2ff7f8b02e"
    assert order_digest(50_000, 7, 3) == "45b503ab544966e2"
    assert order_digest(10**12, 1, 2) == "2145feb5586b4743"


@pytest.mark.parametrize("num_examples", [3, 4096, 100_000])
def test_digests_tell_orders_apart(num_examples):
    asked = [(num_examples, 0, 0), (num_examples, 1, 0), (num_examples, 0, 1)]
    assert len({order_digest(*which) for which in asked}) == 3


@pytest.mark.parametrize("num_examples", [1, 1000, 2**16 - 1, 2**16, 300_000])
def test_it_is_the_documented_stream(num_examples):
    """Also where it is sorted in parts."""
    bits = np.random.Philox(np.random.SeedSequence([3, 4, num_examples])).random_raw(num_examples)
    order = epoch_order(num_examples, 3, 4)
    np.testing.assert_array_equal(order[:], np.argsort(bits, kind="stable"))


# Orders are kept from one test to the next: each asks for those of a seed that nobody else has.
SEEDS = itertools.count(10**6)
LARGE = 2**16


@pytest.fixture
def streams(monkeypatch):
    """The streams that are begun for an order, as (seed, epoch, number of examples), each with
    its thread; `streams.draw`, where set, is in the place of their numbers."""

    class Streams(list):
        draw = None

    begun, philox = Streams(), np.random.Philox

    def begin(sequence):
        begun.append((tuple(sequence.entropy), threading.current_thread().name))
        return philox(sequence) if begun.draw is None else begun

    begun.random_raw = lambda count: begun.draw(count)
    monkeypatch.setattr(np.random, "Philox", begin)
    return begun


@pytest.mark.parametrize("num_examples", [1000, 2**17])
def test_equal_keys_stay_in_their_order(streams, num_examples):
    keys = np.random.default_rng(0).integers(0, 50, num_examples).astype(np.uint64) << np.uint64(57)
    streams.draw = lambda count: keys
    order = epoch_order(num_examples, next(SEEDS), 0)
    np.testing.assert_array_equal(order[:], np.argsort(keys, kind="stable"))


def test_an_order_is_prepared_once_in_the_background(streams):
    seed = next(SEEDS)
    for _ in range(3):
        prepare_next_order(LARGE, seed, sample=4 * LARGE, num_samples=9 * LARGE)
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(epoch_order, LARGE, seed, 5) for _ in range(8)]
    assert len({id(order.result()) for order in asked}) == 1
    assert streams == [((seed, 5, LARGE), "epoch order")]


@pytest.mark.parametrize("num_examples", [10, 2**24 + 1, None])
def test_nothing_is_prepared_where_nobody_would_wait(streams, num_examples):
    prepare_next_order(num_examples, next(SEEDS), 0, 10**9)
    assert streams == []


def test_the_next_order_is_prepared_unless_the_run_ends_before(streams):
    seed = next(SEEDS)
    prepare_next_order(LARGE, seed, sample=LARGE + 7, num_samples=3 * LARGE)
    prepare_next_order(LARGE, seed, sample=2 * LARGE, num_samples=3 * LARGE)
    epoch_order(LARGE, seed, 2)
    assert streams == [((seed, 2, LARGE), "epoch order")]


def test_three_orders_are_kept(streams):
    seed = next(SEEDS)
    for epoch in (0, 1, 2, 0, 3, 0, 1):  # 0 was in use all the time, 1 was not
        epoch_order(10, seed, epoch)
    assert [epoch for (_, epoch, _), _ in streams] == [0, 1, 2, 3, 1]


def test_an_order_that_failed_is_worked_out_again(streams):
    def fail(count):
        raise MemoryError

    seed, streams.draw = next(SEEDS), fail
    with pytest.raises(MemoryError):
        epoch_order(10, seed, 0)
    streams.draw = None
    assert sorted(epoch_order(10, seed, 0)[:]) == list(range(10))


def test_batches_prepare_the_epochs_to_come(streams):
    seed = next(SEEDS)
    source = array_source({"x": np.zeros(LARGE, np.int8)})
    for _ in batches(source, make_plan(LARGE // 4, LARGE, "3ep"), seed=seed):
        pass
    threads = {which[1]: name for which, name in streams}
    assert sorted(threads) == [0, 1, 2]
    assert threads[1] == threads[2] == "epoch order" != threads[0]


@pytest.mark.parametrize("num_examples", [1, 2, 3, 4, 5, 17, 64, 1000, 4097])
def test_both_kinds_are_permutations(num_examples):
    for order in (epoch_order(num_examples, 1, 2), FeistelOrder(num_examples, 1, 2)):
        assert len(order) == num_examples
        assert sorted(order[0:num_examples].tolist()) == list(range(num_examples))
        whole = order[0:num_examples]
        np.testing.assert_array_equal(order[1:3], whole[1:3])
        assert whole.dtype == np.int64


def test_orders_differ_between_epochs_seeds_and_sizes():
    orders = [epoch_order(n, s, e)[:50].tolist() for n in (99, 100) for s in (0, 1) for e in (0, 1)]
    assert len({tuple(order) for order in orders}) == 8


def test_feistel_spreads():
    """Positions and values are uncorrelated, and neighbours don't stay neighbours."""
    order = FeistelOrder(100_000, 0, 0)[0:100_000].astype(float)
    assert abs(np.corrcoef(order, np.arange(100_000))[0, 1]) < 0.02
    assert np.mean(np.abs(np.diff(order)) < 100) < 0.004


def test_indices_across_epochs():
    wanted = np.concatenate([epoch_order(7, 5, e)[0:7] for e in range(5)])
    for start in range(15):
        for count in (0, 1, 6, 7, 8, 20):
            got = example_indices(7, 5, start, count)
            np.testing.assert_array_equal(got, wanted[start : start + count])
            assert got.dtype == np.int64


def test_mistakes():
    with pytest.raises(UsageError, match="`seed` .* -1"):
        epoch_order(10, -1, 0)
    with pytest.raises(UsageError, match="`num_examples` .* 0"):
        epoch_order(0, 0, 0)
