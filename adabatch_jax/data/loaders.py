"""What a loader is: how a pass over it begins, at which epoch, and what tells its state."""

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from adabatch_jax.system.errors import UsageError, check_call

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
    """What `rebatch` was given: an iterable, or a function that makes one, of the epoch or not.

    Attributes:
      is_iterator: whether it can be iterated over once only.
      is_array: whether it is a bare array, whose rows are its items.
      begins_at_any_epoch: whether the order of a pass follows from its epoch alone.
    """

    def __init__(self, given: Any):
        _refuse_what_has_no_rows(given)
        is_function = not _is_iterable(given)
        takes_epoch = is_function and _takes_epoch(given)
        make = given if is_function else lambda: given
        self._of_epoch: Callable[[int], Any] = given if takes_epoch else lambda epoch: make()
        self._given = None if is_function else given
        self.is_array = hasattr(given, "ndim")
        self.is_iterator = isinstance(given, Iterator)
        self.begins_at_any_epoch = takes_epoch or bool(_taking_epochs(given))

    def anchor(self, sample: int, num_examples: int | None) -> Anchor:
        """The nearest place before an example of the run, of a loader that wasn't read yet."""
        if self.begins_at_any_epoch and num_examples is not None and sample >= num_examples:
            epoch = sample // num_examples
            return Anchor(epoch * num_examples, epoch)
        methods = _state_methods(self._given)
        return Anchor(state=copy.deepcopy(methods[0]()) if methods else None)

    def begin_pass(self, epoch: int, state: Any) -> "Pass":
        """Begins a pass, where the state says or at its beginning."""
        loader = self._of_epoch(epoch)
        for part in _taking_epochs(loader):
            part.set_epoch(epoch)
        num_items = None if self.is_iterator else _length(loader)
        if methods := _state_methods(loader):
            if state is not None:
                methods[1](state)
            return Pass(_rows(loader, num_items), num_items, methods[0], None)
        rows = _rows(loader, num_items)
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
            return Pass(rows, num_items, None, None)
        return Pass(rows, num_items, methods[0], copy.deepcopy(methods[0]()))


class Pass(NamedTuple):
    """An iterator over a loader.

    Attributes:
      rows: the iterator.
      num_items: how many it gives, where the loader has a length.
      tell_state: what tells its state, if it can be positioned.
      first_state: the state that it begins with. It is known of iterators alone: a loader may still
        tell that of the pass before.
    """

    rows: Iterator
    num_items: int | None
    tell_state: Callable[[], Any] | None
    first_state: Any


def _refuse_what_has_no_rows(given: Any) -> None:
    """Raises a UsageError unless it can be iterated over, item by item, or called."""
    kind = type(given).__name__
    if isinstance(given, Mapping):
        raise UsageError(
            f"`loader` is a {kind}, which gives its names one by one; for arrays in memory there is "
            "`batches(array_source(arrays), plan)`."
        )
    if _is_iterable(given) or callable(given):
        return
    if hasattr(given, "read"):
        raise UsageError(
            f"`loader` is a source, {kind}, which is read by index: `batches(source, plan)` makes "
            "the plan's batches of it."
        )
    raise UsageError(
        "`loader` must be something to iterate over, or a function of the epoch that makes it, got "
        f"one of type {kind}."
    )


def _takes_epoch(function: Callable) -> bool:
    """Whether it is called with the number of an epoch; else it is called with nothing."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin that doesn't tell
        return True
    for arguments in ((0,), ()):
        with contextlib.suppress(TypeError):
            signature.bind(*arguments)
            return bool(arguments)
    check_call("loader", function, "epoch")
    return True


def _taking_epochs(loader: Any) -> list[Any]:
    """What of a loader is told which epoch begins: it, or what torch's loaders draw indices with."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    samplers = (getattr(loader, "sampler", None), batch_sampler,
                getattr(batch_sampler, "sampler", None))  # fmt: skip
    parts = {id(part): part for part in (loader, *samplers)}
    return [part for part in parts.values() if hasattr(part, "set_epoch")]


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except Exception:  # each kind has one of its own where it isn't known
        return None


def _rows(loader: Any, length: int | None) -> Iterator:
    """The loader's items; of what is indexed alone as far as its length, which it needn't check."""
    if isinstance(loader, Iterable) or length is None:
        return iter(loader)
    return (loader[index] for index in range(length))


def _is_iterable(given: Any) -> bool:
    return isinstance(given, Iterable) or hasattr(given, "__getitem__")


def _state_methods(thing: Any) -> list[Callable] | None:
    """How its state is told and set, if it can be positioned."""
    for names in _STATE_METHODS:
        methods = [getattr(thing, name, None) for name in names]
        if all(map(callable, methods)):
            return methods
    return None
