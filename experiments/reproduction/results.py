"""What the runs of a study measured, read from its folder into frozen figures."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adabatch_jax.config import TrainConfig
from adabatch_jax.reporting.saved_run import REQUIRED, Run, load_run, read_json
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.system.errors import StorageError, UsageError
from experiments.reproduction.jobs import failure_message
from experiments.reproduction.outcomes import OUTCOMES, Outcome
from experiments.reproduction.studies import check_names

REFERENCE = "fixed_small"
FINISHED, DIVERGED, UNFINISHED = "finished", "diverged", "unfinished"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A measurement in the middle of a run.

    Attributes:
      step: the updates before it.
      epoch: the epochs before it.
      training_seconds: spent in updates and their input before it; None if not measured.
      tokens: trained on before it; None of what has none.
      test: the study's outcome on the test set.
      holdout: that on the held-out part of the training set; None without one.
    """

    step: int
    epoch: float
    training_seconds: float | None
    tokens: int | None
    test: float
    holdout: float | None


@dataclasses.dataclass(frozen=True)
class SeedResult:
    """One run.

    Attributes:
      seed: its seed.
      state: "finished", "diverged" or "unfinished" (perhaps not begun).
      message: why it diverged.
      evaluations: in order, as far as it came.
      test: the outcome on the test set at the end; None unless finished, as the next three.
      updates: how many it made.
      examples: how many examples it trained on.
      seconds: by what they went to: step, input, compile, evaluation, checkpoint, total.
      environment: what it was made with; empty where unknown.
    """

    seed: int
    state: str
    message: str | None = None
    evaluations: tuple[Evaluation, ...] = ()
    test: float | None = None
    updates: int | None = None
    examples: int | None = None
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def training_seconds(self) -> float | None:
        """Seconds in updates and in waiting for their input; None unless finished."""
        if not self.seconds:
            return None
        return self.seconds["step"] + self.seconds["input"]

    @property
    def best(self) -> Evaluation | None:
        """The evaluation with the lowest outcome on the holdout, the earliest of equals.

        The test set has no say in the choice. None unless finished, and without a holdout.
        """
        if self.state != FINISHED:
            return None
        measured = [e for e in self.evaluations if e.holdout is not None]
        return min(measured, key=lambda e: e.holdout, default=None)


@dataclasses.dataclass(frozen=True)
class ArmResult:
    """All runs of one arm.

    Attributes:
      name: the arm.
      config: its settings, with seed 0.
      plan: its batch plan; None while no run has begun.
      seeds: a result for each seed of the study.
    """

    name: str
    config: TrainConfig
    plan: BatchPlan | None
    seeds: tuple[SeedResult, ...]

    @property
    def finished(self) -> tuple[SeedResult, ...]:
        return tuple(result for result in self.seeds if result.state == FINISHED)

    @property
    def diverged(self) -> tuple[SeedResult, ...]:
        return tuple(result for result in self.seeds if result.state == DIVERGED)

    @property
    def outcomes(self) -> list[float]:
        """The final outcomes of the finished runs on the test set."""
        return [result.test for result in self.finished]

    @property
    def updates(self) -> int | None:
        """The updates of a finished run; they don't depend on the seed."""
        return self.finished[0].updates if self.finished else None

    @property
    def examples(self) -> int | None:
        """The examples of a finished run; they don't depend on the seed."""
        return self.finished[0].examples if self.finished else None

    def seconds(self, *names: str) -> list[float]:
        """The seconds that went to all of `names` in each finished run."""
        return [sum(result.seconds[name] for name in names) for result in self.finished]


@dataclasses.dataclass(frozen=True)
class ExperimentResult:
    """The arms of one network on one dataset.

    Attributes:
      name: the experiment.
      arms: in the order of display.
      outcome: what the arms are compared by.
      tuning: for each tuned arm, "lr_scale" and "candidates" (outcome on the holdout by scale).
      passes: for each arm, its phases' "batch_size", "updates", "forward_seconds" and
        "backward_seconds" (per update).
    """

    name: str
    arms: tuple[ArmResult, ...]
    outcome: Outcome
    tuning: Mapping[str, Mapping[str, Any]]
    passes: Mapping[str, Sequence[Mapping[str, Any]]]

    @property
    def sequence_length(self) -> int | None:
        """Tokens of an example of a text; None of images."""
        return self.arms[0].config.sequence_length

    @property
    def reference(self) -> ArmResult | None:
        """The arm that the others are compared with."""
        return next((arm for arm in self.arms if arm.name == REFERENCE), None)


