"""A digest of which examples a run consumed, by which runs are compared."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from adabatch_jax.data.epoch_order import mix_bits
from adabatch_jax.system.errors import UsageError

_LANES = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))
_MASK = 2**64 - 1

Share = tuple[int, int]  # what some examples add to a digest, below 2**64 each


class ExamplesDigest:
    """Sums a hash of (number, epoch, index) over the examples consumed so far.

    The number says how many came before: what a plan drops at an epoch's end doesn't count.

    Two runs have the same digest when they consumed the same (epoch, index) in the same order,
    however they were cut into batches, devices, hosts and restarts; what the examples hold is not
    in it, see `contents_digests`. 128 bits, against accidents only.

    >>> whole, parts = ExamplesDigest(), ExamplesDigest()
    >>> index, epoch = np.array([5, 3, 9]), np.zeros(3, np.int64)
    >>> (all_of_them,) = shares_of_digest(0, index, epoch, [(0, 3)])
    >>> whole.add(all_of_them)
    >>> for share in shares_of_digest(0, index, epoch, [(0, 1), (1, 3)]):
    ...     parts.add(share)
    >>> whole == parts
    True

    A loop of one's own adds its batches; `fit`'s rows have the same under "examples_digest":

    >>> from adabatch_jax import array_source, batches, make_plan
    >>> seen = ExamplesDigest()
    >>> for batch in batches(array_source({"x": np.arange(10)}), make_plan("4", 10, "1ep")):
    ...     seen.update(batch)
    >>> str(seen)
    '...'

    Args:
      text: what `str` gave, to go on from there.
      num_examples: how many examples it is of, such as `plan.examples_at(step)`.

    Attributes:
      num_examples: how many examples `update` has seen, with those.
    """

    def __init__(self, text: str = "0" * 32, num_examples: int = 0):
        self._sums = int(text[:16], 16), int(text[16:], 16)
        self.num_examples = num_examples

    def update(self, batch: Mapping[str, Any]) -> None:
        """Adds the real examples of a batch, whatever its layout is and whatever they weigh.

        Args:
          batch: as `batches` gives them: "index" and "epoch" of each row. A batch holds no example
            twice, so rows like its first one are padding.

        Raises:
          UsageError: the batch lacks one of the two.
        """
        try:
            index, epoch = (np.ravel(batch[name]) for name in ("index", "epoch"))
        except KeyError as missing:
            raise UsageError(
                f"a batch needs 'index' and 'epoch' of its rows, but has no {missing}; those of "
                "`rebatch` have an index where the loader gives the examples' numbers under this "
                "name."
            ) from None
        is_real = (index != index[0]) | (epoch != epoch[0])
        is_real[0] = True
        index, epoch = (rows[is_real].astype(np.int64) for rows in (index, epoch))
        (share,) = shares_of_digest(self.num_examples, index, epoch, [(0, len(index))])
        self.add(share)
        self.num_examples += len(index)

    def add(self, share: Share) -> None:
        """Adds what `shares_of_digest` says of some examples."""
        first, second = self._sums
        self._sums = (first + share[0]) & _MASK, (second + share[1]) & _MASK

    def __eq__(self, other: object) -> bool:
        """Whether both saw the same. It has no hash, since it changes."""
        return self._sums == other._sums if isinstance(other, ExamplesDigest) else NotImplemented

    def __str__(self) -> str:
        return "".join(f"{value:016x}" for value in self._sums)


def shares_of_digest(
    num_before: int, index: np.ndarray, epoch: np.ndarray, ranges: list[tuple[int, int]]
) -> list[Share]:
    """What ranges, places [start, stop) in the arrays of `Examples`, add to a digest.

    They are in order; what lies between two of them isn't consumed, and so has no number.
    """
    number = np.uint64(num_before) + np.arange(len(index), dtype=np.uint64)
    starts, stops = np.array(ranges, np.int64).reshape(-1, 2).T
    gaps = starts[1:] - stops[:-1]
    if gaps.any():
        left_out = np.zeros(len(index), np.uint64)
        left_out[starts[1:]] = gaps
        number -= np.cumsum(left_out)
    lanes = []
    for salt in _LANES:
        hashed = mix_bits(mix_bits(number * salt) ^ index.astype(np.uint64))
        sums = np.zeros(len(index) + 1, np.uint64)
        np.cumsum(mix_bits(hashed ^ epoch.astype(np.uint64)), out=sums[1:])
        lanes.append((sums[stops] - sums[starts]).tolist())
    return list(zip(*lanes, strict=True))
