"""Feeds: the arrays that each dispatch trains on, on the devices before they are wanted."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adabatch_jax.data.abstract_arrays import abstract_batch, abstract_rows, example_types
from adabatch_jax.data.batches import batch_rows, check, put_share, read_rows, stacked
from adabatch_jax.data.mesh import as_data_mesh, batch_sharding, replicated
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
      steps: consecutive updates of one phase, at most the feed's `steps_per_dispatch`.
      microbatch: the only micro-batch of the only step that is meant; None for whole updates.
    """

    steps: tuple[Step, ...]
    microbatch: int | None = None


class Feed:
    """The input of a run; both kinds give the same batches, bit for bit. A context manager.

    Args:
      source: where the examples are read from.
      plan: which batch sizes, in which order.
      seed: of the order of the examples.
      mesh: the devices to spread a batch over; None for the default device.
      microbatch_size: examples per micro-batch over all devices; None for no micro-batches.
      steps_per_dispatch: the most updates in a piece.
      kind: "resident": the examples are put on the devices now, on each of them where they fit
        so, else spread over them. "streaming": they are read and sent as they are needed. "auto":
        resident if the source is in memory and takes no more than half of `available_bytes`.
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
    ...         print(inputs["index"], inputs["weight"])
    resident: 40 bytes of examples fit on the device
    [0 5 7 6] [1. 1. 1. 1.]
    [8 1 8 8] [1. 1. 0. 0.]
    """

    def __init__(
        self,
        source: Source,
        plan: BatchPlan,
        seed: int,
        *,
        mesh: Mesh | None = None,
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
        self._mesh = None if mesh is None else as_data_mesh(mesh)
        self.layouts = Layouts(microbatch_size, 1 if mesh is None else mesh.size)
        self._num_examples, self._seed, self._source = plan.num_examples, seed, source
        self._steps_per_dispatch = steps_per_dispatch
        self._has_microbatches = microbatch_size is not None and not split
        self._sharding = self._whole = None
        if self._mesh is not None:
            self._whole = replicated(self._mesh)
            spec = batch_sharding(self._mesh, self._has_microbatches).spec
            steps = (None,) if steps_per_dispatch > 1 else ()
            self._sharding = NamedSharding(self._mesh, PartitionSpec(*steps, *spec))
        placement = choose_placement(
            source, plan.num_examples, kind, self.layouts.num_devices, available_bytes
        )
        self.kind, self.reason = placement.kind, placement.reason
        self.tables: dict[str, jax.Array] = {}
        if self.kind == "resident":
            arrays = (source if isinstance(source, ArraySource) else in_memory(source)).arrays
            self.tables = put_tables(arrays, self._mesh, placement.spread)
        self._examples = {} if self.tables else example_types(source)
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
    ) -> Iterator[tuple[Piece, dict[str, jax.Array]]]:
        """Yields each piece with its arrays, which a thread prepares at most 2 pieces ahead.

        With micro-batches arrays are (K, m, ...), else (B, ...), or (m, ...) where a piece is one
        micro-batch: those that `batches` gives, or "index", "epoch" and "weight" alone when the
        examples are resident. With more than one step per dispatch there is another axis in front,
        whose places behind the piece's steps repeat the last one, and "num_steps" (int32).

        Args:
          pieces: what to prepare, in order.
          should_stop: asked 10 times a second while a piece is waited for; True ends the
            iteration.

        Raises:
          Exception: whatever the source raises.
        """
        return prefetched(self._prepare, pieces, self._thread, should_stop=should_stop)

    def abstract_inputs(self, layout: BatchLayout) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays of a piece with batches of this layout, as shapes: what to compile for."""
        shape = (layout.padded_size,)
        if self._has_microbatches:
            shape = (layout.num_microbatches, *shape)
        if self._steps_per_dispatch == 1:
            return abstract_batch(self._examples, shape, self._sharding)
        inputs = abstract_batch(self._examples, (self._steps_per_dispatch, *shape), self._sharding)
        return inputs | abstract_rows({"num_steps": ((), np.int32)}, sharding=self._whole)

    def _prepare(self, piece: Piece) -> dict[str, jax.Array]:
        layout = self.layouts.of(piece.steps[0].batch_size)
        rows = stacked(
            [
                batch_rows(
                    self._num_examples, self._seed, step, layout, self._mesh, piece.microbatch
                )
                for step in piece.steps
            ]
        )
        arrays = rows.arrays()
        if not self.tables:
            arrays |= read_rows(self._source, rows)
        arrays = {name: self._shaped(array) for name, array in arrays.items()}
        inputs = put_share(arrays, self._sharding)
        if self._steps_per_dispatch > 1:
            inputs |= put_share({"num_steps": np.int32(len(piece.steps))}, self._whole)
        return inputs

    def _shaped(self, array: np.ndarray) -> np.ndarray:
        """Takes the axes off (steps, K, m, ...) that aren't wanted, and fills up the first."""
        if not self._has_microbatches:
            array = array[:, 0]
        if self._steps_per_dispatch == 1:
            return array[0]
        if len(array) == self._steps_per_dispatch:
            return array
        return array[np.minimum(np.arange(self._steps_per_dispatch), len(array) - 1)]
