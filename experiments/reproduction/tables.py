"""The tables of a study's pages, as texts."""

from collections.abc import Mapping, Sequence
from typing import Any

from adabatch_jax.reporting.quoted_figures import UNKNOWN
from adabatch_jax.system.number_texts import count_text
from experiments.reproduction.comparisons import Comparison, compare, method
from experiments.reproduction.document import Table
from experiments.reproduction.measures import epoch_seconds, speedups
from experiments.reproduction.outcomes import Outcome
from experiments.reproduction.results import REFERENCE, ArmResult, ExperimentResult, StudyResult
from experiments.reproduction.statistics import DIFFERENT, Estimate, estimate
from experiments.reproduction.texts import (
    batch_text,
    estimate_text,
    interval_text,
    n_text,
    num_decimals,
    p_text,
    seconds_text,
    signed_interval_text,
    sizes_text,
)

_SPENT = {
    "training": ("step", "input"),
    "of it input": ("input",),
    "evaluation": ("evaluation",),
    "compilation": ("compile",),
    "checkpoints": ("checkpoint",),
    "in all": ("total",),
}


def main_table(experiment: ExperimentResult) -> Table:
    """What every arm reached, and what it cost."""
    rows, outcome = [], experiment.outcome
    for arm in experiment.arms:
        error = estimate(arm.outcomes)
        rows.append(
            (
                arm.name,
                batch_text(arm),
                estimate_text(error, outcome.decimals),
                interval_text(error, outcome.decimals),
                n_text(arm),
                UNKNOWN if arm.updates is None else count_text(arm.updates),
                seconds_text(estimate(arm.seconds("step", "input"))),
                estimate_text(_speedup(arm, experiment)),
            )
        )
    header = (
        "arm", "batch", f"test {outcome.heading}", "95 % interval", "n", "updates", "training (s)",
        "speed-up",
    )  # fmt: skip
    return Table(header, tuple(rows), text_columns=(0, 1))


def summary_table(study: StudyResult) -> Table:
    """The adaptive arms of all experiments against their baselines."""
    rows, unit, decimals = [], study.outcome.unit or study.outcome.name, study.outcome.decimals
    for experiment in study.experiments:
        for comparison in comparisons(experiment, study.margin):
            arm = comparison.arm
            if method(arm) is None:
                continue
            rows.append(
                (
                    arm.config.model,
                    arm.name,
                    estimate_text(estimate(comparison.reference.outcomes), decimals),
                    estimate_text(estimate(arm.outcomes), decimals),
                    signed_interval_text(comparison.difference.interval, decimals),
                    verdict_text(comparison),
                    _times(comparison.update_ratio),
                    estimate_text(comparison.speedup),
                )
            )
    header = (
        "network", "arm", f"{REFERENCE} ({unit})", f"arm ({unit})", "difference, 95 % interval", "verdict",
        "fewer updates", "speed-up",
    )  # fmt: skip
    return Table(header, tuple(rows), text_columns=(0, 1, 5))


def difference_table(experiment: ExperimentResult, margin: float) -> Table:
    """The final outcomes of all arms minus the baseline's."""
    outcome = experiment.outcome
    rows = [
        (
            comparison.arm.name,
            _signed(comparison),
            signed_interval_text(comparison.difference.interval, outcome.decimals),
            p_text(comparison.difference.p),
            signed_interval_text(comparison.equivalence.interval, outcome.decimals),
            p_text(comparison.equivalence.p),
            verdict_text(comparison),
        )
        for comparison in comparisons(experiment, margin)
    ]
    header = (
        "arm", f"difference ({outcome.difference_unit}s)" if outcome.unit else "difference", "95 % interval", "Welch p", "90 % interval", "TOST p",
        "verdict",
    )  # fmt: skip
    return Table(header, tuple(rows), text_columns=(0, 6))


def best_epoch_table(experiment: ExperimentResult) -> Table | None:
    """The outcomes at the epoch that the holdout chose; None where nothing was held out."""
    rows, outcome = [], experiment.outcome
    for arm in experiment.arms:
        best = [run.best for run in arm.finished if run.best is not None]
        if not best:
            continue
        error, epochs = estimate([b.test for b in best]), [b.epoch for b in best]
        rows.append(
            (
                arm.name,
                estimate_text(error, outcome.decimals),
                interval_text(error, outcome.decimals),
                str(error.n),
                _range_text(epochs),
                estimate_text(estimate(arm.outcomes), outcome.decimals),
            )
        )
    header = (
        "arm", f"test {outcome.heading}", "95 % interval", "n", "chosen epochs", "at the end",
    )  # fmt: skip
    return Table(header, tuple(rows)) if rows else None


def passes_table(experiment: ExperimentResult) -> Table | None:
    """Forward and backward time of whole runs, as the paper's Table 1 has it."""
    seconds = {
        arm.name: [_pass_seconds(experiment.passes[arm.name], kind) for kind in _PASSES]
        for arm in experiment.arms
        if arm.name in experiment.passes
    }
    if not seconds:
        return None
    baseline = seconds.get(REFERENCE)
    rows = []
    for arm in experiment.arms:
        if arm.name in seconds:
            cells = (
                _with_ratio(spent, None if baseline is None else baseline[number])
                for number, spent in enumerate(seconds[arm.name])
            )
            sizes = [phase["batch_size"] for phase in experiment.passes[arm.name]]
            rows.append((arm.config.model, sizes_text(sizes), *cells, arm.name))
    header = ("network", "batch", "forward (s)", "backward (s)", "arm")
    return Table(header, tuple(rows), text_columns=(0, 1, 4))


