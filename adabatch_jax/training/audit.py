"""A digest of the examples that were trained on, to compare runs by."""

import numpy as np

from adabatch_jax.data.order import mix_bits

_LANES = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))


class ExamplesDigest:
    """Sums a hash of (position, epoch, index) over the examples consumed so far.

    Two runs have the same digest when they consumed the same examples in the same order, however
    they were cut into batches, devices, hosts and restarts. 128 bits, against accidents only.

    >>> whole, parts = ExamplesDigest(), ExamplesDigest()
    >>> index, epoch = np.array([5, 3, 9]), np.zeros(3, np.int64)
    >>> whole.update(0, index, epoch)
    >>> parts.update(0, index[:1], epoch[:1]); parts.update(1, index[1:], epoch[1:])
    >>> str(whole) == str(parts)
    True
    """

    def __init__(self, text: str = "0" * 32):
        self._sums = [np.uint64(int(text[:16], 16)), np.uint64(int(text[16:], 16))]

    def update(self, start_sample: int, index: np.ndarray, epoch: np.ndarray) -> None:
        """Adds the examples at positions from `start_sample` on; int64 arrays, shape (n,)."""
        position = np.uint64(start_sample) + np.arange(len(index), dtype=np.uint64)
        for lane, salt in enumerate(_LANES):
            hashed = mix_bits(mix_bits(position * salt) ^ index.astype(np.uint64))
            hashed = mix_bits(hashed ^ epoch.astype(np.uint64))
            with np.errstate(over="ignore"):
                self._sums[lane] = self._sums[lane] + hashed.sum(dtype=np.uint64)

    def __str__(self) -> str:
        return "".join(f"{int(value):016x}" for value in self._sums)

