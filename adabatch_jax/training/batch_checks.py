"""Whether a batch has the layout that a train step was made for."""

from collections.abc import Mapping
from typing import Any

import jax

from adabatch_jax.errors import UsageError


def check_batch(batch: Mapping[str, Any], microbatch_size: int | None, num_devices: int) -> None:
    """Raises a UsageError unless the arrays of a batch have the layout that a step expects.

    Args:
      batch: arrays, tracers or `jax.ShapeDtypeStruct`s: (B, ...), or (K, m, ...) where
        `microbatch_size` isn't None.
      microbatch_size: real examples in a micro-batch over all devices.
      num_devices: how many devices the rows are spread over.

    >>> import numpy as np
    >>> check_batch({"weight": np.ones((3, 4))}, microbatch_size=4, num_devices=2)
    """
    if "weight" not in batch:
        raise UsageError(
            "a batch needs a 'weight' (float32, 1 for a real example and 0 for padding), "
            f"got {sorted(batch)}."
        )
    shape = batch["weight"].shape
    layout = "(B,)" if microbatch_size is None else "(K, m)"
    if len(shape) != (1 if microbatch_size is None else 2):
        raise UsageError(
            f"with microbatch_size={microbatch_size} a batch's 'weight' has the shape {layout}, "
            f"got {shape}."
        )
    for path, leaf in jax.tree.leaves_with_path(dict(batch)):
        if leaf.shape[: len(shape)] != shape:
            raise UsageError(
                f"every array of a batch begins with the axes of 'weight', {shape}, but "
                f"batch{jax.tree_util.keystr(path)} has the shape {leaf.shape}."
            )
    if shape[-1] % num_devices:
        raise UsageError(
            f"each (micro-)batch must be padded to a multiple of the {num_devices} devices, "
            f"got {shape[-1]} rows."
        )
    if microbatch_size is not None and shape[-1] >= microbatch_size + num_devices:
        raise UsageError(
            f"a micro-batch has at most microbatch_size={microbatch_size} examples (and padding "
            f"to a multiple of the {num_devices} devices), got {shape[-1]} rows."
        )
