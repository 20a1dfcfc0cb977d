"""Which micro-batch, input and number of updates per dispatch a run takes: decided from probes."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from adabatch_jax.config.settings import AUTO
from adabatch_jax.data.row_layout import BatchLayout, Layouts
from adabatch_jax.system.errors import UsageError

# A CPU is fast while a micro-batch's activations stay in its caches: ResNet-20 at 8 rows, and not
# at 32. Fewer rows leave its vector units idle, more gained nothing in any network tried.
_CACHED_BYTES = 16 * 2**20
_MIN_CPU_ROWS, _MAX_CPU_ROWS = 8, 32

# An update below this is over before the next one is dispatched: about a millisecond.
_SHORT_UPDATE_FLOPS = {"cpu": 1e8, "gpu": 1e10, "tpu": 1e10}
_MAX_STEPS_PER_DISPATCH = 32


@dataclasses.dataclass(frozen=True)
class Circumstances:
    """What a choice depends on beside what the user wants; `batch_size` is the plan's largest.

    Attributes:
      group_rows: rows that the loss computes apart from others; None where it doesn't say so.
      limit_bytes: memory of each device; infinite where that isn't known.
    """

    batch_size: int
    group_rows: int | None
    num_devices: int
    platform: str
    limit_bytes: float
    weight_bytes: int


class Choice(NamedTuple):
    """What is chosen, or tried: examples over all devices (None: the whole batch), and an input."""

    microbatch_size: int | None
    input: str = AUTO


class Need(NamedTuple):
    """What an update of the largest batch needs on each device, resident examples included.

    `temporary_bytes` is the part of it that grows with the rows computed at a time.
    """

    num_bytes: int
    temporary_bytes: int
    is_resident: bool = False


Needs = Callable[[Choice], Need]


def choose_layout(
    microbatch_size: int | str | None,
    input: str,
    saved: Mapping[str, Any],
    of: Circumstances,
    temporary_bytes: Callable[[int], int],
    needs: Needs,
) -> tuple[Choice, list[str]]:
    """Chooses the micro-batch and the input; what was tried last is what is chosen.

    Args:
      microbatch_size, input: what the user wants, or "auto".
      saved: the layout that the run was begun with, whose micro-batch stays where it fits; or {}.
      of: what else the choice depends on.
      temporary_bytes: tells what an update of so many rows on one device takes beside its
        arguments and results.
      needs: tells what a choice needs.

    Returns:
      The choice, and sentences for the user.

    Raises:
      UsageError: the micro-batch that the user wants doesn't fit, or not even the smallest.
    """
    if microbatch_size != AUTO:
        choice, need = _with_room(Choice(microbatch_size, input), of, needs)
        layout = Layouts(microbatch_size, of.num_devices).of(of.batch_size)
        check_memory(layout, need.num_bytes, of.limit_bytes)
        return choice, []
    notes = []
    if "microbatch_size" in saved:
        size = saved["microbatch_size"]
        choice, need = _with_room(Choice(size, input), of, needs)
        if need.num_bytes <= of.limit_bytes:
            return choice, []
        notes.append(
            f"the run was begun with {microbatches_text(size)}, which don't fit into this memory: "
            "chosen anew"
        )
        input = choice.input
    choice = automatic_choice(input, of, temporary_bytes, needs)
    if choice.microbatch_size is not None and of.group_rows is None:
        notes.append(
            f"the batch of {of.batch_size} doesn't fit into memory: it is computed in "
            f"micro-batches of {choice.microbatch_size}, which is what BatchNorm without a group "
            "then normalizes over, if there is any"
        )
    return choice, notes


def microbatches_text(size: int | None) -> str:
    """What is computed at a time, for people."""
    return "whole batches" if size is None else f"micro-batches of {size}"


def check_memory(layout: BatchLayout, num_bytes: int, limit_bytes: float) -> None:
    """Raises a UsageError if an update of this layout needs more memory than there is."""
    if num_bytes > limit_bytes:
        raise UsageError(
            f"batch {layout.batch_size} (micro-batch {layout.microbatch_size}) needs "
            f"{num_bytes:,} bytes on each device, resident input included, and there are "
            f"{limit_bytes:,} (device_memory); let microbatch_size be 'auto', or smaller."
        )


def automatic_choice(
    input: str, of: Circumstances, temporary_bytes: Callable[[int], int], needs: Needs
) -> Choice:
    """Chooses a micro-batch: what a CPU computes fastest, and what fits.

    Where micro-batches might change what is normalized together, the batch stays whole as long
    as it fits. The arguments are those of `choose_layout`.
    """
    size, group_rows = None, of.group_rows
    if group_rows is not None and of.platform == "cpu":
        rows = group_rows * -(-_MIN_CPU_ROWS // group_rows)
        # Beside the activations there are gradients, and what they are made of.
        activations = max(temporary_bytes(rows) - 2 * of.weight_bytes, 1) / rows
        rows = cpu_rows(activations, of.weight_bytes, group_rows) * of.num_devices
        size = rows if rows < of.batch_size else None
    choice, need = _with_room(Choice(size, input), of, needs)
    while need.num_bytes > of.limit_bytes:
        size = smaller_microbatch_size(choice.microbatch_size or of.batch_size, of, need)
        choice, need = _with_room(Choice(size, choice.input), of, needs)
    return choice


def _with_room(choice: Choice, of: Circumstances, needs: Needs) -> tuple[Choice, Need]:
    """The choice and its needs; examples that leave too little room are streamed instead."""
    need = needs(choice)
    if need.num_bytes > of.limit_bytes and choice.input == AUTO and need.is_resident:
        choice = choice._replace(input="streaming")
        need = needs(choice)
    return choice, need


def cpu_rows(bytes_per_row: float, weight_bytes: int, group_rows: int) -> int:
    """The rows that a CPU device computes fastest at a time, in groups of `group_rows`.

    As many as stay in its caches, or as many as outweigh the weights, which every micro-batch
    reads anew.

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


