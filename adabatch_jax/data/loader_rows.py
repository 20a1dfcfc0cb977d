"""Rows of other people's loaders at consecutive positions of a run, pass after pass."""

import collections
import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from adabatch_jax.data.item_columns import ItemColumns
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.system.errors import UsageError

_END = object()
_STATE_METHODS = (("get_state", "set_state"), ("state_dict", "load_state_dict"))


class Anchor(NamedTuple):
    """A place that a loader can be brought back to.

    Attributes:
      sample: which example of the run comes next there.
      epoch: the epoch that its pass began with.
      state: the loader's own state; None at the beginning of a pass.
    """

    sample: int = 0
    epoch: int = 0
    state: Any = None


class Loader:
    """What `rebatch` was given: an iterable, or a function of the epoch that makes one.

    Attributes:
      is_iterator: whether it can be iterated over once only.
      begins_at_any_epoch: whether the order of a pass follows from its epoch alone.
    """

    def __init__(self, given: Any):
        is_function = callable(given) and not _is_iterable(given)
        if not is_function and not _is_iterable(given):
            raise UsageError(
                f"`loader` must be something to iterate over, or a function of the epoch that makes "
                f"it, got {given!r}."
            )
        self._of_epoch: Callable[[int], Any] = given if is_function else lambda epoch: given
        self._given = None if is_function else given
        self.is_iterator = isinstance(given, Iterator)
        self.begins_at_any_epoch = is_function or hasattr(given, "set_epoch")

    def anchor(self, sample: int, num_examples: int | None) -> Anchor:
        """The nearest place before an example of the run, of a loader that wasn't read yet."""
        if self.begins_at_any_epoch and num_examples is not None and sample >= num_examples:
            epoch = sample // num_examples
            return Anchor(epoch * num_examples, epoch)
        methods = _state_methods(self._given)
        return Anchor(state=copy.deepcopy(methods[0]()) if methods else None)

    def begin_pass(self, epoch: int, state: Any) -> "_Pass":
        """Begins a pass, where the state says or at its beginning."""
        loader = self._of_epoch(epoch)
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(epoch)
        if methods := _state_methods(loader):
            if state is not None:
                methods[1](state)
            return _Pass(iter(loader), methods[0], None)
        rows = iter(loader)
        methods = _state_methods(rows)
        if state is not None:
            if not methods:
                raise UsageError(
                    f"the state is that of a loader which can be positioned, and "
                    f"{type(loader).__name__} has no get_state() and set_state(), nor "
                    "state_dict() and load_state_dict()."
                )
            methods[1](state)
        if not methods:
            return _Pass(rows, None, None)
        return _Pass(rows, methods[0], copy.deepcopy(methods[0]()))


class _Pass(NamedTuple):
    """An iterator over a loader, what tells its state, and the state that it begins with.

    The last is known of iterators alone: a loader may still tell that of the pass before.
    """

    rows: Iterator
    tell_state: Callable[[], Any] | None
    first_state: Any


