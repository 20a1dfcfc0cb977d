"""Batches at a position: a pure function of (seed, position, batch size)."""

import functools
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from adabatch_jax.data.array_trees import arrays_by_name, map_arrays
from adabatch_jax.data.epoch_order import example_indices, prepare_next_order
from adabatch_jax.data.example_reading import SourceReader, check_source, reader_of
from adabatch_jax.data.example_weights import example_weights
from adabatch_jax.data.row_layout import BatchLayout, Layouts, host_table
from adabatch_jax.data.sources import Source
from adabatch_jax.schedules.plan import BatchPlan, Step, check_plan, step_beginning_at
from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.quantities import checked_seed

if TYPE_CHECKING:
    from jax.sharding import Mesh, NamedSharding

    from adabatch_jax.data.mesh import BatchMesh

# What a batch holds beside the source's arrays: the shape and the dtype of one row.
ADDED_TYPES = {
    "index": ((), np.dtype(np.int32)),
    "epoch": ((), np.dtype(np.int32)),
    "weight": ((), np.dtype(np.float32)),
}
_INT32_RANGE = 2**31


def batches(
    source: Source,
    plan: BatchPlan,
    seed: int = 0,
    start_sample: int = 0,
    mesh: "Mesh | NamedSharding | None" = None,
    microbatch_size: int | None = None,
    sharding: "NamedSharding | None" = None,
    *,
    pad: bool = False,
    prefetch: int = 0,
) -> Iterator[dict[str, Any]]:
    """Yields the plan's batches from a position on.

    A batch holds the source's arrays, and `"index"` and `"epoch"` (int32) and `"weight"`
    (float32: 1 for an example, 0 for padding) of each row. A `"weight"` of the source's own, one
    number >= 0 per example, is multiplied in: how often the example counts in means, such as its
    tokens. Padding repeats the batch's first example. What a batch holds depends on the seed, the
    position and the batch size only.

    Args:
      source: where the examples are read from.
      plan: which batch sizes, in which order.
      seed: of the order of the examples, from 0 to `2**32 - 1`.
      start_sample: where a step of the plan begins; the batches are then the tail of the
        uninterrupted sequence.
      mesh: the devices to spread a batch over: a mesh of one axis, or the sharding of one
        (micro-)batch on a mesh of any axes, the first entry of whose spec names those that share
        the examples out. Later entries hold for the dimensions that an array has. None for numpy
        arrays of the real examples.
      microbatch_size: examples per micro-batch over all devices; None for no micro-batch axis.
      sharding: such a sharding, by another name; beside it `mesh` may only be its mesh.
      pad: fill a partial batch up to its phase's size, so that no other shape occurs; else it is
        shorter.
      prefetch: how many batches a thread reads, and puts on the mesh, ahead of the one at hand; it
        ends with the iterator. 0: none, each batch is read when it is asked for.

    Yields:
      Arrays of shape `(examples, ...)`, or `(micro-batches, microbatch_size, ...)`, the last
      micro-batch filled up; with a mesh they are global jax.Arrays, split over the devices and
      padded to a multiple of them where they don't divide the (micro-)batch.

    Raises:
      UsageError: the source's size is not the plan's, it has an array "index" or "epoch", or a
        "weight" that isn't one number >= 0 per example, no step begins at `start_sample`,
        `prefetch` < 0, or mesh and sharding don't say, or disagree, how a batch lies.

    >>> from adabatch_jax import array_source, make_plan
    >>> source = array_source({"x": np.arange(10)})
    >>> plan = make_plan("2, 4sp: 4", num_examples=10, duration="1ep")
    >>> [batch["weight"].tolist() for batch in batches(source, plan, start_sample=4)]
    [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0]]
    >>> [batch["weight"].tolist() for batch in batches(source, plan, start_sample=4, pad=True)]
    [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]]
    """
    if mesh is not None or sharding is not None:
        from adabatch_jax.data.mesh import mesh_and_sharding

        mesh = mesh_and_sharding(mesh, sharding)
    layouts = Layouts(microbatch_size, 1 if mesh is None else mesh.num_shards)
    check(source, plan, seed)
    start_step = step_beginning_at(plan, start_sample, "start_sample")
    if operator.index(prefetch) < 0:
        raise UsageError(f"`prefetch` must be at least 0, got {prefetch}.")

    reader = reader_of(source)

    def batch_of(step: Step) -> dict[str, Any]:
        examples = examples_of(plan.num_examples, seed, [step])
        prepare_next_order(plan.num_examples, seed, step.start_sample, plan.num_samples)
        layout = layouts.of(step.batch_size if pad else step.num_real)
        batch = read_rows(reader, batch_rows(examples, [step], layout, mesh))
        at = (0, 0) if microbatch_size is None else 0
        batch = map_arrays(lambda array: array[at], batch)
        return batch if mesh is None else put_rows(batch, mesh, int(microbatch_size is not None))

    made = (batch_of(step) for step in plan.steps(start_step))
    if not prefetch:
        return made
    from adabatch_jax.data.prefetching import read_ahead

    return read_ahead(made, prefetch, "batches")