@dataclasses.dataclass(frozen=True)
class StudyResult:
    """A study as far as it has come.

    Attributes:
      section: the paper's section, as the runner calls it.
      title: of the page.
      dataset: what was trained on.
      seeds: of the runs.
      holdout_percent: the part of the training set that is held out.
      margin: the margin of equivalence, in the unit of the outcome's differences.
      command: what was typed.
      notes: sentences that a reader must know.
      experiments: in the order of display.
    """

    section: str
    title: str
    dataset: str
    seeds: tuple[int, ...]
    holdout_percent: float
    margin: float
    command: str
    notes: tuple[str, ...]
    experiments: tuple[ExperimentResult, ...]

    @property
    def outcome(self) -> Outcome:
        """What the arms are compared by, in all experiments."""
        return self.experiments[0].outcome

    @property
    def runs(self) -> tuple[SeedResult, ...]:
        return tuple(run for e in self.experiments for arm in e.arms for run in arm.seeds)


def load_study(out: Path) -> StudyResult:
    """Reads a study's folder.

    Raises:
      UsageError: it isn't one.
      StorageError: one of its files can't be read or is damaged.
    """
    path = Path(out) / "study.json"
    if not path.is_file():
        raise UsageError(f"{str(out)!r} is not a study's folder: it has no study.json.")
    content = read_json(path)
    check_names(path, content["arms"], content["seeds"])
    outcome = _outcome(path, content["outcome"])
    experiments = tuple(
        ExperimentResult(
            name=experiment,
            arms=tuple(
                _load_arm(
                    Path(out) / "runs" / experiment / arm, arm, config, content["seeds"], outcome
                )
                for arm, config in arms.items()
            ),
            outcome=outcome,
            tuning=content.get("tuning", {}).get(experiment, {}),
            passes=content.get("passes", {}).get(experiment, {}),
        )
        for experiment, arms in content["arms"].items()
    )
    return StudyResult(
        section=content["section"],
        title=content["title"],
        dataset=content["dataset"],
        seeds=tuple(content["seeds"]),
        holdout_percent=content["holdout_percent"],
        margin=content["margin"],
        command=content["command"],
        notes=tuple(content.get("notes", ())),
        experiments=experiments,
    )


def _outcome(path: Path, name: str) -> Outcome:
    if name not in OUTCOMES:
        raise StorageError(f"{path} is damaged: {name!r} is no outcome to compare arms by.")
    return OUTCOMES[name]


def _load_arm(
    folder: Path, name: str, config: Mapping[str, Any], seeds: Sequence[int], outcome: Outcome
) -> ArmResult:
    config = TrainConfig.from_dict(dict(config), origin=f"the arm {name!r} in study.json")
    runs = {seed: _load_run(folder / f"seed{seed}") for seed in seeds}
    begun = {seed: run for seed, run in runs.items() if run is not None}
    for seed, run in begun.items():
        if _settings(TrainConfig.from_dict(run.config)) != _settings(config, seed=seed):
            raise UsageError(
                f"the run in {run.directory} has other settings than its arm in study.json; "
                "remove its folder or choose another one for the study."
            )
    sizes = [run.plan["num_examples"] for run in begun.values()]
    plan = config.plan(sizes[0]) if sizes else None
    results = (
        _seed_result(folder / f"seed{seed}", seed, run, outcome) for seed, run in runs.items()
    )
    return ArmResult(name, config, plan, tuple(results))


def _settings(config: TrainConfig, **changes: Any) -> TrainConfig:
    """A configuration without what decides nothing: where the datasets lie."""
    data = dataclasses.replace(config.data, dir=None)
    return dataclasses.replace(config, data=data, **changes)


def _load_run(folder: Path) -> Run | None:
    """A run; None where it has not got as far as its first files."""
    return load_run(folder) if all((folder / name).is_file() for name in REQUIRED) else None


def _seed_result(folder: Path, seed: int, run: Run | None, outcome: Outcome) -> SeedResult:
    evaluations = () if run is None else _evaluations(run, outcome)
    environment = {} if run is None else run.environment
    if run is not None and run.summary is not None:
        summary = run.summary
        return SeedResult(
            seed=seed,
            state=FINISHED,
            evaluations=evaluations,
            test=outcome.of(summary, "test"),
            updates=summary["step"],
            examples=summary["samples"] - BatchPlan.from_dict(run.plan).num_dropped,
            seconds={
                key.removesuffix("_seconds"): value
                for key, value in summary.items()
                if key.endswith("_seconds")
            },
            environment=environment,
        )
    if (message := failure_message(folder)) is not None:
        return SeedResult(seed, DIVERGED, message, evaluations, environment=environment)
    return SeedResult(seed, UNFINISHED, None, evaluations, environment=environment)


def _evaluations(run: Run, outcome: Outcome) -> tuple[Evaluation, ...]:
    return tuple(
        Evaluation(
            step=row["step"],
            epoch=row["epoch"],
            training_seconds=row.get("training_seconds"),
            tokens=row.get("tokens"),
            test=outcome.of(row, "test"),
            holdout=outcome.of(row, "holdout"),
        )
        for row in run.rows
        if math.isfinite(row.get(f"test_{outcome.metric}", math.nan))
    )
