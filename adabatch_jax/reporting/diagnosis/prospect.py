"""What training in a run's folder would do, asked of the functions that would decide it."""

import dataclasses
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adabatch_jax.config.train_config import TrainConfig
from adabatch_jax.data.datasets.prepared_folders import is_prepared, prepare_command
from adabatch_jax.reporting.diagnosis.checkpoints import num_bytes
from adabatch_jax.reporting.diagnosis.findings import (
    ENVIRONMENT,
    RESTORE,
    STORAGE,
    Finding,
    good,
    note,
    of_error,
    problem,
)
from adabatch_jax.runs.checkpoints.verifying import Found
from adabatch_jax.runs.folder.lock import LOCK_NAME
from adabatch_jax.runs.folder.run_folder import (
    CHECKPOINTS,
    WRITTEN_FILES,
    RunFolder,
    find_checkpoint,
    finished_summary,
    why_none,
)
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.system.errors import AdabatchError
from adabatch_jax.system.files import free_bytes, temporary_path
from adabatch_jax.system.quantities import bytes_text


@dataclasses.dataclass(frozen=True)
class Prospect:
    """What decides how training in a folder begins.

    Attributes:
      path: the folder.
      config: the settings in config.json; None where there are none of this program.
      checkpoint: the one to go on from; None where none can be used.
      rejected: newer checkpoints, each with the reason against it.
      is_in_use: whether a process is training there now.
    """

    path: Path
    config: TrainConfig | None
    checkpoint: Found | None
    rejected: tuple[tuple[int, str], ...]
    is_in_use: bool

    @property
    def command(self) -> str:
        """The command that goes on, or begins."""
        words = ("--config", self.path / "config.json", "--workdir", self.path)
        return "python -m adabatch_jax.train " + shlex.join(map(str, words))


def prospect_findings(
    workdir: Path, config: TrainConfig | None, is_in_use: bool
) -> Iterator[Finding]:
    """Whether the settings, the dataset and the disk let a run go on, and where it would.

    Args:
      workdir: the run's folder.
      config: its settings; None where there are none of this program.
      is_in_use: whether a process is training there now.
    """
    try:
        checkpoint, rejected = find_checkpoint(workdir)
    except AdabatchError as error:
        yield of_error("resume", error)
        return
    except (KeyError, TypeError):
        text = "the newest checkpoint was saved by another program."
        yield problem("resume", text, RESTORE)
        return
    prospect = Prospect(workdir, config, checkpoint, tuple(rejected), is_in_use)
    if is_in_use:
        yield note("resume", "a second process would be refused.", command=prospect.command)
    elif config is not None and finished_summary(workdir, config.digest) is not None:
        text = "the run is finished: nothing would be done."
        yield good("resume", text, command=prospect.command)
    elif refusal := why_none(workdir, rejected) if checkpoint is None else None:
        yield problem("resume", f"it would be refused: {refusal}", RESTORE)
    elif checkpoint is None and config is not None:
        text = f"it would begin with the first update: {prospect.command}"
        yield from _unless_refused(
            [*_dataset(config), *_obstacles(workdir)],
            good("resume", text, command=prospect.command),
        )
    elif checkpoint is not None:
        yield from _going_on(prospect)


def _going_on(prospect: Prospect) -> Iterator[Finding]:
    plan, settings = _planned(prospect)
    stopping = [*settings, *_dataset(prospect.config), *_obstacles(prospect.path)]
    stopping += _room(prospect)
    step = prospect.checkpoint.step
    newer = " and ".join(str(rejected) for rejected, _ in prospect.rejected)
    text = f"it would go on after update {step:,}"
    text += f" of {plan.num_steps:,}" if plan is not None else ""
    text += f", passing over {newer}" if newer else ""
    text += f": {prospect.command}" if prospect.config else ", with the settings it was begun with."
    resume = good("resume", text, step=step, command=prospect.command)
    yield from _unless_refused(stopping, resume)


def _unless_refused(stopping: Sequence[Finding], resume: Finding) -> Iterator[Finding]:
    """What may stop a run, and then what it would do, or that it would be refused."""
    yield from stopping
    refusal = next((finding for finding in stopping if finding.exit_code), None)
    if refusal is None:
        yield resume
    else:
        text = f"it would be refused, see {refusal.subject}."
        yield note("resume", text, command=resume.data["command"])


def _planned(prospect: Prospect) -> tuple[BatchPlan | None, list[Finding]]:
    """What would be trained, and what there is to say about the settings."""
    run = prospect.checkpoint.run
    if prospect.config is None:
        return None, []
    folder = RunFolder(prospect.path)  # which isn't entered, and so neither locked nor changed
    folder.checkpoint = prospect.checkpoint
    try:
        num_examples = BatchPlan.from_dict(run["plan"]).num_examples
        plan = _plan_of_run(prospect.config, num_examples, folder)
    except AdabatchError as error:
        return None, [of_error("settings", error)]
    except (KeyError, TypeError, AttributeError):
        text = f"checkpoint {prospect.checkpoint.step} was saved by another program."
        return None, [problem("settings", text, RESTORE)]
    return plan, [
        note("settings", text.removeprefix("note: "), **_change(change))
        for text, change in zip(folder.notes, folder.changes, strict=True)
    ]


def _plan_of_run(config: TrainConfig, num_examples: int, folder: RunFolder) -> BatchPlan:
    from adabatch_jax.runs.resuming import plan_of_run

    return plan_of_run(config, num_examples, folder)


def _change(change: Mapping[str, Any]) -> dict[str, Any]:
    return {name: change[name] for name in ("setting", "from", "to")}


def _dataset(config: TrainConfig | None) -> Iterator[Finding]:
    if config is None or config.dataset == "digits":  # prepared on first use
        return
    name, data_dir = config.dataset, config.data.dir
    if not is_prepared(name, data_dir):
        command = prepare_command(name, data_dir)
        yield problem("dataset", f"{name!r} is not prepared here; run {command}.", ENVIRONMENT)


def _obstacles(workdir: Path) -> Iterator[Finding]:
    """What lies where a run writes its files, and can't be replaced by one."""
    lock = workdir / LOCK_NAME
    if lock.is_symlink() or (lock.exists() and not lock.is_file()):
        yield problem(LOCK_NAME, "it is no regular file; move it away.", ENVIRONMENT)
    elif lock.exists() and not os.access(lock, os.R_OK | os.W_OK):
        yield problem(LOCK_NAME, "this user can't read and write it.", ENVIRONMENT)
    checkpoints = workdir / CHECKPOINTS
    if checkpoints.exists() and not os.access(checkpoints, os.W_OK | os.X_OK):
        yield problem(CHECKPOINTS, "this user can't write there.", STORAGE)
    for name in WRITTEN_FILES:
        for path in (workdir / name, temporary_path(workdir / name)):
            if path.is_dir() and not path.is_symlink():
                text = "it is a folder where a run writes a file; move it away."
                yield problem(path.name, text, STORAGE)


def _room(prospect: Prospect) -> Iterator[Finding]:
    """Whether there is room for the checkpoints to come."""
    size = num_bytes(prospect.checkpoint.path)
    try:
        free = free_bytes(prospect.path)
    except AdabatchError as error:
        yield of_error("room", error)
        return
    data = {"checkpoint_bytes": size, "free_bytes": free}
    if free < size:
        text = f"{bytes_text(free)} are free and a checkpoint takes {bytes_text(size)}."
        yield problem("room", text, STORAGE, **data)
    elif free < 4 * size:
        yield note("room", f"enough for {free // size} more checkpoints only.", **data)
