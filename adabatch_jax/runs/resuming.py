"""Going on with a run: what a checkpoint says was done, followed by what is asked for now."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adabatch_jax.config.declarations import Role, declarations, flattened
from adabatch_jax.config.settings import TrainConfig
from adabatch_jax.config.value_texts import is_path, is_text
from adabatch_jax.data.epoch_order import order_digest
from adabatch_jax.runs.checkpoints.verifying import Found
from adabatch_jax.schedules.learning_rate_at_step import resolve
from adabatch_jax.schedules.plan import BatchPlan, continued_plan, cut_ends, untold_plan
from adabatch_jax.system.errors import RestoreError, UsageError, did_you_mean

_DECLARED = declarations(TrainConfig)
CHANGEABLE = [name for name, declared in _DECLARED.items() if declared.is_changeable]
"""Settings that a run may go on with changed, if its user says so; all others are what it is."""

# And going on with other examples under the same name, and without rows that were lost.
_ALLOWABLE = [*CHANGEABLE, "dataset", "rows"]

# Their changes are told, but need no leave: they are checked by what they did to the past.
_OF_THE_FUTURE = [name for name, declared in _DECLARED.items() if declared.role is Role.FUTURE]

# What a run goes on with as it was begun. What its layout may change to is for `fit` to say.
_IDENTITY = [name for name, declared in _DECLARED.items() if declared.role is Role.NUMBERS]


@dataclasses.dataclass(frozen=True)
class Change:
    """A setting that a run goes on with changed, from a checkpoint on."""

    step: int
    setting: str
    before: Any
    now: Any

    def __str__(self) -> str:
        if isinstance(self.now, Mapping):  # digests
            return f"the {' and the '.join(self.now)} are others from update {self.step:,} on"
        label = "lr at the reference batch size" if self.setting == "lr" else self.setting
        return f"{label} is {self.now} from update {self.step:,} on, and was {self.before}"

    def to_dict(self) -> dict[str, Any]:
        """The change among a run's decisions, as JSON values."""
        what = {"kind": "change", "step": self.step, "setting": self.setting}
        return what | {"from": self.before, "to": self.now}


def check_allowed(allow_change: Collection[str], flag: str = "--allow-change") -> None:
    """Raises a UsageError where something else is to change than what may change in a run."""
    if isinstance(allow_change, str):
        raise UsageError(
            f"{flag}: {allow_change!r} is no tuple of names; give ({allow_change!r},)."
        )
    for name in allow_change:
        if name not in _ALLOWABLE:
            raise UsageError(
                f"{flag}: {name!r} can't change in a run; those that can are "
                f"{', '.join(_ALLOWABLE)}{did_you_mean(name, _ALLOWABLE) or '.'}"
            )


def plan_of_run(
    config: TrainConfig,
    num_examples: int,
    found: Found | None,
    workdir: Path,
    allow_change: Collection[str] = (),
) -> tuple[BatchPlan, list[Change]]:
    """The plan, and what changed of the settings.

    Of a run that has begun: what was done, followed by what is asked for. A longer run and an
    edited future of the schedule are allowed; another past is refused, and so is a change of any
    setting that decides the numbers, but for those of `CHANGEABLE` in `allow_change`.

    Raises:
      RestoreError: the change isn't allowed.
      UsageError: `allow_change` holds something else.
    """
    check_allowed(allow_change)
    if found is None:
        return config.plan(num_examples), []
    run = found.run
    before = TrainConfig.from_dict(run["identity"], origin=f"the checkpoint in {workdir}")
    old, new = flattened(before.to_dict()), flattened(config.to_dict())
    changes = [
        Change(found.step, name, old[name], new[name])
        for name in _DECLARED
        if old[name] != new[name]
    ]
    resumed = _Resumed(before, config, run, workdir, allow_change, changes)
    resumed.check_identity()
    plan = resumed.plan(num_examples)
    if "lr" not in allow_change:
        resumed.check_rates(plan)
    return plan, [c for c in changes if c.setting in (*_IDENTITY, *_OF_THE_FUTURE)]


