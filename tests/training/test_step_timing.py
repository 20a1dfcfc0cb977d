"""Timing updates before the first one counts, with clocks that only updates move."""

import math
import types

import jax.numpy as jnp
import optax
import pytest

from adabatch_jax.schedules.plan import make_plan
from adabatch_jax.training.dispatch import Dispatched
from adabatch_jax.training.step_timing import seconds_by_size, seconds_per_update
from adabatch_jax.training.train_state import TrainState
from adabatch_jax.training.updates_per_dispatch import pieces


class Devices:
    """In the place of a dispatch and its feed: notes how many updates nobody waited for yet."""

    def __init__(self, plan):
        self.plan, self.num_dispatched, self.num_done, self.most = plan, 0, 0, 0
        program = types.SimpleNamespace(num_bytes=0)
        self.programs = types.SimpleNamespace(is_ready=lambda _: True, get=lambda _: program)

    def names(self, batch_size):
        return (batch_size,)

    def pieces(self, start_step, is_boundary):
        return pieces(self.plan, start_step, 1, is_boundary)

    def run(self, made):
        return ((piece, {}) for piece in made)

    def __call__(self, piece, state, inputs):
        self.num_dispatched += 1
        self.most = max(self.most, self.num_dispatched - self.num_done)
        number = self.num_dispatched

        def wait():
            self.num_done = max(self.num_done, number)

        return Dispatched(state, {}, None, None, types.SimpleNamespace(block_until_ready=wait))


def test_updates_are_not_dispatched_far_ahead():
    """XLA's CPU client deadlocks where dozens of updates on several devices are in flight."""
    plan = make_plan(4, 60, "15st")
    devices = Devices(plan)
    state = TrainState.create(params={"w": jnp.zeros(3)}, tx=optax.sgd(0.1))
    (size,) = seconds_by_size(devices, devices, plan, 0, state, math.inf)
    assert size == 4
    assert devices.num_dispatched > 100 and devices.num_done == devices.num_dispatched
    assert devices.most <= 4


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
