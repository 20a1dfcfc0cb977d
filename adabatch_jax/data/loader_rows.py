"""Rows of other people's loaders at consecutive positions of a run, pass after pass."""

import collections
import copy
from collections.abc import Iterator
from typing import Any

import numpy as np

from adabatch_jax.data.item_columns import ItemColumns
from adabatch_jax.data.loaders import Anchor, Loader, Pass
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.system.errors import UsageError

_END = object()


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
        self._loader, self._batched, self._may_end = loader, batched, may_end
        self._num_examples, self._num_samples = plan.num_examples, plan.num_samples
        self.position, self._epoch = anchor.sample, anchor.epoch
        self._anchors = collections.deque([anchor])
        self._columns = ItemColumns(batched)
        self._rest: list[np.ndarray] = []  # rows of the item that was read last
        self._pass = self._begin_pass(anchor.state if is_restored else None)
        # The rest of a pass may be empty; a whole one may not.
        self._pass_has_rows = is_restored and anchor.state is not None
        self._items_read: int | None = None if self._pass_has_rows else 0

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
            if self._items_read is not None:
                self._items_read += 1
            if self._rest:
                if not self._pass_has_rows:
                    self._refuse_examples(self._pass.num_items, len(self._rest[0]))
                self._pass_has_rows = True
                return True
        if self._items_read:
            num_rows = self.position - self._epoch * (self._num_examples or 0)
            self._refuse_examples(self._items_read, num_rows // self._items_read)
        return False

    def _refuse_examples(self, num_items: int | None, num_rows: int) -> None:
        """Raises a UsageError if a pass has as many items as the plan examples, of several rows.

        It is then one of examples, whose own first axis would be taken for that of a batch.
        """
        if not self._batched or num_items is None or num_items != self._num_examples:
            return
        if num_rows < 2 and not self._loader.is_array:
            return
        raise UsageError(
            f"the loader gives {num_items:,} items, as many as the plan has examples, with {num_rows} "
            "rows in an item: give batched=False if its items are examples; if they are batches, and "
            "its length counts their examples, give a function, `lambda epoch: iter(loader)`."
        )

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
        self._pass, self._pass_has_rows, self._items_read = self._begin_pass(None), False, 0
        return True

    def _begin_pass(self, state: Any) -> Pass:
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
