"""Digests to compare runs by: of the examples trained on, and of the weights."""

import hashlib
from typing import Any

import jax
import numpy as np

from adabatch_jax.data.epoch_order import mix_bits
from adabatch_jax.training.train_state import TrainState

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


def named_arrays(tree: Any) -> dict[str, jax.Array]:
    """The leaves of a pytree by their paths, in the tree's order.

    >>> list(named_arrays({"layers": [{"w": 1.0}], "layers.0": {"w": 2.0}}))
    ['layers.0.w', 'layers\\\\.0.w']
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {".".join(map(_escaped, path)): leaf for path, leaf in leaves}


def _escaped(key: Any) -> str:
    # So that no two paths have the same name.
    name = jax.tree_util.keystr((key,), simple=True)
    return name.replace("\\", "\\\\").replace(".", "\\.")


def weights_digest(state: TrainState) -> str:
    """A hash of parameters and model state, whatever devices they lie on.

    >>> import optax
    >>> state = TrainState.create(params={"w": np.ones(3, np.float32)}, tx=optax.sgd(1.0))
    >>> weights_digest(state)[:8]
    'eec650a1'
    """
    digest = hashlib.sha256()
    weights = {"params": state.params, "model_state": state.model_state}
    for name, array in sorted(named_arrays(weights).items()):
        value = np.ascontiguousarray(array)
        digest.update(f"{name}:{value.dtype}:{value.shape};".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
