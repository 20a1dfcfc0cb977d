"""Going on with a run: what has been done, followed by what is asked for now."""

import dataclasses
from pathlib import Path

import numpy as np

from adabatch_jax.config import TrainConfig
from adabatch_jax.errors import RestoreError
from adabatch_jax.learning_rates.resolved import resolve
from adabatch_jax.schedules.building import make_plan
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.training.checkpoint import Checkpoints
from adabatch_jax.training.record import check_past
from adabatch_jax.workdir import saved_config

# What decides the numbers of a run beside its schedule and learning rate.
_IDENTITY = (
    "dataset", "model", "optimizer", "momentum", "weight_decay", "seed", "microbatch_size",
    "batchnorm_group_size", "batchnorm_reference_size", "compute_dtype", "remainder", "data",
)  # fmt: skip


def plan_of_run(config: TrainConfig, num_examples: int, workdir: Path) -> BatchPlan:
    """The plan; of a run that has begun, what was done followed by what is asked for.

    A longer run and an edited future of the schedule are allowed; another past is refused, and
    so is a change of any setting that decides the numbers.
    """
    run = _newest_run(config, workdir)
    if run is None:
        _check_nothing_is_lost(config, workdir)
        return config.plan(num_examples)
    before = TrainConfig.from_dict(run["identity"], origin=f"the checkpoint in {workdir}")
    check_identity(before, config, workdir)
    done = BatchPlan.from_dict(run["plan"])
    plan = _replanned(config, num_examples, done, run["samples"])
    check_past(run, plan, config.seed, workdir)
    _check_rates(before, done, config, plan, run["step"], workdir)
    return plan


def _newest_run(config: TrainConfig, workdir: Path) -> dict | None:
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        return None
    checkpoints = Checkpoints(folder, config.keep_checkpoints)
    try:
        steps = checkpoints.steps()
        return checkpoints.read_run(steps[-1]) if steps else None
    finally:
        checkpoints.close()


def _check_nothing_is_lost(config: TrainConfig, workdir: Path) -> None:
    """Refuses to begin anew where a finished run lies, whose checkpoints were removed."""
    before = saved_config(workdir)
    if before is None or not (workdir / "summary.json").exists():
        return
    check_identity(before, config, workdir)
    raise RestoreError(
        f"the run in {workdir} is finished and its checkpoints are gone, so it can't go on with "
        "other settings; use another --workdir."
    )


def _replanned(
    config: TrainConfig, num_examples: int, done: BatchPlan, samples: int
) -> BatchPlan:
    """Plans the schedule as it was planned before: up to each end that cut a batch short."""
    plan = config.plan(num_examples)
    if plan.num_samples < samples:
        return plan
    ends = [end for end in done.irregular_ends() if end <= samples]
    for i, end in enumerate(ends):
        until = f"{ends[i + 1]}sp" if i + 1 < len(ends) else config.duration
        if i == 0:
            plan = make_plan(config.schedule, num_examples, f"{end}sp", config.remainder)
        plan = plan.continued(config.schedule, end, until)
    return plan


def check_identity(before: TrainConfig, config: TrainConfig, workdir: Path) -> None:
    """Raises a RestoreError that names the first setting that decides numbers and differs."""
    for name in _IDENTITY:
        old, new = getattr(before, name), getattr(config, name)
        if name == "data":
            # Where the files lie decides nothing.
            old, new = (dataclasses.asdict(d) | {"dir": None} for d in (old, new))
            differing = [key for key in old if old[key] != new[key]]
            if not differing:
                continue
            name, old, new = f"data.{differing[0]}", old[differing[0]], new[differing[0]]
        if old != new:
            raise RestoreError(
                f"the run in {workdir} has {name}={old!r}, not {new!r}; use another --workdir, "
                f"or go on with --config {workdir / 'config.json'}."
            )


def _check_rates(
    before: TrainConfig,
    done: BatchPlan,
    config: TrainConfig,
    plan: BatchPlan,
    num_steps: int,
    workdir: Path,
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
        raise RestoreError(
            f"the run in {workdir} had learning rate {old.at(step):g} at update {step:,} and "
            f"this configuration (lr {config.lr!r}, coupling {config.coupling}) has "
            f"{new.at(step):g}; the past can't be edited: use another --workdir."
        )
