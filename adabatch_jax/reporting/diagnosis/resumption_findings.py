"""What training in a run's folder would do, asked of the functions that decide it."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from adabatch_jax.config.settings import TrainConfig
from adabatch_jax.data.datasets.prepared_folders import is_prepared, prepare_command
from adabatch_jax.reporting.diagnosis.checkpoint_findings import num_bytes
from adabatch_jax.reporting.diagnosis.findings import (
    ENVIRONMENT,
    STORAGE,
    Finding,
    good,
    note,
    of_error,
    problem,
)
from adabatch_jax.reporting.saved_run import is_reported
from adabatch_jax.runs.checkpoints.verifying import Found
from adabatch_jax.runs.configured_data import check_prepared_data, is_own
from adabatch_jax.runs.folder.finished_run import Finished
from adabatch_jax.runs.folder.folder_reading import CHECKPOINTS, obstacles
from adabatch_jax.runs.folder.lock import LOCK_NAME
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.system.command_lines import command_text
from adabatch_jax.system.errors import AdabatchError
from adabatch_jax.system.files import free_bytes
from adabatch_jax.system.quantities import bytes_text


def resumption_findings(
    workdir: Path,
    config: TrainConfig | None,
    newest: Found | None,
    passed_over: Sequence[int],
    is_in_use: bool,
    rows: Sequence[Finding],
    there: Finished,
) -> Iterator[Finding]:
    """Whether settings, dataset, rows and disk let a run go on, and where it would.

    Args:
      config: the run's settings; None where there are none of this program.
      newest: the checkpoint to go on from; None where none was saved yet.
      passed_over: newer ones that can't be used.
      rows: what was found about the rows of metrics.
      there: what is there of a finished run.
    """
    words = ("--config", workdir / "config.json", "--workdir", workdir)
    command = "python -m adabatch_jax.train " + command_text(map(str, words))
    if is_in_use:
        yield note("resume", "a second process would be refused.", command=command)
        return
    examples = list(_examples(workdir, config, newest))
    if there.is_whole and not examples:
        text = "nothing would be done" if is_reported(workdir) else "its report would be written"
        yield good("resume", f"the run is finished: {text}.", command=command)
        return
    if there.summary is not None and newest is None:
        text = "the run is finished, and without its checkpoints nothing would be written anew."
        yield note("resume", text, command=command)
        return
    if config is None and newest is None:
        return
    plan, settings = _planned(workdir, config, newest)
    findings = [
        *settings, *examples, *_dataset(config), *_numerics(config, newest), *_obstacles(workdir),
        *_room(newest),
    ]  # fmt: skip
    yield from findings
    refusal = next((finding for finding in (*rows, *findings) if finding.exit_code), None)
    if refusal is not None:
        yield note("resume", f"it would be refused, see {refusal.subject}.", command=command)
        return
    data = {"command": command}
    text = "it would begin with the first update"
    if newest is not None:
        data["step"] = newest.step
        last = (plan and plan.num_steps, there.summary and there.summary["step"])
        if there.changed and plan is not None and newest.step in last:
            names = " and ".join(there.changed)
            text = f"the run is finished: {names} would be written anew: {command}"
            yield note("resume", text, **data)
            return
        text = f"it would go on after update {newest.step:,}"
        text += f" of {plan.num_steps:,}" if plan is not None else ""
        text += f", passing over {' and '.join(map(str, passed_over))}" if passed_over else ""
    text += f": {command}" if config else ", with the settings it was begun with."
    yield good("resume", text, **data)


def _planned(
    workdir: Path, config: TrainConfig | None, newest: Found | None
) -> tuple[BatchPlan | None, list[Finding]]:
    """What would be trained, and what there is to say about the settings."""
    if config is None or newest is None:
        return None, []
    from adabatch_jax.runs.resuming import plan_of_run

    num_examples = BatchPlan.from_dict(newest.run["plan"]).num_examples
    try:
        plan, changes = plan_of_run(config, num_examples, newest, workdir)
    except AdabatchError as error:
        return None, [of_error("settings", error)]
    return plan, [
        note("settings", str(change), setting=change.setting, **{"from": change.before},
             to=change.now)
        for change in changes
    ]  # fmt: skip


def _examples(workdir: Path, config: TrainConfig | None, newest: Found | None) -> Iterator[Finding]:
    """Whether the run's examples are those that it was trained on so far."""
    if config is None or newest is None:
        return
    try:
        check_prepared_data(config, newest.run, workdir)
    except AdabatchError as error:
        yield of_error("examples", error)


def _dataset(config: TrainConfig | None) -> Iterator[Finding]:
    if config is None or config.dataset == "digits" or is_own(config):  # made on first use, or told
        return
    named = config.dataset, config.data.dir
    if not is_prepared(*named):
        text = f"{config.dataset!r} is not prepared here; run {prepare_command(*named)}."
        yield problem("dataset", text, ENVIRONMENT)


def _numerics(config: TrainConfig | None, newest: Found | None) -> Iterator[Finding]:
    """What would round otherwise than so far; of a user's own program that isn't known here."""
    if config is None or newest is None:
        return
    from adabatch_jax.runs.kept_numerics import changes_text, numeric_changes
    from adabatch_jax.training.numerics import numerics

    try:
        import jax

        device = jax.devices()[0]
    except Exception:  # told where this machine's devices are
        return
    changes = numeric_changes(newest.run["numerics"], numerics(device), newest.step)
    if changes:
        yield note("numerics", f"{changes_text(changes)}.", changes=changes)


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
    for path in obstacles(workdir):
        text = "it is a folder where a run writes a file; move it away."
        yield problem(path.name, text, STORAGE)


def _room(newest: Found | None) -> Iterator[Finding]:
    """Whether there is room for the checkpoints to come."""
    if newest is None:
        return
    try:
        size = num_bytes(newest.path)
        free = free_bytes(newest.path)
    except AdabatchError as error:
        yield of_error("room", error)
        return
    data = {"checkpoint_bytes": size, "free_bytes": free}
    if free < size:
        text = f"{bytes_text(free)} are free and a checkpoint takes {bytes_text(size)}."
        yield problem("room", text, STORAGE, **data)
    elif free < 4 * size:
        yield note("room", f"enough for {free // size} more checkpoints only.", **data)
