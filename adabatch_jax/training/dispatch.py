"""Running pieces of the plan with programs that were compiled ahead of time."""

import abc
import functools
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from adabatch_jax.data.abstract_arrays import abstract, laid_out
from adabatch_jax.data.feeds import Feed, Inputs, Piece
from adabatch_jax.data.row_layout import BatchLayout
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.schedules.update_sizes import first_updates_by_size
from adabatch_jax.training.compiled_programs import Programs
from adabatch_jax.training.program_names import program_names
from adabatch_jax.training.traced_dispatches import (
    add_microbatch,
    one_update,
    scalars,
    several_updates,
    with_gathered_rows,
)
from adabatch_jax.training.train_state import TrainState
from adabatch_jax.training.update import Metrics, Update, Updated
from adabatch_jax.training.updates_per_dispatch import microbatch_pieces, pieces


class Dispatched(NamedTuple):
    """What a dispatch returns, before it is computed.

    Attributes:
      state: the state after it.
      metrics: those of its updates: scalars where a dispatch is one update, else arrays with a
        leading axis; None in the middle of an update.
      is_finite: whether loss and gradients of its updates are finite, bool, shaped and None as
        one of the metrics; True behind the last of several updates.
      weight: the sums of weights of its updates, shaped and None as one of the metrics.
      wait_for: arrays that are ready when it is computed.
    """

    state: TrainState
    metrics: Metrics | None
    is_finite: jax.Array | None
    weight: jax.Array | None
    wait_for: Any


class Dispatch(abc.ABC):
    """Performs the plan's updates with programs that were compiled ahead of time.

    Args:
      update: what is performed.
      feed: gives the inputs.
      plan: what to train.
      start_step: the first update.
      state: arrays or abstract arrays like those that updates get.
      rng: the run's key, a typed key array.

    Attributes:
      programs: the compiled programs, in the order in which they are needed.
    """

    is_split: bool

    def __init__(
        self,
        update: Update,
        feed: Feed,
        plan: BatchPlan,
        start_step: int,
        state: TrainState,
        rng: jax.Array,
    ):
        self._update, self._feed, self._plan = update, feed, plan
        # A call with a typed key takes another, slower way through JAX.
        self._key_data = update.place(jax.random.key_data(rng))
        self._key_impl = jax.random.key_impl(rng)
        self._of_sizes: dict[int, list[jax.stages.Compiled]] = {}
        layouts = [feed.layouts.of(size) for size in first_updates_by_size(plan, start_step)]
        self.programs = Programs(self._lowerings(layouts, abstract(state)))

    def names(self, num_real: int) -> tuple[Hashable, ...]:
        """The programs that updates of so many examples need."""
        return program_names(self._feed.layouts.of(num_real), self.is_split)

    @abc.abstractmethod
    def pieces(self, start_step: int, next_boundary: Callable[[int], int]) -> Iterator[Piece]:
        """What is dispatched at a time, from an update on; see `updates_per_dispatch.pieces`."""

    @abc.abstractmethod
    def __call__(self, piece: Piece, state: TrainState, inputs: Inputs) -> Dispatched:
        """Dispatches a piece; the state is donated."""

    @abc.abstractmethod
    def _lowerings(
        self, layouts: list[BatchLayout], state: TrainState
    ) -> dict[Hashable, Callable[[], jax.stages.Lowered]]:
        """What lowers the programs, by name, for an abstract state."""

    def _compiled(self, num_real: int) -> list[jax.stages.Compiled]:
        """The programs of `names`; waits for those that aren't there yet."""
        if num_real not in self._of_sizes:
            names = self.names(num_real)
            self._of_sizes[num_real] = [self.programs.get(name).compiled for name in names]
        return self._of_sizes[num_real]

    @property
    def _others(self) -> tuple[Any, Any, Any]:
        """What every call is given: the key's bits, resident examples, the loss's constants."""
        return self._key_data, self._feed.tables, self._update.constants

    def _key(self, key_data: jax.Array) -> jax.Array:
        return jax.random.wrap_key_data(key_data, impl=self._key_impl)


