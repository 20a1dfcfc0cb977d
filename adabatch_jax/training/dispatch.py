"""Running pieces of the plan with programs that were compiled ahead of time."""

import functools
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from adabatch_jax.data.abstract_arrays import abstract, laid_out
from adabatch_jax.data.feeds import Feed, Piece
from adabatch_jax.data.mesh import replicated
from adabatch_jax.data.row_layout import BatchLayout
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.training.compiled_programs import Programs
from adabatch_jax.training.program_names import program_names
from adabatch_jax.training.traced_dispatches import (
    Inputs,
    abstract_batch,
    add_microbatch,
    one_update,
    scalars,
    several_updates,
)
from adabatch_jax.training.train_state import TrainState
from adabatch_jax.training.update import Metrics, Update
from adabatch_jax.training.updates_of_a_dispatch import microbatch_pieces, pieces


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
    """One or several whole updates per dispatch; one program for batches of one layout.

    Args:
      update: what is performed.
      feed: gives the inputs.
      plan: what to train.
      start_step: the first update.
      state: arrays or abstract arrays like those that updates get.
      rng: the run's key, where updates get it.
      steps_per_dispatch: the most updates in a dispatch.
    """

    def __init__(
        self,
        update: Update,
        feed: Feed,
        plan: BatchPlan,
        start_step: int,
        state: TrainState,
        rng: jax.Array,
        steps_per_dispatch: int = 1,
    ):
        self._feed, self._plan, self._constants = feed, plan, update.constants
        self._steps_per_dispatch = steps_per_dispatch
        shardings = {}
        if update.mesh is not None:
            whole = replicated(update.mesh)
            shardings["out_shardings"] = (update.state_shardings(state), whole, whole)
        updates = one_update if steps_per_dispatch == 1 else several_updates
        jitted = jax.jit(functools.partial(updates, update), donate_argnums=0, **shardings)
        state, *others = abstract((state, rng, feed.tables, update.constants))

        def lower(layout: BatchLayout) -> jax.stages.Lowered:
            return jitted.lower(state, feed.abstract_inputs(layout), *others)

        lowerings = {}
        for layout in map(feed.layouts.of, sizes_from(plan, start_step)):
            (name,) = program_names(layout, split=False)
            lowerings.setdefault(name, functools.partial(lower, layout))
        self.programs = Programs(lowerings)

    def names(self, batch_size: int) -> tuple[Hashable, ...]:
        return program_names(self._feed.layouts.of(batch_size), split=False)

    def pieces(self, start_step: int, next_boundary: Callable[[int], int]) -> Iterator[Piece]:
        return pieces(self._plan, start_step, self._steps_per_dispatch, next_boundary)

    def __call__(
        self, piece: Piece, state: TrainState, inputs: Inputs, rng: jax.Array
    ) -> Dispatched:
        (program,) = map(self.programs.get, self.names(piece.steps[0].batch_size))
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
        update: Update,
        feed: Feed,
        plan: BatchPlan,
        start_step: int,
        state: TrainState,
        rng: jax.Array,
    ):
        self._feed, self._plan, self._constants = feed, plan, update.constants
        self._place, self._sums = update.place, None
        self._numbers: dict[int, jax.Array] = {}
        layouts = [feed.layouts.of(size) for size in sizes_from(plan, start_step)]
        microbatch = abstract_batch(feed.abstract_inputs(layouts[0]), feed.tables)
        state, rng, *others = abstract((state, rng, feed.tables, update.constants))

        def begin(state: TrainState) -> Any:
            return update.begin(state, microbatch, rng, update.constants)

        def finish(state: TrainState, sums: Any) -> tuple[TrainState, Metrics, jax.Array]:
            state, metrics, is_finite = update.finish(state, sums)
            return state, scalars(metrics), is_finite

        sums = jax.eval_shape(begin, state)
        of_begin, of_add, of_finish = {}, {}, {}
        if update.mesh is not None:
            of_sums, whole = update.sums_shardings(sums), replicated(update.mesh)
            sums = laid_out(sums, of_sums)
            of_begin["out_shardings"] = of_sums
            of_add["out_shardings"] = (of_sums, whole)
            of_finish["out_shardings"] = (update.state_shardings(state), whole, whole)
        begin = jax.jit(begin, **of_begin)
        add = jax.jit(functools.partial(add_microbatch, update), donate_argnums=0, **of_add)
        finish = jax.jit(finish, donate_argnums=0, **of_finish)

        def lower_add(layout: BatchLayout) -> jax.stages.Lowered:
            inputs, number = feed.abstract_inputs(layout), abstract(self._number(0))
            return add.lower(sums, state, inputs, number, rng, *others)

        lowerings = {}
        for layout in layouts:
            first, middle, last = program_names(layout, split=True)
            lowerings.setdefault(first, lambda: begin.lower(state))
            lowerings.setdefault(middle, functools.partial(lower_add, layout))
        lowerings[last] = lambda: finish.lower(state, sums)
        self.programs = Programs(lowerings)

    def names(self, batch_size: int) -> tuple[Hashable, ...]:
        return program_names(self._feed.layouts.of(batch_size), split=True)

    def pieces(self, start_step: int, next_boundary: Callable[[int], int]) -> Iterator[Piece]:
        del next_boundary  # Whatever is due is due between updates.
        return microbatch_pieces(self._plan, start_step, self._feed.layouts)

    def __call__(
        self, piece: Piece, state: TrainState, inputs: Inputs, rng: jax.Array
    ) -> Dispatched:
        batch_size = piece.steps[0].batch_size
        begin, add, finish = map(self.programs.get, self.names(batch_size))
        if piece.microbatch == 0:
            self._sums = begin.compiled(state)
        number = self._number(piece.microbatch)
        others = (rng, self._feed.tables, self._constants)
        self._sums, added = add.compiled(self._sums, state, inputs, number, *others)
        if piece.microbatch + 1 < self._feed.layouts.of(batch_size).num_microbatches:
            return Dispatched(state, None, None, added)
        sums, self._sums = self._sums, None
        state, metrics, is_finite = finish.compiled(state, sums)
        return Dispatched(state, metrics, is_finite, metrics)

    def _number(self, microbatch: int) -> jax.Array:
        if microbatch not in self._numbers:
            self._numbers[microbatch] = self._place(jax.device_put(np.int32(microbatch)))
        return self._numbers[microbatch]


def sizes_from(plan: BatchPlan, start_step: int) -> tuple[int, ...]:
    """The distinct batch sizes from an update on, in the order of their first use."""
    rest = (phase for phase in plan.phases if phase.stop_step > start_step)
    return tuple(dict.fromkeys(phase.batch_size for phase in rest))