@dataclasses.dataclass(frozen=True)
class _Resumed:
    """A run that goes on from a checkpoint's own values, `run`, with other settings."""

    before: TrainConfig
    config: TrainConfig
    run: dict[str, Any]
    workdir: Path
    allow_change: Collection[str]
    changes: list[Change]

    def check_identity(self) -> None:
        """Raises a RestoreError that names the settings that decide numbers and differ."""
        changeable = set(CHANGEABLE)
        if self.config.optimizer == "sgd" and not (self.before.momentum and self.config.momentum):
            changeable.remove("momentum")  # without any there is none in the optimizer's state
        allowed = changeable.intersection(self.allow_change)
        refused = [
            change
            for change in self.changes
            if change.setting in _IDENTITY
            and change.setting not in allowed
            and not _is_moved(change)
        ]
        if not refused:
            return
        override, names = "", [change.setting for change in refused]
        if changeable.issuperset(names):
            what = "it" if len(names) == 1 else "them"
            override = f", or change {what} from here on with {self._allowing(*names)}"
        raise RestoreError(
            f"the run in {self.workdir} has {_listed(refused)}; use another --workdir, or go on "
            f"with --config {self.workdir / 'config.json'}{override}."
        )

    def plan(self, num_examples: int) -> BatchPlan:
        """What was done, followed by what is asked for; a RestoreError if it was something else."""
        config, before, run = self.config, self.before, self.run
        done = BatchPlan.from_dict(run["plan"])
        plan = _replanned(config, num_examples, done, run["samples"])
        if not is_past(run, plan) and done.num_examples == num_examples:
            if _future(config) == _future(before):
                plan = done  # whose past was edited, with leave, before the checkpoint
            elif "batch_schedule" in self.allow_change:
                done = dataclasses.replace(done, tokens_per_example=config.tokens_of_example)
                plan = continued_plan(done, config.schedule, run["samples"], config.length)
        override = ", or follow the new schedule from here on with "
        override += self._allowing("batch_schedule")
        if plan.num_samples < run["samples"]:
            override = ""  # there is nothing left of it
        check_past(run, plan, config.seed, self.workdir, override)
        return plan

    def check_rates(self, plan: BatchPlan) -> None:
        """Raises a RestoreError unless the learning rates of all updates so far are the same."""
        done = BatchPlan.from_dict(self.run["plan"])
        old, new = (
            resolve(p, c.learning_rate, c.coupling, c.reference_batch_size)
            for p, c in ((done, self.before), (plan, self.config))
        )
        past = np.arange(self.run["step"])
        differing = np.flatnonzero(old(np, past) != new(np, past))
        if differing.size:
            step = int(differing[0])
            future = [change for change in self.changes if change.setting in _OF_THE_FUTURE]
            raise RestoreError(
                f"the run in {self.workdir} has {_listed(future)}, and its learning rate differs "
                f"in the past: {old.at(step):g} and {new.at(step):g} at update {step:,}; use "
                f"another --workdir, or follow the new rates from here on with "
                f"{self._allowing('lr')}."
            )

    def _allowing(self, *names: str) -> str:
        """The option that allows more changes, with those that are allowed already."""
        return f"--allow-change {' '.join([*self.allow_change, *names])}"


def _is_moved(change: Change) -> bool:
    """Whether own files are named by another path; what they hold is compared apart."""
    if change.setting == "data.tokenizer":
        return True
    if change.setting != "dataset":
        return False
    names = change.before, change.now
    return all(map(is_path, names)) or all(map(is_text, names))


def _listed(changes: Iterable[Change]) -> str:
    return " and ".join(f"{c.setting}={c.before!r}, not {c.now!r}" for c in changes)


def _future(config: TrainConfig) -> tuple:
    return config.schedule, config.length, config.tokens_of_example


def _replanned(config: TrainConfig, num_examples: int, done: BatchPlan, samples: int) -> BatchPlan:
    """Plans the schedule as it was planned before: up to each end that cut a batch short."""
    plan, ends = config.plan(num_examples), cut_ends(done, samples)
    if plan.num_samples < samples or not ends:
        return plan
    unreached = plan.unreached  # of the whole run: a part of it doesn't come to the others
    first, *later = [*(f"{end}sp" for end in ends), config.length]
    rules = config.remainder, 1, config.tokens_of_example
    plan = untold_plan(config.schedule, num_examples, first, *rules)
    for end, until in zip(ends, later, strict=True):
        plan = continued_plan(plan, config.schedule, end, until)
    return dataclasses.replace(plan, unreached=unreached)


def check_past(
    run: Mapping[str, Any], plan: BatchPlan, seed: int, workdir: Path, override: str = ""
) -> None:
    """Raises a RestoreError unless a checkpoint's past is this plan's, example for example.

    `override` says what else the user can do about an edited past.
    """
    if run["seed"] != seed:
        raise RestoreError(
            f"the run in {workdir} has seed {run['seed']}, not {seed}; use another workdir."
        )
    saved = BatchPlan.from_dict(run["plan"])
    for name in ("num_examples", "remainder"):
        ours, theirs = getattr(plan, name), getattr(saved, name)
        if ours != theirs:
            raise RestoreError(
                f"the run in {workdir} has {name}={theirs!r} and this one {ours!r}; use another "
                "workdir."
            )
    if not is_past(run, plan):
        raise RestoreError(
            f"the run in {workdir} stands at sample {run['samples']:,}, and "
            f"{_first_difference(saved, plan)}; the past of a schedule can't be edited: use another "
            f"workdir{override}."
        )
    if run["order_digest"] != digest_of_order(saved, seed, run["samples"]):
        versions = run["numerics"]
        raise RestoreError(
            f"the examples of the run in {workdir} were in another order than this program's "
            f"(it was begun with adabatch_jax {versions.get('adabatch_jax')} and numpy "
            f"{versions.get('numpy')}); go on with those versions."
        )


def is_past(run: Mapping[str, Any], plan: BatchPlan) -> bool:
    """Whether a checkpoint lies on a plan: the same batches up to it."""
    samples = run["samples"]
    return samples <= plan.num_samples and plan.fingerprint(samples) == run["fingerprint"]


def digest_of_order(plan: BatchPlan, seed: int, samples: int) -> str | None:
    """A digest of the order in which the epoch at a position is trained; None without epochs.

    At the plan's end it is the last epoch's: another one would be worked out for this alone.
    """
    if plan.num_examples is None:
        return None
    return order_digest(
        plan.num_examples, seed, min(samples, plan.num_samples - 1) // plan.num_examples
    )


def _first_difference(saved: BatchPlan, plan: BatchPlan) -> str:
    """Says where two plans part."""
    for ours, theirs in zip(plan.phases, saved.phases, strict=False):
        for name in ("start_sample", "batch_size", "start_step"):
            if getattr(ours, name) != getattr(theirs, name):
                return (
                    f"phase {ours.index + 1} had {name} {getattr(theirs, name):,} there and has "
                    f"{getattr(ours, name):,} here"
                )
    return (
        f"its plan had {saved.num_samples:,} samples in {len(saved.phases)} phases and this one "
        f"has {plan.num_samples:,} in {len(plan.phases)}"
    )