class FusedDispatch(Dispatch):
    """One or several whole updates per dispatch; one program for batches that look alike."""

    is_split = False

    def __init__(self, *arguments: Any, steps_per_dispatch: int = 1):
        self._steps_per_dispatch = steps_per_dispatch
        super().__init__(*arguments)

    def pieces(self, start_step: int, next_boundary: Callable[[int], int]) -> Iterator[Piece]:
        return pieces(self._plan, start_step, self._steps_per_dispatch, next_boundary)

    def __call__(self, piece: Piece, state: TrainState, inputs: Inputs) -> Dispatched:
        (program,) = self._compiled(piece.steps[0].num_real)
        numbers = inputs.first, inputs.count
        return _dispatched(*program(state, inputs.arrays, numbers, *self._others))

    def _lowerings(self, layouts, state):
        update, feed, shardings = self._update, self._feed, {}
        if update.mesh is not None:
            whole = update.mesh.whole
            shardings["out_shardings"] = (update.state_shardings(state), *[whole] * 3)
        perform = functools.partial(one_update, update)
        if self._steps_per_dispatch > 1:
            perform = functools.partial(several_updates, update, self._steps_per_dispatch)

        def updates(state, arrays, numbers, key_data, tables, constants):
            return perform(state, arrays, numbers, self._key(key_data), tables, constants)

        jitted = jax.jit(updates, donate_argnums=0, **shardings)

        def lower(layout: BatchLayout) -> jax.stages.Lowered:
            arrays, *numbers, _ = feed.abstract_inputs(layout)
            return jitted.lower(state, arrays, tuple(numbers), *abstract(self._others))

        lowerings = {}
        for layout in layouts:
            (name,) = program_names(layout, split=False)
            lowerings.setdefault(name, functools.partial(lower, layout))
        return lowerings


class SplitDispatch(Dispatch):
    """One micro-batch per dispatch: no new program where only the batch size is new.

    Memory holds the micro-batches in flight instead of the whole batch.
    """

    is_split = True

    def __init__(self, *arguments: Any):
        self._sums: Any = None
        self._numbers: dict[int, jax.Array] = {}
        super().__init__(*arguments)

    def pieces(self, start_step: int, next_boundary: Callable[[int], int]) -> Iterator[Piece]:
        del next_boundary  # Whatever is due is due between updates.
        return microbatch_pieces(self._plan, start_step, self._feed.layouts)

    def __call__(self, piece: Piece, state: TrainState, inputs: Inputs) -> Dispatched:
        num_real = piece.steps[0].num_real
        begin, add, finish = self._compiled(num_real)
        if piece.microbatch == 0:
            self._sums = begin(state)
        number = self._number(piece.microbatch)
        self._sums, added = add(self._sums, state, inputs.arrays, number, *self._others)
        if piece.microbatch + 1 < self._feed.layouts.of(num_real).num_microbatches:
            return Dispatched(state, None, None, None, added)
        sums, self._sums = self._sums, None
        return _dispatched(*finish(state, sums))

    def _lowerings(self, layouts, state):
        update, feed = self._update, self._feed
        stacked = feed.abstract_inputs(layouts[0]).arrays
        microbatch = with_gathered_rows(jax.tree.map(_of_one_update, stacked), feed.tables)

        def begin(state: TrainState) -> Any:
            return update.begin(state, microbatch, self._key(self._key_data), update.constants)

        def add(sums, state, arrays, number, key_data, tables, constants):
            key = self._key(key_data)
            return add_microbatch(update, sums, state, arrays, number, key, tables, constants)

        def finish(state: TrainState, sums: Any) -> Updated:
            state, metrics, is_finite, weight = update.finish(state, sums)
            return state, scalars(metrics), is_finite, weight

        sums = jax.eval_shape(begin, state)
        of_begin, of_add, of_finish = {}, {}, {}
        if update.mesh is not None:
            of_sums, whole = update.sums_shardings(sums), update.mesh.whole
            sums = laid_out(sums, of_sums)
            of_begin["out_shardings"] = of_sums
            of_add["out_shardings"] = (of_sums, whole)
            of_finish["out_shardings"] = (update.state_shardings(state), *[whole] * 3)
        begin = jax.jit(begin, **of_begin)
        add = jax.jit(add, donate_argnums=0, **of_add)
        finish = jax.jit(finish, donate_argnums=0, **of_finish)

        def lower_add(layout: BatchLayout) -> jax.stages.Lowered:
            arrays, number = feed.abstract_inputs(layout).arrays, abstract(self._number(0))
            return add.lower(sums, state, arrays, number, *abstract(self._others))

        lowerings = {}
        for layout in layouts:
            first, middle, last = program_names(layout, split=True)
            lowerings.setdefault(first, lambda: begin.lower(state))
            lowerings.setdefault(middle, functools.partial(lower_add, layout))
        lowerings[last] = lambda: finish.lower(state, sums)
        return lowerings

    def _number(self, microbatch: int) -> jax.Array:
        if microbatch not in self._numbers:
            number = jax.device_put(np.int32(microbatch))
            self._numbers[microbatch] = self._update.place(number)
        return self._numbers[microbatch]


def _dispatched(state: TrainState, metrics: Metrics, is_finite: Any, weight: Any) -> Dispatched:
    return Dispatched(state, metrics, is_finite, weight, wait_for=is_finite)


def _of_one_update(stacked: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(stacked.shape[1:], stacked.dtype)
