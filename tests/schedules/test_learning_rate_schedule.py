"""Rates against closed forms in exact fractions, at every edge, inside and outside jit."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adabatch_jax.schedules.growth_with_decay import growth_from_decay
from adabatch_jax.schedules.learning_rate_at_step import StepClock, resolve
from adabatch_jax.schedules.learning_rate_schedule import coupled_learning_rate
from adabatch_jax.schedules.learning_rate_text import parse_learning_rate
from adabatch_jax.schedules.plan import first_step_from, make_plan
from adabatch_jax.system.errors import UsageError

REMAINDERS = ["carry", "partial", "drop"]
DOUBLING = "128 x2 every 20ep max 2048"
PAPER_RATES = [0.1, 0.075, 0.05625, 0.0421875, 0.031640625]


def edges(plan):
    """The first and last steps of all phases and epochs with their neighbours."""
    steps = {0, plan.num_steps - 1}
    for phase in plan.phases:
        steps |= {phase.start_step + d for d in (-1, 0, 1)}
    for epoch in range(math.ceil(plan.num_samples / plan.num_examples) + 1):
        steps |= {first_step_from(plan, epoch * plan.num_examples) + d for d in (-1, 0, 1)}
    return np.array(sorted(s for s in steps if 0 <= s < plan.num_steps), dtype=np.int32)


@pytest.mark.parametrize("remainder", REMAINDERS)
def test_the_paper_rates_at_both_ends_of_every_phase(remainder):
    plan = make_plan(DOUBLING, 50_000, "100ep", remainder)
    lr = coupled_learning_rate(plan, parse_learning_rate("0.1 x0.375 every 20ep"))
    jitted = jax.jit(lr)
    for phase, rate in zip(plan.phases, PAPER_RATES, strict=True):
        for step in (phase.start_step, phase.stop_step - 1):
            assert lr(step) == np.float32(rate) == jitted(step)
    assert lr(plan.num_steps) == lr(plan.num_steps + 10**6) == np.float32(PAPER_RATES[-1])


@pytest.mark.parametrize("remainder", REMAINDERS)
def test_rate_per_example_equals_the_fixed_arm_in_each_epoch(remainder):
    base = parse_learning_rate("0.1 x0.375 every 20ep")
    adaptive, fixed = (make_plan(s, 50_000, "100ep", remainder) for s in (DOUBLING, 128))
    rates = [coupled_learning_rate(plan, base) for plan in (adaptive, fixed)]
    for epoch in range(100):
        first = [first_step_from(plan, epoch * 50_000) for plan in (adaptive, fixed)]
        a, f = (float(rate(step)) for rate, step in zip(rates, first, strict=True))
        ratio = a / adaptive.batch_size_at(first[0]) / (f / 128)
        assert ratio == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("remainder", REMAINDERS)
def test_position_equals_the_plan_at_every_step(remainder):
    plan = make_plan("32, 1.3ep: 50, 80st: 17, 80%: 64", 1000, "5.35ep", remainder)
    clock = StepClock.of(plan)
    steps = np.arange(plan.num_steps)
    wanted = [step.start_sample for step in plan.steps()]
    np.testing.assert_array_equal(clock.phase_and_sample(np, steps)[1], wanted)
    with jax.enable_x64(True):
        positions = jax.jit(lambda s: clock.phase_and_sample(jnp, s)[1])(jnp.asarray(steps))
    np.testing.assert_array_equal(positions, wanted)


@pytest.mark.parametrize("remainder", REMAINDERS)
@pytest.mark.parametrize(
    "text",
    [
        "0.1",
        "0.1 x0.375 every 20ep",
        "0.1, 30ep: 0.01, 60ep: 0.001",
        "0.1 cosine",
        "0.1 linear to 0.001",
        "0.1 warmup 5ep",
        "0.1 x0.25 every 20ep warmup 5ep from 0.1",
        "0.2 cosine warmup 900st from 0.01",
    ],
)
def test_against_the_closed_form_at_every_edge(text, remainder):
    plan = make_plan("1024 x2 every 20ep max 16384", 50_000, "100ep", remainder)
    base = parse_learning_rate(text)
    steps = edges(plan)
    wanted = [closed_form(plan, text, int(s), reference=128) for s in steps]
    lr = coupled_learning_rate(plan, base, reference_batch_size=128)
    outside = np.array([lr(int(s)) for s in steps])
    inside = np.asarray(jax.jit(jax.vmap(lr))(steps))
    assert inside.dtype == outside.dtype == np.float32
    np.testing.assert_array_max_ulp(inside, outside, maxulp=1)
    np.testing.assert_array_max_ulp(inside, np.array(wanted, np.float32), maxulp=1)
    resolved = resolve(plan, base, reference_batch_size=128)
    np.testing.assert_array_max_ulp(
        np.array([resolved.at(int(s)) for s in steps], np.float32), inside, maxulp=1
    )
    if "cosine" not in text and "linear" not in text and "warmup" not in text:
        np.testing.assert_array_equal(inside, outside)


def closed_form(plan, text, step, reference):
    """The rate from the definitions, in fractions where they are rational."""
    n, total = plan.num_examples, plan.num_samples
    c = plan.samples_at(step)
    rate = Fraction(text.split()[0].rstrip(","))
    if "x0." in text:
        factor = Fraction(text.split(" x")[1].split()[0])
        rate *= factor ** (c // (20 * n))
    if ":" in text:
        rate = rate if c < 30 * n else Fraction("0.01") if c < 60 * n else Fraction("0.001")
    if "cosine" in text:
        rate *= Fraction((1 + math.cos(math.pi * c / total)) / 2)
    if "linear" in text:
        rate += (Fraction("0.001") - rate) * Fraction(c, total)
    rate *= Fraction(plan.batch_size_at(step), reference)
    if "warmup" in text:
        length = plan.samples_at(900) if "900st" in text else 5 * n
        start = Fraction(text.split("from ")[1]) if "from" in text else Fraction(0)
        rate = start + (rate - start) * min(Fraction(1), Fraction(c, length))
    return float(rate)


def test_the_warmup_of_the_paper_arm():
    plan = make_plan("1024 x2 every 20ep max 16384", 50_000, "100ep")
    base = parse_learning_rate("0.1 x0.25 every 20ep warmup 5ep from 0.1")
    lr = coupled_learning_rate(plan, base, reference_batch_size=128)
    assert lr(0) == np.float32(0.1)
    assert lr(first_step_from(plan, 250_000)) == np.float32(0.8)
    assert lr(first_step_from(plan, 250_000) - 1) < np.float32(0.8)


@pytest.mark.parametrize(
    ("coupling", "rates"),
    [
        ("none", [0.1, 0.1, 0.1]),
        ("linear", [0.1, 0.2, 0.4]),
        ("sqrt", [0.1, 0.1 * 2**0.5, 0.2]),
        (0.5, [0.1, 0.1 * 2**0.5, 0.2]),
        ("0.5", [0.1, 0.1 * 2**0.5, 0.2]),
        (2, [0.1, 0.4, 1.6]),
        (lambda ratio: 1 + ratio, [0.2, 0.3, 0.5]),
    ],
)
def test_couplings(coupling, rates):
    plan = make_plan("64 x2 every 1ep", 1000, "3ep")
    lr = coupled_learning_rate(plan, 0.1, coupling)
    for phase, rate in zip(plan.phases, rates, strict=True):
        assert float(lr(phase.start_step)) == pytest.approx(rate, rel=1e-7)


def test_a_callable_coupling_is_called_once_per_phase_with_floats():
    seen = []
    plan = make_plan("64 x2 every 1ep", 1000, "3ep")
    lr = coupled_learning_rate(plan, 0.1, lambda ratio: seen.append(ratio) or ratio)
    lr(3), jax.jit(lr)(5)
    assert seen == [1.0, 2.0, 4.0] and all(type(ratio) is float for ratio in seen)


def test_the_rest_of_the_decay_that_the_cap_leaves():
    # Smith et al.: the batch grows instead of the decay, until it is capped at 2048.
    decays = {"30ep": 0.1, "60ep": 0.1}
    plan = make_plan(growth_from_decay(128, decays, end_value=2048), 50_000, "90ep")
    base = parse_learning_rate("0.1, 30ep: 0.01, 60ep: 0.001")
    lr = coupled_learning_rate(plan, base)
    rates = [float(lr(first_step_from(plan, e * 50_000))) for e in (0, 30, 60)]
    assert rates == pytest.approx([0.1, 0.1, 0.1 * 0.01 * 2048 / 128], rel=1e-6)


def test_it_is_an_optax_schedule():
    plan = make_plan("2, 4sp: 4", 100, "20sp")
    lr = coupled_learning_rate(plan, 0.5)
    tx = optax.sgd(lr)
    params = jnp.zeros(())
    state = tx.init(params)
    seen = []
    for _ in range(plan.num_steps + 1):
        updates, state = jax.jit(tx.update)(jnp.ones(()), state)
        seen.append(-float(updates))
    assert seen == [0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_endless_streams():
    plan = make_plan("32 x2 every 1Msp max 128", None, "4Msp")
    lr = coupled_learning_rate(plan, parse_learning_rate("0.1 cosine warmup 1000st"))
    assert float(lr(500)) == pytest.approx(
        0.1 * (1 + math.cos(math.pi * 500 * 32 / 4e6)) / 2 * 0.5, rel=1e-6
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: coupled_learning_rate(p, 0.1, "liner"), "coupling 'liner'.* 'linear'"),
        (lambda p: coupled_learning_rate(p, 0.1, float("nan")), "coupling nan"),
        (lambda p: coupled_learning_rate(p, -0.1), "-0.1"),
        (lambda p: coupled_learning_rate(p, "0.1x"), "`base` .*0.1x"),
        (lambda p: coupled_learning_rate(p, 0.1, "linear", 0), "`reference_batch_size` .* 0"),
        (
            lambda p: coupled_learning_rate(p, parse_learning_rate("1, 2ep: 0.5, 1ep: 0.1")),
            "1ep .* 1,000",
        ),
        (
            lambda p: coupled_learning_rate(make_plan(1, 10**10, "1ep"), 0.1),
            "int32",
        ),
        (
            lambda p: coupled_learning_rate(
                make_plan(1, 10**9, "1ep"), parse_learning_rate("1 x0.9 every 1st")
            ),
            "100,000",
        ),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(UsageError, match=message):
        make(make_plan(10, 1000, "3ep"))
