"""Which micro-batch and how many updates per dispatch a device likes."""

import math
from collections.abc import Callable

import jax

from adabatch_jax.system.errors import UsageError
from adabatch_jax.training.compiled_programs import Program

# A CPU is fast while a micro-batch's activations stay in its caches: ResNet-20 at 8 rows, and not
# at 32. Fewer rows leave its vector units idle, more gained nothing in any network tried.
_CACHED_BYTES = 16 * 2**20
_MIN_CPU_ROWS, _MAX_CPU_ROWS = 8, 32

# An update below this is over before the next one is dispatched: about a millisecond.
_SHORT_UPDATE_FLOPS = {"cpu": 1e8, "gpu": 1e10, "tpu": 1e10}
_MAX_STEPS_PER_DISPATCH = 32


def automatic_microbatch_size(
    batch_size: int,
    group_rows: int | None,
    num_devices: int,
    platform: str,
    limit_bytes: int | None,
    weight_bytes: int,
    probe: Callable[[int], Program],
    compiled: Callable[[int | None], Program],
) -> int | None:
    """Chooses a micro-batch: what a CPU computes fastest, and what fits.

    Where micro-batches might change what is normalized together, the batch stays whole as long
    as it fits.

    Args:
      batch_size: the plan's largest batch.
      group_rows: rows that the loss keeps together; None where it doesn't say so.
      num_devices: devices that share a micro-batch.
      platform: theirs.
      limit_bytes: memory of each device; None for no limit.
      weight_bytes: of all parameters.
      probe: compiles the update of so many rows per device.
      compiled: compiles the update of the largest batch in such micro-batches.

    Returns:
      Examples over all devices; None for the whole batch.

    Raises:
      UsageError: not even the smallest micro-batch fits.
    """
    size = None
    if group_rows is not None and platform == "cpu":
        rows = group_rows * -(-_MIN_CPU_ROWS // group_rows)
        # Beside the activations there are gradients, and what they are made of.
        activations = max(probe(rows).temporary_bytes - 2 * weight_bytes, 1) / rows
        rows = cpu_rows(activations, weight_bytes, group_rows)
        size = rows * num_devices if rows * num_devices < batch_size else None
    unit = (group_rows or 1) * num_devices
    limit = math.inf if limit_bytes is None else limit_bytes
    while (program := compiled(size)).num_bytes > limit:
        size = smaller_microbatch_size(size or batch_size, batch_size, program, limit_bytes, unit)
    return size


def cpu_rows(bytes_per_row: float, weight_bytes: int, group_rows: int) -> int:
    """The rows that a CPU device computes fastest at a time.

    As many as stay in its caches, or as many as outweigh the weights, which every micro-batch
    reads anew.

    Args:
      bytes_per_row: activations of a row.
      weight_bytes: of all parameters.
      group_rows: rows that must stay together.

    >>> cpu_rows(1.6e6, weight_bytes=10**6, group_rows=1)  # ResNet-20
    8
    >>> cpu_rows(1.4e6, weight_bytes=37 * 10**6, group_rows=1)  # VGG11
    32
    >>> cpu_rows(5e4, weight_bytes=4 * 10**4, group_rows=1), cpu_rows(1.6e6, 10**6, 128)
    (32, 128)
    """
    wanted = max(_CACHED_BYTES, 2 * weight_bytes) / bytes_per_row
    rows = group_rows
    while rows < _MIN_CPU_ROWS or 2 * rows <= min(wanted, _MAX_CPU_ROWS):
        rows *= 2
    return rows


def smaller_microbatch_size(
    size: int, batch_size: int, program: Program, limit_bytes: int, unit: int
) -> int:
    """The micro-batch to try where one needs too much memory.

    Args:
      size: the one that doesn't fit.
      batch_size: the batch that it was tried with.
      program: the program that doesn't fit.
      limit_bytes: what there is on each device.
      unit: rows that micro-batches are multiples of.

    Raises:
      UsageError: there is no smaller one.
    """
    if size <= unit:
        raise UsageError(
            f"the batch of {batch_size} doesn't fit even with micro-batch {size}: an update needs "
            f"{program.num_bytes:,} bytes on each device, and there are {limit_bytes:,} "
            "(device_memory); take a smaller network, or more devices with shard_params."
        )
    room = limit_bytes - (program.num_bytes - program.temporary_bytes)
    wanted = min(size * max(room, 0) / max(program.temporary_bytes, 1), size / 2)
    smaller = unit
    while 2 * smaller <= wanted:
        smaller *= 2
    return smaller


def steps_per_dispatch(flops: float, platform: str) -> int:
    """How many updates to dispatch at a time, a power of two: several where they are short.

    It follows from the program alone, not from a measurement, so that a run that is repeated is
    repeated to the bit.

    Args:
      flops: of one update, per device.
      platform: the devices'.

    >>> steps_per_dispatch(2e7, "cpu"), steps_per_dispatch(3e9, "cpu")
    (4, 1)
    """
    short = _SHORT_UPDATE_FLOPS.get(platform, _SHORT_UPDATE_FLOPS["gpu"])
    number = 1
    while number < _MAX_STEPS_PER_DISPATCH and 2 * number * flops <= short:
        number *= 2
    return number


def update_flops(lowered: jax.stages.Lowered) -> float:
    """Floating-point operations of a lowered update without micro-batches; loops count once."""
    return float((lowered.cost_analysis() or {}).get("flops", 0.0))
