"""Going on with a run: what has been done, followed by what is asked for now."""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from adabatch_jax.config.declarations import Role, declarations, flattened
from adabatch_jax.config.settings import TrainConfig
from adabatch_jax.runs.checkpoint_past import check_past, is_past
from adabatch_jax.runs.checkpoints.verifying import Found
from adabatch_jax.schedules.learning_rate_at_step import resolve
from adabatch_jax.schedules.plan import BatchPlan, cut_ends, make_plan
from adabatch_jax.system.errors import RestoreError, UsageError, did_you_mean

_DECLARED = declarations(TrainConfig)
CHANGEABLE = [name for name, declared in _DECLARED.items() if declared.is_changeable]
"""Settings that a run may go on with changed, if its user says so; all others are what it is."""

# Their changes are told, but need no leave: they are checked by what they did to the past.
_OF_THE_FUTURE = [name for name, declared in _DECLARED.items() if declared.role is Role.FUTURE]

# What a run goes on with as it was begun. Of the layout, only what may change the numbers.
_IDENTITY = [
    name
    for name, declared in _DECLARED.items()
    if declared.role is Role.NUMBERS or (declared.role is Role.LAYOUT and declared.is_changeable)
]


@dataclasses.dataclass(frozen=True)
class Change:
    """A setting that a run goes on with changed, from a checkpoint on."""

    step: int
    setting: str
    before: Any
    now: Any

    def __str__(self) -> str:
        label = "lr at the reference batch size" if self.setting == "lr" else self.setting
        return f"{label} is {self.now} from update {self.step:,} on, and was {self.before}"

    def to_dict(self) -> dict[str, Any]:
        """The change among a run's decisions, as JSON values."""
        what = {"kind": "change", "step": self.step, "setting": self.setting}
        return what | {"from": self.before, "to": self.now}


def plan_of_run(
    config: TrainConfig,
    num_examples: int,
    found: Found | None,
    workdir: Path,
    allow_change: Collection[str] = (),
) -> tuple[BatchPlan, list[Change]]:
    """The plan, and what changed of the settings; of a run that has begun, what was done followed by what is asked for.

    A longer run and an edited future of the schedule are allowed; another past is refused, and
    so is a change of any setting that decides the numbers.

    Args:
      config: what is asked for.
      num_examples: examples in an epoch.
      found: the checkpoint to go on from; None where there is none.
      workdir: the run's folder, for errors.
      allow_change: those of `CHANGEABLE` that may differ all the same, from here on.

    Raises:
      RestoreError: the change isn't allowed.
      UsageError: `allow_change` holds something else.
    """
    for name in allow_change:
        if name not in (*CHANGEABLE, "rows"):
            raise UsageError(
                f"--allow-change: {name!r} can't change in a run; those that can are "
                f"{', '.join(CHANGEABLE)}{did_you_mean(name, CHANGEABLE) or '.'}"
            )
    if found is None:
        return config.plan(num_examples), []
    run = found.run
    before = TrainConfig.from_dict(run["identity"], origin=f"the checkpoint in {workdir}")
    _check_identity(before, config, workdir, allow_change)
    plan = _plan_from_here(config, num_examples, before, run, workdir, allow_change)
    if "lr" not in allow_change:
        done = BatchPlan.from_dict(run["plan"])
        _check_rates(before, done, config, plan, found.step, workdir, allow_change)
    old, new = flattened(before.to_dict()), flattened(config.to_dict())
    names = dict.fromkeys((*_OF_THE_FUTURE, *CHANGEABLE))
    changed = (name for name in names if old[name] != new[name])
    return plan, [Change(found.step, name, old[name], new[name]) for name in changed]


def _plan_from_here(
    config: TrainConfig,
    num_examples: int,
    before: TrainConfig,
    run: dict[str, Any],
    workdir: Path,
    allow_change: Collection[str],
) -> BatchPlan:
    done = BatchPlan.from_dict(run["plan"])
    plan = _replanned(config, num_examples, done, run["samples"])
    if is_past(run, plan) or done.num_examples != num_examples:
        pass
    elif (config.schedule, config.duration) == (before.schedule, before.duration):
        plan = done  # whose past was edited, with leave, before the checkpoint
    elif "batch_schedule" in allow_change:
        plan = done.continued(config.schedule, run["samples"], config.duration)
    named = _named(allow_change, ["batch_schedule"])
    override = f", or follow the new schedule from here on with {named}"
    if plan.num_samples < run["samples"]:
        override = ""  # there is nothing left of it
    check_past(run, plan, config.seed, workdir, override)
    return plan


def _replanned(config: TrainConfig, num_examples: int, done: BatchPlan, samples: int) -> BatchPlan:
    """Plans the schedule as it was planned before: up to each end that cut a batch short."""
    plan, ends = config.plan(num_examples), cut_ends(done, samples)
    if plan.num_samples < samples or not ends:
        return plan
    first, *later = [*(f"{end}sp" for end in ends), config.duration]
    plan = make_plan(config.schedule, num_examples, first, config.remainder)
    for end, until in zip(ends, later, strict=True):
        plan = plan.continued(config.schedule, end, until)
    return plan


def _check_identity(
    before: TrainConfig, config: TrainConfig, workdir: Path, allow_change: Collection[str]
) -> None:
    """Raises a RestoreError that names the settings that decide numbers and differ."""
    old, new = flattened(before.to_dict()), flattened(config.to_dict())
    changeable = set(CHANGEABLE)
    if config.optimizer == "sgd" and bool(before.momentum) != bool(config.momentum):
        changeable.remove("momentum")  # without any there is none in the optimizer's state
    allowed = changeable.intersection(allow_change)
    differing = [name for name in _IDENTITY if old[name] != new[name] and name not in allowed]
    if not differing:
        return
    listed = _listed(differing, old, new)
    override = ""
    if set(differing) <= changeable:
        what = "it" if len(differing) == 1 else "them"
        override = f", or change {what} from here on with {_named(allow_change, differing)}"
    raise RestoreError(
        f"the run in {workdir} has {listed}; use another --workdir, or go on with --config "
        f"{workdir / 'config.json'}{override}."
    )


def _listed(names: Collection[str], old: dict[str, Any], new: dict[str, Any]) -> str:
    return " and ".join(f"{name}={old[name]!r}, not {new[name]!r}" for name in names)


def _named(allowed: Collection[str], differing: Collection[str]) -> str:
    """The option that allows more changes, with those that are allowed already."""
    return f"--allow-change {' '.join([*allowed, *differing])}"


def _check_rates(
    before: TrainConfig,
    done: BatchPlan,
    config: TrainConfig,
    plan: BatchPlan,
    num_steps: int,
    workdir: Path,
    allow_change: Collection[str],
) -> None:
    """Compares the learning rates of all updates that were done."""
    old, new = (
        resolve(p, c.learning_rate, c.coupling, c.reference_batch_size)
        for p, c in ((done, before), (plan, config))
    )
    past = np.arange(num_steps)
    differing = np.flatnonzero(old(np, past) != new(np, past))
    if differing.size:
        step = int(differing[0])
        flat = flattened(before.to_dict()), flattened(config.to_dict())
        differs = [name for name in _OF_THE_FUTURE if flat[0][name] != flat[1][name]]
        raise RestoreError(
            f"the run in {workdir} has {_listed(differs, *flat)}, and its learning rate differs in "
            f"the past: {old.at(step):g} and {new.at(step):g} at update {step:,}; use another "
            f"--workdir, or follow the new rates from here on with {_named(allow_change, ['lr'])}."
        )
