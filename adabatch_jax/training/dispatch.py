"""Running pieces of the plan with programs that were compiled ahead of time."""

import functools
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from adabatch_jax.data.feeds import Feed, Piece
from adabatch_jax.data.mesh import replicated
from adabatch_jax.data.row_layout import BatchLayout, batch_layout
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.training.compiled_programs import Programs
from adabatch_jax.training.dispatch_pieces import microbatch_pieces, pieces
from adabatch_jax.training.dispatch_programs import (
    Inputs,
    Metrics,
    abstract_batch,
    add_microbatch,
    one_update,
    scalars,
    several_updates,
)
from adabatch_jax.training.train_state import TrainState
from adabatch_jax.training.train_step import TrainStep


class Dispatched(NamedTuple):
    """What a dispatch returns, before it is computed.

    Attributes:
      state: the state after it.
      metrics: those of its updates: scalars where a dispatch is one update, else arrays with a
        leading axis; None in the middle of an update.
      is_finite: whether loss and gradients of its updates are finite, bool, shaped and None as
        one of the metrics; True behind the last of several updates.
      wait_for: arrays that are ready when it is computed.
    """

    state: TrainState
    metrics: Metrics | None
    is_finite: jax.Array | None
    wait_for: Any


class Dispatch(Protocol):
    """What the loop asks to perform the plan's updates.

    Attributes:
      programs: the compiled programs, in the order in which they are needed.
    """

    programs: Programs

    def names(self, batch_size: int) -> tuple[Hashable, ...]:
        """The programs that updates of this batch size need."""

    def pieces(self, start_step: int, next_boundary: Callable[[int], int]) -> Iterator[Piece]:
        """What is dispatched at a time, from an update on; see `pieces`."""

    def __call__(
        self, piece: Piece, state: TrainState, inputs: Inputs, rng: jax.Array
    ) -> Dispatched:
        """Dispatches a piece; the state is donated."""


class FusedDispatch:
    """One or several whole updates per dispatch; one program per batch size.

    Args:
      train_step: performs an update.
      feed: gives the inputs.
      plan: what to train.
      start_step: the first update.
      state: arrays or abstract arrays like those that updates get.
      rng: the run's key, where updates get it.
      steps_per_dispatch: the most updates in a dispatch.
    """

    def __init__(
        self,
        train_step: TrainStep,
        feed: Feed,
        plan: BatchPlan,
        start_step: int,
        state: TrainState,
        rng: jax.Array,
        steps_per_dispatch: int = 1,
    ):
        self._feed, self._plan, self._constants = feed, plan, train_step.constants
        self._steps_per_dispatch = steps_per_dispatch
        mesh, shardings = train_step.mesh, {}
        if mesh is not None:
            whole = replicated(mesh)
            shardings["out_shardings"] = (train_step.state_shardings(state), whole, whole)
        updates = one_update if steps_per_dispatch == 1 else several_updates
        jitted = jax.jit(functools.partial(updates, train_step), donate_argnums=0, **shardings)
        state, *others = abstract((state, rng, feed.tables, train_step.constants))

        def lower(batch_size: int) -> jax.stages.Lowered:
            return jitted.lower(state, feed.abstract_inputs(batch_size), *others)

        self.programs = Programs(
            {size: functools.partial(lower, size) for size in sizes_from(plan, start_step)}
        )

    def names(self, batch_size: int) -> tuple[Hashable, ...]:
        return (batch_size,)

    def pieces(self, start_step: int, next_boundary: Callable[[int], int]) -> Iterator[Piece]:
        return pieces(self._plan, start_step, self._steps_per_dispatch, next_boundary)

    def __call__(
        self, piece: Piece, state: TrainState, inputs: Inputs, rng: jax.Array
    ) -> Dispatched:
        program = self.programs.get(piece.steps[0].batch_size)
        others = (rng, self._feed.tables, self._constants)
        state, metrics, is_finite = program.compiled(state, inputs, *others)
        return Dispatched(state, metrics, is_finite, metrics)


