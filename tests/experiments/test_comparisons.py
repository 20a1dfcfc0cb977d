import dataclasses
import re

import numpy as np
import pytest
from scipy import stats

from experiments.reproduction.comparisons import compare, sentence
from experiments.reproduction.outcomes import OUTCOMES
from experiments.reproduction.results import ArmResult, SeedResult
from experiments.reproduction.tables import verdict_text
from tests.experiments.conftest import NUM_EXAMPLES, study_arms


def arm_result(name, errors, num_diverged=0, num_unfinished=0, paces=None):
    """An arm whose seeds have these errors; then come those that diverged or didn't finish."""
    config = study_arms()[name]
    plan = config.plan(NUM_EXAMPLES)
    paces = paces or [10.0 + seed for seed in range(len(errors))]
    finished = [
        SeedResult(
            seed=seed,
            state="finished",
            test=error,
            updates=plan.num_steps,
            examples=plan.num_samples,
            seconds={"step": 0.75 * pace, "input": 0.25 * pace},
        )
        for seed, (error, pace) in enumerate(zip(errors, paces, strict=True))
    ]
    states = ["diverged"] * num_diverged + ["unfinished"] * num_unfinished
    others = [SeedResult(len(errors) + k, state, "boom") for k, state in enumerate(states)]
    return ArmResult(name, config, plan, (*finished, *others))


BASELINE = [8.0, 8.2, 8.1]


@pytest.mark.parametrize(
    "errors, begins, contains, verdict",
    [
        (
            [8.1, 8.3, 8.2],
            "AdaBatch works here: adaptive needs ",
            "equivalent within 1 point",
            "equivalent within 1 point",
        ),
        (
            [6.1, 6.3, 6.2],
            "AdaBatch works here, and better: ",
            "its test error is 1.90 points lower",
            "different: lower",
        ),
        (
            [11.1, 11.3, 11.2],
            "AdaBatch fails here: ",
            "but its test error is 3.10 points higher",
            "different: higher",
        ),
        (
            [8.7, 9.1, 9.4],
            "AdaBatch does worse here: ",
            "not shown to be below 1 point",
            "different: higher",
        ),
        (
            [7.0, 8.0, 10.0],
            "Nothing is shown here: ",
            "neither a difference nor equivalence",
            "not shown within 1 point",
        ),
    ],
    ids=["equivalent", "better", "fails", "worse", "undecided"],
)
def test_sentence_says_what_the_tests_say(errors, begins, contains, verdict):
    fixed, adaptive = arm_result("fixed_small", BASELINE), arm_result("adaptive", errors)
    compared = compare(adaptive, fixed, 1.0, OUTCOMES["error"])
    text = sentence(compared)
    assert text.startswith(begins) and contains in text and text.endswith(".")
    low, high = stats.ttest_ind(errors, BASELINE, equal_var=False).confidence_interval(0.95)
    assert f"(95 % interval {low:+.2f} to {high:+.2f})" in text
    assert "n = 3 and 3" in text
    assert verdict_text(compared) == verdict


def test_sentence_tells_bits_per_byte_of_other_methods():
    fixed, seesaw = [2.001, 2.003, 2.002], [2.031, 2.033, 2.032]
    late, other = ([value + 0.004 for value in fixed] for _ in range(2))
    outcome = OUTCOMES["bits_per_byte"]
    config = study_arms()["adaptive"]

    def told(name, values):
        arms = (
            dataclasses.replace(arm_result("adaptive", of), name=named, config=config)
            for named, of in ((name, values), ("fixed_small", fixed))
        )
        return sentence(compare(*arms, outcome.margin, outcome))

    text = told("seesaw", seesaw)
    assert text.startswith("Seesaw fails here: seesaw needs as many updates as fixed_small")
    low, high = stats.ttest_ind(seesaw, fixed, equal_var=False).confidence_interval(0.95)
    assert "but its bits per byte of the test text are 0.030 higher" in text
    assert f"(95 % interval {low:+.3f} to {high:+.3f}), more than the 0.01 bits per byte" in text
    assert told("late_switch", late).startswith("The late switch works here: ")
    assert told("other", other).startswith("other works here: ")


def test_sentence_counts_updates_and_seconds():
    fixed = arm_result("fixed_small", BASELINE, paces=[30.0, 31.0, 33.0])
    adaptive = arm_result("adaptive", [8.1, 8.3, 8.2], paces=[15.0, 15.0, 15.0])
    text = sentence(compare(adaptive, fixed, 1.0, OUTCOMES["error"]))
    updates = [arm.plan.num_steps for arm in (fixed, adaptive)]
    assert f"needs {updates[0] / updates[1]:.2f} times fewer updates than fixed_small" in text
    assert f"({updates[1]} instead of {updates[0]})" in text
    ratios = np.array([30, 31, 33]) / 15
    reach = 4.3027 * ratios.std(ddof=1) / np.sqrt(3)
    low, high = ratios.mean() - reach, ratios.mean() + reach
    assert (
        f"trains {ratios.mean():.2f} times as fast (95 % interval {low:.2f} to {high:.2f})" in text
    )


def test_time_that_is_not_saved_is_said():
    fixed = arm_result("fixed_small", BASELINE, paces=[10.0, 11.0, 12.0])
    adaptive = arm_result("adaptive", BASELINE[::-1], paces=[11.0, 11.0, 11.0])
    text = sentence(compare(adaptive, fixed, 1.0, OUTCOMES["error"]))
    assert re.search(r"trains 1\.00 times as fast \(.*: no clear difference\)", text)


def test_divergence_is_a_failure_whatever_the_others_reached():
    fixed = arm_result("fixed_small", BASELINE)
    compared = compare(
        arm_result("adaptive", [8.1, 8.2], num_diverged=1), fixed, 1.0, OUTCOMES["error"]
    )
    assert sentence(compared).startswith("AdaBatch fails here: 1 of 3 runs of adaptive diverged. ")
    assert "equivalent" not in sentence(compared)
    assert verdict_text(compared) == "1 of 3 diverged"
    nothing = compare(arm_result("adaptive", [], num_diverged=3), fixed, 1.0, OUTCOMES["error"])
    assert sentence(nothing).startswith("AdaBatch fails here: 3 of 3 runs of adaptive diverged")


def test_divergence_of_the_baseline_is_told():
    fixed = arm_result("fixed_small", BASELINE, num_diverged=2)
    text = sentence(compare(arm_result("adaptive", BASELINE), fixed, 1.0, OUTCOMES["error"]))
    assert text.endswith("The runs of fixed_small that diverged, 2 of 5, are left out.")


@pytest.mark.parametrize(
    "errors, baseline, contains",
    [
        ([8.0], [9.0], "one run proves nothing (n = 1 and 1)"),
        ([8.0, 8.0], [9.0, 9.0], "no run differs from the others of its arm (n = 2 and 2)"),
    ],
)
def test_nothing_is_claimed_without_an_interval(errors, baseline, contains):
    compared = compare(
        arm_result("adaptive", errors), arm_result("fixed_small", baseline), 1.0, OUTCOMES["error"]
    )
    text = sentence(compared)
    assert text.startswith("Nothing is shown here: ") and contains in text
    assert "1.00 points lower" in text and "points lower (95" not in text
    assert verdict_text(compared) == "not shown"


def test_nothing_is_said_before_runs_are_finished():
    fixed = arm_result("fixed_small", BASELINE)
    text = sentence(
        compare(arm_result("adaptive", [], num_unfinished=3), fixed, 1.0, OUTCOMES["error"])
    )
    assert text == "Nothing can be said yet: of adaptive no runs, of fixed_small 3 runs finished."
