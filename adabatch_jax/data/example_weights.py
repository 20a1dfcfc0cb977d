"""The weights that a source gives its examples: how often each counts in a mean."""

from typing import Any

import numpy as np

from adabatch_jax.system.errors import UsageError


def example_weights(values: Any) -> np.ndarray:
    """An array "weight" of a source or loader as float32, one finite number >= 0 per example.

    Raises:
      UsageError: it is something else.

    >>> example_weights(np.array([3, 0]))
    array([3., 0.], dtype=float32)
    """
    values = np.asarray(values)
    what = "the examples' array 'weight' must hold one number per example, finite and at least 0"
    # "V": bfloat16 and its kind, which are numpy's only by name.
    if values.ndim != 1 or values.dtype.kind not in "fiubV":
        raise UsageError(
            f"{what}, got {values.dtype} of shape {values.shape}; rename it if it is no weight."
        )
    weights = values.astype(np.float32)
    is_bad = ~(np.isfinite(weights) & (weights >= 0))
    if is_bad.any():
        raise UsageError(f"{what}, got {values[is_bad.argmax()]}.")
    return weights
