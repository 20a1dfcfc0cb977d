"""How far a batch scales: numbers worked out by hand, closed forms, and limits."""

import math

import pytest

from adabatch_jax.data.row_layout import Layouts
from adabatch_jax.reporting.planning.scaling_efficiency import (
    COUNTS,
    Network,
    RowTimes,
    predicted_efficiency,
    rows_to_measure,
)

NO_COST = Network(8, math.inf, 0.0, math.inf, 0.0)
LINEAR = RowTimes({rows: 1e-3 * rows for rows in (1, 2, 4, 64, 4096)})


def predicted(batch_size, num_devices, times=LINEAR, num_bytes=0, network=NO_COST, microbatch=None):
    layout = Layouts(microbatch, num_devices).of(batch_size)
    return predicted_efficiency(layout, times, num_bytes, network)


@pytest.mark.parametrize(
    ("num_devices", "by_hand"),
    [
        (1, 0.0),
        # One host of two: 2 * 1/2 * 1e9 / 100e9 + 2 * 1 * 2e-6.
        (2, 0.010004),
        # One host of four: 2 * 3/4 * 1e9 / 100e9 + 2 * 3 * 2e-6.
        (4, 0.015012),
        # Two of them: and 2 * 1/2 * 0.25e9 / 10e9 + 2 * 1 * 20e-6.
        (8, 0.015012 + 0.02504),
        # Three: and 2 * 2/3 * 0.25e9 / 10e9 + 2 * 2 * 20e-6, for the second round has a free seat.
        (12, 0.015012 + 1 / 30 + 80e-6),
        # One more device needs a fourth host: 2 * 3/4 * 0.25e9 / 10e9 + 2 * 2 * 20e-6.
        (13, 0.015012 + 0.0375 + 80e-6),
    ],
)
def test_the_all_reduce_of_a_gigabyte(num_devices, by_hand):
    network = Network(4, 100e9, 2e-6, 10e9, 20e-6)
    assert network.all_reduce_seconds(10**9, num_devices) == pytest.approx(by_hand, rel=1e-12)


def test_the_all_reduce_in_limits():
    assert NO_COST.all_reduce_seconds(10**12, 16_384) == 0
    one_each = Network(1, 1.0, 1e9, 10e9, 0.0)  # links don't matter then
    for hosts in (2, 3, 1000):
        ring = 2 * (hosts - 1) / hosts * 8e9 / 10e9
        assert one_each.all_reduce_seconds(8 * 10**9, hosts) == pytest.approx(ring)
    many = [Network().all_reduce_seconds(10**8, count) for count in (1, 2, 4, *COUNTS)]
    assert many == sorted(many) and many[0] == 0
    assert COUNTS[0] == 8 and COUNTS[-1] == 16_384


def test_one_device_and_costs_that_are_none():
    for batch in (1, 3, 64, 5000):
        alone = predicted(batch, 1, num_bytes=10**9, network=Network())
        assert alone.all_reduce_seconds == 0
        assert alone.none_hidden == alone.all_hidden == pytest.approx(1.0)
    for count in (8, 64, 4096):
        many = predicted(4096, count)
        assert many.none_hidden == many.all_hidden == pytest.approx(1.0)


@pytest.mark.parametrize(("batch", "count"), [(10, 4), (4097, 4), (5, 4), (7, 7), (100, 8)])
def test_what_the_devices_do_not_divide_is_lost(batch, count):
    """Where rows cost what they cost, just the padding."""
    layout = Layouts(None, count).of(batch)
    efficiency = predicted(batch, count)
    assert efficiency.all_hidden == pytest.approx(batch / (count * math.ceil(batch / count)))
    assert efficiency.all_hidden == pytest.approx(1 - layout.padding_share)


@pytest.mark.parametrize("count", [1, 4, 16, 64])
def test_an_update_that_costs_something_by_itself(count):
    """t(b) = a + c b, all sizes measured: a closed form."""
    a, c, batch = 2e-3, 1e-4, 64
    times = RowTimes({rows: a + c * rows for rows in (1, 4, 16, 64)})
    network = Network(64, 50e9, 1e-6)
    efficiency = predicted(batch, count, times, 10**8, network)
    rows = batch // count
    all_reduce = 2 * (count - 1) / count * 1e8 / 50e9 + 2 * (count - 1) * 1e-6
    best = 64 / (a + 64 * c)
    assert efficiency.compute_seconds == pytest.approx(a + c * rows)
    assert efficiency.all_reduce_seconds == pytest.approx(all_reduce)
    hidden = batch / max(a + c * rows, all_reduce) / (count * best)
    assert efficiency.all_hidden == pytest.approx(hidden)
    assert efficiency.none_hidden == pytest.approx(
        batch / (a + c * rows + all_reduce) / (count * best)
    )
    assert 0 < efficiency.none_hidden <= efficiency.all_hidden <= 1 + 1e-12


def test_an_all_reduce_that_takes_longer_than_the_rows_bounds_both_ends():
    slow = Network(2, link_bandwidth=1e9, link_latency=0.0)  # 2 * 1/2 * 1e8 / 1e9 = 0.1 s
    efficiency = predicted(64, 2, num_bytes=10**8, network=slow)  # 32 ms of rows
    assert efficiency.all_hidden == pytest.approx(0.032 / 0.1)
    assert efficiency.none_hidden == pytest.approx(0.032 / 0.132)


def test_micro_batches_that_were_asked_for_count_one_by_one():
    times = RowTimes({2: 0.010, 8: 0.016, 32: 0.040})
    whole, cut = predicted(32, 4, times), predicted(32, 4, times, microbatch=8)
    assert whole.compute_seconds == 0.016 and cut.compute_seconds == 4 * 0.010


@pytest.mark.parametrize(
    ("rows", "seconds"),
    [
        (1, None),
        (3, None),
        (4, 0.1),
        (5, 0.1125),
        (8, 0.15),
        (15, 0.3775),
        (16, 0.41),
        (17, 0.435625),
    ],
)
def test_times_are_interpolated_and_never_told_of_fewer_rows(rows, seconds):
    times = RowTimes({16: 0.41, 4: 0.1, 8: 0.15})
    assert times.seconds(rows) == (seconds and pytest.approx(seconds))
    if rows < 4:
        assert predicted(rows, 1, times) is None


def test_an_efficiency_is_a_share_of_the_best_that_was_measured():
    times = RowTimes({4: 0.04, 8: 0.05, 16: 0.2})  # memory ran short at 16
    assert times.rows_per_second == 160
    for rows in range(4, 40):
        assert predicted(rows, 1, times).all_hidden <= 1 + 1e-12
    assert predicted(16, 1, times).all_hidden == pytest.approx(0.5)


def test_few_sizes_are_measured_and_whole_groups_only():
    layouts = [Layouts(None, n).of(size) for size in range(1, 300) for n in (1, 7, 64)]
    rows = rows_to_measure(layouts)
    assert rows[0] == 1 and rows[-1] == 299 and len(rows) <= 10
    assert all(large >= 2 * small for small, large in zip(rows[:-2], rows[1:-1]))
    assert rows_to_measure([Layouts(None, n).of(96) for n in (1, 8, 96)], 8) == [8, 16, 96]
