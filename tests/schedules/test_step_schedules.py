"""Batch sizes and numbers of micro-batches of traced update counts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adabatch_jax.schedules.plan import make_plan
from adabatch_jax.schedules.step_schedules import accumulation_schedule, batch_size_schedule
from adabatch_jax.system.errors import UsageError

PLANS = {
    "paper": make_plan("128 x2 every 20ep max 2048", 50_000, "100ep"),
    "partial": make_plan("16, 3ep: 32, 5ep: 8", 100, "7ep", remainder="partial"),
    "drop": make_plan("16, 3ep: 32, 5ep: 8", 100, "7ep", remainder="drop"),
    "cut": make_plan("16", 100, "1ep").continued("16, 2ep: 32", 100, "4ep"),
    "stream": make_plan("1024, 10Bsp: 4096, 5Tsp: 16384", None, "6Tsp"),
}


def counts_around_changes(plan):
    starts = [phase.start_step for phase in plan.phases] + [plan.num_steps]
    near = {start + offset for start in starts for offset in (-2, -1, 0, 1)}
    return sorted(count for count in near if 0 <= count < plan.num_steps)


@pytest.mark.parametrize("name", PLANS)
def test_batch_sizes_of_traced_counts(name):
    plan = PLANS[name]
    counts = counts_around_changes(plan)
    expected = [plan.batch_size_at(count) for count in counts]
    schedule = batch_size_schedule(plan)
    traced = jax.jit(schedule)(jnp.array(counts, dtype=jnp.int32))
    assert traced.dtype == jnp.int32 and traced.tolist() == expected
    assert [int(schedule(count)) for count in counts] == expected
    assert schedule(np.array(counts)).tolist() == expected
    beyond = jnp.array([plan.num_steps, plan.num_steps + 1, 2**31 - 1], dtype=jnp.int32)
    assert jax.jit(schedule)(beyond).tolist() == [plan.phases[-1].batch_size] * 3


@pytest.mark.parametrize("name", PLANS)
def test_numbers_of_micro_batches(name):
    plan, size = PLANS[name], 8
    counts = counts_around_changes(plan)
    schedule = accumulation_schedule(plan, size)
    expected = [-(-next(plan.steps(count)).num_real // size) for count in counts]
    traced = jax.jit(schedule)(jnp.array(counts, dtype=jnp.int32))
    assert traced.dtype == jnp.int32 and traced.tolist() == expected
    assert [int(schedule(count)) for count in counts] == expected
    assert int(schedule(plan.num_steps)) == -(-plan.phases[-1].batch_size // size)


def test_each_update_of_a_plan_with_partial_batches():
    plan = PLANS["partial"]
    schedule = accumulation_schedule(plan, 4)
    ours = schedule(jnp.arange(plan.num_steps)).tolist()
    assert ours == [-(-step.num_real // 4) for step in plan.steps()]


@pytest.mark.parametrize("remainder", ["carry", "partial", "drop"])
def test_multi_steps_makes_the_plans_updates(remainder):
    """One program for all sizes; numpy's updates of whole batches are the reference."""
    plan = make_plan("4 x2 every 2ep max 16", 34, "8ep", remainder)
    size, rng = 2, np.random.default_rng(0)  # divides the partial batches too
    rates = optax.piecewise_constant_schedule(0.05, {plan.phases[1].start_step: 0.5})
    tx = optax.MultiSteps(optax.sgd(rates, momentum=0.9), accumulation_schedule(plan, size))
    x, y = rng.normal(size=(34, 3)).astype(np.float32), rng.normal(size=34).astype(np.float32)
    params, traces = jnp.zeros(3), 0
    state = tx.init(params)

    @jax.jit
    def update(params, state, x, y):
        nonlocal traces
        traces += 1
        grads = jax.grad(lambda w: jnp.mean((x @ w - y) ** 2))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    weights, momentum = np.zeros(3), np.zeros(3)
    for step in plan.steps():
        rows = (step.start_sample + np.arange(step.num_real)) % 34
        for first in range(0, len(rows), size):
            micro = rows[first : first + size]
            params, state = update(params, state, x[micro], y[micro])
        gradient = 2 * x[rows].T @ (x[rows] @ weights - y[rows]) / len(rows)
        momentum = gradient + 0.9 * momentum
        weights = weights - float(rates(step.index)) * momentum
        assert (int(state.gradient_step), int(state.mini_step)) == (step.index + 1, 0)
        np.testing.assert_allclose(params, weights, rtol=2e-4, atol=2e-6)
    assert step.index + 1 == plan.num_steps and traces == 1


def test_micro_batches_that_would_weigh_too_much():
    plan = make_plan("32, 1ep: 48, 2ep: 96", 960, "3ep")
    with pytest.raises(UsageError, match="=32 doesn't divide the batch sizes 48.*divisor of 48"):
        accumulation_schedule(plan, 32)
    with pytest.raises(UsageError, match="=10 .* 32, 48, 96, and .* a divisor of 16"):
        accumulation_schedule(plan, 10)
    with pytest.raises(UsageError, match="`microbatch_size` must be at least 1, got 0"):
        accumulation_schedule(plan, 0)
    whole = accumulation_schedule(plan, 96)  # smaller batches are one micro-batch
    assert [int(whole(phase.start_step)) for phase in plan.phases] == [1, 1, 1]


def test_too_many_updates_for_int32():
    with pytest.raises(UsageError, match="fewer than 2.*31"):
        batch_size_schedule(make_plan(1, None, "3Bsp"))
