"""Batches that grow where a rate falls: thresholds, coupled rates, and the theory behind them."""

import math
from fractions import Fraction

import numpy as np
import pytest

import adabatch_jax as ab

CURVES = {
    "linear": lambda share: 1 - share,
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
    "sqrt": lambda share: 1 - math.sqrt(share),
}


def first_fall(curve, begin, stop, level):
    """By bisection over samples: the first at which a curve is at a level or below."""
    low, high = begin, stop
    while high - low > 1:
        middle = (low + high) // 2
        if CURVES[curve]((middle - begin) / (stop - begin)) <= level:
            high = middle
        else:
            low = middle
    return high


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize(
    ("text", "begin", "stop"),
    [
        ("3e-4 {} to 0", 0, 10_000_000),
        ("3e-4 warmup 2000st then {} to 0", 128_000, 10_000_000),
        (
            "3e-4 warmup 2000st then constant then {} to 0 over the last 10Kst",
            9_360_000,
            10_000_000,
        ),
        (
            "3e-4 warmup 1000sp then constant over 5Btok then {} to 0 over 2Msp",
            2_442_407,
            4_442_407,
        ),
    ],
)
def test_thresholds_are_where_the_curve_has_fallen(text, begin, stop, curve, factor):
    schedule, rate = ab.seesaw(64, text.format(curve), factor, end_value=64 * factor**3)
    plan = ab.make_plan(schedule, None, "10Msp", tokens_per_example=2048)
    assert plan.batch_sizes == tuple(64 * factor**k for k in range(4))
    for k, (duration, size) in enumerate(schedule.sizes()):
        if k:
            expected = first_fall(curve, begin, stop, factor**-k)
            assert abs(plan.sample_of(duration) - expected) <= 1, (duration, size)
    lr = ab.coupled_learning_rate(plan, rate, "sqrt")
    for k, phase in enumerate(plan.phases):
        expected = [3e-4 * factor ** (-k / 2)] * 2
        last = phase.stop_step - 1 if k < 3 else phase.start_step
        first = phase.start_step if k else 2000
        assert [float(lr(first)), float(lr(last))] == pytest.approx(expected, rel=1e-6)
        if k:  # one update before it is the phase before
            assert lr(first - 1) == pytest.approx(expected[0] * factor**0.5, rel=1e-6)


def test_what_the_cap_leaves_stays_in_the_rate():
    schedule, rate = ab.seesaw(64, "0.8 x0.5 every 10ep", end_value=200)
    assert (str(schedule), str(rate)) == ("64 x2 every 10ep max 200", "0.8 x0.5 every 10ep")
    plan = ab.make_plan(schedule, 10_000, "50ep")
    lr = ab.coupled_learning_rate(plan, rate, "sqrt")
    steps = [plan.step_at(10_000 * epoch + 9_999) for epoch in (0, 10, 20, 30, 40)]
    assert [plan.batch_size_at(step) for step in steps] == [64, 128, 200, 200, 200]
    # alpha * sqrt(beta) is the fixed arm's 2 at each change, whoever takes it
    ratios = [float(lr(s)) / math.sqrt(plan.batch_size_at(s)) for s in steps]
    assert ratios == pytest.approx([0.1 * 2**-k for k in range(5)], rel=1e-6)


@pytest.mark.parametrize(
    ("rate", "schedule", "left"),
    [
        ("0.1", "64", "0.1"),
        (
            "0.1, 30ep: 0.01, 60ep: 0.001",
            "64, 30ep: 512, 60ep: 4096",
            "0.1, 30ep: 0.01, 60ep: 0.001",
        ),
        ("0.1 x0.125 every 1000st", "64 x8 every 64000sp", "0.1 x0.125 every 64000sp"),
        ("0.1 linear to 0.03 over 70%", "64, 50%: 128", "0.1, 50%: 0.05, 70%: 0.03"),
        ("0.1, 10ep: 0.08, 20ep: 0.04", "64, 20ep: 128", "0.1, 20ep: 0.04"),
        ("0.1 x0.375 every 20ep", "64 x2 every 20ep", "0.1 x0.375 every 20ep"),
        (
            "0.1, 10ep: 0.03, 20ep: 0.009",
            "64, 10ep: 128, 20ep: 256",
            "0.1, 10ep: 0.03, 20ep: 0.009",
        ),
        ("0.1, 10ep: 0.05, 20ep: 0", "64, 10ep: 128", "0.1, 10ep: 0.05, 20ep: 0"),
        ("1 constant over 100sp then rsqrt", None, None),
        (
            "1 x0.5 every 5ep over 15ep then 0.1 over 5ep then linear to 0.05 over 10ep",
            "64, 5ep: 128, 10ep: 256, 15ep: 512, 30ep: 1024",
            None,
        ),
    ],
)
def test_other_rates(rate, schedule, left):
    got, got_left = ab.seesaw(64, rate)
    assert ab.parse_schedule(str(got)) == got and ab.parse_learning_rate(str(got_left)) == got_left
    if schedule is None:  # 1 / sqrt(position / 100)
        assert str(got).startswith("64, 400sp: 128, 1600sp: 256, 6400sp: 512")
    else:
        assert str(got) == schedule
        assert left is None or str(got_left) == left


