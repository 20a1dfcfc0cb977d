"""Learning rates that are callables: what they are given, against exact fractions."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adabatch_jax.schedules.learning_rate_schedule import coupled_learning_rate
from adabatch_jax.schedules.plan import first_step_from, make_plan
from adabatch_jax.system.errors import UsageError
from tests.schedules.test_learning_rate_schedule import DOUBLING, REMAINDERS, edges

UNEVEN = "32, 1.3ep: 50, 80st: 17, 80%: 64"


def arguments(plan, steps, counts, reference=None):
    """What a callable is given at some steps, inside jit; it must come as the type it names."""
    types = []

    def base(argument):
        types.append(argument.dtype)
        return argument

    lr = coupled_learning_rate(plan, base, "none", reference, counts)
    given = np.asarray(jax.jit(lr)(jnp.asarray(steps, jnp.int32)))
    return given.astype(types[0])  # all below are float32's


def rounded_down(value):
    """The largest float32 that is not above a fraction."""
    nearest = np.float32(float(value))
    return nearest if Fraction(float(nearest)) <= value else np.nextafter(nearest, np.float32(-1))


def reference_step(plan, reference, sample):
    """Walks through the plan of the constant size, as far as a sample."""
    fixed = make_plan(reference, plan.num_examples, f"{2 * plan.num_samples}sp", plan.remainder)
    step = next(s for s in fixed.steps() if fixed.samples_at(s.index + 1) > sample)
    return step.index + min(Fraction(sample - step.start_sample, step.num_real), Fraction(1))


@pytest.mark.parametrize("remainder", REMAINDERS)
@pytest.mark.parametrize("reference", [32, 30, 300])
def test_steps_are_those_of_the_plan_of_the_constant_size(remainder, reference):
    plan = make_plan(UNEVEN, 1000, "5.35ep", remainder)
    steps = range(plan.num_steps)
    wanted = [rounded_down(reference_step(plan, reference, plan.samples_at(s))) for s in steps]
    given = arguments(plan, steps, "steps", reference)
    assert given.dtype == np.float32
    np.testing.assert_array_equal(given, wanted)


@pytest.mark.parametrize("remainder", REMAINDERS)
@pytest.mark.parametrize(
    "schedule",
    [
        optax.warmup_cosine_decay_schedule(0, 0.1, 2000, 39_000),
        optax.piecewise_constant_schedule(0.1, {7_800: 0.375, 15_601: 0.375}),
        optax.exponential_decay(0.1, 7_800, 0.375, transition_begin=100),
        lambda step: jnp.where(step < 1000, 0.5, 1 / jnp.sqrt(step)),
    ],
    ids=["cosine", "piecewise", "exponential", "rsqrt"],
)
def test_on_the_fixed_plan_the_rate_is_the_schedule_bit_for_bit(schedule, remainder):
    plan = make_plan(128, 50_000, "100ep", remainder)
    steps = np.arange(plan.num_steps, dtype=np.int32)
    lr = coupled_learning_rate(plan, schedule, counts="steps")
    for transform in (lambda f: f, jax.jit):
        for some in (steps, jnp.asarray(steps)):
            np.testing.assert_array_equal(
                transform(lr)(some), np.asarray(transform(schedule)(some), np.float32)
            )
    some = [0, 1, 1999, 2000, 7799, 7800, 15_600, plan.num_steps - 1]
    assert [float(lr(s)) for s in some] == [float(np.float32(schedule(s))) for s in some]
    assert lr(plan.num_steps + 1) == lr(plan.num_steps - 1)


def test_a_schedule_in_steps_above_what_float32_holds():
    plan = make_plan(1, None, "100Msp")
    threshold = 2**25 + 1
    lr = coupled_learning_rate(
        plan, lambda step: jnp.where(step >= threshold, 1.0, 2.0), "none", counts="steps"
    )
    assert [float(lr(threshold + d)) for d in (-1, 0, 1)] == [2, 1, 1]


def test_the_published_schedule_of_the_fixed_batch():
    # 100 epochs of 50,000 examples in batches of 128, without what doesn't fill one: 39,000 steps.
    schedule = optax.warmup_cosine_decay_schedule(0, 0.1, 2000, 39_000)
    fixed = make_plan(128, 50_000, "100ep", "drop")
    assert fixed.num_steps == 39_000
    assert float(coupled_learning_rate(fixed, schedule, counts="steps")(2000)) == np.float32(0.1)

    growing = make_plan(DOUBLING, 50_000, "100ep", "drop")
    lr = coupled_learning_rate(growing, schedule, counts="steps")
    for epoch in range(100):  # all begin at the same samples there
        step = first_step_from(growing, epoch * 50_000)
        factor = growing.batch_size_at(step) / 128
        assert float(lr(step)) == pytest.approx(factor * float(schedule(epoch * 390)), rel=1e-6)


def test_steps_that_are_whole_on_a_growing_plan_are_whole_numbers():
    plan = make_plan([(0, 32), (6400, 64), (12_800, 256)], None, "64Ksp")
    steps = range(plan.num_steps)
    given = arguments(plan, steps, "steps")
    assert given.dtype == np.int32
    assert given.tolist() == [plan.samples_at(s) // 32 for s in steps]
    assert arguments(plan, steps, "steps", 48).dtype == np.float32


@pytest.mark.parametrize(
    ("num_examples", "schedule", "duration", "remainder"),
    [
        (1_281_167, "256, 30ep: 2048, 60ep: 16384", "90ep", "drop"),
        (1_281_167, "256, 30ep: 2048, 60ep: 16384", "90ep", "partial"),
        (10**9 + 7, "4096, 30ep: 32768", "100ep", "carry"),
    ],
)
def test_positions_at_every_edge(num_examples, schedule, duration, remainder):
    plan = make_plan(schedule, num_examples, duration, remainder, tokens_per_example=2048)
    steps = edges(plan)
    samples = [plan.samples_at(int(s)) for s in steps]
    for counts, exact in {
        "epochs": [Fraction(c, num_examples) for c in samples],
        "samples": samples,
        "tokens": [2048 * c for c in samples],
    }.items():
        given = arguments(plan, steps, counts)
        assert given.dtype == np.float32
        np.testing.assert_array_equal(given, [rounded_down(value) for value in exact])
    epochs = arguments(plan, steps, "epochs")
    np.testing.assert_array_equal(np.floor(epochs), [c // num_examples for c in samples])


@pytest.mark.parametrize("remainder", REMAINDERS)
@pytest.mark.parametrize(
    ("counts", "threshold", "sample"),
    [
        ("samples", 1_000_000, 1_000_000),
        ("samples", 2_500_000, 2_500_000),
        ("tokens", 2_048_000_000, 1_000_000),
        ("tokens", 2.56e9, 1_250_000),
        ("epochs", 20, 1_000_000),
        ("epochs", 20.5, 1_025_000),
    ],
)
def test_thresholds_are_met_at_the_first_step_from_them(counts, threshold, sample, remainder):
    plan = make_plan(DOUBLING, 50_000, "100ep", remainder, tokens_per_example=2048)
    change = first_step_from(plan, sample)
    steps = np.array([change - 1, change, change + 1], np.int32)
    base = optax.piecewise_constant_schedule(1.0, {threshold: 0.5})
    if remainder == "carry":
        base = lambda position: jnp.where(position >= threshold, 0.5, 1.0)
    lr = coupled_learning_rate(plan, base, "none", counts=counts)
    assert [float(lr(int(s))) for s in steps] == [1, 0.5, 0.5]
    assert jax.jit(lr)(steps).tolist() == [1, 0.5, 0.5]


@pytest.mark.parametrize("threshold", [2000, 23_437.5])
def test_thresholds_in_steps_between_those_of_a_growing_plan(threshold):
    plan = make_plan("128, 100Ksp: 200, 2Msp: 1000", 50_000, "100ep")
    lr = coupled_learning_rate(
        plan, lambda s: jnp.where(s >= threshold, 0.5, 1.0), "none", counts="steps"
    )
    change = first_step_from(plan, math.ceil(threshold * 128))
    assert [float(lr(change + d)) for d in (-1, 0, 1)] == [1, 0.5, 0.5]


def test_a_cosine_over_epochs():
    plan = make_plan("100 x2 every 2ep", 1000, "6ep")
    lr = coupled_learning_rate(plan, optax.cosine_decay_schedule(0.1, 6), "none", counts="epochs")
    for step in range(plan.num_steps):
        wanted = 0.05 * (1 + math.cos(math.pi * plan.epoch_at(step) / 6))
        assert float(lr(step)) == pytest.approx(wanted, rel=1e-6, abs=1e-8)
    assert lr(plan.num_steps + 10) == lr(plan.num_steps - 1)


def test_endless_streams():
    plan = make_plan("32 x2 every 1Msp max 128", None, "4Msp", tokens_per_example=1024)
    steps = [0, 1, plan.phases[1].start_step, plan.num_steps - 1]
    samples = [plan.samples_at(s) for s in steps]
    assert arguments(plan, steps, "samples").tolist() == samples
    assert arguments(plan, steps, "tokens").tolist() == [1024 * c for c in samples]
    assert arguments(plan, steps, "steps").tolist() == [c // 32 for c in samples]


def test_the_coupling_multiplies_what_the_callable_gives():
    plan = make_plan("64 x2 every 1ep", 1000, "3ep")
    lr = coupled_learning_rate(plan, lambda sample: 0.1, "linear", counts="samples")
    rates = [float(lr(phase.start_step)) for phase in plan.phases]
    assert rates == pytest.approx([0.1, 0.2, 0.4], rel=1e-7)


@pytest.mark.parametrize(
    ("arguments", "plan", "message"),
    [
        ({}, (10, 1000, "3ep"), "`counts`.*'steps'.*'samples', 'epochs' or 'tokens'; got None"),
        ({"counts": "step"}, (10, 1000, "3ep"), "got 'step'; did you mean 'steps'"),
        ({"counts": "epochs"}, (10, None, "3Ksp"), "endless stream"),
        ({"counts": "tokens"}, (10, 1000, "3ep"), "tokens_per_example"),
        (
            {"counts": "steps", "reference_batch_size": 1001},
            (10, 1000, "3ep", "drop"),
            "1001. exceeds num_examples=1000",
        ),
    ],
)
def test_mistakes(arguments, plan, message):
    with pytest.raises(UsageError, match=message):
        coupled_learning_rate(make_plan(*plan), lambda position: 0.1, **arguments)


def test_counts_are_of_callables():
    with pytest.raises(UsageError, match="`counts` .* `base` is 0.1"):
        coupled_learning_rate(make_plan(10, 1000, "3ep"), 0.1, counts="steps")
