"""The plan's batches as lists of indices: for whatever is read by index."""

import dataclasses
from collections.abc import Iterator

from adabatch_jax.data.batches import examples_of
from adabatch_jax.data.epoch_order import prepare_next_order
from adabatch_jax.schedules.plan import BatchPlan, check_plan, step_beginning_at
from adabatch_jax.system.quantities import checked_seed


def batch_indices(plan: BatchPlan, seed: int = 0, start_sample: int = 0) -> "BatchIndices":
    """The examples of each update as a list of ints: those that `batches` reads, in its order.

    For `torch.utils.data.DataLoader(dataset, batch_sampler=...)`, and for `dataset[indices]` of
    Hugging Face's datasets and anything else that is indexed. One iteration is the whole run from
    `start_sample` on, all of its epochs; the plan's `remainder` holds as ever. `len(dataset)` must
    be the plan's `num_examples`; of an endless stream the indices are the plain positions.

    Args:
      plan: which batch sizes, in which order.
      seed: of the order of the examples.
      start_sample: where a step of the plan begins, such as `plan.samples_at(step)`.

    Returns:
      Something to iterate over, as often as wanted, with a length, the number of updates.

    Raises:
      UsageError: `plan` is no plan, no step begins at `start_sample`, or the seed is negative.

    >>> from adabatch_jax import make_plan
    >>> plan = make_plan("2, 4sp: 6", num_examples=10, duration="1ep")
    >>> list(batch_indices(plan, seed=0))
    [[2, 9], [4, 3], [0, 5, 7, 6, 8, 1]]
    >>> len(batch_indices(plan, seed=0, start_sample=4))
    1
    """
    check_plan(plan)
    checked_seed(seed)
    return BatchIndices(plan, seed, step_beginning_at(plan, start_sample, "start_sample"))


@dataclasses.dataclass(frozen=True)
class BatchIndices:
    """Lists of examples, one for each update of a plan from a step on; see `batch_indices`."""

    plan: BatchPlan
    seed: int
    start_step: int

    def __len__(self) -> int:
        return self.plan.num_steps - self.start_step

    def __iter__(self) -> Iterator[list[int]]:
        plan = self.plan
        for step in plan.steps(self.start_step):
            prepare_next_order(plan.num_examples, self.seed, step.start_sample, plan.num_samples)
            yield examples_of(plan.num_examples, self.seed, [step]).index.tolist()
