"""The plan's batches out of other people's loaders."""

import operator
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from adabatch_jax.data.batches import Rows, stream_epoch
from adabatch_jax.data.example_weights import example_weights
from adabatch_jax.data.loader_rows import LoaderRows
from adabatch_jax.data.loaders import Anchor, Loader
from adabatch_jax.data.prefetching import read_ahead
from adabatch_jax.schedules.plan import BatchPlan, check_plan, step_beginning_at
from adabatch_jax.system.errors import UsageError

_Batches = Iterator[tuple[Any, dict[str, Any]]]


def rebatch(
    loader: Iterable[Any] | Callable[[int], Iterable[Any]],
    plan: BatchPlan,
    start_step: int = 0,
    prefetch: int = 2,
    *,
    batched: bool = True,
    may_end: bool = False,
) -> "Rebatched":
    """Turns what a loader gives, examples or batches of any sizes, into the plan's batches.

    Every row of the loader comes once and in its order, whatever the sizes. The loader is iterated
    over again for each epoch; one that goes through several epochs by itself is read on.

    An item is a pytree of arrays of numpy, jax, torch or TensorFlow, of scalars, texts, or lists
    of those; a batch is the same tree of numpy arrays. If it is a dict, each batch has `"weight"`
    (float32, 1) and `"epoch"` (int32) of its rows too, and on endless streams `"index"` (int32),
    the row's place; arrays of the loader with these names are kept, `"weight"` as float32: how
    often each example counts.

    Args:
      loader: what to iterate over, once per epoch; or a function of the number of an epoch that
        makes it, from that epoch on, which is how each epoch gets an order of its own; or a
        function of nothing, called for each epoch. A loader's method `set_epoch`, or that of its
        `sampler` or `batch_sampler`, is called with that number. A dataset that is indexed, with
        a length and without `__iter__`, is read from 0 to its length.
      plan: which batch sizes. With `remainder="drop"` a loader may leave out an epoch's last rows
        itself.
      start_step: the update to begin at. The rows before it are read and dropped, from the
        beginning of the epoch if `loader` is a function or has `set_epoch`; see `set_state` for
        a faster way.
      prefetch: how many batches a thread reads ahead; 0 for no thread.
      batched: whether the first axis of an item's arrays is examples, as of batches; False for
        items that are one example each.
      may_end: whether a loader that ends before the plan does ends the batches, the last of which
        may be shorter; by default that is an error.

    Returns:
      An iterator over batches, with `get_state`, `set_state` and `close`.

    Raises:
      UsageError: `loader` can't be iterated over, `plan` is no plan, `start_step` is outside it, or
        `prefetch` is negative. While iterating: the loader ends early, has as many items as the
        plan has examples and more rows (`batched=False` was meant), or its items can't be put
        together (other structures, shapes or dtypes than before, an array that numpy can't take, a
        "weight" that isn't one number >= 0 per example). What the loader raises comes out as it is.

    >>> from adabatch_jax import make_plan
    >>> loader = [{"x": np.arange(3)}, {"x": np.arange(3, 10)}]
    >>> plan = make_plan("2, 4sp: 6", num_examples=10, duration="2ep")
    >>> [batch["x"].tolist() for batch in rebatch(loader, plan)]
    [[0, 1], [2, 3], [4, 5, 6, 7, 8, 9], [0, 1, 2, 3, 4, 5], [6, 7, 8, 9]]
    """
    return Rebatched(loader, plan, start_step, prefetch, batched, may_end)