class SplitDispatch:
    """One micro-batch per dispatch: no new program where only the batch size is new.

    Memory holds the micro-batches in flight instead of the whole batch. For the arguments see
    `FusedDispatch`.
    """

    def __init__(
        self,
        train_step: TrainStep,
        feed: Feed,
        plan: BatchPlan,
        start_step: int,
        state: TrainState,
        rng: jax.Array,
    ):
        self._feed, self._plan, self._constants = feed, plan, train_step.constants
        self._microbatch_size = train_step.microbatch_size
        self._num_devices = 1 if train_step.mesh is None else train_step.mesh.size
        self._place, self._sums = train_step.place, None
        self._numbers: dict[int, jax.Array] = {}
        first, *_ = sizes = sizes_from(plan, start_step)
        microbatch = abstract_batch(feed.abstract_inputs(first), feed.tables)
        arguments = (state, rng, feed.tables, train_step.constants)
        state, rng, *others = abstract(arguments)

        def begin(state: TrainState) -> Any:
            return train_step.begin(state, microbatch, rng, train_step.constants)

        sums, mesh = jax.eval_shape(begin, state), train_step.mesh
        of_begin, of_add, of_finish = {}, {}, {}
        if mesh is not None:
            of_sums, whole = train_step.sums_shardings(sums), replicated(mesh)
            sums = jax.tree.map(_with_sharding, sums, of_sums)
            of_begin["out_shardings"] = of_sums
            of_add["out_shardings"] = (of_sums, whole)
            of_finish["out_shardings"] = (train_step.state_shardings(state), whole, whole)
        begin = jax.jit(begin, **of_begin)
        add = jax.jit(functools.partial(add_microbatch, train_step), donate_argnums=0, **of_add)

        def finish(state: TrainState, sums: Any) -> tuple[TrainState, Metrics, jax.Array]:
            state, metrics, is_finite = train_step.finish_checked(state, sums)
            return state, scalars(metrics), is_finite

        finish = jax.jit(finish, donate_argnums=0, **of_finish)

        def lower_add(batch_size: int) -> jax.stages.Lowered:
            inputs, number = feed.abstract_inputs(batch_size), abstract(self._number(0))
            return add.lower(sums, state, inputs, number, rng, *others)

        lowerings = {"begin": lambda: begin.lower(state)}
        for size in sizes:
            lowerings.setdefault(self._add_name(size), functools.partial(lower_add, size))
        lowerings["finish"] = lambda: finish.lower(state, sums)
        self.programs = Programs(lowerings)

    def names(self, batch_size: int) -> tuple[Hashable, ...]:
        return ("begin", self._add_name(batch_size), "finish")

    def pieces(self, start_step: int, next_boundary: Callable[[int], int]) -> Iterator[Piece]:
        del next_boundary  # Whatever is due is due between updates.
        return microbatch_pieces(self._plan, start_step, self._microbatch_size, self._num_devices)

    def __call__(
        self, piece: Piece, state: TrainState, inputs: Inputs, rng: jax.Array
    ) -> Dispatched:
        batch_size = piece.steps[0].batch_size
        begin, add, finish = (self.programs.get(name) for name in self.names(batch_size))
        if piece.microbatch == 0:
            self._sums = begin.compiled(state)
        number = self._number(piece.microbatch)
        others = (rng, self._feed.tables, self._constants)
        self._sums, added = add.compiled(self._sums, state, inputs, number, *others)
        if piece.microbatch + 1 < self._layout(batch_size).num_microbatches:
            return Dispatched(state, None, None, added)
        sums, self._sums = self._sums, None
        state, metrics, is_finite = finish.compiled(state, sums)
        return Dispatched(state, metrics, is_finite, metrics)

    def _layout(self, batch_size: int) -> BatchLayout:
        return batch_layout(batch_size, self._microbatch_size, self._num_devices)

    def _add_name(self, batch_size: int) -> Hashable:
        return ("add", self._layout(batch_size).padded_size)

    def _number(self, microbatch: int) -> jax.Array:
        if microbatch not in self._numbers:
            self._numbers[microbatch] = self._place(jax.device_put(np.int32(microbatch)))
        return self._numbers[microbatch]


def sizes_from(plan: BatchPlan, start_step: int) -> tuple[int, ...]:
    """The distinct batch sizes from an update on, in the order of their first use."""
    rest = (phase for phase in plan.phases if phase.stop_step > start_step)
    return tuple(dict.fromkeys(phase.batch_size for phase in rest))


def abstract(tree: Any) -> Any:
    """Shapes, dtypes and shardings of arrays: what programs are compiled for."""

    def describe(leaf):
        if not isinstance(leaf, jax.Array):
            return leaf
        # Where an uncommitted array lies is nothing to insist on.
        sharding = leaf.sharding if leaf.committed else None
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(describe, tree)


def _with_sharding(leaf: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
