"""Which GPUs this machine shows, told without touching them, and how processes share them."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from adabatch_jax.system.errors import UsageError


def visible_gpus(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The GPUs that a process with these variables would see, as CUDA_VISIBLE_DEVICES names them.

    >>> visible_gpus({"CUDA_VISIBLE_DEVICES": "2,3"}), visible_gpus({"JAX_PLATFORMS": "cpu"})
    (('2', '3'), ())
    """
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms and not re.search("cuda|gpu", platforms):
        return ()
    told = environment.get("CUDA_VISIBLE_DEVICES")
    if told is not None:  # CUDA takes those before the first that can't be
        names = told.replace(" ", "").split(",")
        wrong = (i for i, name in enumerate(names) if name in ("", "-1", "NoDevFiles"))
        return tuple(names[: next(wrong, len(names))])
    if not os.path.isdir("/dev"):
        return ()
    numbers = (re.fullmatch(r"nvidia(\d+)", path.name) for path in Path("/dev").glob("nvidia*"))
    return tuple(sorted((match[1] for match in numbers if match), key=int))


def share(gpus: Sequence[str], index: int, count: int) -> tuple[str, ...]:
    """What the process `index` of `count` on one machine takes of its GPUs: as many as the others.

    Raises:
      UsageError: they can't be shared out evenly.

    >>> share(["0", "1", "2", "3"], index=1, count=2)
    ('2', '3')
    >>> share(["0", "1", "2"], index=0, count=2)
    Traceback (most recent call last):
    adabatch_jax.system.errors.UsageError: 2 processes can't share the 3 GPUs of this machine ...
    """
    if len(gpus) % count:
        legal = [n for n in range(1, len(gpus) + 1) if len(gpus) % n == 0]
        raise UsageError(
            f"{count} processes can't share the {len(gpus)} GPUs of this machine evenly; start "
            f"{' or '.join(map(str, legal))}, or let CUDA_VISIBLE_DEVICES name a multiple of "
            f"{count} GPUs."
        )
    each = len(gpus) // count
    return tuple(gpus[index * each : (index + 1) * each])