def check(source: Source | SourceReader, plan: BatchPlan, seed: int) -> None:
    """Raises a UsageError unless the source can be read along the plan."""
    if not isinstance(source, SourceReader):
        check_source("source", source, getattr(plan, "num_examples", None) is not None)
    check_plan(plan)
    num_examples = plan.num_examples
    if num_examples is not None:
        if len(source) != num_examples:
            raise UsageError(
                f"the source has {len(source)} examples and the plan num_examples={num_examples}; "
                "make the plan with num_examples=len(source)."
            )
        if num_examples >= _INT32_RANGE:
            raise UsageError(f"a source can have at most 2**31 - 1 examples, got {num_examples}.")
    checked_seed(seed)


class Rows(NamedTuple):
    """Which example each row of a batch is; arrays of one shape, the last axis the rows.

    Padding repeats the batch's first example, and is not real.
    """

    index: np.ndarray
    epoch: np.ndarray
    is_real: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of `ADDED_TYPES`."""
        return {
            "index": (self.index % _INT32_RANGE).astype(np.int32),
            "epoch": self.epoch.astype(np.int32),
            "weight": self.is_real.astype(np.float32),
        }


class Examples(NamedTuple):
    """The examples at the positions of a run from `start_sample` on; int64, shape (n,)."""

    start_sample: int
    index: np.ndarray
    epoch: np.ndarray


def examples_of(num_examples: int | None, seed: int, steps: Sequence[Step]) -> Examples:
    """The examples of consecutive steps, and what a "drop" skips between them."""
    start, stop = steps[0].start_sample, steps[-1].start_sample + steps[-1].num_real
    positions = np.arange(start, stop, dtype=np.int64)
    if num_examples is None:
        return Examples(start, positions, stream_epoch(positions))
    index = example_indices(num_examples, seed, start, stop - start)
    return Examples(start, index, positions // num_examples)


def stream_epoch(positions: np.ndarray) -> np.ndarray:
    """The "epochs" of an endless stream, which is read in its own order: blocks of 2**31 examples.

    So (epoch, index) fits into two int32, and never comes twice.
    """
    return positions // _INT32_RANGE


def batch_rows(
    examples: Examples,
    steps: Sequence[Step],
    layout: BatchLayout,
    mesh: "BatchMesh | None",
    microbatch: int | None = None,
) -> Rows:
    """Returns this host's share of the rows of steps of one layout, (steps, micro-batches, rows).

    Where the layout is one of more examples than a step has, the rest is padding.
    `microbatch` is the only micro-batch that is meant; without micro-batches there is one of them.
    """
    places, is_row = _places(layout, (0,) if mesh is None else mesh.own_shards)
    if microbatch is not None:
        places, is_row = places[microbatch : microbatch + 1], is_row[microbatch : microbatch + 1]
    starts = np.array([step.start_sample - examples.start_sample for step in steps])
    is_real = np.broadcast_to(is_row, (len(steps), *is_row.shape))
    if any(step.num_real < layout.batch_size for step in steps):
        num_real = np.array([step.num_real for step in steps])
        is_real = is_row & (places < num_real[:, None, None])
        places = np.where(is_real, places, 0)
    at = starts[:, None, None] + places
    return Rows(examples.index[at], examples.epoch[at], is_real)


def read_rows(reader: SourceReader, rows: Rows) -> dict[str, Any]:
    """The batch of rows of any shape; for padding nothing is read twice."""
    index, is_real = rows.index.ravel(), rows.is_real.ravel()
    wanted, place = index, None
    if not is_real.all():
        real, padding = index[is_real], index[~is_real]
        wanted = np.concatenate([real, np.setdiff1d(padding, real)])  # those of other hosts' rows
        order = np.argsort(wanted, kind="stable")
        place = np.empty(index.size, np.int64)
        place[is_real] = np.arange(real.size)
        place[~is_real] = order[np.searchsorted(wanted, padding, sorter=order)]
    arrays = with_float_weights(reader.read(wanted))

    def arranged(array: np.ndarray) -> np.ndarray:
        array = array if place is None else array[place]
        return array.reshape(*rows.index.shape, *array.shape[1:])

    arrays, added = map_arrays(arranged, arrays), rows.arrays()
    if "weight" in arrays:
        added["weight"] *= arrays["weight"]
    return arrays | added


def with_float_weights(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """A source's arrays, whose "weight" is multiplied into that of batches, as float32.

    Raises a UsageError where it can't be, and where another array has a name that batches add.
    """
    clash = [name for name in arrays if name in ADDED_TYPES and name != "weight"]
    if clash:
        raise UsageError(
            f"the source has an array named {clash[0]!r}, which batches add themselves; rename it."
        )
    if "weight" not in arrays:
        return dict(arrays)
    return {**arrays, "weight": example_weights(arrays["weight"])}


def put_rows(
    arrays: dict[str, np.ndarray], mesh: "BatchMesh | None", num_stacked: int
) -> dict[str, Any]:
    """Puts this host's rows on its devices, None means the default one; see `BatchMesh.put`."""
    import jax

    refuse_unfit_values(arrays)
    return jax.device_put(arrays) if mesh is None else mesh.put(arrays, num_stacked)


