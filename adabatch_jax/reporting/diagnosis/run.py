"""What a run's folder holds, and whether it fits together."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from adabatch_jax.config.train_config import TrainConfig
from adabatch_jax.reporting.diagnosis.checkpoints import checkpoint_findings, verified
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
from adabatch_jax.reporting.diagnosis.metrics import metrics_findings
from adabatch_jax.reporting.diagnosis.prospect import prospect_findings
from adabatch_jax.reporting.runs import read_json
from adabatch_jax.runs.checkpoints.verifying import Found
from adabatch_jax.runs.folder.lock import Owner, lock_owner
from adabatch_jax.runs.folder.run_folder import CHECKPOINTS
from adabatch_jax.runs.past import is_past
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.system.errors import AdabatchError, StorageError


def saved_settings(workdir: Path) -> TrainConfig | None:
    """The settings of the run in a folder; None where they are missing or can't be read."""
    try:
        return TrainConfig.from_dict(read_json(workdir / "config.json"))
    except AdabatchError:
        return None


def run_findings(workdir: Path) -> Iterator[Finding]:
    """Looks at a run's folder, which is left exactly as it is."""
    folder = _folder(workdir)
    yield folder
    if folder.state != "ok":
        return
    owner = lock_owner(workdir)
    yield _lock(owner)
    is_in_use = owner is not None and owner.is_alive is True
    config, finding = _config(workdir)
    yield finding
    try:
        found, damaged = verified(workdir / CHECKPOINTS)
        yield from checkpoint_findings(workdir / CHECKPOINTS, found, damaged, is_in_use)
    except StorageError as error:
        yield of_error(CHECKPOINTS, error)
        return
    newest = found[-1] if found else None
    yield _plan(workdir, newest)
    yield from _summary(workdir, newest)
    yield from metrics_findings(workdir, newest, is_in_use)
    yield from prospect_findings(workdir, config, is_in_use)


def _folder(workdir: Path) -> Finding:
    try:
        if not workdir.exists():
            return problem("folder", f"there is no folder {str(workdir)!r}.", ENVIRONMENT)
        if not workdir.is_dir():
            return problem("folder", f"{str(workdir)!r} is a file, not a folder.", ENVIRONMENT)
        names = sorted(path.name for path in workdir.iterdir() if path.name[0] != ".")
        runs = [name for name in names if (workdir / name / "config.json").is_file()]
    except OSError as error:
        return problem("folder", f"it can't be read: {error.strerror}.", STORAGE)
    if not names:
        return note("folder", "it is empty; training would begin here.")
    if "config.json" in names or CHECKPOINTS in names:
        return good("folder", f"a run: {workdir.absolute()}", path=str(workdir.absolute()))
    hint = f"; it holds the run {runs[0]!r}" if runs else ""
    return problem("folder", f"it holds {names[0]!r} but no run{hint}.", ENVIRONMENT)


def _lock(owner: Owner | None) -> Finding:
    if owner is None:
        return good("lock", "free", owner=None)
    data = {"owner": dataclasses.asdict(owner)}
    if owner.is_alive:
        return good("lock", f"{owner} is training here", **data)
    if owner.is_alive is False:
        return note("lock", f"left by {owner}, which is gone; a run takes it over.", **data)
    return note(
        "lock",
        f"{owner} has it; whether that still runs can't be told from here, a run that is started "
        "waits for a sign of life.",
        **data,
    )


def _config(workdir: Path) -> tuple[TrainConfig | None, Finding]:
    name = "config.json"
    if not (workdir / name).exists():
        return None, note(name, "it is missing; a run writes it anew.")
    try:
        content = read_json(workdir / name)
        if not content:
            return None, note(name, "it is empty: a run of the library's `fit`.")
        config = TrainConfig.from_dict(content, origin=name)
    except AdabatchError as error:
        return None, of_error(name, error)
    text = f"{config.model} on {config.dataset}, {config.epochs:g} epochs, seed {config.seed}"
    return config, good(name, text)


def _plan(workdir: Path, newest: Found | None) -> Finding:
    name = "plan.json"
    if not (workdir / name).exists():
        return note(name, "it is missing; a run writes it anew.")
    try:
        plan = BatchPlan.from_dict(read_json(workdir / name))
        text = f"{plan.num_steps:,} updates, batches {', '.join(map(str, plan.batch_sizes))}"
        has_past = newest is None or is_past(newest.run, plan)
    except StorageError as error:
        return of_error(name, error)
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError):
        return problem(name, "it is damaged: it holds no plan.", STORAGE)
    if not has_past:
        return note(
            name, f"{text}; checkpoint {newest.step} wasn't made by it, a run writes it anew."
        )
    return good(name, text, num_steps=plan.num_steps)


def _summary(workdir: Path, newest: Found | None) -> Iterator[Finding]:
    name = "summary.json"
    if not (workdir / name).exists():
        return
    try:
        summary = read_json(workdir / name)
    except StorageError as error:
        yield of_error(name, error)
        return
    step, accuracy = summary.get("step"), summary.get("test_accuracy")
    if not isinstance(step, int):
        yield problem(name, "it is damaged: it names no step.", STORAGE)
        return
    text = f"finished after update {step:,}"
    if isinstance(accuracy, float):
        text += f", test accuracy {100 * accuracy:.2f} %"
    if newest is None or step != newest.step:
        text += f"; checkpoint {step}, its last, is not among the good ones."
        yield note(name, text, step=step)
    elif summary.get("examples_digest") != newest.run.get("examples_digest"):
        text += f", but not from the examples that checkpoint {step} saw."
        yield problem(name, text, RESTORE, step=step)
    else:
        yield good(name, text, step=step)
