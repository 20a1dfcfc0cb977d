"""An arm compared with the baseline, and what that says in one plain sentence."""

import dataclasses

from adabatch_jax.system.number_texts import count_text
from experiments.reproduction.measures import speedups
from experiments.reproduction.outcomes import Outcome
from experiments.reproduction.results import ArmResult
from experiments.reproduction.statistics import (
    EQUIVALENT,
    Difference,
    Equivalence,
    Estimate,
    difference,
    equivalence,
    estimate,
)
from experiments.reproduction.texts import p_text, signed_interval_text


@dataclasses.dataclass(frozen=True)
class Comparison:
    """An arm and the reference.

    Attributes:
      arm: the arm.
      reference: what it is compared with.
      outcome: what they are compared by.
      difference: the arm's final outcome minus the reference's.
      equivalence: whether that is within the margin.
      speedup: how many times as fast it trained, over the seeds.
      update_ratio: how many times fewer updates it made; None while unknown.
    """

    arm: ArmResult
    reference: ArmResult
    outcome: Outcome
    difference: Difference
    equivalence: Equivalence
    speedup: Estimate
    update_ratio: float | None


def compare(arm: ArmResult, reference: ArmResult, margin: float, outcome: Outcome) -> Comparison:
    """Compares the finished runs of two arms; `margin` is in the unit of a difference."""
    outcomes = arm.outcomes, reference.outcomes
    updates = arm.updates, reference.updates
    return Comparison(
        arm=arm,
        reference=reference,
        outcome=outcome,
        difference=difference(*outcomes),
        equivalence=equivalence(*outcomes, margin),
        speedup=estimate(speedups(arm, reference)),
        update_ratio=None if None in updates else reference.updates / arm.updates,
    )


METHODS = {"adaptive": "AdaBatch", "seesaw": "Seesaw", "late_switch": "The late switch"}
"""What arms are called by whose names begin so: those that a page says first how they did."""


def method(arm: ArmResult) -> str | None:
    """The method that a page begins with whose arm this is; None of the others."""
    return next((name for begin, name in METHODS.items() if arm.name.startswith(begin)), None)


def sentence(comparison: Comparison) -> str:
    """Says whether growing the batch worked, and by how much; a failure as plainly as a success."""
    arm, reference = comparison.arm, comparison.reference
    name = method(arm) or arm.name
    failed = f"{len(arm.diverged)} of {len(arm.seeds)} runs of {arm.name} diverged"
    if not arm.finished or not reference.finished:
        if arm.diverged:
            return f"{name} fails here: {failed}, and there is nothing to compare."
        return (
            f"Nothing can be said yet: of {arm.name} {_runs(arm)}, of {reference.name} "
            f"{_runs(reference)} finished."
        )
    if arm.diverged:
        return f"{name} fails here: {failed}. Of the others, {_figures(comparison)}."
    verdict, but, reason = _verdict(comparison)
    text = f"{verdict}: {_figures(comparison, but)}, {reason}."
    if reference.diverged:
        text += (
            f" The runs of {reference.name} that diverged, {len(reference.diverged)} of "
            f"{len(reference.seeds)}, are left out."
        )
    return text


def _verdict(comparison: Comparison) -> tuple[str, bool, str]:
    """What to say first, whether the error is a "but", and the reason."""
    error, tested = comparison.difference, comparison.equivalence
    name = method(comparison.arm) or comparison.arm.name
    margin, p = comparison.outcome.difference_text(tested.margin), _equation(tested.p)
    sizes = f"n = {error.n} and {error.reference_n}"
    if error.interval is None:
        few = min(error.n, error.reference_n) < 2
        why = "one run proves nothing" if few else "no run differs from the others of its arm"
        return "Nothing is shown here", False, f"of which no interval can be given: {why} ({sizes})"
    if tested.verdict == EQUIVALENT:
        return f"{name} works here", False, f"equivalent within {margin} (TOST {p}; {sizes})"
    if error.interval[1] < 0:
        reason = f"a significant gain (Welch {_equation(error.p)}; {sizes})"
        return f"{name} works here, and better", False, reason
    if tested.interval[0] > tested.margin:
        reason = f"more than the {margin} that would count as equal ({sizes})"
        return f"{name} fails here", True, reason
    if error.interval[0] > 0:
        reason = (
            f"a significant loss (Welch {_equation(error.p)}), and not shown to be below {margin} "
            f"(TOST {p}; {sizes})"
        )
        return f"{name} does worse here", True, reason
    reason = f"which shows neither a difference nor equivalence within {margin} (TOST {p}; {sizes})"
    return "Nothing is shown here", False, reason


def _figures(comparison: Comparison, but: bool = False) -> str:
    arm, reference = comparison.arm, comparison.reference
    ratio, updates = comparison.update_ratio, f"{count_text(arm.updates)} updates"
    if ratio == 1:
        updates = f"as many updates as {reference.name} ({count_text(arm.updates)})"
    else:
        way = f"{ratio:.2f} times fewer" if ratio > 1 else f"{1 / ratio:.2f} times more"
        counts = f"{count_text(arm.updates)} instead of {count_text(reference.updates)}"
        updates = f"{way} updates than {reference.name} ({counts})"
    outcome, error = comparison.outcome, comparison.difference
    height = "higher" if error.mean >= 0 else "lower"
    told = signed_interval_text(error.interval, outcome.decimals)
    interval = f" (95 % interval {told})" if error.interval else ""
    return (
        f"{arm.name} needs {updates}{_speed(comparison.speedup)}{', but' if but else ';'} its "
        f"{outcome.told.format(abs(error.mean), height)}{interval}"
    )


def _speed(speedup: Estimate) -> str:
    if speedup.mean is None:
        return ""
    text = f" and trains {speedup.mean:.2f} times as fast"
    if speedup.interval is None:
        return text
    low, high = speedup.interval
    unclear = ": no clear difference" if low <= 1 <= high else ""
    return f"{text} (95 % interval {low:.2f} to {high:.2f}{unclear})"


def _runs(arm: ArmResult) -> str:
    count = len(arm.finished)
    return f"{count or 'no'} run{'' if count == 1 else 's'}"


def _equation(p: float) -> str:
    text = p_text(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"
