"""Timing with a clock that only updates move."""

import pytest

from adabatch_jax.costs.measuring import measure_sizes, seconds_per_update


class Machine:
    """Updates that take as long as they are told; `clock` is what they have taken so far."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def clock(self):
        return self.now

    def run(self, seconds, first_seconds=0.0):
        """Performs updates of so many seconds each, or as the list says, one call after another."""
        calls = iter(seconds) if isinstance(seconds, list) else None

        def run(number):
            nonlocal first_seconds
            self.calls.append(number)
            self.now += number * (seconds if calls is None else next(calls)) + first_seconds
            first_seconds = 0.0

        return run


def test_the_first_update_is_not_timed():
    machine = Machine()
    assert seconds_per_update(machine.run(1.0, first_seconds=50), 100, machine.clock) == 1.0


def test_the_median_is_taken():
    machine = Machine()
    seconds = [9.0, 1.0, 7.0, 2.0, 3.0, 8.0]
    assert seconds_per_update(machine.run(seconds), 30.0, machine.clock) == 3.0
    assert machine.calls == [1] * 6  # 9 + 1 + 7 + 2 + 3 + 8 = 30, another would end too late


def test_short_updates_are_timed_in_groups():
    machine = Machine()
    assert seconds_per_update(machine.run(0.004), 100, machine.clock) == pytest.approx(0.004)
    assert machine.calls[:2] == [1, 1] and set(machine.calls[2:]) == {13}  # 0.05 / 0.004
    machine = Machine()
    seconds_per_update(machine.run(1e-6), 100, machine.clock)
    assert max(machine.calls) == 100


@pytest.mark.parametrize(("seconds", "calls"), [(5.0, [1, 1, 1]), (0.01, [1, 1, 5, 5])])
def test_without_budget_two_are_timed(seconds, calls):
    machine = Machine()
    seconds_per_update(machine.run(seconds), 0, machine.clock)
    assert machine.calls == calls


def sizes_measured(seconds, budget):
    """Sizes that are measured where updates take `seconds(size)`, and when all is done."""
    machine = Machine()
    runs = {size: lambda s=size: machine.run(seconds(s)) for size in (512, 64, 128, 256)}
    measured = measure_sizes(runs, budget, machine.clock)
    assert measured == pytest.approx({size: seconds(size) for size in measured})
    return list(measured), machine.now


def test_small_sizes_come_first_and_long_ones_are_left_out():
    # 3 updates of 0.64, 1.28, 2.56 s take 13.44 s; three of 5.12 s would take 15.36 s more.
    assert sizes_measured(lambda size: size / 100, 20)[0] == [64, 128, 256]
    assert sizes_measured(lambda size: size / 100, 40)[0] == [64, 128, 256, 512]


def test_the_smallest_size_is_always_measured():
    assert sizes_measured(lambda size: float(size), 0.0)[0] == [64]


@pytest.mark.parametrize("budget", [1.0, 7.0, 20.0, 60.0])
def test_the_budget_is_kept(budget):
    measured, spent = sizes_measured(lambda size: 0.02 + size / 1000, budget)
    assert spent <= budget + 3 * (0.02 + 0.064) and measured
