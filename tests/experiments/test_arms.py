"""The arms against the paper's tables (arXiv:1712.02029), epoch by epoch."""

import dataclasses
from fractions import Fraction

import pytest

from adabatch_jax.schedules.learning_rate_schedule import coupled_learning_rate
from experiments.sections import SECTIONS, load_arms

EXPERIMENTS = [name for s in SECTIONS.values() for name in s.experiments.values()]
NUM_EXAMPLES = {"digits": 1442, "fashion_mnist": 60_000, "imagenet2012": 1_281_167}


def plan_and_rate(config, num_examples=None):
    plan = config.plan(num_examples or NUM_EXAMPLES.get(config.dataset, 50_000))
    rate = coupled_learning_rate(
        plan, config.learning_rate, config.coupling, config.reference_batch_size
    )
    return plan, rate


def by_epoch(config):
    """(batch, rate) at the first step that begins in each epoch."""
    plan, rate = plan_and_rate(config)
    firsts = {}
    for step in plan.steps():
        firsts.setdefault(step.start_sample // plan.num_examples, step)
    return [(step.batch_size, float(rate(step.index))) for _, step in sorted(firsts.items())]


def rates_per_example(config):
    return [rate / size for size, rate in by_epoch(config)]


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
@pytest.mark.parametrize(
    ("network", "small", "updates"),
    [
        ("vgg19_bn", 128, (39_000, 2_400, 15_080)),
        ("resnet20", 128, (39_000, 2_400, 15_080)),
        ("alexnet", 256, (19_500, 1_200, 7_520)),
    ],
)
def test_section_4_1(dataset, network, small, updates):
    arms = load_arms(f"{dataset}_{network}")
    names = ("fixed_small", "fixed_large", "adaptive")
    assert tuple(plan_and_rate(arms[name])[0].num_steps for name in names) == updates
    decays = [Fraction(3, 8) ** (epoch // 20) for epoch in range(100)]
    fixed = [(small, 0.01 * float(d)) for d in decays]
    adaptive = [(small * 2**k, 0.01 * 0.75**k) for k in (epoch // 20 for epoch in range(100))]
    large = [(16 * small, rate) for _, rate in fixed]
    for name, expected in zip(names, (fixed, large, adaptive), strict=True):
        got = by_epoch(arms[name])
        assert [size for size, _ in got] == [size for size, _ in expected], name
        assert [r for _, r in got] == pytest.approx([r for _, r in expected], rel=1e-6), name
    for (size, rate), (other_size, other_rate) in zip(fixed, adaptive, strict=True):
        assert rate / size == pytest.approx(other_rate / other_size, rel=1e-12)


@pytest.mark.parametrize("network", ["vgg19_bn", "resnet20"])
def test_section_4_2(network):
    arms = load_arms(f"cifar100_four_devices_{network}")
    updates = {name: plan_and_rate(config)[0].num_steps for name, config in arms.items()}
    assert updates == {
        "fixed_small": 39_000, "adaptive_128": 15_080, "fixed_1024": 4_800, "adaptive": 1_860,
        "fixed_large": 300, "smith": 10_620, "sqrt": 1_860,
    }  # fmt: skip
    got = by_epoch(arms["adaptive"])
    assert [size for size, _ in got] == [1024 * 2 ** (epoch // 20) for epoch in range(100)]
    assert got[0][1] == pytest.approx(0.1, rel=1e-6)
    assert [rate for _, rate in got[5:]] == pytest.approx(
        [0.8 * 0.5 ** (epoch // 20) for epoch in range(5, 100)], rel=1e-6
    )
    fixed = by_epoch(arms["fixed_small"])
    assert fixed == [(128, pytest.approx(0.1 * 0.25 ** (e // 20), rel=1e-6)) for e in range(100)]
    expected = [0.1 / 128 * 0.25 ** (epoch // 20) for epoch in range(100)]
    for name, config in arms.items():
        if name != "sqrt":
            assert rates_per_example(config)[5:] == pytest.approx(expected[5:], rel=1e-6), name
    sqrt = [rate for _, rate in by_epoch(arms["sqrt"])[5:]]
    sizes = [1024 * 2 ** (epoch // 20) for epoch in range(5, 100)]
    assert sqrt == pytest.approx(
        [0.1 * 0.25 ** (e // 20) * (b / 128) ** 0.5 for e, b in enumerate(sizes, 5)], rel=1e-6
    )


@pytest.mark.parametrize("network", ["alexnet", "resnet50", "vgg19_bn"])
def test_section_4_3(network):
    arms = load_arms(f"imagenet_{network}")
    updates = {name: plan_and_rate(config)[0].num_steps for name, config in arms.items()}
    for name in ("fixed_large", "smith", "sqrt"):
        del updates[name]
    assert updates == {
        "fixed_small": 14_040, "adaptive_x2": 8_190, "adaptive_x4": 6_120, "adaptive_x8": 5_310
    }  # fmt: skip
    assert arms["adaptive_x8"].plan(1_281_167).batch_sizes == (8192, 65_536, 524_288)
    base = 0.1 if network == "resnet50" else 0.01
    for factor in (2, 4, 8):
        _, rate = plan_and_rate(arms[f"adaptive_x{factor}"])
        plan = arms[f"adaptive_x{factor}"].plan(1_281_167)
        start = 32 * base
        expected = [start, start * factor / 10, start * (factor / 10) ** 2]
        lasts = [phase.stop_step - 1 for phase in plan.phases]
        assert [float(rate(step)) for step in lasts] == pytest.approx(expected, rel=1e-6)
    expected = [base / 256 * 0.1 ** (epoch // 30) for epoch in range(90)]
    for name, config in arms.items():
        if name == "sqrt":
            continue
        assert rates_per_example(config)[5:] == pytest.approx(expected[5:], rel=1e-6), name


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_arms_differ_in_their_schedule_only(experiment):
    schedule = {"batch_schedule", "lr", "coupling", "reference_batch_size", "batchnorm_group_size"}
    settings = {
        tuple(
            (key, str(value))
            for key, value in dataclasses.asdict(config).items()
            if key not in schedule
        )
        for config in load_arms(experiment).values()
    }
    assert len(settings) == 1


def test_changes_come_at_the_same_sample():
    """At the first step at or after the threshold, whatever the batch before it."""
    arms = load_arms("cifar10_resnet20")
    for name in ("fixed_small", "adaptive", "smith", "sqrt"):
        config = dataclasses.replace(arms[name], remainder="carry")
        plan, rate = plan_and_rate(config)
        for threshold in range(1_000_000, 5_000_000, 1_000_000):
            step = next(s for s in plan.steps() if s.start_sample >= threshold)
            assert step.start_sample - threshold < plan.batch_size_at(step.index - 1)
            changed = float(rate(step.index)) != float(rate(step.index - 1))
            assert changed or name == "smith"
            assert (
                plan.batch_size_at(step.index) > plan.batch_size_at(step.index - 1)
                or name == "fixed_small"
            )


def test_rivals():
    arms = load_arms("fashion_mnist_resnet20")
    goyal, smith, sqrt, small = (
        by_epoch(arms[n]) for n in ("goyal", "smith", "sqrt", "fixed_small")
    )
    assert goyal[0] == (2048, pytest.approx(0.01)) and goyal[5] == (2048, pytest.approx(0.16))
    # Smith's rate stays where it is until the cap of a tenth of the examples.
    assert [rate for _, rate in smith[:80]] == pytest.approx([0.01] * 80, rel=4e-3)
    assert [smith[e][0] for e in (0, 20, 40, 60, 80)] == [128, 341, 910, 2427, 6000]
    for (size, rate), (small_size, small_rate) in zip(smith, small, strict=True):
        assert rate / size == pytest.approx(small_rate / small_size, rel=1e-6)
    for (size, rate), (_, small_rate) in zip(sqrt, small, strict=True):
        assert rate == pytest.approx(small_rate * (size / 128) ** 0.5, rel=1e-6)
