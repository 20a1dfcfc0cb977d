"""Schedules, durations and their text forms."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adabatch_jax.schedules.batch_size_schedules import (
    constant,
    exponential_growth,
    linear_ramp,
    piecewise_constant,
)
from adabatch_jax.schedules.durations import parse_duration
from adabatch_jax.schedules.growth_with_decay import growth_from_decay
from adabatch_jax.schedules.schedule_text import as_schedule, parse_schedule
from adabatch_jax.system.errors import UsageError

TEXTS = {
    "128": constant(128),
    "128 x2 every 20ep max 2048": exponential_growth(128, 2, "20ep", 2048),
    "100 x1.5 every 10ep max 800 multiple 8": exponential_growth(100, 1.5, "10ep", 800, 8),
    "2048 x0.5 every 10ep min 128": exponential_growth(2048, 0.5, "10ep", 128),
    "128, 20ep: 256, 40ep: 512": piecewise_constant(128, {"20ep": 256, "40ep": 512}),
    "128 to 2048 over 50% in 16": linear_ramp(128, 2048, "50%", 16),
    "128, 1500st: 256, 2.5Msp: 512, 90%: 640": piecewise_constant(
        128, {"1500st": 256, "2.5Msp": 512, "90%": 640}
    ),
    "128 x4/3 every 2Kst": exponential_growth(128, Fraction(4, 3), "2000st"),
}


@pytest.mark.parametrize("text", TEXTS)
def test_texts_both_ways(text):
    assert parse_schedule(text) == TEXTS[text]
    assert str(parse_schedule(text)) == text
    assert parse_schedule(str(TEXTS[text])) == TEXTS[text]


@given(
    st.integers(1, 10**6),
    st.fractions(min_value=Fraction(1, 100), max_value=100),
    st.sampled_from(["20ep", "1500st", "2.5Msp", "30%", "0.25ep"]),
    st.booleans(),
    st.integers(1, 64),
)
def test_growth_round_trips(init_value, factor, every, bounded, multiple_of):
    end_value = (2 * init_value if factor >= 1 else max(init_value // 2, 1)) if bounded else None
    schedule = exponential_growth(init_value, factor, every, end_value, multiple_of)
    assert parse_schedule(str(schedule)) == schedule


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at its end: expected a whole batch size"),
        ("x2", "at 'x2' .character 1."),
        ("12.5", "expected a whole batch size"),
        ("0", "`batch_size` .* 0"),
        ("-5", "`batch_size` .* -5"),
        ("128 x2", "at its end: expected 'every'"),
        ("128 x2 evry 20ep", "'evry' .character 8.: expected 'every'"),
        ("128 x every 20ep", "expected a growth factor"),
        (
            "128 x2 every 20",
            "at '20' .character 14.*'20' has no unit; units are ep .epochs., st .st",
        ),
        ("128, 40: 256", "at '40' .character 6.*'40' has no unit; units are ep"),
        ("128 to 2048 over 1000 in 16", "at '1000' .*'1000' has no unit; units are ep"),
        ("128 x2 every 20epochs", "'20epochs' .character 14.*did you mean 'ep'"),
        ("128 x2 every 0ep", "at '0ep'"),
        ("128 x0 every 20ep", "`growth_factor` .* 0"),
        ("128 x-2 every 20ep", "`growth_factor` .* -2"),
        ("128 x2 every 20ep min 64", "bounded by 'max'"),
        ("128 x2 every 20ep max 64", "at least init_value=128"),
        ("128 x0.5 every 20ep min 256", "at most init_value=128"),
        ("128 x2 every 20ep max 2048 max 4096", "nothing more"),
        ("128 x2 every 20ep multiple 0", "`multiple_of` .* 0"),
        ("128, 20ep 256", "'256' .character 11.: expected ':'"),
        ("128, 20ep: 256,", "at its end: expected a duration"),
        ("128, 20ep: 256 40ep: 512", "expected ',' or nothing more"),
        ("128, 20ep: 0", "20ep.* 0"),
        ("128 to 2048 over 50%", "at its end: expected 'in'"),
        ("128 to 2048 over 50% in 1", "`num_stages` .* 1"),
        ("128 grows", "at 'grows'"),
    ],
)
def test_mistakes_are_pointed_at(text, message):
    with pytest.raises(UsageError, match=message):
        parse_schedule(text)


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("20ep", 20, "ep"),
        ("0.5ep", Fraction(1, 2), "ep"),
        (".25ep", Fraction(1, 4), "ep"),
        ("1500st", 1500, "st"),
        ("1.5Kst", 1500, "st"),
        ("2.5Msp", 2_500_000, "sp"),
        ("1Bsp", 10**9, "sp"),
        ("1_000sp", 1000, "sp"),
        ("30%", 30, "%"),
        ("1.5Tsp", 1_500_000_000_000, "sp"),
        ("2.4Btok", 2_400_000_000, "tok"),
        ("1T tok", 10**12, "tok"),
        (50_000, 50_000, "sp"),
    ],
)
def test_durations(text, value, unit):
    duration = parse_duration(text)
    assert (duration.value, duration.unit) == (value, unit)
    assert parse_duration(str(duration)) == duration
    if isinstance(text, str):
        assert str(duration) == text.replace(" ", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ep", "duration 'ep'"),
        ("-5ep", "duration '-5ep'"),
        (-5, "duration.* -5"),
        ("20eps", "unknown unit 'eps'.*did you mean 'ep'"),
        ("20 steps", "unknown unit 'steps'.*did you mean 'st'"),
        ("20xyz", "unknown unit 'xyz'.*units are ep"),
        ("30", "'30' has no unit; units are ep .epochs., st .steps., sp .samples., tok"),
        ("0", "'0' has no unit"),
        ("2.4B", "'2.4B' has no unit"),
        ("2.4btok", "unknown unit 'btok'.*did you mean 'Btok'"),
        ("5ksp", "unknown unit 'ksp'.*did you mean 'Ksp'"),
        ("20 tokens", "did you mean 'tok'"),
        ("1.5st", "no whole number of steps"),
        ("1/2tok", "no whole number of tokens"),
        (1.5, "a text with a unit"),
        (True, "a text with a unit"),
    ],
)
def test_bad_durations(text, message):
    with pytest.raises(UsageError, match=message):
        parse_duration(text)


@pytest.mark.parametrize(
    "schedule",
    [
        exponential_growth(10, 2, every="1 ep"),
        piecewise_constant(5, {"20 ep": 3, "2.5M sp": 4}),
        exponential_growth(10, 2, every=parse_duration("1ep").times(Fraction(1, 3))),
        linear_ramp(1, 9, over="1/3ep", num_stages=3),
        growth_from_decay(128, [("30ep", 0.1)]),
        exponential_growth(10, np.float32(1.1), every=np.int64(100)),
    ],
)
def test_odd_spellings_round_trip(schedule):
    assert parse_schedule(str(schedule)) == schedule


@pytest.mark.parametrize(("factor", "multiple_of"), [("1.001", 1), ("1.01", 8), ("0.999", 3)])
def test_slow_growth_against_every_interval(factor, multiple_of):
    schedule = exponential_growth(1000, factor, "1sp", multiple_of=multiple_of)
    sizes = {}
    for k in range(1500):
        exact = 1000 * Fraction(factor) ** k / multiple_of
        sizes[k] = int(exact + Fraction(1, 2)) * multiple_of
    changes = [(k, s) for k, s in sizes.items() if k == 0 or s != sizes[k - 1]]
    got = [(int(d.value), s) for d, s in itertools.islice(schedule.sizes(), len(changes))]
    assert got == changes


def test_spelling_is_no_part_of_a_schedule():
    assert parse_schedule("128 x2 every 1Kst") == parse_schedule("128 x2 every 1000st")
    assert hash(parse_schedule("128 x2 every 1Kst")) == hash(parse_schedule("128 x2 every 1000st"))


def test_growth_from_decay_takes_over_the_decay():
    schedule = growth_from_decay(128, {"30ep": 0.1, "60ep": 0.1})
    assert str(schedule) == "128, 30ep: 1280, 60ep: 12800"
    seesaw = growth_from_decay(100, {"10ep": 0.25}, power=0.5)
    assert str(seesaw) == "100, 10ep: 200"
    with pytest.raises(UsageError, match="decay at 10ep .* 0"):
        growth_from_decay(100, {"10ep": 0})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: constant(0), "`batch_size` .* 0"),
        (lambda: constant(2.5), "`batch_size` .* 2.5"),
        (lambda: constant(True), "`batch_size` .*True"),
        (lambda: exponential_growth(128, "two", "20ep"), "`growth_factor` .*two"),
        (lambda: exponential_growth(128, float("nan"), "20ep"), "`growth_factor` .*nan"),
        (lambda: as_schedule([]), "must begin at 0"),
        (lambda: as_schedule(None), "an int, a text"),
        (lambda: as_schedule([3, 4]), "an int, a text"),
    ],
)
def test_constructors_check_at_once(make, message):
    with pytest.raises(UsageError, match=message):
        make()
