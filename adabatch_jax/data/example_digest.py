"""A digest of which examples a run consumed, by which runs are compared."""

import numpy as np

from adabatch_jax.data.epoch_order import mix_bits

_LANES = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))
_MASK = 2**64 - 1

Share = tuple[int, int]  # what some examples add to a digest, below 2**64 each


class ExamplesDigest:
    """Sums a hash of (position, epoch, index) over the examples consumed so far.

    Two runs have the same digest when they consumed the same (epoch, index) in the same order,
    however they were cut into batches, devices, hosts and restarts; what the examples hold is not
    in it, see `contents_digests`. 128 bits, against accidents only.

    >>> whole, parts = ExamplesDigest(), ExamplesDigest()
    >>> index, epoch = np.array([5, 3, 9]), np.zeros(3, np.int64)
    >>> (all_of_them,) = shares_of_digest(0, index, epoch, [(0, 3)])
    >>> whole.add(all_of_them)
    >>> for share in shares_of_digest(0, index, epoch, [(0, 1), (1, 3)]):
    ...     parts.add(share)
    >>> str(whole) == str(parts)
    True
    """

    def __init__(self, text: str = "0" * 32):
        self._sums = int(text[:16], 16), int(text[16:], 16)

    def add(self, share: Share) -> None:
        first, second = self._sums
        self._sums = (first + share[0]) & _MASK, (second + share[1]) & _MASK

    def __str__(self) -> str:
        return "".join(f"{value:016x}" for value in self._sums)


def shares_of_digest(
    start_sample: int, index: np.ndarray, epoch: np.ndarray, ranges: list[tuple[int, int]]
) -> list[Share]:
    """What ranges, places [start, stop) in the arrays of `Examples`, add to a digest."""
    position = np.uint64(start_sample) + np.arange(len(index), dtype=np.uint64)
    starts, stops = np.array(ranges, np.int64).reshape(-1, 2).T
    lanes = []
    for salt in _LANES:
        hashed = mix_bits(mix_bits(position * salt) ^ index.astype(np.uint64))
        sums = np.zeros(len(index) + 1, np.uint64)
        np.cumsum(mix_bits(hashed ^ epoch.astype(np.uint64)), out=sums[1:])
        lanes.append((sums[stops] - sums[starts]).tolist())
    return list(zip(*lanes, strict=True))
