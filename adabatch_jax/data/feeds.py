"""Feeds: the arrays that each dispatch trains on, on the devices before they are wanted."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from adabatch_jax.data.abstract_arrays import (
    abstract_batch,
    abstract_rows,
    example_types,
    laid_out,
    tree_bytes,
)
from adabatch_jax.data.array_trees import map_arrays
from adabatch_jax.data.batches import batch_rows, check, examples_of, put_rows, read_rows
from adabatch_jax.data.epoch_order import prepare_next_order
from adabatch_jax.data.example_digest import Share, shares_of_digest
from adabatch_jax.data.example_reading import ReadOnce, SourceReader, reader_of
from adabatch_jax.data.mesh import BatchMesh, as_batch_mesh
from adabatch_jax.data.prefetching import BackgroundThread, never, prefetched
from adabatch_jax.data.resident_examples import choose_placement, put_tables
from adabatch_jax.data.row_layout import BatchLayout, Layouts
from adabatch_jax.data.sources import ArraySource, Source, in_memory
from adabatch_jax.schedules.plan import BatchPlan, Step
from adabatch_jax.system.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Piece:
    """What one dispatch trains on.

    Attributes:
      steps: consecutive updates of one phase with as many examples each, at most the feed's
        `steps_per_dispatch`.
      microbatch: the only micro-batch of the only step that is meant; None for whole updates.
    """

    steps: tuple[Step, ...]
    microbatch: int | None = None


class Inputs(NamedTuple):
    """What a piece is computed from.

    Attributes:
      arrays: those of a few pieces that were sent together, (updates, ...): each update's are
        (K, m, ...) with micro-batches, else (B, ...), or (m, ...) of a piece that is one
        micro-batch. They are those that `batches` gives, or "index", "epoch" and "weight" alone
        where the examples are resident.
      first: which of these updates is the piece's first, an int32 on the devices.
      count: how many are the piece's, an int32 on the devices.
      digest_shares: what each of its updates adds to the digest of examples.
    """

    arrays: dict[str, jax.Array]
    first: jax.Array
    count: jax.Array
    digest_shares: list[Share]


# Updates of examples in memory that are indexed, hashed and sent together: what that costs once for
# each would take as long as a short update.
_UPDATES_TOGETHER = 128
_BYTES_TOGETHER = 2**21
_INDEX_BYTES = 16  # of a row: its index, epoch and weight, and what is left free


class Feed:
    """The input of a run; both kinds give the same batches, bit for bit. A context manager.

    Args:
      source: where the examples are read from.
      plan: which batch sizes, in which order.
      seed: of the order of the examples.
      mesh: the devices to spread a batch over, as in `batches`; None for the default device.
      microbatch_size: examples per micro-batch over all devices; None for no micro-batches.
      steps_per_dispatch: the most updates in a piece.
      kind: "resident": the examples are put on the devices now, on each of them where they fit
        so, else spread over them. "streaming": they are read and sent as they are needed. "auto":
        resident if the source is in memory and takes no more than half of `available_bytes`; on a
        CPU, which has no other memory, it is then streamed from there.
      available_bytes: memory that is free on each device; infinite where that isn't known.
      split: whether each piece is one micro-batch.

    Attributes:
      layouts: how batches are laid out.
      kind: "resident" or "streaming".
      reason: why it is that kind, for people.
      tables: the source's arrays on the devices, examples first; {} where they are streamed.

    Raises:
      UsageError: the source's size is not the plan's, `microbatch_size` or `steps_per_dispatch`
        is below 1, `split` comes without a `microbatch_size` or with several steps per dispatch,
        or resident examples don't fit.

    >>> from adabatch_jax import array_source, make_plan
    >>> plan = make_plan("2, 4sp: 4", num_examples=10, duration="1ep")
    >>> with Feed(array_source({"x": np.arange(10) * 10}), plan, seed=0) as feed:
    ...     print(feed.reason)
    ...     for piece, inputs in feed.run(Piece((step,)) for step in plan.steps(2)):
    ...         place = int(inputs.first)
    ...         print(inputs.arrays["index"][place], inputs.arrays["weight"][place])
    streaming: 40 bytes of examples are in memory already
    [0 5 7 6] [1. 1. 1. 1.]
    [8 1] [1. 1.]
    """

    def __init__(
        self,
        source: Source | SourceReader,
        plan: BatchPlan,
        seed: int,
        *,
        mesh: Mesh | NamedSharding | BatchMesh | None = None,
        microbatch_size: int | None = None,
        steps_per_dispatch: int = 1,
        kind: str = "auto",
        available_bytes: float = math.inf,
        split: bool = False,
    ):
        check(source, plan, seed)
        if steps_per_dispatch < 1:
            raise UsageError(f"`steps_per_dispatch` must be at least 1, got {steps_per_dispatch}.")
        if split and (microbatch_size is None or steps_per_dispatch > 1):
            raise UsageError("`split` needs a `microbatch_size`, and one step per dispatch.")
        self._mesh = mesh = as_batch_mesh(mesh)
        self.layouts = Layouts(microbatch_size, 1 if mesh is None else mesh.num_shards)
        self._plan, self._seed, self._reader = plan, seed, reader_of(source)
        self._steps_per_dispatch = steps_per_dispatch
        self._split, self._has_microbatches = split, microbatch_size is not None and not split
        self._num_stacked = 1 + self._has_microbatches  # axes before that of the rows
        platform = jax.default_backend() if mesh is None else mesh.mesh.devices.flat[0].platform
        placement = choose_placement(
            source, plan.num_examples, kind, self.layouts.num_devices, available_bytes, platform
        )
        self.kind, self.reason = placement.kind, placement.reason
        self.tables: dict[str, jax.Array] = {}
        if self.kind == "resident":
            arrays = (source if isinstance(source, ArraySource) else in_memory(source)).arrays
            self.tables = put_tables(arrays, self._mesh, placement.spread)
        self._examples = {} if self.tables else example_types(self._reader)
        self._is_sent_in_blocks = bool(self.tables) or placement.from_memory
        self._row_bytes = tree_bytes(abstract_rows(self._examples)) + _INDEX_BYTES
        # XLA has work for all cores of a CPU: a thread of ours would hold up single updates there by
        # more than it takes to copy what lies in memory between two of them.
        self._is_prepared_between = placement.from_memory and steps_per_dispatch == 1
        self._numbers: dict[int, jax.Array] = {}
        self._thread = BackgroundThread("feed")

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the background thread, when it has finished the piece that it is at.

        One that hangs in the source is left behind after 2 seconds.
        """
        self._thread.close()

    def run(
        self, pieces: Iterable[Piece], should_stop: Callable[[], bool] = never
    ) -> Iterator[tuple[Piece, Inputs]]:
        """Yields each piece with its inputs, which a thread prepares ahead.

        Streamed examples are at most 2 pieces ahead, or 2 times 2 MiB of pieces.

        Args:
          pieces: what to prepare, in order.
          should_stop: asked 10 times a second while a piece is waited for; True ends the
            iteration.

        Raises:
          Exception: whatever the source raises.
        """
        blocks = self._blocks(pieces)
        if self._is_prepared_between:
            prepared = ((block, self._prepare(block)) for block in blocks)
        else:
            prepared = prefetched(self._prepare, blocks, self._thread, should_stop=should_stop)
        for block, inputs in prepared:
            yield from zip(block, inputs, strict=True)

    def abstract_inputs(self, layout: BatchLayout) -> Inputs:
        """The inputs of a piece with batches of this layout, as shapes: what to compile for."""
        shape = (layout.padded_size,)
        if self._has_microbatches:
            shape = (layout.num_microbatches, *shape)
        shape = (self._updates_together(layout), *shape)
        batch = abstract_batch(self._examples, shape)
        if self._mesh is None:
            number = jax.ShapeDtypeStruct((), np.int32)
        else:
            number = jax.ShapeDtypeStruct((), np.int32, sharding=self._mesh.whole)
            batch = laid_out(batch, self._mesh.of_batch(batch, self._num_stacked))
        return Inputs(batch, number, number, [])

    def _updates_together(self, layout: BatchLayout) -> int:
        """How many updates' arrays are sent together."""
        most, number = self._steps_per_dispatch, 1
        if self._is_sent_in_blocks and not self._split:
            rows = most * layout.num_microbatches * layout.padded_size
            number = min(_UPDATES_TOGETHER // most, _BYTES_TOGETHER // (rows * self._row_bytes))
        return max(1, number) * most

    def _blocks(self, pieces: Iterable[Piece]) -> Iterator[tuple[Piece, ...]]:
        """Puts consecutive pieces of one layout together, as many as their arrays have room for."""
        for _, alike in itertools.groupby(pieces, lambda piece: piece.steps[0].num_real):
            block, room = [], 0
            for piece in alike:
                if len(piece.steps) > room or not self._is_sent_in_blocks:
                    if block:
                        yield tuple(block)
                    layout = self.layouts.of(piece.steps[0].num_real)
                    block, room = [], self._updates_together(layout)
                block.append(piece)
                room -= len(piece.steps)
            yield tuple(block)

    def _prepare(self, block: tuple[Piece, ...]) -> list[Inputs]:
        steps = [step for piece in block for step in piece.steps]
        plan, begin = self._plan, steps[0].start_sample
        examples = examples_of(plan.num_examples, self._seed, steps)
        prepare_next_order(plan.num_examples, self._seed, begin, plan.num_samples)
        layout = self.layouts.of(steps[0].num_real)
        rows = batch_rows(examples, steps, layout, self._mesh, block[0].microbatch)
        if self.tables:
            arrays = rows.arrays()
        else:
            if isinstance(self._reader, ReadOnce) and not block[0].microbatch:
                self._reader.begin_batch()
            arrays = read_rows(self._reader, rows)
        number = self._updates_together(layout)
        arrays = map_arrays(lambda array: self._shaped(array, number), arrays)
        arrays = put_rows(arrays, self._mesh, self._num_stacked)
        starts = [step.start_sample - examples.start_sample for step in steps]
        ranges = [(at, at + step.num_real) for at, step in zip(starts, steps, strict=True)]
        num_before = plan.examples_at(steps[0].index)
        shares = shares_of_digest(num_before, examples.index, examples.epoch, ranges)
        inputs, first = [], 0
        for piece in block:
            stop = first + len(piece.steps)
            numbers = self._number(first), self._number(len(piece.steps))
            inputs.append(Inputs(arrays, *numbers, shares[first:stop]))
            first = stop
        return inputs

    def _shaped(self, array: np.ndarray, number: int) -> np.ndarray:
        """Takes the axis off (updates, K, m, ...) that isn't wanted, and fills up the first."""
        if not self._has_microbatches:
            array = array[:, 0]
        if len(array) == number:
            return array
        return array[np.minimum(np.arange(number), len(array) - 1)]

    def _number(self, value: int) -> jax.Array:
        if value not in self._numbers:
            put = jax.device_put if self._mesh is None else self._mesh.put_whole
            self._numbers[value] = put(np.int32(value))
        return self._numbers[value]
