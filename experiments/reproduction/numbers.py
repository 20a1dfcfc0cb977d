"""The figures of a study's pages as JSON values, unrounded."""

import dataclasses
from typing import Any

from experiments.reproduction import provenance, tables
from experiments.reproduction.comparisons import Comparison, method, sentence
from experiments.reproduction.measures import epoch_seconds, speedups
from experiments.reproduction.outcomes import Outcome
from experiments.reproduction.results import (
    ArmResult,
    ExperimentResult,
    SeedResult,
    StudyResult,
)
from experiments.reproduction.statistics import estimate


def study_numbers(study: StudyResult) -> dict[str, Any]:
    """Everything that the pages print, and the runs that it comes from."""
    fields = ("section", "title", "dataset", "holdout_percent", "margin", "command")
    return {
        **{name: getattr(study, name) for name in fields},
        "outcome": study.outcome.key,
        "seeds": list(study.seeds),
        "notes": list(study.notes),
        "environments": [
            {**dataclasses.asdict(machine), "runs": runs}
            for machine, runs in provenance.machines(study).items()
        ],
        "experiments": {
            experiment.name: _experiment(study, experiment) for experiment in study.experiments
        },
    }


def _experiment(study: StudyResult, experiment: ExperimentResult) -> dict[str, Any]:
    compared = tables.comparisons(experiment, study.margin)
    return {
        "sentences": [sentence(c) for c in compared if method(c.arm) is not None],
        "arms": {arm.name: _arm(arm, experiment.outcome) for arm in experiment.arms},
        "differences": {c.arm.name: _comparison(c) for c in compared},
        "tuning": dict(experiment.tuning),
        "passes": dict(experiment.passes),
    }


def _arm(arm: ArmResult, outcome: Outcome) -> dict[str, Any]:
    best = [run.best for run in arm.finished if run.best is not None]
    return {
        "config": arm.config.to_dict(),
        "updates": arm.updates,
        "examples": arm.examples,
        f"test_{outcome.key}": dataclasses.asdict(estimate(arm.outcomes)),
        f"best_epoch_test_{outcome.key}": dataclasses.asdict(estimate([b.test for b in best])),
        "training_seconds": dataclasses.asdict(estimate(arm.seconds("step", "input"))),
        "training_seconds_per_epoch": {
            str(size): dataclasses.asdict(estimate(seconds))
            for size, seconds in epoch_seconds(arm).items()
        },
        "runs": [_run(run, outcome) for run in arm.seeds],
    }


def _run(run: SeedResult, outcome: Outcome) -> dict[str, Any]:
    best = run.best
    return {
        "seed": run.seed,
        "state": run.state,
        "message": run.message,
        f"test_{outcome.key}": run.test,
        "best_epoch": None if best is None else dataclasses.asdict(best),
        "seconds": dict(run.seconds),
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "difference": dataclasses.asdict(comparison.difference),
        "equivalence": dataclasses.asdict(comparison.equivalence),
        "speedup": dataclasses.asdict(comparison.speedup),
        "speedup_of_whole_runs": dataclasses.asdict(
            estimate(speedups(comparison.arm, comparison.reference, ("total",)))
        ),
        "times_fewer_updates": comparison.update_ratio,
    }
