"""The figures of a study's pages as JSON values, unrounded."""

import dataclasses
from typing import Any

from experiments.reproduction import provenance, tables
from experiments.reproduction.comparisons import Comparison, sentence
from experiments.reproduction.measures import epoch_seconds, speedups
from experiments.reproduction.results import (
    ArmResult,
    ExperimentResult,
    SeedResult,
    StudyResult,
)
from experiments.reproduction.statistics import estimate


def study_numbers(study: StudyResult) -> dict[str, Any]:
    """Everything that the pages print, and the runs that it comes from."""
    fields = ("section", "title", "dataset", "holdout_percent", "margin_percent", "command")
    return {
        **{name: getattr(study, name) for name in fields},
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
    compared = tables.comparisons(experiment, study.margin_percent)
    return {
        "sentences": [sentence(c) for c in compared if tables.is_adaptive(c.arm)],
        "arms": {arm.name: _arm(arm) for arm in experiment.arms},
        "differences": {c.arm.name: _comparison(c) for c in compared},
        "tuning": dict(experiment.tuning),
        "passes": dict(experiment.passes),
    }


def _arm(arm: ArmResult) -> dict[str, Any]:
    best = [run.best for run in arm.finished if run.best is not None]
    return {
        "config": arm.config.to_dict(),
        "updates": arm.updates,
        "examples": arm.examples,
        "test_error_percent": dataclasses.asdict(estimate(arm.test_errors)),
        "best_epoch_test_error_percent": dataclasses.asdict(estimate([b.test_error for b in best])),
        "training_seconds": dataclasses.asdict(estimate(arm.seconds("step", "input"))),
        "training_seconds_per_epoch": {
            str(size): dataclasses.asdict(estimate(seconds))
            for size, seconds in epoch_seconds(arm).items()
        },
        "runs": [_run(run) for run in arm.seeds],
    }


def _run(run: SeedResult) -> dict[str, Any]:
    best = run.best
    return {
        "seed": run.seed,
        "state": run.state,
        "message": run.message,
        "test_error_percent": run.test_error,
        "best_epoch": None if best is None else dataclasses.asdict(best),
        "seconds": dict(run.seconds),
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "test_error_points": dataclasses.asdict(comparison.error),
        "equivalence": dataclasses.asdict(comparison.equivalence),
        "speedup": dataclasses.asdict(comparison.speedup),
        "speedup_of_whole_runs": dataclasses.asdict(
            estimate(speedups(comparison.arm, comparison.reference, ("total",)))
        ),
        "times_fewer_updates": comparison.update_ratio,
    }
