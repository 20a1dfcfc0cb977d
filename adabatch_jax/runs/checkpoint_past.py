"""Whether a checkpoint's past is the past of what is to be trained now."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adabatch_jax.data.epoch_order import order_digest
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.system.errors import RestoreError


def check_past(
    run: Mapping[str, Any], plan: BatchPlan, seed: int, workdir: Path, override: str = ""
) -> None:
    """Raises a RestoreError unless a checkpoint's past is this plan's, example for example.

    Args:
      run: the checkpoint's own values.
      plan: what is to be trained.
      seed: of the order of the examples.
      workdir: the run's folder, for the error.
      override: what else the user can do about an edited past, for the error.
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
            f"{first_difference(saved, plan)}; the past of a schedule can't be edited: use another "
            f"workdir{override}."
        )
    if run["order_digest"] != digest_of_order(plan, seed, run["samples"]):
        versions = run["versions"]
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
    """A digest of the order in which the epoch at a position is trained; None without epochs."""
    if plan.num_examples is None:
        return None
    return order_digest(plan.num_examples, seed, samples // plan.num_examples)


def first_difference(saved: BatchPlan, plan: BatchPlan) -> str:
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
