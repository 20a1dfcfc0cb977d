"""Check numbers of the plan, its edges, and what it says of mistakes."""

import json
import time

import jax.numpy as jnp
import numpy as np
import pytest

from adabatch_jax.schedules.batch_size_schedules import constant, exponential_growth, linear_ramp
from adabatch_jax.schedules.periods import every
from adabatch_jax.schedules.plan import BatchPlan, cut_ends, first_step_from, make_plan
from adabatch_jax.system.errors import UsageError

# What a short run never reaches is told; tests/schedules/test_free_schedules.py has it.
pytestmark = pytest.mark.filterwarnings("ignore:the batch schedule never reaches")

DOUBLING = "128 x2 every 20ep max 2048"


def doubling(**kwargs):
    return make_plan(DOUBLING, num_examples=50_000, duration="100ep", **kwargs)


def test_the_paper_plan_under_carry():
    plan = doubling()
    assert plan.num_steps == 15_138
    assert [p.start_sample for p in plan.phases] == [0, 1_000_064, 2_000_000, 3_000_448, 4_000_896]
    assert [p.start_step for p in plan.phases] == [0, 7813, 11719, 13673, 14650]
    assert plan.batch_sizes == (128, 256, 512, 1024, 2048)
    assert plan.num_samples == 5_000_000 and plan.num_dropped == 0
    assert plan.has_partial_batches


def test_the_paper_plan_under_the_other_policies():
    assert doubling(remainder="partial").num_steps == 15_180
    drop = doubling(remainder="drop")
    assert (drop.num_steps, drop.num_dropped) == (15_080, 43_840)
    assert [p.start_step for p in drop.phases] == [0, 7800, 11700, 13640, 14600]
    assert not drop.has_partial_batches
    assert make_plan(128, 50_000, "100ep", remainder="drop").num_steps == 39_000


@pytest.mark.parametrize("remainder", ["carry", "partial", "drop"])
def test_look_ups_on_both_sides_of_every_change(remainder):
    plan = doubling(remainder=remainder)
    for before, after in zip(plan.phases, plan.phases[1:], strict=False):
        assert plan.batch_size_at(after.start_step - 1) == before.batch_size
        assert plan.batch_size_at(after.start_step) == after.batch_size
        assert plan.batch_size_at(after.start_step + 1) == after.batch_size
        assert plan.samples_at(after.start_step) == after.start_sample
        assert plan.step_at(after.start_sample - 1) == after.start_step - 1
        assert plan.step_at(after.start_sample) == after.start_step
        assert plan.step_at(after.start_sample + 1) == after.start_step
        assert first_step_from(plan, after.start_sample - 1) == after.start_step
        assert first_step_from(plan, after.start_sample) == after.start_step
        assert first_step_from(plan, after.start_sample + 1) == after.start_step + 1


def test_the_ends():
    plan = doubling()
    assert plan.samples_at(plan.num_steps) == 5_000_000
    assert plan.step_at(5_000_000) == plan.num_steps
    assert plan.epoch_at(0) == 0.0 and plan.epoch_at(plan.num_steps) == 100.0
    assert list(plan.steps(plan.num_steps)) == []
    with pytest.raises(IndexError):
        plan.batch_size_at(plan.num_steps)
    with pytest.raises(IndexError):
        plan.samples_at(plan.num_steps + 1)
    with pytest.raises(IndexError):
        plan.step_at(5_000_001)
    with pytest.raises(IndexError):
        plan.samples_at(-1)
    last = list(plan.steps(plan.num_steps - 1))
    assert len(last) == 1 and last[0].num_real == 5_000_000 - last[0].start_sample < 2048


def test_a_plan_over_a_trillion_samples_is_instant():
    sizes = [("0sp", 1000)] + [(f"{k}Bsp", 1000 + k) for k in range(1, 1000)]
    begin = time.perf_counter()
    plan = make_plan(sizes, num_examples=10**9, duration=10**12)
    plan.step_at(999_999_999_999), plan.samples_at(plan.num_steps - 1), plan.fingerprint()
    seconds = time.perf_counter() - begin
    assert len(plan.phases) == 1000
    assert seconds < 0.5  # some 15 ms; a walk over the 7e8 steps would take minutes


def test_steps_in_every_unit():
    by_step = make_plan([(0, 10), ("7st", 20)], num_examples=100, duration="2ep")
    by_sample = make_plan([(0, 10), ("70sp", 20)], num_examples=100, duration="2ep")
    by_epoch = make_plan([(0, 10), ("0.7ep", 20)], num_examples=100, duration="2ep")
    by_share = make_plan([(0, 10), ("35%", 20)], num_examples=100, duration="2ep")
    assert by_step.phases == by_sample.phases == by_epoch.phases == by_share.phases
    in_steps = make_plan([(0, 10), ("50%", 20)], num_examples=100, duration="14st")
    assert [p.start_step for p in in_steps.phases] == [0, 7]
    assert in_steps.num_samples == 70 + 7 * 20


