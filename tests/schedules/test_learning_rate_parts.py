"""Learning rates in parts, against the formulas of the programs that they come from."""

import math
import warnings

import jax
import numpy as np
import optax
import pytest

from adabatch_jax.schedules.learning_rate_at_step import resolve
from adabatch_jax.schedules.learning_rate_schedule import (
    coupled_learning_rate,
    rate_schedule,
)
from adabatch_jax.schedules.learning_rate_text import parse_learning_rate
from adabatch_jax.schedules.plan import first_step_from, make_plan
from adabatch_jax.system.errors import UsageError

WARM_COSINE = "5e-5 warmup 100st then cosine"


def rates_of(plan, text, **coupling):
    """The float64 rates of all updates; float32 inside jit is within an ulp of them."""
    base = parse_learning_rate(text)
    rates = resolve(plan, base, **coupling)(np, np.arange(plan.num_steps))
    inside = jax.jit(rate_schedule(resolve(plan, base, **coupling)))(np.arange(plan.num_steps))
    np.testing.assert_array_max_ulp(np.asarray(inside), rates.astype(np.float32), maxulp=1)
    return rates


def test_decay_from_the_warmups_end_is_that_of_optax_and_transformers():
    plan = make_plan(8, None, "1000st")
    rates = rates_of(plan, WARM_COSINE)
    assert rates[[100, 550]] == pytest.approx([5e-5, 2.5e-5], rel=1e-14)
    # transformers.optimization._get_cosine_schedule_with_warmup_lr_lambda, num_cycles=0.5
    for step, rate in enumerate(rates.tolist()):
        if step < 100:
            wanted = step / max(1, 100)
        else:
            progress = (step - 100) / max(1, 1000 - 100)
            wanted = max(0.0, 0.5 * (1.0 + math.cos(math.pi * 0.5 * 2.0 * progress)))
        assert rate == pytest.approx(5e-5 * wanted, rel=1e-12, abs=1e-20)
    of_optax = optax.warmup_cosine_decay_schedule(0, 5e-5, 100, 1000)(np.arange(1000))
    np.testing.assert_allclose(rates, of_optax, rtol=3e-7, atol=1e-11)


def megatron_lr(num_steps, max_lr, min_lr, warmup_steps, decay_steps):
    """OptimizerParamScheduler.get_lr of Megatron-LM with cosine decay and init_lr 0."""
    if warmup_steps > 0 and num_steps <= warmup_steps:
        return 0.0 + (max_lr - 0.0) * float(num_steps) / float(warmup_steps)
    if num_steps > decay_steps:
        return min_lr
    decay_ratio = float(num_steps - warmup_steps) / float(decay_steps - warmup_steps)
    coeff = 0.5 * (math.cos(math.pi * decay_ratio) + 1.0)
    return min_lr + coeff * (max_lr - min_lr)


def test_bloom_is_megatrons_formula():
    plan = make_plan("192 to 2048 over 9765625sp in 117", None, "450Btok", tokens_per_example=2048)
    text = "6e-5 warmup 375Mtok then cosine to 6e-6 until 410Btok"
    rate = resolve(plan, parse_learning_rate(text), "none")
    warmup, decay = math.ceil(375e6 / 2048), math.ceil(410e9 / 2048)
    around = [first_step_from(plan, sample) for sample in (0, warmup, decay)]
    steps = {*range(0, plan.num_steps, 997), *(s + d for s in around for d in (0, 1, 2))}
    for step in steps:
        wanted = megatron_lr(plan.samples_at(step), 6e-5, 6e-6, warmup, decay)
        assert float(rate(np, step)) == pytest.approx(wanted, rel=1e-11)


TAILS = {
    "linear to": lambda left, p: left * (1 - p),
    "cosine to": lambda left, p: left * (1 + np.cos(np.pi * p)) / 2,
    "sqrt to": lambda left, p: left * (1 - np.sqrt(p)),
}


@pytest.mark.parametrize(
    ("tail", "end", "last"),
    [
        ("linear to", 0, "20%"),
        ("cosine to", 0, "1/5 of the run"),
        ("sqrt to", 0, "400st"),
        ("linear to", 3e-5, "6400sp"),
        ("cosine to", 3e-5, "6553600tok"),
        ("sqrt to", 3e-5, "20%"),
    ],
)
def test_warmup_stable_decay(tail, end, last):
    plan = make_plan(16, None, "2000st", tokens_per_example=1024)
    rates = rates_of(
        plan, f"3e-4 warmup 200st then constant then {tail} {end} over the last {last}"
    )
    step = np.arange(2000)
    decayed = end + TAILS[tail](3e-4 - end, np.maximum(step - 1600, 0) / 400)
    wanted = np.where(step < 200, 3e-4 * step / 200, np.where(step < 1600, 3e-4, decayed))
    np.testing.assert_allclose(rates, wanted, rtol=1e-12, atol=1e-20)
    assert (rates[200:1601] == 3e-4).all()


