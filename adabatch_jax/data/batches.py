"""Batches at a position: a pure function of (seed, position, batch size)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from adabatch_jax.data.layout import BatchLayout, batch_layout, host_columns, row_table
from adabatch_jax.data.order import epoch_order, example_indices
from adabatch_jax.data.sources import Source
from adabatch_jax.errors import UsageError
from adabatch_jax.schedules.plan import BatchPlan, Step

if TYPE_CHECKING:
    from jax.sharding import Mesh

ADDED_KEYS = ("index", "epoch", "weight")
_INT32_RANGE = 2**31


def batches(
    source: Source,
    plan: BatchPlan,
    seed: int = 0,
    start_sample: int = 0,
    mesh: "Mesh | None" = None,
    microbatch_size: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Yields the plan's batches from a position on.

    A batch holds the source's arrays, and `"index"` and `"epoch"` (int32) and `"weight"`
    (float32: 1 for an example, 0 for padding) of each row. Padding repeats the batch's first
    example. What a batch holds depends on the seed, the position and the batch size only.

    Args:
      source: where the examples are read from.
      plan: which batch sizes, in which order.
      seed: of the order of the examples.
      start_sample: where a step of the plan begins; the batches are then the tail of the
        uninterrupted sequence.
      mesh: the devices to spread a batch over; None for numpy arrays of the phase's batch size.
      microbatch_size: examples per micro-batch over all devices; None for no micro-batch axis.

    Yields:
      Arrays of shape `(batch_size, ...)`, or `(micro-batches, microbatch_size, ...)`; with a mesh
      they are global jax.Arrays, split over the devices and padded to a multiple of them.

    Raises:
      UsageError: the source's size is not the plan's, an array has one of the names above, or no
        step begins at `start_sample`.

    >>> from adabatch_jax import array_source, make_plan
    >>> source = array_source({"x": np.arange(10)})
    >>> plan = make_plan("2, 4sp: 4", num_examples=10, duration="1ep")
    >>> [batch["weight"].sum().item() for batch in batches(source, plan)]
    [2.0, 2.0, 4.0, 2.0]
    """
    return (batch for _, batch in numbered_batches(
        source, plan, seed, start_sample, mesh, microbatch_size
    ))  # fmt: skip


def numbered_batches(
    source: Source,
    plan: BatchPlan,
    seed: int,
    start_sample: int,
    mesh: "Mesh | None",
    microbatch_size: int | None,
) -> Iterator[tuple[Step, dict[str, Any]]]:
    """As `batches`, each with its step."""
    start_step = _check(source, plan, seed, start_sample)
    if mesh is not None:
        from adabatch_jax.training.mesh import as_data_mesh

        mesh = as_data_mesh(mesh)
    num_devices = 1 if mesh is None else mesh.size
    for size in plan.batch_sizes:
        batch_layout(size, microbatch_size, num_devices)

    def generate():
        for step in plan.steps(start_step):
            layout = batch_layout(step.batch_size, microbatch_size, num_devices)
            batch = read_batch(source, plan.num_examples, seed, step, layout, mesh)
            if microbatch_size is None:
                batch = {name: array[0] for name, array in batch.items()}
            yield step, batch if mesh is None else _on_mesh(batch, mesh, microbatch_size)

    return generate()


def read_batch(
    source: Source,
    num_examples: int | None,
    seed: int,
    step: Step,
    layout: BatchLayout,
    mesh: "Mesh | None",
) -> dict[str, np.ndarray]:
    """Reads this host's share of a step's batch: arrays of shape (micro-batches, rows, ...)."""
    rows = row_table(layout)
    if mesh is not None:
        rows = rows[:, host_columns(layout, *_process(mesh))]
    real = (rows >= 0) & (rows < step.num_real)
    index, epoch = examples_at(num_examples, seed, step.start_sample, step.num_real)
    # Examples are read once; padding takes another copy of the first one.
    wanted = np.flatnonzero(real)
    filled = bool(wanted.size == real.size)
    read_rows = rows.ravel()[wanted] if filled else np.append(rows.ravel()[wanted], 0)
    arrays = source.read(index[read_rows])
    clash = [name for name in ADDED_KEYS if name in arrays]
    if clash:
        raise UsageError(
            f"the source has an array named {clash[0]!r}, which batches add themselves; rename it."
        )
    place = np.full(real.size, wanted.size)
    place[wanted] = np.arange(wanted.size)
    take = (lambda a: a) if filled else (lambda a: a[place])
    arrays = {name: take(np.asarray(array)) for name, array in arrays.items()}
    arrays["index"] = take((index[read_rows] % _INT32_RANGE).astype(np.int32))
    arrays["epoch"] = take(epoch[read_rows].astype(np.int32))
    arrays["weight"] = real.ravel().astype(np.float32)
    return {name: array.reshape(*real.shape, *array.shape[1:]) for name, array in arrays.items()}


def examples_at(
    num_examples: int | None, seed: int, start_sample: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The examples at positions of the run and the epochs they are visited in; both int64.

    An endless stream is read in its own order; its "epochs" are blocks of 2**31 examples, so
    that (epoch, index) fits into two int32 and never comes twice.
    """
    positions = np.arange(start_sample, start_sample + count, dtype=np.int64)
    if num_examples is None:
        return positions, positions // _INT32_RANGE
    return example_indices(num_examples, seed, start_sample, count), positions // num_examples


def _check(source: Source, plan: BatchPlan, seed: int, start_sample: int) -> int:
    num_examples = plan.num_examples
    if num_examples is not None:
        if len(source) != num_examples:
            raise UsageError(
                f"the source has {len(source)} examples and the plan num_examples={num_examples}; "
                "make the plan with num_examples=len(source)."
            )
        if num_examples >= _INT32_RANGE:
            raise UsageError(f"a source can have at most 2**31 - 1 examples, got {num_examples}.")
    epoch_order(1, seed, 0)  # checks the seed
    return plan.step_beginning_at(start_sample, "start_sample")


def _process(mesh: "Mesh") -> tuple[int, int]:
    processes = sorted({device.process_index for device in mesh.devices.flat})
    return processes.index(mesh.local_mesh.devices.flat[0].process_index), len(processes)


def _on_mesh(
    batch: dict[str, np.ndarray], mesh: "Mesh", microbatch_size: int | None
) -> dict[str, Any]:
    import jax

    from adabatch_jax.training.mesh import batch_sharding

    sharding = batch_sharding(mesh, microbatch_size is not None)
    if mesh.is_multi_process:
        return {
            name: jax.make_array_from_process_local_data(sharding, array)
            for name, array in batch.items()
        }
    return jax.device_put(batch, sharding)
