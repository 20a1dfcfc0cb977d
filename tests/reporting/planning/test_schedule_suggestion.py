"""Schedules that end where growth stops paying."""

import pytest

from adabatch_jax import make_plan, parse_schedule
from adabatch_jax.reporting.planning.repeated_timing import Timing
from adabatch_jax.reporting.planning.schedule_suggestion import (
    growth_rule,
    sizes_to_try,
    suggest,
)
from adabatch_jax.system.errors import UsageError


@pytest.mark.parametrize(
    ("schedule", "rule"),
    [
        ("32 x2 every 4ep max 512", "32 x2 every 4ep"),
        ("100 x1.5 every 10% multiple 4", "100 x1.5 every 10% multiple 4"),
        ("512 x0.5 every 4ep min 8", "512 x2 every 20%"),
        ("50", "50 x2 every 20%"),
        ("64 to 512 over 50% in 8", "64 x2 every 20%"),
    ],
)
def test_the_users_growth_is_kept_and_anything_else_becomes_the_papers(schedule, rule):
    schedule = parse_schedule(schedule)
    assert str(growth_rule(schedule, make_plan(schedule, 9000, "20ep"))) == rule


@pytest.mark.parametrize(
    ("rule", "max_batch", "sizes"),
    [
        ("64 x2 every 20%", None, [64, 128, 256, 512, 1024]),  # five parts of the run
        ("64 x2 every 20%", 300, [64, 128, 256]),
        ("64 x2 every 20%", 64, [64]),
        ("600 x4 every 20%", None, [600, 1200]),  # the dataset has 2000
        ("100 x1.5 every 5ep", None, [100, 200]),  # 100, 150, 225, 338 in 20 epochs
    ],
)
def test_what_the_rule_can_reach_is_tried(rule, max_batch, sizes):
    plan = make_plan("8", 2000, "20ep")
    assert sizes_to_try(parse_schedule(rule), plan, max_batch) == sizes


def test_a_bound_below_the_first_batch_is_refused():
    with pytest.raises(UsageError, match="--max-batch: .* 64.* 63"):
        sizes_to_try(parse_schedule("64 x2 every 20%"), make_plan("8", 2000, "20ep"), 63)


@pytest.mark.parametrize(
    ("rates", "text"),
    [
        ({64: 100, 128: 190, 256: 200, 512: 204}, "64 x2 every 5ep max 256"),
        ({64: 100, 128: 190, 256: 300}, "64 x2 every 5ep max 256"),
        ({64: 100, 128: 101}, "64"),
    ],
)
def test_growth_ends_where_it_stops_paying(rates, text):
    timings = {size: Timing(size / rate, 0.001) for size, rate in rates.items()}
    suggestion = suggest(parse_schedule("64 x2 every 5ep"), timings)
    assert str(suggestion.schedule) == text and parse_schedule(text) == suggestion.schedule
    assert len(suggestion.ends) == 1


def test_a_close_call_is_told():
    """A gain of 5.4 %, known to 1 %: either may be asked for next time."""
    timings = {64: Timing(1.0, 0.01), 128: Timing(2 / 1.054, 0.01), 256: Timing(4.0, 0.01)}
    suggestion = suggest(parse_schedule("64 x2 every 5ep"), timings)
    assert str(suggestion.schedule) == "64 x2 every 5ep max 128"
    assert suggestion.ends == (64, 128)
    assert suggestion.why.endswith(
        "That is close: within 1.0 % of the times it could be 64 or 128."
    )


def test_a_busy_machine_suggests_nothing():
    timings = {64: Timing(1.0, 0.3), 128: Timing(1.6, 0.01), 256: Timing(3.1, 0.3)}
    suggestion = suggest(parse_schedule("64 x2 every 5ep"), timings)
    assert suggestion.schedule is None and len(suggestion.ends) > 1
    assert "too busy to tell" in suggestion.why and "30.0 %" in suggestion.why


def test_what_is_clear_is_suggested_on_a_busy_machine_too():
    timings = {64: Timing(1.0, 0.2), 128: Timing(1.05, 0.2)}
    assert str(suggest(parse_schedule("64 x2 every 5ep"), timings).schedule).endswith("max 128")