def test_lengths_count_from_a_parts_beginning_or_from_sample_0():
    plan = make_plan(10, 1000, "10ep")  # 1000 steps
    for text in (
        "1 warmup 1ep then linear to 0.5 over 2ep then constant over 10% then 0.25",
        "1 warmup 1ep then linear to 0.5 until 3ep then constant until 400st then 0.25 over 1ep",
    ):
        rates = rates_of(plan, text, coupling="none")
        assert rates[[50, 100, 200, 300, 399, 400, 999]].tolist() == [
            0.5, 1, 0.75, 0.5, 0.5, 0.25, 0.25]  # fmt: skip


def test_decay_without_a_warmup_counts_from_sample_0_and_keeps_its_end():
    plan = make_plan(10, 1000, "10ep")
    plain = rates_of(plan, "1 linear to 0.5 over 80%")
    np.testing.assert_allclose(plain[:801], 1 - np.arange(801) / 1600, rtol=1e-14)
    assert (plain[800:] == 0.5).all()
    warm = rates_of(plan, "1 linear to 0.5 over 80% warmup 1ep")
    np.testing.assert_allclose(warm[:100], plain[:100] * np.arange(100) / 100, rtol=1e-14)
    assert (warm[100:] == plain[100:]).all()


def test_rsqrt_of_t5_and_palm_and_transformers():
    plan = make_plan(4, None, "3000st")
    step = np.arange(3000)
    t5 = rates_of(plan, "0.01 constant over 1000st then rsqrt")
    np.testing.assert_allclose(t5, 0.01 * np.sqrt(1000) / np.sqrt(np.maximum(step, 1000)), 1e-12)
    # get_inverse_sqrt_schedule(num_warmup_steps=500, timescale=800)
    shifted = rates_of(plan, "0.01 warmup 500st then rsqrt scale 800st")
    wanted = np.where(step < 500, step / 500, 1 / np.sqrt((step + 800 - 500) / 800))
    np.testing.assert_allclose(shifted, 0.01 * wanted, 1e-12)
    cooled = rates_of(plan, "0.01 rsqrt scale 100st then linear to 0 over the last 1000st")
    at_2000 = 0.01 / np.sqrt(21)
    np.testing.assert_allclose(cooled[1999:2001], [0.01 / np.sqrt(20.99), at_2000], 1e-12)
    np.testing.assert_allclose(cooled[2000:], at_2000 * (1 - (step[2000:] - 2000) / 1000), 1e-12)


def test_factors_of_stages_change_with_the_batch():
    # modded-nanogpt: three thirds, the rate times 1, 1.52 and 1.73, then down to a tenth.
    plan = make_plan("8, 1/3: 16, 2/3 of the run: 24", None, "10000sp")
    text = "1 constant then linear to 0.1 over the last 40% times 1, 1/3: 1.52, 2/3: 1.73"
    rates = rates_of(plan, text, coupling="none")
    factors = dict(zip(plan.batch_sizes, (1, 1.52, 1.73), strict=True))
    for step in range(plan.num_steps):
        progress = max(0, plan.samples_at(step) - 6000) / 4000
        wanted = factors[plan.batch_size_at(step)] * (1 - 0.9 * progress)
        assert rates[step] == pytest.approx(wanted, rel=1e-14)


def test_warmup_in_steps_and_parts_on_a_growing_plan_count_samples():
    plan = make_plan("16, 100st: 64", None, "100Ksp")
    rates = rates_of(plan, "1 warmup 200st from 0.5 then linear to 0 over 300st", coupling="sqrt")
    warm, end = (plan.samples_at(s) for s in (200, 500))
    assert (warm, end) == (1600 + 6400, 1600 + 400 * 64)
    for step in (0, 99, 100, 101, 199, 200, 201, 499, 500, 501):
        sample, target = plan.samples_at(step), 1 if step < 100 else 2
        wanted = target * (1 - min(1, max(0, sample - warm) / (end - warm)))
        if sample < warm:
            wanted = 0.5 + (wanted - 0.5) * sample / warm
        assert rates[step] == pytest.approx(wanted, rel=1e-14)


def test_decays_after_a_warmup_begin_there():
    plan = make_plan(10, 1000, "10ep")
    rates = rates_of(plan, "1 warmup 50st then x0.5 every 2ep over 5ep then constant")
    changes = [int(s) + 1 for s in np.flatnonzero(np.diff(rates[50:])) + 50]
    assert changes == [250, 450] and rates[[249, 250, 449, 450, 999]].tolist() == [
        1, 0.5, 0.5, 0.25, 0.25]  # fmt: skip