def test_phases_without_steps_and_equal_neighbours_vanish():
    plan = make_plan("128, 130sp: 64, 140sp: 128, 9ep: 1", num_examples=1000, duration="1ep")
    assert [(p.batch_size, p.num_steps) for p in plan.phases] == [(128, 8)]
    assert plan == make_plan("128", num_examples=1000, duration="1ep")


def test_endless_streams():
    plan = make_plan("32, 1Ksp: 64", num_examples=None, duration="10Ksp")
    assert plan.num_steps == 32 + 141 and plan.samples_at(32) == 1024
    with pytest.raises(UsageError, match="endless stream.*doesn't have"):
        make_plan("32 x2 every 1ep", num_examples=None, duration="10Ksp")
    with pytest.raises(UsageError, match="can only carry"):
        make_plan("32", num_examples=None, duration="10Ksp", remainder="drop")
    with pytest.raises(UsageError, match="epochs"):
        plan.epoch_at(3)


@pytest.mark.parametrize(
    ("schedule", "kwargs", "message"),
    [
        ("128, 20ep: 256, 10ep: 512", {}, "must increase.*10ep"),
        ("128, 20ep: 256, 20ep: 512", {}, "must increase"),
        ("128, 20ep: 256, 1Msp: 512", {}, "must increase"),
        ([(0, 128), ("0ep", 256)], {}, "must increase.*the start"),
        ([("5ep", 128)], {}, "must begin at 0"),
        ("128 x8 every 20ep", {}, r"65536 of phase 4.*epoch 60.*num_examples"),
        (60_000, {}, "60000 of phase 1.*num_examples=50000.*max 50000"),
        ("128 x0.1 every 20ep", {}, "0 in phase 4.*min"),
        (128, {"duration": 100}, 'duration 100 .*"100ep"'),
        (128, {"duration": "100"}, "duration .*100"),
        (128, {"duration": "50%"}, "50%"),
        (128, {"duration": "0ep"}, "0ep"),
        (128, {"duration": 1.5}, "samples.* 1.5"),
        (128, {"duration": "100sp", "remainder": "drop"}, "plan has no step"),
        (128, {"remainder": "carried"}, "'partial' or 'drop'.* 'carried'.* 'carry'"),
        (128, {"num_examples": 0}, "`num_examples` .* 0"),
        (128, {"num_examples": "many"}, "`num_examples` .*many"),
        (3.5, {}, "an int, a text, a schedule or pairs"),
    ],
)
def test_mistakes(schedule, kwargs, message):
    with pytest.raises(UsageError, match=message):
        make_plan(schedule, **{"num_examples": 50_000, "duration": "100ep", **kwargs})


def test_divisible_by_only_checks():
    assert doubling(divisible_by=128).phases == doubling().phases
    with pytest.raises(UsageError, match="100 of phase 1 .*8.* 96 and 104"):
        make_plan(100, 50_000, "1ep", divisible_by=8)
    with pytest.raises(UsageError, match="4 of phase 1 .* 8"):
        make_plan("4", 50_000, "1ep", divisible_by=8)
    # A size that the run never reaches is no reason to stop it.
    make_plan("96, 2ep: 100", 50_000, "1ep", divisible_by=8)


def test_continued():
    plan = doubling()
    change = plan.phases[2].start_sample
    longer = plan.continued(DOUBLING, plan.samples_at(9000), "120ep")
    assert longer == make_plan(DOUBLING, 50_000, "120ep")
    edited = plan.continued(constant(333), change, "100ep")
    assert [p.batch_size for p in edited.phases] == [128, 256, 333]
    assert edited.fingerprint(change) == plan.fingerprint(change)
    assert edited.fingerprint(change + 1) != plan.fingerprint(change + 1)
    # A finished run whose last batch was partial is prolonged behind that batch.
    whole = plan.continued(2048, plan.num_samples, "101ep")
    assert whole.samples_at(plan.num_steps) == plan.num_samples
    assert next(whole.steps(plan.num_steps - 1)).num_real < 2048
    with pytest.raises(UsageError, match="from_sample=5.* 0 and 128"):
        plan.continued(128, 5, "100ep")
    with pytest.raises(UsageError, match="5,?000,?001"):
        plan.continued(128, 5_000_001, "200ep")
    with pytest.raises(UsageError, match=f"1ep.* {change}"):
        plan.continued(128, change, "1ep")


