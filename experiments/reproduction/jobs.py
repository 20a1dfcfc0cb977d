"""The runs that a study consists of, one folder each."""

import dataclasses
import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from adabatch_jax.config import DataSettings, TrainConfig
from adabatch_jax.reporting.saved_run import read_json
from adabatch_jax.runs.folder.finished_run import read_summary
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.schedules.text_reader import decimal_text, exact
from adabatch_jax.system.errors import NotAsWritten, StorageError, UsageError
from adabatch_jax.system.files import write_atomically
from experiments.reproduction.outcomes import OUTCOMES, Outcome
from experiments.reproduction.studies import TUNING_SEED, Study


@dataclasses.dataclass(frozen=True)
class Job:
    """A run of one arm with one seed.

    Attributes:
      experiment: the arm's experiment.
      arm: the arm.
      detail: what tells it from the arm's other runs, as "seed 2".
      config: the run's settings.
      folder: the run's folder.
      plan: what it will do.
      outcome: what it is compared by.
      kind: "run", or "tuning run" of the search for a learning rate.
    """

    experiment: str
    arm: str
    detail: str
    config: TrainConfig
    folder: Path
    plan: BatchPlan
    outcome: Outcome
    kind: str = "run"

    @property
    def failure(self) -> str | None:
        """Why it diverged; None if it didn't (yet)."""
        return failure_message(self.folder)

    @property
    def summary(self) -> dict[str, Any] | None:
        """The figures of a finished run; None for any other, and where they are damaged."""
        try:
            return read_summary(self.folder)
        except NotAsWritten:
            return None

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to run."""
        return self.failure is not None or self.summary is not None

    def fail(self, message: str) -> None:
        """Records that it diverged, which is a result too."""
        content = json.dumps({"kind": "diverged", "message": message}, indent=2)
        write_atomically(self.folder / "failure.json", content.encode() + b"\n")


def study_jobs(study: Study, out: Path) -> list[Job]:
    """All runs of a study: each seed's arms one after the other, so that drift hits all alike."""
    return [
        _job(
            experiment,
            arm,
            f"seed {seed}",
            dataclasses.replace(config, seed=seed),
            out / "runs" / experiment / arm / f"seed{seed}",
            OUTCOMES[study.outcome],
        )
        for seed in study.seeds
        for experiment, arm, config in study.items()
    ]


def tuning_jobs(
    study: Study,
    experiment: str,
    arm: str,
    configs: Iterable[tuple[float, TrainConfig]],
    out: Path,
) -> list[Job]:
    """The runs of the search for one arm's learning rate, from (scale, configuration)."""
    return [
        _job(
            experiment,
            arm,
            f"lr x{scale_text(scale)}",
            dataclasses.replace(config, seed=TUNING_SEED),
            out / "tuning" / experiment / arm / f"lr_x{scale_text(scale)}",
            OUTCOMES[study.outcome],
            "tuning run",
        )
        for scale, config in configs
    ]


def scale_text(scale: float) -> str:
    """A scale as it is written in files.

    >>> scale_text(0.5), scale_text(2.0)
    ('0.5', '2')
    """
    return decimal_text(exact(scale, "scale"))


def labels(jobs: Sequence[Job]) -> dict[Path, str]:
    """By folder, an aligned name for the display; without the experiment where there is one."""
    has_several = len({job.experiment for job in jobs}) > 1
    names = [f"{job.experiment}/{job.arm}" if has_several else job.arm for job in jobs]
    width = max(map(len, names), default=0)
    detail = max((len(job.detail) for job in jobs), default=0)
    return {
        job.folder: f"{name:<{width}}  {job.detail:<{detail}}"
        for job, name in zip(jobs, names, strict=True)
    }


def _job(
    experiment: str,
    arm: str,
    detail: str,
    config: TrainConfig,
    folder: Path,
    outcome: Outcome,
    kind: str = "run",
) -> Job:
    num_examples = _num_examples(config.dataset, config.data)
    try:
        plan = config.plan(num_examples)
    except UsageError as error:
        raise UsageError(f"{experiment}/{arm}: {error}") from None
    return Job(experiment, arm, detail, config, folder, plan, outcome, kind)


@functools.lru_cache
def _num_examples(dataset: str, data: DataSettings) -> int:
    from adabatch_jax.runs.configured_data import open_data

    return len(open_data(TrainConfig(dataset=dataset, data=data)).train)


def failure_message(folder: Path) -> str | None:
    """Why the run in a folder diverged; None if it didn't (yet).

    Raises:
      StorageError: what was written of it is damaged.
    """
    path = folder / "failure.json"
    if not path.exists():
        return None
    message = read_json(path).get("message")
    if not isinstance(message, str):
        raise StorageError(f"{path} is damaged: it names no reason; remove it to run this again.")
    return message
