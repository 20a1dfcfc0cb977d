"""How much memory a device has, and how much a compiled program takes of it."""

import math
import os
from typing import Any

import jax


def device_memory_bytes(devices: list[jax.Device]) -> float:
    """What one of the devices can hold; infinite where neither it nor the system tells.

    CPU devices share the machine's free memory.
    """
    stats = devices[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    if devices[0].platform != "cpu":
        return math.inf
    free = _free_bytes()
    return math.inf if free is None else free // len(devices)


def _free_bytes() -> int | None:
    try:
        with open("/proc/meminfo") as lines:
            available = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(available.split()[1]) * 1024
    except (OSError, StopIteration):  # not Linux
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def device_bytes(tree: Any) -> int:
    """What a pytree of arrays takes on the device that has the most of it, roughly.

    >>> device_bytes({"w": jax.numpy.ones(1000)})
    4000
    """
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def program_bytes(compiled: jax.stages.Compiled) -> tuple[int, int]:
    """What a program needs on each device, and the temporaries in it.

    On CPU XLA's own total leaves the temporaries out.

    >>> compiled = jax.jit(lambda x: 2 * x).lower(jax.numpy.ones(1000)).compile()
    >>> program_bytes(compiled)
    (8000, 0)
    """
    memory = compiled.memory_analysis()
    if memory is None:  # a backend that doesn't tell
        return 0, 0
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    temporary = memory.temp_size_in_bytes
    return held + temporary - memory.alias_size_in_bytes, temporary