def test_ends_that_cut_a_batch_short_are_kept():
    plan = make_plan("30", 100, "130sp", remainder="drop")
    assert plan.ends == () and "ends" not in plan.to_dict()
    longer = plan.continued("30", 130, "170sp").continued("30", 170, "4ep")
    assert longer.ends == (170,)  # at 130 a batch ended
    assert longer.samples_at(4) == 130 and longer.step_at(170) == 4 + 1
    assert longer.to_dict()["ends"] == [170]
    assert BatchPlan.from_dict(longer.to_dict()) == longer
    # They belong to the past: a plan that is edited before one, or isn't longer, has none there.
    assert longer.continued("20", 100, "4ep").ends == ()
    assert plan.continued("30", 130, "170sp").continued("30", 170, "170sp").ends == ()
    assert cut_ends(plan.continued("30", 130, "170sp"), 169) == ()


@pytest.mark.parametrize("remainder", ["carry", "partial", "drop"])
def test_thresholds_that_a_plan_may_not_have_it_may_not_get_by_going_on(remainder):
    schedule = "4, 8sp: 3, 2st: 2"
    with pytest.raises(UsageError, match="must increase"):
        make_plan(schedule, 10, "30sp", remainder)
    with pytest.raises(UsageError, match="must increase"):
        plan = make_plan("4", 10, "30sp", remainder)
        plan.continued(schedule, plan.samples_at(2), "30sp")


def test_steps_of_a_continued_plan_are_its_own():
    short = make_plan("10", 20, "20sp")
    with pytest.raises(UsageError, match="must increase"):
        short.continued("1, 35sp: 2, 3st: 4", 20, "60sp")
    long = make_plan("10", 100, "10ep")
    with pytest.raises(UsageError, match="must increase"):
        long.continued("1, 35sp: 2, 10st: 4", 20, "2ep")
    kept = long.continued("1, 1st: 2, 10st: 4", 20, "2ep")
    assert [(p.batch_size, p.start_step) for p in kept.phases] == [(10, 0), (2, 2), (4, 10)]


def test_a_last_batch_that_passes_two_thresholds():
    assert make_plan("1000, 80%: 500, 90%: 250", 1000, "1ep").num_steps == 1
    assert make_plan("10, 4sp: 8, 7sp: 4", 11, "9sp").num_steps == 1


def test_positions_may_be_arrays_of_int32():
    plan = make_plan(10_000, 10**9, 10**11)
    for step in (np.int32(10**6), np.int64(10**6), jnp.int32(10**6)):
        assert plan.samples_at(step) == 10**10 and type(plan.samples_at(step)) is int
        assert plan.epoch_at(step) == 10.0
        assert plan.fingerprint(np.int64(10**10)) == plan.fingerprint(10**10)
    with pytest.raises(IndexError):
        plan.fingerprint(10**11 + 1)
    with pytest.raises(TypeError):
        plan.samples_at(3.0)


def test_slow_growth_takes_as_long_as_it_has_phases():
    begin = time.perf_counter()
    plan = make_plan("128 x1.00001 every 1Ksp max 1000", 10**9, 10**9)
    assert plan.batch_sizes == tuple(range(128, 1001))
    assert time.perf_counter() - begin < 3  # 200,000 exact powers would take minutes


def test_continued_checks_divisibility_of_what_comes_only():
    plan = make_plan("100", 1000, "2ep", divisible_by=4)
    assert plan.continued("100", 1000, "3ep").num_steps == 30
    with pytest.raises(UsageError, match="50 .* 4"):
        plan.continued("50", 1000, "3ep")


def test_fingerprint_depends_on_steps_alone():
    plan = doubling()
    assert plan.fingerprint() == doubling(divisible_by=128).fingerprint()
    spelled_out = "128, 20ep: 256, 40ep: 512, 60ep: 1024, 80ep: 2048"
    assert plan.fingerprint() == make_plan(spelled_out, 50_000, "5Msp").fingerprint()
    assert plan.fingerprint(10_000) == make_plan(128, 50_000, "7ep").fingerprint(10_000)
    assert plan.fingerprint(0) != make_plan(128, 50_001, "7ep").fingerprint(0)
    assert plan.fingerprint() != doubling(remainder="partial").fingerprint()
    # The short run's last batch was partial, the long one's at that place is not.
    short = make_plan(128, 50_000, "1ep")
    assert short.fingerprint() != make_plan(128, 50_000, "2ep").fingerprint(50_000)


def test_dict_round_trip_and_foreign_dicts():
    plan = doubling()
    assert BatchPlan.from_dict(plan.to_dict()) == plan
    with pytest.raises(UsageError, match="no plan"):
        BatchPlan.from_dict({"phases": []})