def epoch_time_table(experiment: ExperimentResult) -> Table | None:
    """Training seconds per epoch at every batch size of every arm; None while unknown."""
    reference = experiment.reference
    of_reference = [] if reference is None else list(epoch_seconds(reference).values())
    baseline = estimate(of_reference[0]).mean if of_reference else None
    rows = []
    for arm in experiment.arms:
        for batch_size, seconds in epoch_seconds(arm).items():
            measured = estimate(seconds)
            ratio = None if baseline is None else baseline / measured.mean
            rows.append(
                (
                    arm.name,
                    count_text(batch_size),
                    seconds_text(measured),
                    "-" if ratio is None else f"{ratio:.2f}",
                )
            )
    header = ("arm", "batch", "seconds per epoch", "speed-up")
    return Table(header, tuple(rows)) if rows else None


def time_table(experiment: ExperimentResult) -> Table | None:
    """Where the seconds of whole runs went; None while no run is finished."""
    length = experiment.sequence_length
    rows = [
        (
            arm.name,
            count_text(arm.examples * (length or 1)),
            *(seconds_text(estimate(arm.seconds(*kinds))) for kinds in _SPENT.values()),
            estimate_text(_speedup(arm, experiment, ("total",))),
        )
        for arm in experiment.arms
        if arm.finished
    ]
    read = "examples" if length is None else "tokens"
    return Table(("arm", read, *_SPENT, "speed-up"), tuple(rows)) if rows else None


def tuning_table(experiment: ExperimentResult) -> Table | None:
    """Outcomes on the holdout of the tried learning rates; None where none were tried."""
    if not experiment.tuning:
        return None
    scales = {scale for found in experiment.tuning.values() for scale in found["candidates"]}
    ordered = sorted(scales, key=float)
    rows = tuple(
        (
            arm,
            _chosen_text(found),
            *(_candidate_text(found["candidates"], scale, experiment.outcome) for scale in ordered),
        )
        for arm, found in experiment.tuning.items()
    )
    return Table(("arm", "chosen", *(f"x{scale}" for scale in ordered)), rows)


def comparisons(experiment: ExperimentResult, margin: float) -> list[Comparison]:
    """All other arms against the baseline; none where it isn't part of the study."""
    reference = experiment.reference
    if reference is None:
        return []
    return [
        compare(arm, reference, margin, experiment.outcome)
        for arm in experiment.arms
        if arm.name != reference.name
    ]


def verdict_text(comparison: Comparison) -> str:
    """The verdict of the equivalence test, with the runs that diverged."""
    arm, verdict = comparison.arm, comparison.equivalence.verdict
    if arm.diverged:
        return f"{len(arm.diverged)} of {len(arm.seeds)} diverged"
    if verdict == DIFFERENT:
        return f"different: {'higher' if comparison.difference.mean > 0 else 'lower'}"
    within = f" within {comparison.outcome.difference_text(comparison.equivalence.margin)}"
    return f"{verdict}{within}" if comparison.equivalence.p is not None else verdict


_PASSES = ("forward_seconds", "backward_seconds")


def _pass_seconds(phases: Sequence[Mapping[str, Any]], kind: str) -> float:
    return sum(phase["updates"] * phase[kind] for phase in phases)


def _with_ratio(seconds: float, baseline: float | None) -> str:
    ratio = "" if baseline is None else f" ({baseline / seconds:.2f}x)"
    return f"{seconds:,.{max(2, num_decimals(seconds))}f}{ratio}"


def _speedup(
    arm: ArmResult, experiment: ExperimentResult, kinds: Sequence[str] = ("step", "input")
) -> Estimate:
    reference = experiment.reference
    if reference is None or arm.name == REFERENCE:
        return estimate([1.0] if reference is not None and arm.finished else [])
    return estimate(speedups(arm, reference, kinds))


def _times(ratio: float | None) -> str:
    return UNKNOWN if ratio is None else f"{ratio:.2f}x"


def _range_text(epochs: Sequence[float]) -> str:
    low, high = f"{min(epochs):.3g}", f"{max(epochs):.3g}"
    return low if low == high else f"{low} to {high}"


def _chosen_text(found: Mapping[str, Any]) -> str:
    """The chosen scale, and whether a wider search might have found a better one."""
    tried = list(map(float, found["candidates"]))
    is_edge = found["lr_scale"] in (min(tried), max(tried))
    return f"x{found['lr_scale']:g}{' (edge of the search)' if is_edge else ''}"


def _candidate_text(candidates: Mapping[str, float | None], scale: str, outcome: Outcome) -> str:
    found = candidates.get(scale)
    return UNKNOWN if found is None else f"{found:.{outcome.decimals}f}"


def _signed(comparison: Comparison) -> str:
    mean = comparison.difference.mean
    return UNKNOWN if mean is None else f"{mean:+.{comparison.outcome.decimals}f}"
