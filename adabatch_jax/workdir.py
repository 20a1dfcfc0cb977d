"""The folder of a run: its name, whether it can be used, whether its run is finished."""

import contextlib
import fcntl
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adabatch_jax.config import TrainConfig
from adabatch_jax.errors import UsageError

LOCK_NAME = ".lock"


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
        workdir.mkdir(parents=True, exist_ok=True)
        content = sorted(path.name for path in workdir.iterdir() if path.name != LOCK_NAME)
        if content and saved_config(workdir) is None:
            raise UsageError(
                f"--workdir: {str(workdir)!r} holds {content[0]!r} but no run (no config.json of "
                "this program); give an empty or a new folder."
            )
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise UsageError(
            f"--workdir: {str(workdir)!r} can't be used ({error.strerror}); give another folder."
        ) from None


def saved_config(workdir: Path) -> TrainConfig | None:
    """The configuration of the run in a folder, or None where there is none of ours."""
    try:
        return TrainConfig.from_dict(json.loads((workdir / "config.json").read_text()))
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def locked(workdir: Path, flag: str = "--workdir") -> Iterator[None]:
    """Keeps other processes out of a run's folder; a process that dies lets go of it.

    Args:
      workdir: the folder.
      flag: where the user named it.

    Raises:
      UsageError: another process is training there, or the folder can't be written.
    """
    try:
        file = open(workdir / LOCK_NAME, "w")
    except OSError as error:
        raise UsageError(
            f"{flag}: {str(workdir)!r} can't be used ({error.strerror}); give another folder."
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"{flag}: another process is training in {str(workdir)!r}; wait for it, or give "
                "another folder."
            ) from None
        yield


def finished_summary(config: TrainConfig, workdir: Path) -> dict[str, Any] | None:
    """The summary of a run that was finished with just these settings, or None."""
    try:
        saved = json.loads((workdir / "config.json").read_text())
        summary = json.loads((workdir / "summary.json").read_text())
    except (OSError, ValueError):
        return None
    return summary if saved == config.to_dict() else None
