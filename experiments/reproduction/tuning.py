"""The same small search for every arm's learning rate, on examples held out from training."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adabatch_jax.config import TrainConfig
from adabatch_jax.system.errors import UsageError
from experiments.reproduction.adjustments import with_lr_scale
from experiments.reproduction.jobs import Job, scale_text, tuning_jobs
from experiments.reproduction.studies import Study


def check_search(scales: Sequence[float], holdout_percent: int) -> None:
    """Raises a UsageError unless a search over these scales can work."""
    if holdout_percent == 0:
        raise UsageError(
            "--tune-lr: the rate is chosen on examples held out from training; give a "
            "--holdout-percent above 0."
        )
    if len(set(scales)) < 2 or not all(0 < scale < math.inf for scale in scales):
        raise UsageError(
            "--lr-scales: give two or more different numbers above 0, such as 0.5 1 2; got "
            f"{' '.join(map(scale_text, scales)) or 'none'}."
        )


def search_jobs(study: Study, scales: Sequence[float], out: Path) -> list[list[Job]]:
    """For each arm that wasn't tuned yet, a run for each scale, in increasing order."""
    return [
        tuning_jobs(
            study,
            experiment,
            arm,
            [(scale, with_lr_scale(config, scale)) for scale in sorted(set(scales))],
            out,
        )
        for experiment, arm, config in study.items()
        if arm not in study.tuning.get(experiment, {})
    ]


def tuned(study: Study, jobs: Sequence[Job], scales: Sequence[float]) -> Study:
    """Returns the study with one arm's learning rate multiplied by the best scale.

    Args:
      study: with the arm's own rate.
      jobs: the finished runs of the arm's search, one for each scale.
      scales: what was tried.
    """
    found = {
        scale_text(scale): holdout_outcome(job)
        for scale, job in zip(sorted(set(scales)), jobs, strict=True)
    }
    best = best_scale(found)
    experiment, arm = jobs[0].experiment, jobs[0].arm
    finding = {"lr_scale": best, "candidates": found}
    study = study.with_finding("tuning", experiment, arm, finding)
    return with_scales(study, {(experiment, arm): best})


def with_scales(study: Study, scales: dict[tuple[str, str], float]) -> Study:
    """Multiplies the learning rates of the arms (experiment, arm) that have a scale."""

    def scaled(experiment: str, arm: str, config: TrainConfig) -> TrainConfig:
        return with_lr_scale(config, scales.get((experiment, arm), 1))

    return study.with_configs(scaled)


def holdout_outcome(job: Job) -> float | None:
    """The outcome on the held-out examples at the end of a run; None if it diverged."""
    return None if job.failure is not None else job.outcome.of(job.summary, "holdout")


def best_scale(found: dict[str, float | None]) -> float:
    """The scale with the lowest outcome, the smallest of equals; one that diverged is the worst.

    >>> best_scale({"0.5": 3.0, "1": 2.5, "2": 2.5, "4": None})
    1.0
    """

    def rank(scale: str) -> tuple[float, float]:
        outcome = found[scale]
        return (math.inf if outcome is None else outcome), float(scale)

    return float(min(found, key=rank))


def edge_note(study: Study) -> str | None:
    """Says which arms chose the largest or smallest scale, so that the search may be too narrow."""
    edges = [
        f"{experiment}/{arm} x{scale_text(found['lr_scale'])}"
        for experiment, findings in study.tuning.items()
        for arm, found in findings.items()
        if _is_edge(found)
    ]
    if not edges:
        return None
    return (
        f"note: the best learning rate lies at the edge of the search for {', '.join(edges)}; "
        "a wider one (--lr-scales, another --out) may find a better."
    )


def _is_edge(found: dict[str, Any]) -> bool:
    tried = sorted(map(float, found["candidates"]))
    return found["lr_scale"] in (tried[0], tried[-1])
