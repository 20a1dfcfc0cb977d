"""The order of examples: a permutation per epoch, a pure function of (seed, epoch)."""

import hashlib
import operator
import threading
from concurrent.futures import Future

import numpy as np

from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.quantities import checked_seed

LARGEST_SHUFFLE = 2**24
_SMALLEST_PREPARED = 2**16  # fewer are in order within milliseconds
_KEPT_ORDERS = 3  # of an epoch, of the next, and of the one before, for who follows behind
_PARTS_BITS = 4
_FEISTEL_ROUNDS = 8
_DIGESTED_PLACES = 4096


def epoch_order(num_examples: int, seed: int, epoch: int) -> "_ShuffledOrder | FeistelOrder":
    """The order in which an epoch visits the examples.

    Up to `2**24` examples it is the stable argsort of a Philox stream that numpy guarantees, above
    that a Feistel permutation that needs no memory: neither changes with the library's version,
    the batch size, or the number of devices and hosts.

    Args:
      num_examples: the length of the epoch.
      seed: the run's seed, from 0 to `2**32 - 1`.
      epoch: the number of the epoch, from 0.

    Returns:
      Something to slice, `order[start:stop]` (int64), with `len(order) == num_examples`.

    Raises:
      UsageError: if `num_examples` < 1, `epoch` < 0, or the seed is none.

    >>> epoch_order(5, seed=1, epoch=0)[0:5]
    array([0, 1, 3, 2, 4])
    """
    if num_examples < 1:
        raise UsageError(f"`num_examples` must be at least 1, got {num_examples}.")
    seed, epoch = checked_seed(seed), operator.index(epoch)
    if epoch < 0:
        raise UsageError(f"`epoch` must not be negative, got {epoch}.")
    if num_examples <= LARGEST_SHUFFLE:
        return _ORDERS.get(num_examples, seed, epoch)
    return FeistelOrder(num_examples, seed, epoch)


def prepare_order(num_examples: int | None, seed: int, sample: int, num_samples: int) -> None:
    """Begins to work out the order of the epoch at a position, if the run gets there.

    That is done in the background, so that nobody waits for it later, unless it was begun already
    or isn't worth a thread: for few or very many examples, and for an endless stream (None).
    """
    if num_examples is None or not _SMALLEST_PREPARED <= num_examples <= LARGEST_SHUFFLE:
        return
    epoch = sample // num_examples
    if epoch * num_examples < num_samples:
        _ORDERS.prepare(num_examples, seed, epoch)


def prepare_next_order(num_examples: int | None, seed: int, sample: int, num_samples: int) -> None:
    """As `prepare_order`, for the epoch that follows on a position."""
    if num_examples is not None:
        prepare_order(num_examples, seed, sample + num_examples, num_samples)


def example_indices(num_examples: int, seed: int, start_sample: int, count: int) -> np.ndarray:
    """The examples at positions `start_sample` to `start_sample + count` of the run.

    Position c is place c % num_examples of epoch c // num_examples; the range may span epochs.

    Returns:
      int64, shape `(count,)`.

    Raises:
      UsageError: as `epoch_order`.

    >>> example_indices(5, seed=0, start_sample=3, count=4).shape
    (4,)
    """
    pieces, sample, stop = [np.empty(0, np.int64)], start_sample, start_sample + count
    while sample < stop:
        epoch, offset = divmod(sample, num_examples)
        length = min(stop - sample, num_examples - offset)
        pieces.append(epoch_order(num_examples, seed, epoch)[offset : offset + length])
        sample += length
    return np.concatenate(pieces)


