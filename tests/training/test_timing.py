"""Timing updates before the first one counts."""

import types

import jax.numpy as jnp
import optax

from adabatch_jax.schedules.building import make_plan
from adabatch_jax.training.dispatch import Dispatched
from adabatch_jax.training.pieces import pieces
from adabatch_jax.training.state import TrainState
from adabatch_jax.training.timing import seconds_by_size


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

    def __call__(self, piece, state, inputs, rng):
        self.num_dispatched += 1
        self.most = max(self.most, self.num_dispatched - self.num_done)
        number = self.num_dispatched

        def wait():
            self.num_done = max(self.num_done, number)

        return Dispatched(state, {}, None, types.SimpleNamespace(block_until_ready=wait))


def test_updates_are_not_dispatched_far_ahead():
    """XLA's CPU client deadlocks where dozens of updates on several devices are in flight."""
    plan = make_plan(4, 60, "15st")
    devices = Devices(plan)
    state = TrainState.create(params={"w": jnp.zeros(3)}, tx=optax.sgd(0.1))
    (size,) = seconds_by_size(devices, devices, plan, 0, state, None, None)
    assert size == 4
    assert devices.num_dispatched > 100 and devices.num_done == devices.num_dispatched
    assert devices.most <= 4
