"""What a run's folder holds, and whether it fits together."""

import dataclasses
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from adabatch_jax.config.settings import TrainConfig, settings_digest
from adabatch_jax.reporting.diagnosis.checkpoint_findings import checkpoint_findings
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
from adabatch_jax.reporting.diagnosis.resumption_findings import resumption_findings
from adabatch_jax.reporting.saved_run import is_reported, read_json
from adabatch_jax.runs.checkpoints.verifying import Found, committed_steps
from adabatch_jax.runs.display.status import result_text
from adabatch_jax.runs.folder.finished_run import Finished, find_finished, read_summary
from adabatch_jax.runs.folder.folder_reading import (
    CHECKPOINTS,
    LAST_CHECKPOINT,
    SUMMARY,
    find_checkpoint,
    position_of_rows,
    read_last_checkpoint,
)
from adabatch_jax.runs.folder.lock import Owner, lock_owner
from adabatch_jax.runs.folder.metrics_files import read_metrics
from adabatch_jax.runs.resuming import is_past
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.system.errors import AdabatchError, RestoreError, StorageError
from adabatch_jax.system.files import read_file


def run_findings(workdir: Path, is_copy: bool = False) -> Iterator[Finding]:
    """Looks at a run's folder, which is left exactly as it is.

    `is_copy`: it is the copy of one in an object store, whose lock the kernel knows nothing of.
    """
    folder = _folder(workdir)
    yield folder
    if folder.state != "ok":
        return
    owner = lock_owner(workdir)
    if owner is not None and is_copy:
        owner = dataclasses.replace(owner, is_alive=None)
    yield _lock(owner)
    is_in_use = owner is not None and owner.is_alive is True
    config, finding = _config(workdir)
    yield finding
    try:
        yield from checkpoint_findings(workdir / CHECKPOINTS, is_in_use)
        newest, passed_over, refusal = _newest(workdir)
        there = find_finished(workdir, _digest_of_settings(config, newest), newest)
    except StorageError as error:
        yield of_error(CHECKPOINTS, error)
        return
    if there.summary is not None and not committed_steps(workdir / CHECKPOINTS):
        refusal = None  # a finished run needs none any more
    yield _plan(workdir, newest)
    files = [*_summary(workdir, newest), *_last_checkpoint(workdir, newest)]
    rows = list(_rows(workdir, newest, is_in_use, there.is_whole))
    yield from [*files, *rows]
    wrong = [finding.subject for finding in (*files, *rows) if finding.exit_code]
    yield from () if is_in_use else _changed(workdir, there, wrong)
    yield from _lost_rows(workdir)
    if refusal is not None:
        yield refusal
    else:
        yield from resumption_findings(workdir, config, newest, passed_over, is_in_use, rows, there)


def _newest(workdir: Path) -> tuple[Found | None, list[int], Finding | None]:
    """The checkpoint to go on from, newer ones that can't be used, and what stands against it."""
    try:
        newest, rejected = find_checkpoint(workdir)
    except RestoreError as error:
        return None, [], problem("resume", f"it would be refused: {error}", error.exit_code)
    return newest, [step for step, _ in rejected], None


def _digest_of_settings(config: TrainConfig | None, newest: Found | None) -> str:
    """What a run has to have been made with to be taken for finished."""
    if config is not None:
        return config.digest
    return settings_digest({} if newest is None else newest.run["identity"])


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
        return note("lock", f"left by {owner}, which is gone.", **data)
    return note("lock", f"{owner} has it, or had: it can't be locked here.", **data)


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
    length = config.duration or f"{config.epochs:g} epochs"
    text = f"{config.model} on {config.dataset}, {length}, seed {config.seed}"
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
        text += f"; checkpoint {newest.step} wasn't made by it, a run writes it anew."
        return note(name, text)
    return good(name, text, num_steps=plan.num_steps)


def _summary(workdir: Path, newest: Found | None) -> Iterator[Finding]:
    try:
        summary = read_summary(workdir)
    except StorageError as error:
        yield of_error(SUMMARY, error)
        return
    if summary is None:
        return
    name, step = SUMMARY, summary["step"]
    text = f"finished after update {step:,}"
    if result := result_text(summary):
        text += f", {result}"
    if newest is None or step != newest.step:
        text += f"; checkpoint {step}, its last, is not among the good ones."
        yield note(name, text, step=step)
    elif summary.get("examples_digest") != newest.run.get("examples_digest"):
        text += f", but not from the examples that checkpoint {step} saw."
        yield problem(name, text, RESTORE, step=step)
    else:
        yield good(name, text, step=step)


def _rows(
    workdir: Path, newest: Found | None, is_in_use: bool, is_whole: bool
) -> Iterator[Finding]:
    """Whether the rows of metrics go with the checkpoint that training would go on from."""
    name, path = "metrics.jsonl", workdir / "metrics.jsonl"
    num_bytes = None
    try:
        if newest is not None:
            position = position_of_rows(workdir, newest)
            if position is not None and not is_in_use and not is_whole:
                num_bytes = position.num_bytes
        if not path.exists():
            return
        steps = [row["step"] for row in read_metrics(path, num_bytes)]
        content = read_file(path)
    except (AdabatchError, OSError) as error:
        yield of_error(name, error)
        return
    is_torn = not is_in_use and content[-1:] not in (b"", b"\n")
    num_beyond = 0 if num_bytes is None else content[num_bytes:].count(b"\n")
    text = f"{_counted(len(steps))}, up to update {steps[-1]:,}" if steps else "no row yet"
    data = {"num_rows": len(steps), "last_step": max(steps, default=0), "is_torn": is_torn}
    notes = ["the last line was cut short"] * is_torn
    if num_beyond:
        verb = "lies" if num_beyond == 1 else "lie"
        notes.append(f"{_counted(num_beyond)} {verb} beyond checkpoint {newest.step}")
    if notes:
        text += f"; {' and '.join(notes)}, which a run removes and writes anew."
        yield note(name, text, num_beyond=num_beyond, **data)
    else:
        yield good(name, text, **data)


def _last_checkpoint(workdir: Path, newest: Found | None) -> Iterator[Finding]:
    """Whether the file about the newest checkpoint is of the run that the checkpoints are of."""
    run_id = read_last_checkpoint(workdir).run_id
    if newest is None or run_id == newest.run["run_id"]:
        return
    if os.path.lexists(workdir / LAST_CHECKPOINT):
        what = "damaged" if run_id is None else "another run's"
        text = f"it is {what}; a run sets it aside and writes it anew."
        yield problem(LAST_CHECKPOINT, text, STORAGE)


def _changed(workdir: Path, there: Finished, known: Collection[str]) -> Iterator[Finding]:
    """What a finished run left otherwise, and isn't `known` to be wrong."""
    report = workdir / "report.html"
    is_report_changed = there.is_whole and report.exists() and not is_reported(workdir)
    for name in (*there.changed, *[report.name] * is_report_changed):
        if name not in known and not name.startswith(CHECKPOINTS):
            yield problem(name, "it isn't what the finished run left there.", STORAGE)


def _lost_rows(workdir: Path) -> Iterator[Finding]:
    step = read_last_checkpoint(workdir).rows_lost_at
    if step is not None:
        aside = workdir / f"bad-metrics-{step}.jsonl"
        left = f"what was left of them is {aside.name}" if aside.exists() else "nothing was left"
        text = f"the rows up to update {step:,} were lost; {left}."
        yield note("lost rows", text, rows_lost_at=step)


def _counted(num_rows: int) -> str:
    return "1 row" if num_rows == 1 else f"{num_rows:,} rows"
