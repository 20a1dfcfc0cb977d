"""Where a study's figures come from: settings, commands, machines and versions."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from adabatch_jax.config import TrainConfig
from adabatch_jax.config.declarations import flattened
from adabatch_jax.system.command_lines import command_text
from experiments.reproduction.document import Table
from experiments.reproduction.results import ArmResult, ExperimentResult, SeedResult, StudyResult

# What differs between the runs of an arm, or decides nothing.
_LEFT_OUT = ("seed", "name", "data.dir")


def differing_settings(arms: Sequence[ArmResult]) -> Table:
    """The settings in which the arms differ."""
    settings = [_settings(arm.config) for arm in arms]
    names = [name for name in settings[0] if len({_text(s[name]) for s in settings}) > 1]
    rows = (
        (arm.name, *(_text(values[name]) for name in names))
        for arm, values in zip(arms, settings, strict=True)
    )
    return Table(("arm", *names), tuple(rows), text_columns=range(len(names) + 1))


def common_settings(arms: Sequence[ArmResult]) -> str:
    """The settings that all arms share, in one sentence."""
    settings = [_settings(arm.config) for arm in arms]
    common = [
        f"{name} {_text(value)}"
        for name, value in settings[0].items()
        if len({_text(s[name]) for s in settings}) == 1
    ]
    return f"In common: {', '.join(common)}."


def train_command(
    experiment: str, arm: str, config: TrainConfig, seed: int, written: TrainConfig
) -> str:
    """What trains one run of an arm again.

    Args:
      experiment: the module in `experiments`.
      arm: its arm.
      config: what the study ran.
      seed: of the run.
      written: the arm as the module has it; what the study changed becomes flags.
    """
    before = flattened(written.to_dict())
    words = ["python", "-m", "adabatch_jax.train"]
    words += ["--config", f"experiments/{experiment}.py:{arm}", "--seed", str(seed)]
    for name, value in _settings(config).items():
        if value == before[name]:
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            group, _, leaf = flag.rpartition(".")
            words.append(f"--{group}{'.' if group else ''}{'' if value else 'no-'}{leaf}")
        else:
            words += [f"--{flag}", _plain(value)]
    return command_text(words)


@dataclasses.dataclass(frozen=True)
class Machine:
    """What runs were made with.

    Attributes:
      hardware: devices, processor and cores.
      software: system, Python and packages.
    """

    hardware: str
    software: str


def machines(study: StudyResult) -> dict[Machine, list[str]]:
    """The runs, as "arm seed 0", by what they were made with."""
    made: dict[Machine, list[str]] = {}
    for experiment in study.experiments:
        for arm in experiment.arms:
            for run in arm.seeds:
                if run.environment:
                    label = _run_label(study, experiment, arm, run.seed)
                    made.setdefault(machine(run), []).append(label)
    return made


def _run_label(study: StudyResult, experiment: ExperimentResult, arm: ArmResult, seed: int) -> str:
    prefix = f"{experiment.name} " if len(study.experiments) > 1 else ""
    return f"{prefix}{arm.name} seed {seed}"


def machine(run: SeedResult) -> Machine:
    """What a run was made with, as far as it says."""
    environment = run.environment
    devices = ", ".join(
        name if count == 1 else f"{count} x {name}"
        for name, count in environment.get("devices", {}).items()
    )
    processor = environment.get("cpu", "unknown processor")
    hardware = f"JAX devices: {devices or 'unknown'}; {environment.get('cores', '?')} cores of "
    packages = (f"{name} {version}" for name, version in environment.get("packages", {}).items())
    python = f"Python {environment.get('python', '?')}"
    system = environment.get("platform", "unknown system").partition("-")[0]
    return Machine(f"{hardware}{processor}", ", ".join((python, *packages, system)))


def _settings(config: TrainConfig) -> dict[str, Any]:
    flat = flattened(config.to_dict())
    return {name: value for name, value in flat.items() if name not in _LEFT_OUT}


def _text(value: Any) -> str:
    return "yes" if value is True else "no" if value is False else _plain(value, "none")


def _plain(value: Any, none: str = "None") -> str:
    if value is None:
        return none
    if isinstance(value, float):
        return f"{value:.10g}"
    return value if isinstance(value, str) else json.dumps(value)