class LoaderRows:
    """A loader's rows from an anchor on; the next pass begins where one ends with an epoch.

    Args:
      loader: the loader.
      plan: says how many examples an epoch and the run have.
      anchor: where to begin.
      is_restored: whether the loader has to be brought there.
      batched: as in `ItemColumns`.
      may_end: whether an end before the plan's ends the rows; else it is an error.

    Attributes:
      position: which example of the run the next row is.
    """

    def __init__(
        self,
        loader: Loader,
        plan: BatchPlan,
        anchor: Anchor,
        is_restored: bool,
        batched: bool,
        may_end: bool,
    ):
        self._loader, self._may_end = loader, may_end
        self._num_examples, self._num_samples = plan.num_examples, plan.num_samples
        self.position, self._epoch = anchor.sample, anchor.epoch
        self._anchors = collections.deque([anchor])
        self._columns = ItemColumns(batched)
        self._rest: list[np.ndarray] = []  # rows of the item that was read last
        self._pass = self._begin_pass(anchor.state if is_restored else None)
        # The rest of a pass may be empty; a whole one may not.
        self._pass_has_rows = is_restored and anchor.state is not None

    def take(self, stop: int) -> Any:
        """The tree of the rows up to a position; of fewer, or None, if the loader may end early."""
        pieces = list(self._pieces(stop))
        return self._columns.join(pieces) if pieces else None

    def drop(self, stop: int) -> None:
        """Leaves out the rows up to a position."""
        for _ in self._pieces(stop):
            pass

    def leave_out_tail(self, sample: int) -> None:
        """Leaves out the rows before an epoch's beginning, which the loader may do itself."""
        while self.position < sample:
            if not self._rest and not self._read_item():
                self.position = sample
                self._begin_next_pass()
                return
            self._cut(sample)

    def anchor(self) -> Anchor:
        """The newest anchor that isn't behind the position."""
        while len(self._anchors) > 1 and self._anchors[1].sample <= self.position:
            self._anchors.popleft()
        return self._anchors[0]

    def _pieces(self, stop: int) -> Iterator[list[np.ndarray]]:
        """Reads as far as a position, piece by piece."""
        is_read = False
        while self.position < stop:
            if not self._rest:
                is_read = True
                if not self._read_item():
                    if not self._begin_next_pass():
                        return
                    continue
            yield self._cut(stop)
        if is_read and self._pass.tell_state is not None:
            # Once a batch, since it may cost more than an item.
            self.anchor()
            num_waiting = len(self._rest[0]) if self._rest else 0
            state = copy.deepcopy(self._pass.tell_state())  # which the loader may go on changing
            self._anchors.append(Anchor(self.position + num_waiting, self._epoch, state))

    def _cut(self, stop: int) -> list[np.ndarray]:
        """Takes the rows up to a position off those that wait."""
        count = min(len(self._rest[0]), stop - self.position)
        piece = [array[:count] for array in self._rest]
        self._rest = [array[count:] for array in self._rest] if count < len(self._rest[0]) else []
        self.position += count
        return piece

    def _read_item(self) -> bool:
        """Reads the next item that has rows; False where the pass has ended."""
        while (item := next(self._pass.rows, _END)) is not _END:
            self._rest = self._columns.read(item, self.position)
            if self._rest:
                self._pass_has_rows = True
                return True
        return False

    def _begin_next_pass(self) -> bool:
        """Goes on behind a pass's end; False if the loader ends early and may do so."""
        reason = self._early_end()
        if reason is not None:
            if self._may_end:
                return False
            raise UsageError(
                f"the loader ended after {self.position:,} of the {self._num_samples:,} examples "
                f"that the plan wants: {reason}."
            )
        self._epoch = self.position // self._num_examples
        self._pass, self._pass_has_rows = self._begin_pass(None), False
        return True

    def _begin_pass(self, state: Any) -> _Pass:
        begun = self._loader.begin_pass(self._epoch, state)
        is_known = begun.tell_state is None and self._loader.begins_at_any_epoch
        if begun.first_state is not None or is_known:
            self._anchors.append(Anchor(self.position, self._epoch, begun.first_state))
        return begun

    def _early_end(self) -> str | None:
        """Why the pass that has ended was no epoch of the plan; None if it was one."""
        if not self._pass_has_rows:
            return "a pass over it is empty"
        if self._num_examples is None:
            return "make the plan as long as the loader, or let the loader repeat itself"
        if self.position % self._num_examples:
            num_rows = self.position - self._epoch * self._num_examples
            return (
                f"a pass over it has {num_rows:,} examples and the plan num_examples="
                f"{self._num_examples:,} (does it leave out a last partial batch?)"
            )
        if self._loader.is_iterator:
            return (
                "it is an iterator, which can't begin anew for the next epoch; give what it was "
                "made from, or a function of the epoch that makes it"
            )
        return None


def _is_iterable(given: Any) -> bool:
    return isinstance(given, Iterable) or hasattr(given, "__getitem__")


def _state_methods(thing: Any) -> list[Callable] | None:
    """How its state is told and set, if it can be positioned."""
    for names in _STATE_METHODS:
        methods = [getattr(thing, name, None) for name in names]
        if all(map(callable, methods)):
            return methods
    return None