def test_growth_is_not_cumulated():
    plan = make_plan(
        exponential_growth(100, 1.5, "1ep", end_value=800, multiple_of=8), 10_000, "8ep"
    )
    assert plan.batch_sizes == (104, 152, 224, 336, 504, 760, 800)


def test_ramp_reaches_both_ends():
    plan = make_plan(linear_ramp(128, 2048, over="50%", num_stages=16), 50_000, "100ep")
    assert plan.batch_sizes == tuple(range(128, 2049, 128))
    starts = [p.start_sample for p in plan.phases]
    for k, start in enumerate(starts):
        wanted = -(-50_000 * 50 * k // 15)
        assert wanted <= start < wanted + plan.phases[k - 1].batch_size or k == 0


@pytest.mark.parametrize("tokens_per_example", [1, 7, 2048])
def test_tokens_become_samples_rounded_up(tokens_per_example):
    for tokens in (1, 6, 7, 8, 2047, 2048, 2049, 469 * 10**9):
        text = f"{tokens}tok"
        plan = make_plan(1, None, text, tokens_per_example=tokens_per_example)
        assert plan.num_samples == -(-tokens // tokens_per_example) == plan.sample_of(text)


def test_gpt3s_thresholds_in_tokens():
    """Megatron's example of GPT-3, but for its rounding down."""
    sizes = {"2.4Btok": 320, "4.8Btok": 624, "7.2Btok": 928, "9.6Btok": 1232, "12Btok": 1536}
    text = "16, " + ", ".join(f"{tokens}: {size}" for tokens, size in sizes.items())
    plan = make_plan(text, None, "300Btok", tokens_per_example=2048)
    sample, size, starts = 0, 16, [0]
    for k, following in enumerate(sizes.values(), start=1):
        while sample * 2048 < k * 2_400_000_000:
            sample += size
        starts.append(sample)
        size = following
    assert [phase.start_sample for phase in plan.phases] == starts
    assert BatchPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    samples = make_plan(text.replace("tok", "sp"), None, "300Bsp")  # another clock
    assert plan.tokens_per_example == 2048 and samples.tokens_per_example is None
    longer = plan.continued(text, plan.num_samples, "301Btok")
    assert longer.tokens_per_example == 2048
    assert longer.num_samples == -(-301 * 10**9 // 2048)


def test_a_fingerprint_is_of_steps_whatever_they_were_called():
    tokens = make_plan("10, 20tok: 20", None, "100tok", tokens_per_example=2)
    assert tokens.fingerprint() == make_plan("10, 10sp: 20", None, "50sp").fingerprint()


def test_tokens_that_are_not_known():
    with pytest.raises(UsageError, match="'5tok' is in tokens; give `tokens_per_example`"):
        make_plan("1, 5tok: 2", num_examples=10, duration="2ep")
    plan = make_plan(1, num_examples=10, duration="2ep")
    with pytest.raises(UsageError, match="'5tok' is in tokens"):
        plan.sample_of("5tok")
    with pytest.raises(UsageError, match="'5tok' is in tokens"):
        every(plan, "5tok")
    for schedule in ("16 x2 every 2Ktok", "16 to 32 over 2Ktok in 4", "16, 2Ktok: 32"):
        with pytest.raises(UsageError, match="^the duration '2Ktok' is in tokens"):
            make_plan(schedule, num_examples=100, duration="2ep")
    with pytest.raises(UsageError, match="^the duration '1.50ep' is in epochs"):
        make_plan("16 x2 every 1.50ep", None, "900sp")
    with pytest.raises(UsageError, match="`tokens_per_example` must be at least 1, got 0"):
        make_plan(1, num_examples=10, duration="2ep", tokens_per_example=0)


def test_a_period_in_tokens():
    plan = make_plan(4, None, "1000tok", tokens_per_example=6)
    due = [step for step in range(1, plan.num_steps + 1) if every(plan, "100tok").is_due(step)]
    counts = [min(4 * step, 167) * 6 // 100 for step in range(plan.num_steps + 1)]
    assert due == [s for s in range(1, plan.num_steps + 1) if counts[s] > counts[s - 1]]


@pytest.mark.parametrize("duration", [99, np.int64(1)])
def test_a_run_without_unit_below_an_epoch(duration):
    with pytest.raises(UsageError, match=f'"{duration}ep" for epochs or "{duration}sp" for sam'):
        make_plan(1, num_examples=100, duration=duration)
    with pytest.raises(UsageError, match=f"'{duration}' has no unit; units are ep"):
        make_plan(1, num_examples=100, duration=str(duration))
    assert make_plan(1, num_examples=100, duration=100).num_samples == 100
