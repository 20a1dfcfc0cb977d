"""Which folder a run takes: its default name, whether it can be used, what is saved in it."""

import json
import tempfile
from pathlib import Path

from adabatch_jax.config.settings import TrainConfig
from adabatch_jax.runs.folder.folder_reading import CHECKPOINTS, LOGS
from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.files import read_file


def default_workdir(config: TrainConfig) -> Path:
    """The folder of a run that was given none: other settings, another folder."""
    return Path("runs") / f"{config.run_name}-{config.digest[:8]}"


def check_workdir(workdir: Path) -> None:
    """Raises a UsageError unless the folder is new, empty, or a run's, and can be written."""
    try:
        if workdir.exists() and not workdir.is_dir():
            raise UsageError(f"--workdir: {str(workdir)!r} is a file, not a folder.")
        workdir.mkdir(parents=True, exist_ok=True)
        # What begins with a dot may be left of a process that was killed; a disk has the other.
        names = sorted(path.name for path in workdir.iterdir())
        # A start of several processes that failed has left their logs.
        content = [name for name in names if name[0] != "." and name not in ("lost+found", LOGS)]
        if content and not is_run(workdir):
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


def is_run(workdir: Path) -> bool:
    """Whether a folder is a run's; a damaged config.json is no loss where there are checkpoints."""
    return saved_config(workdir) is not None or (workdir / CHECKPOINTS).is_dir()


def saved_config(workdir: Path) -> TrainConfig | None:
    """The configuration of the run in a folder, or None where there is none of ours."""
    try:
        return TrainConfig.from_dict(json.loads(read_file(workdir / "config.json")))
    except (OSError, ValueError, RecursionError):
        return None