def test_growth_from_the_decay_of_a_rate():
    assert str(ab.growth_from_decay(32, "0.1 cosine", end_value=100)).startswith(
        "32, 50%: 64, 200/3%: 100"
    )
    assert str(ab.growth_from_decay(32, "0.1 x0.25 every 10ep", power=0.5)).startswith(
        "32, 10ep: 64, 20ep: 128"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((64, "0.1, 3ep: 0.2"), "rises to 0.2 at 3ep"),
        ((64, "0.1 linear to 0.2"), "rises to 0.2 at 100%"),
        ((64, "0.1 constant over 1ep then 0.3"), "rises to 0.3 at 1ep"),
        ((64, "0.1 cosine", 1), "`factor` must be above 1, got 1"),
        ((64, "0.1 cosine", 2, 32), "at least init_value=64, got 32"),
        ((64, lambda step: 0.1), "`rate` is a function"),
        ((64, "0"), "begins above 0"),
        ((64, "0.1 cosin"), "can't read the learning rate"),
        ((64, "1 constant over 5ep then rsqrt then linear to 0 over the last 5%"), "one unit"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(ab.UsageError, match=message):
        ab.seesaw(*arguments)


def test_sums_of_durations():
    duration = ab.parse_duration("50%+2Ksp-1ep")
    assert (
        str(duration) == "50%+2Ksp-1ep"
        and str(duration.times(Fraction(1, 2))) == "25%+1000sp-0.5ep"
    )
    plan = ab.make_plan("10, 50%+20sp-1ep: 20", 100, "10ep")
    assert [phase.start_sample for phase in plan.phases] == [0, 420]
    with pytest.raises(ab.UsageError, match="adds steps"):
        ab.make_plan("10, 50%+20st: 20", 100, "10ep")
    with pytest.raises(ab.UsageError, match="'1ep-5ep' ends before this run begins"):
        ab.coupled_learning_rate(plan, ab.parse_learning_rate("0.1 warmup 1ep-5ep"))
    steps = ab.make_plan("10, 50%+20st: 20", 100, "100st")
    assert steps.phases[1].start_step == 70


def normalized_descent(plan, rates, curvatures, noise):
    """E[loss] after updates along E||g||: the exact recursion of second moments in closed form."""
    moments = np.ones_like(curvatures)
    for phase in plan.phases:
        for step in range(phase.start_step, phase.stop_step):
            variance = noise / phase.batch_size
            norm = math.sqrt(np.sum(curvatures**2 * moments + variance))
            lr = rates[step] / norm
            moments = (1 - lr * curvatures) ** 2 * moments + lr**2 * variance
    return 0.5 * float(np.sum(curvatures * moments))


def test_seesaw_follows_the_decay_and_a_rate_that_does_not_fall_does_not():
    # arXiv:2510.14717 in a noisy quadratic, without a random number: science's +0.5 % and +8.9 %
    curvatures, noise = np.array([1.0, 0.5, 0.2, 0.1]), 4.0
    base = ab.parse_learning_rate("0.1, 20%: 0.05, 40%: 0.025, 60%: 0.0125, 80%: 0.00625")
    fixed = ab.make_plan(8, None, "40Ksp")
    loss = {}
    for name, schedule, coupling in [
        ("decay", 8, "none"),
        ("seesaw", ab.seesaw(8, base)[0], "sqrt"),
        ("no cut", ab.growth_from_decay(8, base, power=2), "sqrt"),
    ]:
        plan = ab.make_plan(schedule, None, "40Ksp")
        lr = ab.coupled_learning_rate(plan, base, coupling)
        rates = np.asarray(lr(np.arange(plan.num_steps)), float)
        loss[name] = normalized_descent(plan, rates, curvatures, noise)
        if name == "seesaw":
            assert plan.num_steps / fixed.num_steps == pytest.approx(0.3875, abs=1e-3)
    assert loss["seesaw"] == pytest.approx(loss["decay"], rel=0.01)
    assert loss["no cut"] > 1.05 * loss["decay"]