def smaller_microbatch_size(size: int, of: Circumstances, need: Need) -> int:
    """The micro-batch to try where one of `size` needs too much; a UsageError if that is all."""
    unit = (of.group_rows or 1) * of.num_devices
    if size <= unit:
        raise UsageError(
            f"the batch of {of.batch_size} doesn't fit even with micro-batch {size}: an update "
            f"needs {need.num_bytes:,} bytes on each device, and there are {of.limit_bytes:,} "
            "(device_memory); take a smaller network, or more devices with shard_params."
        )
    room = of.limit_bytes - (need.num_bytes - need.temporary_bytes)
    wanted = min(size * max(room, 0) / max(need.temporary_bytes, 1), size / 2)
    smaller = unit
    while 2 * smaller <= wanted:
        smaller *= 2
    return smaller


def choose_steps_per_dispatch(
    least_flops: float, platform: str, probe: Callable[[], tuple[float, bool]]
) -> int:
    """Chooses how many updates to dispatch at a time, a power of two: several if they are short.

    It follows from the program alone, not from a measurement, so that a run that is repeated is
    repeated to the bit. `least_flops` is a lower bound of an update's floating-point operations
    per device; `probe` tells them, and whether a loop would slow them down on a CPU.

    >>> [choose_steps_per_dispatch(1e6, "cpu", lambda: (f, False)) for f in (2e7, 3e9)]
    [4, 1]
    """
    short = _SHORT_UPDATE_FLOPS.get(platform, _SHORT_UPDATE_FLOPS["gpu"])
    if 2 * least_flops > short:
        return 1
    flops, is_slow_in_loops = probe()
    if is_slow_in_loops and platform == "cpu":
        return 1  # it would lose more than dispatches cost
    number = 1
    while number < _MAX_STEPS_PER_DISPATCH and 2 * number * max(least_flops, flops) <= short:
        number *= 2
    return number
