"""Weights, images and random directions by name, the same bits on every machine.

The fixtures hold no weights: torch and the tests both draw them from here. Uniform numbers of
`RandomState`, whose stream NumPy has frozen, need exact arithmetic only.
"""

import math
import zlib
from collections.abc import Iterable, Mapping

import numpy as np

SEED = 1712

# Each step of the five has its own batch; the first one also gives the logits and gradients.
NUM_STEPS = 5
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.002, 0.9, 5e-4


def weights(shapes: Mapping[str, Iterable[int]]) -> dict[str, np.ndarray]:
    """Draws float32 arrays for PyTorch's names and shapes, sized so that activations stay near 1.

    >>> sorted(weights({"fc.weight": (2, 3), "fc.bias": (2,)}))
    ['fc.bias', 'fc.weight']
    """
    return {name: _weight(name, tuple(shape)) for name, shape in shapes.items()}


def _weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = _uniform(f"weights of {name}", shape).astype(np.float32)
    leaf = name.rpartition(".")[2]
    if leaf == "running_var":
        return 1.2 + 0.3 * noise
    if leaf in ("bias", "running_mean"):
        return 0.2 * noise
    if len(shape) == 1:
        return 0.8 + 0.2 * noise  # BatchNorm's.
    return np.float32(math.sqrt(6 / math.prod(shape[1:]))) * noise


def batch(step: int, num_rows: int, size: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns images (rows, 3, size, size) of variance 1 in float32, and labels (rows,)."""
    noise = _uniform(f"images of step {step}", (num_rows, 3, size, size))
    labels = (step + 3 * np.arange(num_rows)) % num_classes
    return (math.sqrt(3) * noise).astype(np.float32), labels


def summary(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns (arrays, 2): of each, in the order of names, its norm and its component in a
    random direction. Another value anywhere, or the same ones in another order, changes the
    component.
    """
    rows = []
    for name, array in sorted(arrays.items()):
        array = np.asarray(array, np.float64)
        direction = _uniform(f"direction of {name}", array.shape)
        scale = math.sqrt(array.size / 3)  # Its norm, on average.
        rows.append((np.linalg.norm(array), np.vdot(direction, array) / scale))
    return np.array(rows).reshape(-1, 2)


def _uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in [-1, 1) from a stream of their own."""
    random = np.random.RandomState([SEED, zlib.crc32(name.encode())])
    return 2 * random.random_sample(shape) - 1