def refuse_unfit_values(arrays: Mapping[Any, Any]) -> None:
    """Raises a UsageError for texts and objects, which devices can't hold, and numbers cut there.

    The latter are whole numbers of 64 bits that JAX, in 32, would make others.

    >>> refuse_unfit_values({"label": np.array([3, 2**32 + 3])})
    Traceback (most recent call last):
    adabatch_jax.system.errors.UsageError: the source's array 'label' holds 4294967299, which ...
    """
    import jax

    for name, array in arrays_by_name(arrays).items():
        if array.dtype.kind in "USOMm" or array.dtype.names:
            raise UsageError(
                f"the source's array {name!r} is of {array.dtype}, which devices can't hold; leave "
                "it out, or give numbers."
            )
        if array.dtype.kind not in "iu" or array.dtype.itemsize < 8 or not array.size:
            continue
        kept = jax.dtypes.canonicalize_dtype(array.dtype)
        limits = np.iinfo(kept)
        for value in (int(array.min()), int(array.max())):
            if not limits.min <= value <= limits.max:
                raise UsageError(
                    f"the source's array {name!r} holds {value}, which is no {kept.name}, what "
                    "JAX makes of it; give numbers that fit."
                )


@functools.lru_cache(maxsize=8)
def _places(layout: BatchLayout, shards: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """A host's share of the layout's rows, 0 for padding, and where there is one."""
    rows = host_table(layout, shards)
    places, is_row = np.maximum(rows, 0), rows >= 0
    places.flags.writeable = is_row.flags.writeable = False
    return places, is_row
