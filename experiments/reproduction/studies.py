"""What a study runs: its arms, seeds and data, kept in `study.json`."""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adabatch_jax.config import DataSettings, TrainConfig
from adabatch_jax.config.value_texts import is_text
from adabatch_jax.system.errors import StorageError, UsageError, did_you_mean
from adabatch_jax.system.files import read_file, storage_errors, write_atomically
from experiments import sections
from experiments.reproduction.adjustments import with_epochs, with_holdout
from experiments.reproduction.outcomes import OUTCOMES

TUNING_SEED = 10_000
"""The seed of the search for learning rates: none that a study is measured with."""

Arms = Mapping[str, Mapping[str, TrainConfig]]


@dataclasses.dataclass(frozen=True)
class Study:
    """Everything that decides what a study runs, and what was found on the way.

    Attributes:
      section: its name in `experiments.sections.SECTIONS`.
      title: the heading of its pages.
      dataset: what is trained on.
      seeds: of the runs of each arm.
      holdout_percent: of the training split, kept out of training; 0 for none.
      outcome: what the arms are compared by, a name in `OUTCOMES`.
      margin: of the outcome, within which two arms count as equivalent.
      command: what started it.
      arms: by experiment and arm, the configuration at seed 0.
      tuning: by experiment and arm, what the search for the learning rate found.
      passes: by experiment and arm, seconds forward and backward for each phase.
      notes: sentences for the pages that somebody wrote into the file, about the machine perhaps.
    """

    section: str
    title: str
    dataset: str
    seeds: tuple[int, ...]
    holdout_percent: int
    outcome: str
    margin: float
    command: str
    arms: Arms
    tuning: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    passes: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def items(self) -> Iterator[tuple[str, str, TrainConfig]]:
        """Yields (experiment, arm, configuration) in the order to run and to show."""
        for experiment, arms in self.arms.items():
            for arm, config in arms.items():
                yield experiment, arm, config

    def with_configs(self, change: Callable[[str, str, TrainConfig], TrainConfig]) -> "Study":
        """Returns the study with `change(experiment, arm, config)` for each configuration."""
        arms = {
            experiment: {arm: change(experiment, arm, config) for arm, config in configs.items()}
            for experiment, configs in self.arms.items()
        }
        return dataclasses.replace(self, arms=arms)

    def with_finding(self, kind: str, experiment: str, arm: str, finding: Any) -> "Study":
        """Returns the study with an entry added to `tuning` or `passes`."""
        found = getattr(self, kind)
        of_experiment = {**found.get(experiment, {}), arm: finding}
        return dataclasses.replace(self, **{kind: {**found, experiment: of_experiment}})

    def to_dict(self) -> dict[str, Any]:
        """The study as JSON values; `from_dict` gives it back."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        arms = {
            experiment: {arm: config.to_dict() for arm, config in configs.items()}
            for experiment, configs in self.arms.items()
        }
        lists = {"seeds": list(self.seeds), "notes": list(self.notes)}
        return {**fields, **lists, "arms": arms}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Study":
        """Makes the study that `to_dict` described."""
        arms = {
            experiment: {arm: TrainConfig.from_dict(config) for arm, config in configs.items()}
            for experiment, configs in content["arms"].items()
        }
        tuples = {name: tuple(content.get(name, ())) for name in ("seeds", "notes")}
        return cls(**{**content, **tuples, "arms": arms})


def make_study(
    section: str,
    *,
    num_seeds: int,
    dataset: str | None = None,
    data_dir: str | None = None,
    networks: Sequence[str] = (),
    arms: Sequence[str] = (),
    holdout_percent: int | None = None,
    margin: float | None = None,
    epochs: float | None = None,
    overrides: Mapping[str, Any] | None = None,
    command: str = "",
) -> Study:
    """Puts a study together from the arms of a section.

    Args:
      section: a name in `experiments.sections.SECTIONS`.
      num_seeds: runs of each arm.
      dataset: trained on in place of the section's own.
      data_dir: where datasets are prepared.
      networks: those of the section to run; all if empty.
      arms: those to run; all if empty.
      holdout_percent: of the training split, kept out of training; None: as the section says.
      margin: of the outcome, within which two arms count as equivalent; None: the outcome's own.
      epochs: the runs' length; schedules are stretched or shortened with it.
      overrides: fields of every configuration.
      command: what the user typed.

    Raises:
      UsageError: an unknown name, or a number that can't work.
    """
    check_section(section)
    described = sections.SECTIONS[section]
    if holdout_percent is None:
        holdout_percent = described.holdout_percent
    if margin is None:
        margin = OUTCOMES[described.outcome].margin
    _check_numbers(num_seeds, holdout_percent, margin)
    experiments = _chosen("--networks", "network", networks, described.experiments)
    loaded = {name: sections.load_arms(name) for name in experiments.values()}
    every_arm = {arm: arm for configs in loaded.values() for arm in configs}
    wanted = _chosen("--arms", "arm", arms, every_arm)

    def adjusted(config: TrainConfig) -> TrainConfig:
        data = _data(config.data, dataset, data_dir)
        fields = {"data": data, "dataset": dataset or config.dataset, **(overrides or {})}
        config = dataclasses.replace(config, seed=0, **fields)
        config = config if epochs is None else with_epochs(config, epochs)
        return with_holdout(config, holdout_percent)

    chosen = {
        name: {arm: adjusted(config) for arm, config in configs.items() if arm in wanted}
        for name, configs in loaded.items()
        if any(arm in wanted for arm in configs)
    }
    datasets = {config.dataset for configs in chosen.values() for config in configs.values()}
    return Study(
        section=section,
        title=described.title if dataset is None else f"{described.title}, on {dataset}",
        dataset=", ".join(sorted(datasets)),
        seeds=tuple(range(num_seeds)),
        holdout_percent=holdout_percent,
        outcome=described.outcome,
        margin=margin,
        command=command,
        arms=chosen,
    )


def check_section(name: str) -> None:
    """Raises a UsageError unless there is a section of this name."""
    if name not in sections.SECTIONS:
        known = f"; there are {', '.join(sections.SECTIONS)}."
        hint = did_you_mean(name, sections.SECTIONS) or known
        raise UsageError(f"there is no section {name!r}{hint}")


def _check_numbers(num_seeds: int, holdout_percent: int, margin: float) -> None:
    if not 1 <= num_seeds <= TUNING_SEED:
        raise UsageError(f"--seeds: must be from 1 to {TUNING_SEED}, got {num_seeds}.")
    if not 0 <= holdout_percent < 100:
        raise UsageError(
            f"--holdout-percent: must be from 0 (train on all examples) to 99, got "
            f"{holdout_percent}."
        )
    if not 0 < margin < math.inf:
        raise UsageError(f"--margin: must be a number above 0, got {margin:g}.")


def _chosen(
    flag: str, kind: str, wanted: Sequence[str], known: Mapping[str, str]
) -> dict[str, str]:
    for name in wanted:
        if name not in known:
            hint = did_you_mean(name, known) or f"; there are {', '.join(known)}."
            raise UsageError(f"{flag}: there is no {kind} {name!r} in this section{hint}")
    return {name: value for name, value in known.items() if not wanted or name in wanted}


def _data(data: DataSettings, dataset: str | None, data_dir: str | None) -> DataSettings:
    """Another dataset has other splits, and of texts the same shares."""
    data = data if data_dir is None else dataclasses.replace(data, dir=data_dir)
    return (
        data
        if dataset is None or is_text(dataset)
        else dataclasses.replace(data, train_split=None, test_split=None)
    )


def save_study(out: Path, study: Study) -> None:
    """Writes `study.json` whole or not at all.

    Raises:
      StorageError: the folder can't be written.
    """
    content = json.dumps(study.to_dict(), indent=2, allow_nan=False)
    write_atomically(out / "study.json", content.encode() + b"\n")


def load_study(out: Path) -> Study | None:
    """Reads the study in a folder; None where there is none.

    Raises:
      StorageError: it can't be read, or is damaged.
    """
    path = out / "study.json"
    if not path.exists():
        return None
    with storage_errors(path, action="read"):
        content = read_file(path)
    try:
        study = Study.from_dict(json.loads(content))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StorageError(f"{path} is damaged: it describes no study ({error}).") from error
    check_names(path, study.arms, study.seeds)
    return study


def check_names(path: Path, arms: Mapping[str, Mapping[str, Any]], seeds: Sequence[int]) -> None:
    """Checks that what stands in a study's file names folders and files inside its own only.

    Raises:
      StorageError: one of the names could lead elsewhere.
    """
    for name in (*arms, *(arm for configs in arms.values() for arm in configs)):
        if not re.fullmatch(r"\w[\w.+=-]*", name):
            raise StorageError(f"{path} is damaged: {name!r} can't name an experiment or an arm.")
    for seed in seeds:
        if type(seed) is not int:
            raise StorageError(f"{path} is damaged: {seed!r} is no seed.")