class Rebatched:
    """An iterator over a plan's batches; see `rebatch`.

    It reads nothing before the first batch is asked for. Its thread ends with the batches, with
    `close`, or with the last reference to it.

    >>> from adabatch_jax import make_plan
    >>> loader, plan = [{"x": np.arange(4)}], make_plan(2, num_examples=4, duration="2ep")
    >>> batches = rebatch(loader, plan)
    >>> next(batches)["x"].tolist(), batches.get_state()["sample"]
    ([0, 1], 2)
    >>> batches.close()
    """

    def __init__(
        self,
        loader: Any,
        plan: BatchPlan,
        start_step: int,
        prefetch: int,
        batched: bool,
        may_end: bool,
    ):
        self._loader = Loader(loader)
        check_plan(plan)
        start_step, self._prefetch = operator.index(start_step), operator.index(prefetch)
        if not 0 <= start_step <= plan.num_steps:
            raise UsageError(
                f"`start_step` must be from 0 to the plan's {plan.num_steps} steps, got {start_step}."
            )
        if self._prefetch < 0:
            raise UsageError(f"`prefetch` must not be negative, got {prefetch}.")
        self._plan, self._batched, self._may_end = plan, batched, may_end
        sample = plan.samples_at(start_step)
        self._state = _state(sample, self._loader.anchor(sample, plan.num_examples))
        self._is_restored = False
        self._batches: _Batches | None = None
        self._failure: BaseException | None = None
        self._tell_dropped(stacklevel=4)

    def __iter__(self) -> "Rebatched":
        return self

    def __next__(self) -> Any:
        if self._failure is not None:
            raise self._failure  # and not an end, which would look like the plan's
        if self._batches is None:
            self._batches = self._stream()
            if self._prefetch:
                self._batches = read_ahead(self._batches, self._prefetch, "rebatch")
        try:
            batch, self._state = next(self._batches)
        except StopIteration:
            raise
        except BaseException as error:
            self._failure = error
            raise
        return batch

    def get_state(self) -> dict[str, Any]:
        """Where the batches go on behind the last one that was handed out.

        What was read ahead doesn't count. The state is JSON if the loader's own state is: it
        holds `"sample"`, the run's position; `"loader"`, a state of the loader from before it
        (None at the beginning of a pass, or of a loader that has none); `"epoch"`, which the
        loader's pass began with; and `"row"`, how many rows come between.
        """
        return dict(self._state)

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on where `get_state` was called, with a loader that is made like that one.

        A loader is brought there by its own `set_state` or `load_state_dict`, or those of its
        iterator, as of grain's datasets, torchdata's StatefulDataLoader and IterableDataset of
        Hugging Face's datasets; at most a batch and an item are read again. It is as exact as
        they are (the state of Hugging Face's `shuffle(buffer_size=...)` leaves the buffer out).
        Any other loader is read from its beginning, or from the epoch's if it is a function or has
        `set_epoch`; the rows before the position are dropped, and a UserWarning says how many.

        Raises:
          UsageError: it is no such state, no step of the plan begins there, or an iterator that
            can't be positioned was read already.
        """
        try:
            sample, row = operator.index(state["sample"]), operator.index(state["row"])
            state = _state(sample, Anchor(sample - row, state["epoch"], state["loader"]))
        except (KeyError, TypeError) as error:
            raise UsageError(f"this is no state as `get_state` gives it: {error!r}.") from None
        step_beginning_at(self._plan, sample, "sample")
        if self._loader.is_iterator and state["loader"] is None and self._batches is not None:
            raise UsageError(
                "an iterator that can't be positioned, and was read already, can't go back; give "
                "what it was made from."
            )
        self.close()
        self._state, self._is_restored = state, True
        self._batches = self._failure = None
        if state["loader"] is None:
            self._tell_dropped(stacklevel=3)

    def close(self) -> None:
        """Ends the batches and the thread; one that hangs is left behind after 2 s."""
        if self._batches is not None:
            self._batches.close()
        self._batches = (batch for batch in ())

    def _tell_dropped(self, stacklevel: int) -> None:
        row, sample = self._state["row"], self._state["sample"]
        if row and sample < self._plan.num_samples:
            warnings.warn(
                f"{row:,} rows of the loader are read and dropped to get to sample {sample:,}; a "
                "loader with get_state() and set_state(), or state_dict() and load_state_dict(), "
                "gets there at once by set_state().",
                stacklevel=stacklevel,
            )

    def _stream(self) -> _Batches:
        anchor = Anchor(
            self._state["sample"] - self._state["row"], self._state["epoch"], self._state["loader"]
        )
        # A function that doesn't hold this object: the thread ends with the last reference to it.
        rules = self._is_restored, self._batched, self._may_end
        return _stream(self._loader, self._plan, self._state["sample"], anchor, *rules)


def _stream(
    loader: Loader, plan: BatchPlan, start_sample: int, anchor: Anchor, *rules: bool
) -> _Batches:
    """Yields batches, each with the state behind it."""
    if start_sample == plan.num_samples:
        return
    rows = LoaderRows(loader, plan, anchor, *rules)
    for step in plan.steps(plan.step_at(anchor.sample)):
        rows.leave_out_tail(step.start_sample)
        stop = step.start_sample + step.num_real
        if step.start_sample < start_sample:
            rows.drop(stop)
            continue
        tree = rows.take(stop)
        if tree is None:
            return
        if isinstance(tree, dict):
            tree = _added(step.start_sample, rows.position, plan.num_examples) | tree
            tree["weight"] = example_weights(tree["weight"])
        # The next step's beginning, which is behind what "drop" leaves out.
        sample = plan.samples_at(step.index + 1) if rows.position == stop else rows.position
        yield tree, _state(sample, rows.anchor())


def _added(start: int, stop: int, num_examples: int | None) -> dict[str, np.ndarray]:
    """What is known of rows beside the loader's arrays."""
    place = np.arange(start, stop)
    epoch = stream_epoch(place) if num_examples is None else place // num_examples
    arrays = Rows(place, epoch, np.ones(len(place), bool)).arrays()
    if num_examples is not None:
        del arrays["index"]  # which example it is only the loader knows
    return arrays


def _state(sample: int, anchor: Anchor) -> dict[str, Any]:
    row = sample - anchor.sample
    return {"sample": sample, "epoch": anchor.epoch, "loader": anchor.state, "row": row}
