"""Megatron-LM's and Levanter's schedules: the same sizes at each step as by their own arithmetic."""

import random
import warnings

import pytest

import adabatch_jax as ab
from adabatch_jax.schedules.batch_size_schedules import LinearRamp


def megatron_steps(text, sequence_length):
    """consumed samples -> size, as StepBatchsizeNumMicroBatchesCalculator has it.

    NVIDIA/Megatron-LM, megatron/core/num_microbatches_calculator.py: a number is a float times its
    suffix, cut off; tokens are divided by the sequence's length, rounded down; the size is that of
    the last threshold that is not above the consumed samples.
    """
    suffixes = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}

    def number(word):
        multiple = suffixes.get(word[-1].upper(), 1)
        return int(float(word.rstrip("KMBTkmbt")) * multiple)

    entries = [[number(w) for w in entry.split(":")] for entry in text.replace(",", " ").split()]
    table = sorted((at // (sequence_length or 1), size) for at, size in entries)
    return lambda consumed: [size for at, size in table if at <= consumed][-1]


def megatron_ramp(start, increment, over, end):
    """consumed samples -> size, as RampupBatchsizeNumMicroBatchesCalculator has it (same file)."""
    length = over / ((end - start) // increment)
    return lambda consumed: end if consumed > over else start + int(consumed / length) * increment


def sizes_by(size_at, num_samples):
    """The whole batches of a loop that asks for each step's size."""
    consumed, sizes = 0, []
    while consumed < num_samples:
        sizes.append(size_at(consumed))
        consumed += sizes[-1]
    return sizes


def plan_of(schedule, length, sequence_length=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the run ends before its last sizes
        return ab.make_plan(schedule, None, f"{length}sp", tokens_per_example=sequence_length)


def sizes_of(plan):
    return [step.batch_size for step in plan.steps()]


def random_steps(rng):
    text, tokens, size = f"0:{rng.randint(1, 9)}", 0, 9
    for _ in range(rng.randint(0, 6)):
        tokens += rng.randint(40, 60_000)
        size += rng.randint(1, 40)
        word = rng.choice([str(tokens), f"{tokens / 1000}K", f"{tokens / 1e6:.6f}m"])
        text += rng.choice([" ", ", "]) + f"{word}:{size}"
    return text


@pytest.mark.parametrize("sequence_length", [None, 1, 32, 40])
def test_steps_of_megatron_are_theirs_step_for_step(sequence_length):
    rng = random.Random(sequence_length)
    for _ in range(50):
        text, length = random_steps(rng), rng.randint(1, 12_000)
        schedule = ab.parse_schedule(text, dialect="megatron")
        assert ab.parse_schedule(str(schedule)) == schedule
        plan = plan_of(schedule, length, sequence_length)
        expected = sizes_by(megatron_steps(text, sequence_length), length)
        assert sizes_of(plan) == expected
        written = ab.write_schedule(plan, "megatron")
        in_quotes = written.split('"')[1]
        assert sizes_by(megatron_steps(in_quotes, sequence_length), length) == expected
        again = ab.parse_schedule(written, dialect="megatron")
        assert sizes_of(plan_of(again, length, sequence_length)) == expected


def test_thresholds_of_megatron_are_tokens_where_an_example_has_some():
    schedule = ab.parse_schedule("0:768 250B:1536 500B:3072 750B:6144", dialect="megatron")
    plan = ab.make_plan(schedule, None, "1Ttok", tokens_per_example=4096)
    for phase, threshold in zip(plan.phases[1:], (250, 500, 750)):
        assert 0 <= phase.start_sample - threshold * 10**9 // 4096 < 6144
    starts = [phase.start_sample for phase in plan_of(schedule, 10**12).phases]
    assert starts[1] == -(-250 * 10**9 // 768) * 768  # samples


def random_ramp(rng):
    increment, count = rng.randint(1, 20), rng.randint(1, 60)
    start = rng.randint(1, 30)
    return start, increment, rng.randint(1, 20_000), start + increment * count


def test_ramps_of_megatron_are_theirs_step_for_step():
    rng, are_ramps = random.Random(0), []
    for _ in range(200):
        start, increment, over, end = random_ramp(rng)
        text = f"--rampup-batch-size {start} {increment} {over} --global-batch-size {end}"
        schedule = ab.parse_schedule(text, dialect="megatron")
        assert ab.parse_schedule(str(schedule)) == schedule
        are_ramps.append(isinstance(schedule, LinearRamp))
        length = over + rng.randint(1, 3000)
        plan = plan_of(schedule, length)
        expected = sizes_by(megatron_ramp(start, increment, over, end), length)
        assert sizes_of(plan) == expected
        if len(plan.phases) == (end - start) // increment + 1:
            written = ab.write_schedule(plan, "megatron-ramp")
            ramp = [int(word) for word in written.replace("--global-batch-size", "").split()[1:]]
            assert sizes_by(megatron_ramp(*ramp), length) == expected
    assert sum(are_ramps) > 100


def test_a_ramp_of_megatron_is_late_where_its_division_is():
    # 9 of 18 samples are 7 of 14 increments, but 9 / (18 / 14) is a little less than 7.
    size_at = megatron_ramp(1, 1, 18, 15)
    assert (size_at(9), size_at(10)) == (7, 8)
    text = "--rampup-batch-size 1 1 18 --global-batch-size 15"
    plan = plan_of(ab.parse_schedule(text, dialect="megatron"), 200)
    assert sizes_of(plan) == sizes_by(size_at, 200)
    thresholds = [*ab.parse_schedule(text, dialect="megatron").sizes()]
    assert (ab.parse_duration("10sp"), 8) in thresholds


def levanter_sizes(entries, num_steps):
    """step -> size, and its first row, as Levanter's BatchSchedule has them.

    marin-community/marin, lib/levanter/src/levanter/schedule.py at 0c83f55: a segment lasts until
    the next one's start, and begins behind all rows of those before it.
    """
    sizes, offsets, offset = [], [], 0
    for step in range(num_steps):
        sizes.append([value for start, value in entries if start <= step][-1])
        offsets.append(offset)
        offset += sizes[-1]
    return sizes, offsets


def test_lists_of_levanter_are_theirs_step_for_step():
    rng = random.Random(1)
    for _ in range(50):
        starts = sorted({0, *(rng.randint(1, 300) for _ in range(rng.randint(0, 5)))})
        entries = [(start, rng.randint(1, 64)) for start in starts]
        text = "\n".join(f"- start: {start}  # step\n  value: {v}" for start, v in entries)
        flow = ", ".join(f'{{"start": {start}, "value": {v}}}' for start, v in entries)
        schedule = ab.parse_schedule(text, dialect="levanter")
        assert ab.parse_schedule(f"train_batch_size: [{flow}]", dialect="levanter") == schedule
        turned = "\n".join(f"  - value: {v}\n    start: {start}" for start, v in entries)
        turned = f"trainer:\n  train_batch_size:\n{turned}"
        assert ab.parse_schedule(turned, dialect="levanter") == schedule
        assert ab.parse_schedule(str(schedule)) == schedule
        plan = ab.make_plan(schedule, None, "320st")
        sizes, offsets = levanter_sizes(entries, 320)
        assert sizes_of(plan) == sizes
        assert [plan.samples_at(step) for step in range(320)] == offsets
        again = ab.parse_schedule(ab.write_schedule(plan, "levanter"), dialect="levanter")
        assert ab.make_plan(again, None, "320st") == plan


def test_one_number_is_a_fixed_batch():
    assert ab.parse_schedule("512", dialect="levanter") == ab.constant(512)
    assert ab.parse_schedule("--global-batch-size 512", dialect="megatron") == ab.constant(512)


@pytest.mark.parametrize(
    "text, dialect, sentence",
    [
        ("0:8 100", "megatron", "can't read '100'"),
        ("5:8 100:16", "megatron", "no batch size from 0"),
        ("0:8 100:16 0.1K:32", "megatron", "100 twice"),
        ("0:8 many:16", "megatron", "can't read the number 'many'"),
        ("0:8 100:0", "megatron", "at least 1"),
        ("--rampup-batch-size 16 16 5859375", "megatron", "needs --global-batch-size"),
        ("--rampup-batch-size 16 16 --global-batch-size 64", "megatron", "takes 3 numbers"),
        ("--rampup-batch-size 16 5 99 --global-batch-size 64", "megatron", "whole increments"),
        ("--seq-length 2048", "megatron", "--tokens-per-example"),
        ("- start: 0\n  values: 8", "levanter", "write a list"),
        ("- start: 5\n  value: 8", "levanter", "must increase from 0"),
        ("0:8", "megatrn", "did you mean 'megatron'"),
    ],
)
def test_what_cannot_be_read_is_said(text, dialect, sentence):
    with pytest.raises(ab.UsageError, match=sentence):
        ab.parse_schedule(text, dialect=dialect)


@pytest.mark.parametrize(
    "schedule, remainder, dialect, sentence",
    [
        ("8, 5ep: 4", "carry", "megatron", "never shrinks"),
        ("8, 5ep: 16", "drop", "levanter", "remainder 'carry'"),
        ("8, 5ep: 16, 6ep: 20", "carry", "megatron-ramp", "equal increments"),
        ("8, 1ep: 16, 6ep: 24", "carry", "megatron-ramp", "equal stretches"),
        ("8", "carry", "levanter-ramp", "unknown dialect"),
    ],
)
def test_what_cannot_be_written_is_said(schedule, remainder, dialect, sentence):
    plan = ab.make_plan(schedule, 100, "10ep", remainder)
    with pytest.raises(ab.UsageError, match=sentence):
        ab.write_schedule(plan, dialect)
