"""What training in a run's folder would do."""

import dataclasses
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adabatch_jax.byte_sizes import bytes_text
from adabatch_jax.checkpoints.found import Found
from adabatch_jax.config import TrainConfig
from adabatch_jax.data.prepared import is_prepared, prepare_command
from adabatch_jax.diagnosis.checkpoints import num_bytes
from adabatch_jax.diagnosis.findings import (
    ENVIRONMENT,
    RESTORE,
    STORAGE,
    Finding,
    good,
    note,
    of_error,
    problem,
)
from adabatch_jax.errors import AdabatchError
from adabatch_jax.reporting.files import free_bytes
from adabatch_jax.schedules.plan import BatchPlan


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """A run's folder, as far as it could be read.

    Attributes:
      path: the folder.
      config: its settings; None where there are none of this program.
      summary: the final figures; None while it is unfinished.
      newest: the good checkpoint that training would go on from, if there is one.
      damaged: the steps whose checkpoints aren't good.
      is_in_use: whether a process is training there now.
    """

    path: Path
    config: TrainConfig | None
    summary: Mapping[str, Any] | None
    newest: Found | None
    damaged: tuple[int, ...]
    is_in_use: bool

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        if self.summary is None or self.damaged and self.newest is None:
            return False
        return self.newest is None or self.summary.get("step") == self.newest.step


def prospect_findings(run: RunFolder) -> Iterator[Finding]:
    """Whether the settings, the dataset and the disk let the run go on, and where it would."""
    stopping = [*_settings(run), *_order(run), *_dataset(run), *_room(run)]
    yield from stopping
    refusal = next((finding for finding in stopping if finding.exit_code), None)
    words = ["python -m adabatch_jax.train", "--config", run.path / "config.json"]
    paths = " ".join(shlex.quote(str(word)) for word in words[2:])
    command = f"{words[0]} {words[1]} {paths} --workdir {shlex.quote(str(run.path))}"
    yield _resume(run, refusal, command)


def _settings(run: RunFolder) -> Iterator[Finding]:
    """Whether config.json's settings may go on from the newest checkpoint."""
    if run.newest is None or run.config is None:
        return
    try:
        origin = f"checkpoint {run.newest.step}"
        before = TrainConfig.from_dict(run.newest.run.get("identity"), origin)
        from adabatch_jax.resuming import check_identity

        check_identity(before, run.config, run.path)
    except AdabatchError as error:
        yield of_error("settings", error)
        return
    now = run.config.to_dict()
    changed = [name for name, value in before.to_dict().items() if now[name] != value]
    if changed:
        text = f"config.json differs from checkpoint {run.newest.step} in {', '.join(changed)}."
        yield note("settings", text, changed=changed)


def _order(run: RunFolder) -> Iterator[Finding]:
    """Whether this machine's libraries give the order of examples that the run had."""
    content = {} if run.newest is None else run.newest.run
    if not isinstance(content.get("order_digest"), str):
        return
    from adabatch_jax.data.order import order_digest

    try:
        num_examples = BatchPlan.from_dict(content["plan"]).num_examples
        now = order_digest(num_examples, content["seed"], content["epoch"])
    except (AdabatchError, KeyError, TypeError):
        return  # an endless stream
    if now != content["order_digest"]:
        text = f"epoch {content['epoch']} has another order of examples here than it had."
        yield problem("order", text, RESTORE)


def _dataset(run: RunFolder) -> Iterator[Finding]:
    if run.config is None or run.config.dataset == "digits":  # prepared on first use
        return
    name, data_dir = run.config.dataset, run.config.data.dir
    if not is_prepared(name, data_dir):
        command = prepare_command(name, data_dir)
        yield problem("dataset", f"{name!r} is not prepared here; run {command}.", ENVIRONMENT)


def _room(run: RunFolder) -> Iterator[Finding]:
    """Whether there is room for the checkpoints to come."""
    if run.newest is None or run.is_finished:
        return
    size = num_bytes(run.newest.path)
    try:
        free = free_bytes(run.path)
    except AdabatchError as error:
        yield of_error("room", error)
        return
    data = {"checkpoint_bytes": size, "free_bytes": free}
    if free < size:
        text = f"{bytes_text(free)} are free and a checkpoint takes {bytes_text(size)}."
        yield problem("room", text, STORAGE, **data)
    elif free < 4 * size:
        yield note("room", f"enough for {free // size} more checkpoints only.", **data)


def _resume(run: RunFolder, refusal: Finding | None, command: str) -> Finding:
    """One sentence."""
    subject, newest = "resume", run.newest
    if run.is_in_use:
        return note(subject, "a second process would be refused.", command=command)
    if run.is_finished:
        return good(subject, "the run is finished: nothing would be done.", command=command)
    if newest is None and run.damaged:
        text = "it would be refused, as no checkpoint is good; nothing is begun anew."
        return problem(subject, text, RESTORE, command=command)
    if refusal is not None:
        return note(subject, f"it would be refused, see {refusal.subject}.", command=command)
    if run.config is None and newest is None:
        return note(subject, "only the program that began the run can go on.")
    if newest is None:
        return good(subject, f"it would begin with the first update: {command}", command=command)
    newer = [str(step) for step in sorted(run.damaged) if step > newest.step]
    passing = f", passing over {' and '.join(newer)}" if newer else ""
    begin = f"it would go on after update {newest.step:,}{_of_how_many(run)}{passing}"
    if run.config is None:
        return good(subject, f"{begin}, in the program that began it.", step=newest.step)
    return good(subject, f"{begin}: {command}", step=newest.step, command=command)


def _of_how_many(run: RunFolder) -> str:
    try:
        plan = BatchPlan.from_dict(run.newest.run["plan"])
        if run.config is not None:
            plan = run.config.plan(plan.num_examples)
    except (AdabatchError, KeyError, TypeError):
        return ""
    return f" of {plan.num_steps:,}"
