"""When repeated times agree, and what a busy machine can't tell; clocks that only updates move."""

import itertools
import random

import numpy as np
import pytest

from adabatch_jax.reporting.planning.repeated_timing import (
    FEWEST_ROUNDS,
    Timing,
    possible_ends,
    repeated_timings,
    timing_of,
)
from adabatch_jax.training.time_prediction import largest_paying_size


def noisy(number, relative, seed=0):
    draws = np.random.default_rng(seed).exponential(relative, number)
    return list(1.0 + draws)


def test_equal_times_are_sure():
    assert timing_of([2.0] * 3) == Timing(2.0, 0.0)
    assert timing_of([2.0] * 3).is_sure


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_disturbances_of_fewer_than_most_samples_change_nothing(share):
    """Every third sample, say, takes three times as long, as another program has the cores."""
    random_state = random.Random(1)
    samples = [3.0 if random_state.random() < share else 1.0 for _ in range(400)]
    assert timing_of(samples) == Timing(1.0, 0.0)


def test_between_two_modes_nothing_is_sure():
    """Where the quartile lies between the two, its interval holds both."""
    samples = [1.0, 2.0, 2.0, 2.0] * 25
    assert timing_of(samples).spread >= 0.5


def test_noise_averages_out_with_more_samples():
    spreads = [timing_of(noisy(number, 0.2)).spread for number in (10, 100, 1_000, 10_000)]
    assert sorted(spreads, reverse=True) == spreads
    assert spreads[0] > 0.03 and spreads[-1] < 0.01


def test_the_spread_says_how_far_off_the_quartile_is():
    """Of a known distribution: the exponential's lower quartile is log(4 / 3)."""
    exact = 1 + 0.1 * np.log(4 / 3)
    inside = 0
    for seed in range(300):
        timing = timing_of(noisy(60, 0.1, seed))
        inside += abs(timing.seconds - exact) <= 2 * timing.spread * timing.seconds
    assert inside >= 0.95 * 300


def test_drift_is_a_spread():
    """A processor that gets slower, 20 % in all, evenly: each sample agrees with its neighbours."""
    samples = list(np.linspace(1.0, 1.2, 200))
    assert timing_of(samples).spread > 0.03
    steady = timing_of([1.1] * 200)
    assert steady.spread == 0


class Machine:
    """Updates that take as long as they are told, while nothing else moves the clock."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def clock(self):
        return self.now

    def runs(self, seconds_of):
        """What prepares each size; `seconds_of[size]` is a number or a function of the clock."""

        def prepared(size, seconds):
            def run(number):
                self.calls.append((size, number))
                for _ in range(number):
                    self.now += seconds(self.now) if callable(seconds) else seconds

            return lambda: run

        return {size: prepared(size, seconds) for size, seconds in seconds_of.items()}


def test_where_times_agree_it_ends_soon():
    machine = Machine()
    timings = repeated_timings(machine.runs({64: 0.1, 32: 0.06}), 1000, machine.clock)
    assert list(timings) == [32, 64]
    assert timings[64].seconds == pytest.approx(0.1) and timings[64].is_sure
    assert machine.now < 6
    # A warm-up and a first of each, then in turns.
    assert [size for size, _ in machine.calls[:8]] == [32, 32, 64, 64, 32, 64, 32, 64]
    assert len(machine.calls) >= 2 * FEWEST_ROUNDS


def test_the_first_update_is_not_timed():
    machine = Machine()
    runs = machine.runs({8: lambda now: 50.0 if now == 0 else 0.1})
    assert repeated_timings(runs, 100, machine.clock)[8].seconds == pytest.approx(0.1)


def test_short_updates_are_timed_together():
    machine = Machine()
    repeated_timings(machine.runs({8: 1e-3}), 1, machine.clock)
    assert machine.calls[:2] == [(8, 1), (8, 1)]
    assert {number for _, number in machine.calls[2:]} == {10}


def test_where_times_disagree_it_ends_with_the_budget():
    machine = Machine()
    modes = itertools.cycle([0.1, 0.2, 0.2, 0.2])
    runs = machine.runs({32: lambda now: next(modes)})
    timings = repeated_timings(runs, 20, machine.clock)
    assert 18 < machine.now <= 20 and not timings[32].is_sure


def test_what_gets_slower_does_so_for_all_sizes():
    """In turns, a machine that slows down by half leaves the gain of a size as it is."""
    machine = Machine()
    runs = machine.runs(
        {64: lambda now: 0.1 * (1 + now / 10), 128: lambda now: 0.15 * (1 + now / 10)}
    )
    timings = repeated_timings(runs, 20, machine.clock)
    assert not timings[64].is_sure
    assert timings[128].seconds / timings[64].seconds == pytest.approx(1.5, rel=0.02)


def sizes_timed(seconds, budget):
    machine = Machine()
    sizes = {size: seconds(size) for size in (512, 64, 128, 256)}
    timings = repeated_timings(machine.runs(sizes), budget, machine.clock)
    assert {size: t.seconds for size, t in timings.items()} == pytest.approx(
        {size: sizes[size] for size in timings}
    )
    return list(timings), machine.now


def test_small_sizes_come_first_and_long_ones_are_left_out():
    # Two of each and three rounds of 0.64 + 1.28 + 2.56 s take 22.4 s, with 5.12 s 48 s.
    assert sizes_timed(lambda size: size / 100, 23)[0] == [64, 128, 256]
    assert sizes_timed(lambda size: size / 100, 48.1)[0] == [64, 128, 256, 512]


@pytest.mark.parametrize("budget", [0.0, 1.0, 7.0, 20.0, 60.0])
def test_the_budget_is_kept(budget):
    timed, spent = sizes_timed(lambda size: 0.02 + size / 1000, budget)
    assert timed and spent <= max(budget, 5 * (0.02 + 0.064)) + 1e-9


def test_what_could_be_the_end_is_among_all_that_fast_and_slow_give():
    random_state = random.Random(0)
    for _ in range(200):
        timings, seconds = {}, 0.1
        for size in (32, 64, 128, 256):
            timings[size] = Timing(seconds, random_state.choice([0.0, 0.01, 0.1]))
            seconds *= random_state.choice([1.2, 1.6, 1.9, 2.0])
        factors = [(1 / (1 + t.spread), 1.0, 1 + t.spread) for t in timings.values()]
        every = {
            largest_paying_size({s: t.seconds * f for (s, t), f in zip(timings.items(), corner)})
            for corner in itertools.product(*factors)
        }
        found = set(possible_ends(timings))
        assert largest_paying_size({s: t.seconds for s, t in timings.items()}) in found
        assert found <= every
    # Of two sizes there are no other combinations than those that are tried.
    for gain in (1.0, 1.03, 1.049, 1.051, 1.08, 1.2):
        timings = {32: Timing(1.0, 0.01), 64: Timing(2 / gain, 0.01)}
        expected = [32] * (gain / 1.01**2 < 1.05) + [64] * (gain * 1.01**2 >= 1.05)
        assert possible_ends(timings) == expected
