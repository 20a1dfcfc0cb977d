"""Which coupling is meant for which optimizer, and what is told of the wrong pair."""

import math
import re
import warnings

import optax
import pytest

import adabatch_jax as ab
from adabatch_jax.config.settings import TrainConfig

PLAN = ab.make_plan("64, 2ep: 128, 4ep: 512", 1000, "8ep")


def told(base=0.1, coupling="linear", optimizer="adam", plan=PLAN, **arguments):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        base = ab.parse_learning_rate(base) if isinstance(base, str) else base
        ab.coupled_learning_rate(plan, base, coupling, optimizer=optimizer, **arguments)
    assert all(warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("counts", [None, "steps"])
def test_the_wrong_pair(counts):
    base = 0.1 if counts is None else optax.constant_schedule(0.1)
    wrong = [("linear", "adam"), (1.0, "adam"), (2, "adam"), ("sqrt", "sgd"), (0.5, "sgd")]
    for coupling, optimizer in wrong:
        (sentence,) = told(base, coupling, optimizer, counts=counts)
        assert (
            f"coupling {coupling!r} is meant for {'sgd' if optimizer == 'adam' else 'adam'}"
            in sentence
        )
    right = [
        ("linear", "sgd"),
        ("sqrt", "adam"),
        ("none", "adam"),
        ("none", "sgd"),
        (0.75, "adam"),
        (math.sqrt, "sgd"),
        ("linear", None),
    ]
    for coupling, optimizer in right:
        assert told(base, coupling, optimizer, counts=counts) == []
    assert told(plan=ab.make_plan(64, 1000, "8ep")) == []  # nothing is coupled


@pytest.mark.parametrize(
    ("decay", "cuts"),
    [
        (1, None),  # the batch grows by itself, as in a warm-up of it
        (0.8, "cut by 0.8839 .* grows by 2; .* root, 1.414"),
        (0.51, "cut by 1.386 "),
        (0.5, None),  # Seesaw: on the edge
        (0.25, None),
    ],
)
def test_a_cut_by_less_than_the_root_of_the_growth(decay, cuts):
    plan = ab.make_plan("64, 2ep: 128", 1000, "4ep")
    sentences = told(f"0.1, 2ep: {0.1 * decay:.6f}" if decay != 1 else 0.1, "sqrt", plan=plan)
    if cuts is None:
        assert sentences == []
    else:
        assert re.search(cuts, sentences[0]) and len(sentences) == 1
    assert told("0.1 cosine", "sqrt", plan=plan) == []
    assert told("0.1 cosine", "none", plan=plan) == []


@pytest.mark.parametrize(
    "rate", ["3e-4 cosine", "3e-4 warmup 10st then cosine to 3e-5", "1 x0.375 every 1ep"]
)
@pytest.mark.parametrize("end_value", [None, 100, 256])
@pytest.mark.parametrize("factor", [2, 1.5])  # 16, 24, 36, 54, 81, 121.5
def test_seesaw_is_never_warned_of(rate, end_value, factor):
    schedule, rate = ab.seesaw(16, rate, factor, end_value)
    plan = (
        ab.make_plan(schedule, None, "1Msp")
        if "ep" not in str(rate)
        else ab.make_plan(schedule, 20_000, "7ep")
    )
    assert [
        sentence
        for sentence in told(str(rate), "sqrt", plan=plan)
        if "never reaches" not in sentence
    ] == []


def test_an_unknown_optimizer():
    with pytest.raises(ab.UsageError, match="'sgd' or, .*'adam', got 'adamw'; did you mean 'adam'"):
        told(optimizer="adamw")


def test_the_command_tells_it_too():
    for coupling, optimizer, number in [
        ("linear", "adamw", 1),
        ("sqrt", "adamw", 0),
        ("sqrt", "sgd", 1),
        ("linear", "sgd", 0),
    ]:
        config = TrainConfig(coupling=coupling, optimizer=optimizer)
        assert len(config.coupling_warnings(config.plan(1000))) == number


def test_seesaw_of_a_configuration():
    config = TrainConfig(
        batch_schedule="16 x2 seesaw max 64",
        lr="1e-3 cosine",
        coupling="sqrt",
        optimizer="adamw",
        half_lives="samples",
    )
    assert TrainConfig.from_dict(config.to_dict()) == config
    assert config.batch_schedule == "16 x2 seesaw max 64"
    schedule, rate = ab.seesaw(16, "1e-3 cosine", 2, 64)
    assert (config.schedule, config.learning_rate) == (schedule, rate)
    assert config.plan(1000).batch_sizes == (16, 32, 64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_schedule": "16 x2 seesaw"}, "batch_schedule: seesaw .*coupling sqrt, got linear"),
        ({"batch_schedule": "16 x2 seesaw", "coupling": "sqrt", "lr": "0.1, 3ep: 0.2"}, "rises"),
        ({"batch_schedule": "16 x1 seesaw"}, "`factor` must be above 1, got 1"),
        ({"batch_schedule": "16 x2 seesaw max 8"}, "at least init_value=16"),
        ({"batch_schedule": "16 x2 seesaw min 8"}, "'min'"),
        ({"batch_schedule": "16 x2 sesaw"}, "expected 'every' or 'seesaw'"),
        ({"half_lives": "samples", "optimizer": "adamw"}, "half_lives: samples .*coupling sqrt"),
        (
            {"half_lives": "samples", "coupling": "sqrt"},
            "half_lives: of the optimizer adamw, got sgd",
        ),
    ],
)
def test_what_cannot_go_together(settings, message):
    with pytest.raises(ab.UsageError, match=message):
        TrainConfig(**settings)


def test_a_seesaw_without_a_rate_names_what_makes_both():
    text = "16 x2 seesaw max 64"
    assert str(ab.parse_schedule(text)) == text
    with pytest.raises(ab.UsageError, match=r"ab.seesaw\(16, rate, 2, 64\)"):
        ab.make_plan(text, 1000, "2ep")


def test_falcons_ramp_warms_the_rate_up_as_it_grows():
    """rate / sqrt(batch) is constant in the ramp, and the peak is that of the last size."""
    plan = ab.make_plan("128 to 2048 over 50Btok in 16", None, "500Btok", tokens_per_example=2048)
    lr = ab.coupled_learning_rate(plan, 6.4e-4, "sqrt", reference_batch_size=2048, optimizer="adam")
    rates = [float(lr(phase.start_step)) for phase in plan.phases]
    assert rates[0] == pytest.approx(1.6e-4) and rates[-1] == pytest.approx(6.4e-4)
    for rate, phase in zip(rates, plan.phases, strict=True):
        assert rate / math.sqrt(phase.batch_size) == pytest.approx(6.4e-4 / math.sqrt(2048))


def test_late_switch_and_factors_per_stage():
    plan = ab.make_plan("1024, 75%: 2560", None, "10Msp")
    assert plan.samples_at(plan.phases[1].start_step) - 7_500_000 in range(1024)
    speedrun = ab.make_plan("64, 1/3: 128, 2/3: 192", None, "96Ksp")
    rate = ab.parse_learning_rate("1 times 1, 1/3: 1.52, 2/3: 1.73")
    lr = ab.coupled_learning_rate(speedrun, rate, "none")
    assert [round(float(lr(p.start_step)), 6) for p in speedrun.phases] == [1, 1.52, 1.73]
