import math

import numpy as np
import pytest
from scipy import stats

from experiments.reproduction.statistics import difference, equivalence, estimate

# The 97.5 % quantiles of Student's t, from printed tables.
T_975 = {1: 12.706, 2: 4.303, 4: 2.776, 9: 2.262}


@pytest.fixture(params=range(5))
def samples(request):
    rng = np.random.default_rng(request.param)
    sizes = rng.integers(2, 9, size=2)
    values, reference = rng.normal(8, 1, sizes[0]), rng.normal(8.5, 3, sizes[1])
    return list(values), list(reference)


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_interval_is_students(n):
    values = [3.0 + 0.5 * k for k in range(n)]
    result = estimate(values)
    mean = sum(values) / n
    sd = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    reach = T_975[n - 1] * sd / math.sqrt(n)
    assert (result.n, result.mean, result.sd) == (n, mean, pytest.approx(sd))
    assert result.interval == pytest.approx((mean - reach, mean + reach), abs=2e-4 * reach)


def test_difference_is_scipys_welch_test(samples):
    result = difference(*samples)
    expected = stats.ttest_ind(*samples, equal_var=False)
    assert result.mean == pytest.approx(np.mean(samples[0]) - np.mean(samples[1]))
    assert result.p == pytest.approx(expected.pvalue)
    assert result.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert (result.n, result.reference_n) == (len(samples[0]), len(samples[1]))


@pytest.mark.parametrize("margin", [0.1, 1.0, 4.0])
def test_equivalence_is_two_one_sided_tests(samples, margin):
    values, reference = samples
    shift = np.array(reference)
    above = stats.ttest_ind(values, shift - margin, equal_var=False, alternative="greater")
    below = stats.ttest_ind(values, shift + margin, equal_var=False, alternative="less")
    result = equivalence(values, reference, margin)
    assert result.p == pytest.approx(max(above.pvalue, below.pvalue))
    welch = stats.ttest_ind(values, reference, equal_var=False)
    assert result.interval == pytest.approx(tuple(welch.confidence_interval(0.90)))
    inside = -margin < result.interval[0] and result.interval[1] < margin
    assert (result.verdict == "equivalent") == (result.p < 0.05) == inside


@pytest.mark.parametrize(
    "values, reference, verdict",
    [
        ([8.0, 8.1, 8.2], [8.0, 8.2, 8.1], "equivalent"),
        ([8.4, 8.5, 8.6], [8.0, 8.2, 8.1], "equivalent"),  # significant, but small
        ([12.0, 12.1, 12.2], [8.0, 8.2, 8.1], "different"),
        ([4.0, 4.1, 4.2], [8.0, 8.2, 8.1], "different"),
        ([6.0, 8.0, 11.0], [8.0, 8.2, 8.1], "not shown"),
    ],
)
def test_verdicts(values, reference, verdict):
    assert equivalence(values, reference, margin=1.0).verdict == verdict


def test_verdict_turns_at_the_margin():
    values, reference = [8.1, 8.3, 8.2], [8.0, 8.2, 8.1]
    low, high = equivalence(values, reference, margin=1.0).interval
    reach = max(-low, high)
    assert equivalence(values, reference, margin=1.0001 * reach).verdict == "equivalent"
    assert equivalence(values, reference, margin=0.9999 * reach).verdict == "not shown"


@pytest.mark.parametrize("deviations", [(1.0, 1.0), (0.5, 2.0)], ids=["equal", "unequal"])
def test_false_equivalences_and_coverage(deviations):
    """At a true difference of exactly the margin, equivalence is claimed about once in twenty."""
    rng, trials, margin = np.random.default_rng(7), 1500, 4.0
    claimed = covered = 0
    for _ in range(trials):
        values = rng.normal(margin, deviations[0], 6)
        reference = rng.normal(0.0, deviations[1], 6)
        claimed += equivalence(values, reference, margin).verdict == "equivalent"
        low, high = difference(values, reference).interval
        covered += low <= margin <= high
    # Four standard errors of a count out of 1,500 are 0.023.
    assert claimed / trials == pytest.approx(0.05, abs=0.023)
    assert covered / trials == pytest.approx(0.95, abs=0.023)


def test_equivalence_is_found_where_it_is():
    rng = np.random.default_rng(3)
    found = [
        equivalence(rng.normal(0, 1, 20), rng.normal(0, 1, 20), 1.5).verdict for _ in range(200)
    ]
    assert found.count("equivalent") > 190


def test_nothing_is_claimed_without_repetition():
    assert (estimate([]).n, estimate([]).mean, estimate([]).interval) == (0, None, None)
    assert (estimate([8.0]).mean, estimate([8.0]).sd, estimate([8.0]).interval) == (8, None, None)
    for values, reference in (([8.0], [7.0, 7.5]), ([8.0, 8.5], [7.0]), ([8.0], [7.0])):
        result = difference(values, reference)
        assert result.mean == pytest.approx(np.mean(values) - np.mean(reference))
        assert result.interval is None and result.p is None
        tested = equivalence(values, reference, margin=100.0)
        assert (tested.p, tested.interval, tested.verdict) == (None, None, "not shown")
    assert difference([], [7.0]).mean is None


def test_equal_runs_give_no_certainty():
    equal = [0.1 + 0.2] * 3  # the floating-point variance of these is not zero everywhere
    assert estimate(equal).sd == 0 and estimate(equal).interval is None
    assert difference(equal, [9.0] * 3).interval is None
    assert equivalence(equal, equal, margin=1.0).verdict == "not shown"


def test_one_side_without_variance_has_the_others_degrees_of_freedom():
    constant, varying = [8.0] * 4, [7.0, 7.5, 8.0]
    result = difference(constant, varying)
    reach = T_975[2] * 0.5 / math.sqrt(3)
    assert result.interval == pytest.approx((0.5 - reach, 0.5 + reach), rel=2e-4)


@pytest.mark.parametrize("margin", [0.0, -1.0, math.nan])
def test_margin_must_be_positive(margin):
    with pytest.raises(ValueError, match="margin"):
        equivalence([1.0, 2.0], [1.0, 3.0], margin)