def order_digest(num_examples: int, seed: int, epoch: int) -> str:
    """A hash by which a change of an epoch's order is noticed, such as by another numpy.

    It looks at some thousand places that are spread evenly over the epoch, which costs next to
    nothing where the order is known already or has more than 2**24 examples.

    >>> order_digest(50_000, seed=7, epoch=3)
    '45b503ab544966e2'
    """
    order = epoch_order(num_examples, seed, epoch)
    places = order[:: max(1, num_examples // _DIGESTED_PLACES)]
    return hashlib.sha256(places.astype("<i8").tobytes()).hexdigest()[:16]


class _ShuffledOrder:
    """A permutation in memory, in half the room of what slices of it take."""

    def __init__(self, num_examples: int, seed: int, epoch: int):
        stream = np.random.Philox(np.random.SeedSequence([seed, epoch, num_examples]))
        self._order = _stable_argsort(stream.random_raw(num_examples))

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, positions: slice) -> np.ndarray:
        return self._order[positions].astype(np.int64)


def _stable_argsort(keys: np.ndarray) -> np.ndarray:
    """The int32 stable argsort of uint64; large ones in parts by their uppermost bits.

    That takes no second array of 64 bits, and the parts fit into caches.
    """
    if len(keys) < _SMALLEST_PREPARED:
        return _stable_argsort_of_part(keys).astype(np.int32)
    order, begin = np.empty(len(keys), np.int32), 0
    part = keys.astype("<u8", copy=False).view(np.uint8)[7::8] >> np.uint8(8 - _PARTS_BITS)
    for number in range(2**_PARTS_BITS):
        places = np.flatnonzero(part == number)
        end = begin + len(places)
        order[begin:end] = places[_stable_argsort_of_part(keys[places])]
        begin = end
    return order


def _stable_argsort_of_part(keys: np.ndarray) -> np.ndarray:
    """numpy sorts several times as fast where it needn't be stable: so where no key comes twice."""
    order = np.argsort(keys)
    in_order = keys[order]
    if (in_order[1:] == in_order[:-1]).any():
        return np.argsort(keys, kind="stable")
    return order


class _Orders:
    """The orders that were asked for last, each worked out once, whoever asks meanwhile."""

    def __init__(self):
        self._lock = threading.Lock()
        self._futures: dict[tuple[int, ...], Future] = {}  # the one asked for last comes last

    def get(self, *which: int) -> _ShuffledOrder:
        """The order of (number of examples, seed, epoch); waits for one that was begun."""
        future, is_begun = self._future(which)
        if not is_begun:
            self._work_out(future, which)
        return future.result()

    def prepare(self, *which: int) -> None:
        """Begins an order in a thread that doesn't keep the process from ending."""
        future, is_begun = self._future(which)
        if not is_begun:
            threading.Thread(
                target=self._work_out, args=(future, which), name="epoch order", daemon=True
            ).start()

    def _future(self, which: tuple[int, ...]) -> tuple[Future, bool]:
        with self._lock:
            is_begun = which in self._futures
            future = self._futures[which] = self._futures.pop(which, None) or Future()
            if len(self._futures) > _KEPT_ORDERS:
                del self._futures[next(iter(self._futures))]
            return future, is_begun

    def _work_out(self, future: Future, which: tuple[int, ...]) -> None:
        try:
            future.set_result(_ShuffledOrder(*which))
        except BaseException as error:  # raised where the order is wanted
            with self._lock:
                self._futures.pop(which, None)
            future.set_exception(error)


_ORDERS = _Orders()


class FeistelOrder:
    """A permutation of many examples that is computed where it is looked at.

    A balanced Feistel network over the next power of 4; values outside the range are permuted
    again until they fall into it.
    """

    def __init__(self, num_examples: int, seed: int, epoch: int):
        self._num_examples = num_examples
        self._half_bits = np.uint64(max(1, -(-(num_examples - 1).bit_length() // 2)))
        self._mask = np.uint64((1 << int(self._half_bits)) - 1)
        sequence = np.random.SeedSequence([seed, epoch, num_examples])
        self._keys = sequence.generate_state(_FEISTEL_ROUNDS, np.uint64)

    def __len__(self) -> int:
        return self._num_examples

    def __getitem__(self, positions: slice) -> np.ndarray:
        values = np.arange(*positions.indices(self._num_examples), dtype=np.uint64)
        values = self._permute(values)
        while (outside := values >= np.uint64(self._num_examples)).any():
            values[outside] = self._permute(values[outside])
        return values.astype(np.int64)

    def _permute(self, values: np.ndarray) -> np.ndarray:
        left, right = values >> self._half_bits, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (mix_bits(right + key) & self._mask)
        return (left << self._half_bits) | right


def mix_bits(x: np.ndarray) -> np.ndarray:
    """Spreads the bits of uint64 values (the finaliser of splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
