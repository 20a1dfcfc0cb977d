"""Configurations from files: Python, which is run, or JSON, which is data."""

import json
from pathlib import Path
from typing import Any

from adabatch_jax.config.own_functions import run_python_file
from adabatch_jax.config.settings import TrainConfig
from adabatch_jax.system.errors import UsageError


def load_config(path: str) -> TrainConfig:
    """Reads a Python file that defines `config`, or a run's config.json.

    A Python file may define `arms` instead, a dict of configurations; `FILE:ARM` names one.
    """
    file, arm = Path(path), None
    if not file.is_file() and ":" in path:
        name, _, arm = path.rpartition(":")
        file = Path(name)
    if not file.is_file():
        raise UsageError(f"--config: there is no file {str(file)!r}.")
    if file.suffix == ".py":
        return _configured(run_python_file(file, "--config", f"_config_{file.stem}"), file, arm)
    if arm is not None:
        raise UsageError(f"--config: {str(file)!r} has no arms, only a Python file (.py) has.")
    if file.suffix == ".json":
        try:
            content = json.loads(file.read_text(), object_pairs_hook=_each_once)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"--config: {path!r} is no JSON ({error}).") from None
        return TrainConfig.from_dict(content, origin=repr(path))
    raise UsageError(f"--config: {path!r} must be a Python file (.py) or a config.json.")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; a ValueError where a field comes twice, and one would be left out."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} comes twice")
    return content


def _configured(namespace: dict[str, Any], file: Path, arm: str | None) -> TrainConfig:
    config, arms = namespace.get("config"), namespace.get("arms")
    if isinstance(arms, dict) and (arm is not None or config is None):
        if arm not in arms:
            what = "names none" if arm is None else f"has no arm {arm!r}"
            raise UsageError(
                f"--config: {str(file)!r} defines arms and the command line {what}; write "
                f"{file}:ARM with one of {', '.join(arms)}."
            )
        config = arms[arm]
    elif arm is not None:
        raise UsageError(f"--config: {str(file)!r} doesn't define `arms = {{...}}`.")
    if not isinstance(config, TrainConfig):
        raise UsageError(f"--config: {str(file)!r} doesn't define `config = TrainConfig(...)`.")
    return config