def test_the_last_part_may_begin_after_the_run():
    plan = make_plan(10, 1000, "1ep")
    for text in ("1 warmup 200st then cosine", "1 warmup 200st then constant until 250st then 2"):
        np.testing.assert_allclose(rates_of(plan, text), np.arange(100) / 200, rtol=1e-14)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "1 warmup 5ep then constant then linear to 0 over the last 60%",
            "'linear to 0 over .*begin at sample 4,000, .* ends at sample 5,000",
        ),
        ("1 linear to 0 over the last 2000st", "would begin before the run"),
        (
            "1 warmup 5ep then constant until 2ep then 0",
            "'constant until 2ep' .* end at sample 2,000, but it begins at sample 5,000",
        ),
        ("1 rsqrt scale 5ep over the last 100% then", "at 'then'"),
        (
            "1 warmup 5ep then cosine until 5ep",
            "end at sample 5,000, but it begins at sample 5,000",
        ),
        ("1 constant then rsqrt over the last 100%", "'rsqrt scale 10000st'"),
        ("1 cosine times 1, 2ep: 3, 1ep: 2", "1ep is at sample 1,000"),
    ],
)
def test_mistakes(text, message):
    with pytest.raises(UsageError, match=message):
        resolve(make_plan(10, 1000, "10ep"), parse_learning_rate(text))


@pytest.mark.parametrize(
    ("text", "behind"),
    [
        ("0.1, 9ep: 0.01", []),
        ("0.1, 9ep: 0.01, 10ep: 0.001, 20ep: 0.0001", ["10ep: 0.001", "20ep: 0.0001"]),
        ("0.1, 990sp: 0.01", []),
        ("0.1, 991sp: 0.01", ["991sp: 0.01"]),  # no step begins there any more
        ("0.1 times 1, 9.999ep: 2", ["9.999ep: 2"]),
        ("0.1 x0.5 every 9ep", []),
        ("0.1 x0.5 every 990sp", []),
        ("0.1 x0.5 every 991sp", ["x0.5 every 991sp"]),
        ("0.1 x0.5 every 10ep", ["x0.5 every 10ep"]),
        ("0.1 x0.1 every 30ep", ["x0.1 every 30ep"]),
        ("0.1 x0.1 every 30ep warmup 2ep", ["x0.1 every 30ep"]),
        (
            "0.1 warmup 1ep then constant over 5ep then 0.2 x0.5 every 20ep",
            ["x0.5 every 20ep"],
        ),
        ("0.1 warmup 1ep then constant over 5ep then x0.5 every 3ep", []),
        (
            "0.1 constant then x0.5 every 5ep over the last 20%",
            ["x0.5 every 5ep over the last 20%"],
        ),
        ("0.1 constant over 991sp then x0.5 every 1sp", ["x0.5 every 1sp"]),
        ("0.1 cosine over 10ep", []),
        ("0.1 cosine over 20ep", ["the end of its cosine over 20ep"]),
        ("0.1 warmup 1ep then linear to 0.01 until 10ep", []),
        (
            "0.1 warmup 1ep then linear to 0.01 over 10ep",
            ["the end of its linear to 0.01 over 10ep"],
        ),
        ("0.1 constant over 20ep", []),
        ("0.1 cosine over 20ep then 0.5", ["0.5"]),
        ("0.1 cosine warmup 991sp", ["the end of its warmup 991sp"]),
        ("0.1 constant over 9ep then linear to 0", []),
        ("0.1 constant over 10ep then linear to 0", ["linear to 0"]),
        ("0.1 times 1, 10ep: 2", ["10ep: 2"]),
        ("0.1 cosine warmup 10ep", ["the end of its warmup 10ep"]),
        ("0.1 warmup 12ep then cosine", ["cosine", "the end of its warmup 12ep"]),
    ],
)
def test_what_a_run_ends_before_is_told(text, behind):
    plan, base = make_plan(10, 100, "10ep"), parse_learning_rate(text)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        coupled_learning_rate(plan, base)
    told = [str(warning.message) for warning in caught]
    names = " and ".join(map(repr, behind))
    sentence = f"the learning rate never reaches {names}: the run ends at sample 1,000."
    assert told == ([sentence] if behind else [])
    assert not told or caught[0].filename == __file__


def test_a_part_that_ends_before_its_first_decay_is_told():
    text = "0.1 x0.5 every 3ep over 3ep then x0.5 every 2ep over 4ep"
    told = "the learning rate never reaches 'x0.5 every 3ep over 3ep': it ends at sample 300."
    with pytest.warns(UserWarning) as caught:
        coupled_learning_rate(make_plan(10, 100, "10ep"), parse_learning_rate(text))
    assert [str(warning.message) for warning in caught] == [told]
