"""Which numbers of examples a plan's updates have, without a walk over all of them."""

from adabatch_jax.schedules.plan import BatchPlan, stride_of


def first_updates_by_size(plan: BatchPlan, start_step: int = 0) -> dict[int, int]:
    """The first update with each number of examples, from an update on, in order.

    Its keys are what programs are compiled for: the batch sizes of the phases, as far as any batch
    of theirs is full, and those of partial batches. It takes O(number of phases).

    >>> from adabatch_jax import make_plan
    >>> first_updates_by_size(make_plan("40, 2ep: 60", 100, "4ep", remainder="partial"))
    {40: 0, 20: 2, 60: 6}
    >>> first_updates_by_size(make_plan("40, 2ep: 60", 100, "4ep"), start_step=3)
    {40: 3, 60: 5, 20: 8}
    """
    firsts: dict[int, int] = {}
    for phase in plan.phases:
        if phase.stop_step <= start_step:
            continue
        last = phase.num_steps - 1
        unlike = stride_of(plan, phase).unlike_from(max(start_step - phase.start_step, 0))
        for k in sorted(unlike | {last}):
            if k <= last:
                step = next(plan.steps(phase.start_step + k))
                firsts.setdefault(step.num_real, step.index)
    return firsts
