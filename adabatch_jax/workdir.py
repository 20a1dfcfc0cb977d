"""The folder of a run: its name, whether it can be used, whether its run is finished."""

import json
from pathlib import Path
from typing import Any

from adabatch_jax.config import TrainConfig
from adabatch_jax.errors import UsageError


def default_workdir(config: TrainConfig) -> Path:
    """The folder of a run that was given none: other settings, another folder.

    >>> default_workdir(TrainConfig(seed=1)) == default_workdir(TrainConfig(seed=2))
    False
    """
    return Path("runs") / f"{config.run_name}-{config.digest[:8]}"


def check_workdir(workdir: Path) -> None:
    """Raises a UsageError unless the folder is new, empty, or a run's, and can be written."""
    try:
        if workdir.exists() and not workdir.is_dir():
            raise UsageError(f"--workdir: {str(workdir)!r} is a file, not a folder.")
        content = sorted(path.name for path in workdir.iterdir()) if workdir.exists() else []
        if content and "config.json" not in content:
            raise UsageError(
                f"--workdir: {str(workdir)!r} holds {content[0]!r} but no run (no config.json); "
                "give an empty or a new folder."
            )
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / ".write-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"--workdir: {str(workdir)!r} can't be used ({error.strerror}); give another folder."
        ) from None


def finished_summary(config: TrainConfig, workdir: Path) -> dict[str, Any] | None:
    """The summary of a run that was finished with just these settings, or None."""
    try:
        saved = json.loads((workdir / "config.json").read_text())
        summary = json.loads((workdir / "summary.json").read_text())
    except (OSError, ValueError):
        return None
    return summary if saved == config.to_dict() else None

