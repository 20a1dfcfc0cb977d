"""T(B) = a + b B: the fit against a search, break-even against counting."""

import math

import numpy as np
import pytest

from adabatch_jax.costs.model import UpdateCost, fit_update_cost, largest_paying_size
from adabatch_jax.errors import UsageError


def relative_error(cost, seconds_by_size):
    return sum((cost.update_seconds(b) / t - 1) ** 2 for b, t in seconds_by_size.items())


def test_exact_times_give_the_line_back():
    cost = fit_update_cost({b: 0.02 + 0.003 * b for b in (32, 64, 1024)})
    assert cost.overhead_seconds == pytest.approx(0.02, rel=1e-9)
    assert cost.example_seconds == pytest.approx(0.003, rel=1e-9)


@pytest.mark.parametrize(
    "seconds_by_size",
    [
        {32: 0.11, 64: 0.14, 128: 0.3, 512: 0.9},
        {32: 0.1, 128: 0.5, 512: 3.2, 1024: 9.5},  # faster than B: a is held at 0
        {32: 0.3, 128: 0.2, 512: 0.1},  # falls: b is held at 0
        {128: 0.5},
    ],
    ids=["inside", "no overhead", "no cost of examples", "one size"],
)
def test_no_other_line_is_better(seconds_by_size):
    cost = fit_update_cost(seconds_by_size)
    assert cost.overhead_seconds >= 0 and cost.example_seconds >= 0
    best = relative_error(cost, seconds_by_size)
    steps = np.linspace(0, 2, 201)
    for a in steps * max(seconds_by_size.values()):
        for b in steps * max(t / b for b, t in seconds_by_size.items()):
            assert relative_error(UpdateCost(a, b), seconds_by_size) >= best - 1e-9


def test_relative_errors_count_not_absolute_ones():
    # An outlier among the long updates hardly moves the small sizes.
    cost = fit_update_cost({1: 1.0, 2: 2.0, 4: 4.0, 1000: 1200.0})
    assert cost.update_seconds(1) == pytest.approx(1.05, abs=0.06)


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.25), (0.0, 1.0), (3.0, 0.125), (0.01, 1.0)])
def test_saturation_is_the_first_size_at_90_percent(a, b):
    size = UpdateCost(a, b).saturating_batch_size
    assert size == next(n for n in range(1, 1000) if n / (a + b * n) >= 0.9 / b - 1e-12)


def test_without_cost_of_examples_every_growth_pays():
    assert UpdateCost(0.1, 0.0).saturating_batch_size is None


@pytest.mark.parametrize(
    ("rates", "size"),
    [
        ({64: 100, 128: 200, 256: 390, 512: 400, 1024: 405}, 256),
        ({64: 100, 128: 106, 256: 111}, 128),  # 111 / 106 is less than 5 %
        ({64: 100, 128: 90, 256: 80}, 64),
        ({64: 100, 128: 60, 256: 98}, 64),  # a slow size makes no hero of the next
        ({64: 100, 128: 98, 256: 150}, 256),
        ({64: 100, 4096: 130}, 64),  # six doublings should have given 34 %
        ({128: 7}, 128),
    ],
)
def test_the_largest_size_that_pays(rates, size):
    seconds = {b: b / rate for b, rate in rates.items()}
    assert largest_paying_size(seconds) == size
    assert largest_paying_size(dict(reversed(seconds.items()))) == size


def test_where_it_ends_is_near_saturation_for_an_exact_line():
    cost = UpdateCost(0.03, 0.001)
    seconds = {2**k: cost.update_seconds(2**k) for k in range(14)}
    # Doubling from B gains 5 % up to B = 9.5 a / b = 285; 90 % are reached at 9 a / b = 270.
    assert largest_paying_size(seconds) == 512 and cost.saturating_batch_size == 270


@pytest.mark.parametrize(
    "seconds_by_size", [{}, {128: 0.0}, {128: math.inf}, {128: math.nan}, {0: 1.0}, {8: -1.0}]
)
@pytest.mark.parametrize("function", [fit_update_cost, largest_paying_size])
def test_what_is_no_measurement_is_refused(function, seconds_by_size):
    with pytest.raises(UsageError, match="`seconds_by_size` must"):
        function(seconds_by_size)
