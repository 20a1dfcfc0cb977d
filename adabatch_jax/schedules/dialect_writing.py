"""A plan's batch sizes as other systems read them."""

import itertools
from collections.abc import Sequence
from typing import Literal, get_args

from adabatch_jax.schedules.dialect_reading import megatron_ramp_thresholds
from adabatch_jax.schedules.phases import Phase
from adabatch_jax.schedules.plan import BatchPlan, check_plan
from adabatch_jax.system.errors import UsageError, did_you_mean

WrittenDialect = Literal["megatron", "megatron-ramp", "levanter"]
WRITTEN_DIALECTS: tuple[WrittenDialect, ...] = get_args(WrittenDialect)


def write_schedule(plan: BatchPlan, dialect: WrittenDialect) -> str:
    """Writes the batch sizes of a plan for another system, which has the same at each step.

    Args:
      plan: of any schedule; its `remainder` must be "carry", as those systems know no epochs.
      dialect: "megatron": `--step-batch-size-schedule` of Megatron-LM, with thresholds in tokens
        where the plan has `tokens_per_example` (their `--seq-length`) and in samples elsewhere.
        "megatron-ramp": `--rampup-batch-size` and `--global-batch-size` of its older versions, where
        the sizes are a ramp of equal stretches. "levanter": the YAML list of `train_batch_size`.

    Returns:
      Text for a command line, or for a YAML file, which `parse_schedule` reads.

    Raises:
      UsageError: `dialect` is none of these, or it can't say what the plan does: another
        `remainder`, a batch that shrinks (Megatron-LM), or no ramp of equal stretches.

    >>> from adabatch_jax import make_plan
    >>> plan = make_plan("768, 250Btok: 1536", None, "500Btok", tokens_per_example=4096)
    >>> write_schedule(plan, "megatron")
    '--step-batch-size-schedule "0:768 250000441344:1536"'
    >>> print(write_schedule(plan, "levanter"))
    train_batch_size:
    - start: 0
      value: 768
    - start: 79473
      value: 1536
    """
    check_plan(plan)
    if dialect not in WRITTEN_DIALECTS:
        hint = did_you_mean(str(dialect), WRITTEN_DIALECTS) or "."
        raise UsageError(f"unknown dialect {dialect!r}: it is {', '.join(WRITTEN_DIALECTS)}{hint}")
    if plan.remainder != "carry":
        raise UsageError(
            f"{dialect} knows no epochs, whose ends {plan.remainder!r} cuts batches at; plan with "
            "remainder 'carry'."
        )
    if dialect == "levanter":
        entries = (f"- start: {p.start_step}\n  value: {p.batch_size}" for p in plan.phases)
        return "\n".join(["train_batch_size:", *entries])
    shrinking = [b for a, b in itertools.pairwise(plan.phases) if b.batch_size < a.batch_size]
    if shrinking:
        raise UsageError(
            f"Megatron-LM's batch never shrinks, but the plan's does, to {shrinking[0].batch_size} "
            f"at step {shrinking[0].start_step:,}."
        )
    if dialect == "megatron":
        tokens = plan.tokens_per_example or 1
        entries = (f"{p.start_sample * tokens}:{p.batch_size}" for p in plan.phases)
        return f'--step-batch-size-schedule "{" ".join(entries)}"'
    return _megatron_ramp(plan.phases)


def _megatron_ramp(phases: Sequence[Phase]) -> str:
    sizes = [phase.batch_size for phase in phases]
    increments = {b - a for a, b in itertools.pairwise(sizes)}
    over = _ramp_samples(phases) if len(increments) == 1 else None
    if over is None:
        raise UsageError(
            "the plan is no ramp of equal increments over equal stretches, which is all that "
            "--rampup-batch-size can say; 'megatron' writes any growth."
        )
    ramp = f"{sizes[0]} {increments.pop()} {over}"
    return f"--rampup-batch-size {ramp} --global-batch-size {sizes[-1]}"


def _ramp_samples(phases: Sequence[Phase]) -> int | None:
    """Over how many samples a ramp has these phases; of several numbers the roundest."""
    count = len(phases) - 1
    # Increment k begins at k / count of the ramp, behind the beginning of the step before it.
    lowest = max(
        count * (phase.start_sample - before.batch_size) // k + 1
        for k, (before, phase) in enumerate(itertools.pairwise(phases), 1)
    )
    highest = min(count * phase.start_sample // k for k, phase in enumerate(phases[1:], 1))
    for digits in range(18, -1, -1):
        over = highest // 10**digits * 10**digits
        if over >= max(lowest, 1) and _begin_at(phases, megatron_ramp_thresholds(over, count)):
            return over
    return None


def _begin_at(phases: Sequence[Phase], thresholds: Sequence[int]) -> bool:
    """Whether these are the phases of thresholds in samples."""
    return all(
        phase.start_sample - before.batch_size < threshold <= phase.start_sample
        for (before, phase), threshold in zip(itertools.pairwise(phases), thresholds, strict=True)
    )
