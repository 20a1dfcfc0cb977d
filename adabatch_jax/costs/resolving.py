"""What `microbatch_size="auto"` will be, told before a run."""

import jax

from adabatch_jax.costs.updates import Updates
from adabatch_jax.data.layout import batch_layout
from adabatch_jax.training.loss_functions import group_rows
from adabatch_jax.training.microbatch import cached_microbatch_size, smaller_microbatch_size

_PROBE_ROWS = 8


def automatic_microbatch_size(
    updates: Updates, batch_size: int, limit_bytes: int | None
) -> int | None:
    """The micro-batch that a run will choose: what a CPU likes, and what fits.

    Args:
      updates: the network's updates.
      batch_size: the plan's largest batch.
      limit_bytes: memory of each device, as far as known.

    Returns:
      Examples over all devices; None for the whole batch.

    Raises:
      UsageError: not even the smallest micro-batch fits.
    """
    size, rows = None, group_rows(updates.loss_fn)
    if rows is not None and jax.default_backend() == "cpu":
        probed = rows * -(-_PROBE_ROWS // rows) * updates.num_devices
        layout = batch_layout(probed, None, updates.num_devices)
        program = updates.compiled([layout])[layout].program
        per_row = program.temporary_bytes * updates.num_devices / probed
        size = cached_microbatch_size(per_row, batch_size, rows, updates.num_devices)
    while limit_bytes is not None:
        layout = batch_layout(batch_size, size, updates.num_devices)
        program = updates.compiled([layout])[layout].program
        if program.num_bytes <= limit_bytes:
            break
        unit = (rows or 1) * updates.num_devices
        size = smaller_microbatch_size(size or batch_size, batch_size, program, limit_bytes, unit)
    return size
