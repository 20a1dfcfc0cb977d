"""Which row of a batch goes where: micro-batches, devices, hosts, and padding.

Micro-batch k holds the rows [k*m, (k+1)*m) of the batch on every layout; each is padded to a
multiple of the devices and split over them in order.
"""

import dataclasses

import numpy as np

from adabatch_jax.system.errors import UsageError

# More layouts in a plan than this are worth a warning: each takes seconds to compile.
MANY_PROGRAMS = 16


@dataclasses.dataclass(frozen=True)
class BatchLayout:
    """The shape that a batch has on its devices.

    Attributes:
      batch_size: examples per update.
      microbatch_size: examples per micro-batch over all devices, at most `batch_size`.
      num_microbatches: micro-batches per update; the last one may be short.
      padded_size: rows per micro-batch, padding included; a multiple of the devices.
    """

    batch_size: int
    microbatch_size: int
    num_microbatches: int
    padded_size: int

    @property
    def padding_share(self) -> float:
        """The share of the rows that are padding, 0 to 1."""
        return 1 - self.batch_size / (self.num_microbatches * self.padded_size)


def batch_layout(
    batch_size: int, microbatch_size: int | None = None, num_devices: int = 1
) -> BatchLayout:
    """Splits a batch into micro-batches and pads them to a multiple of the devices.

    >>> batch_layout(96, 36, num_devices=8)
    BatchLayout(batch_size=96, microbatch_size=36, num_microbatches=3, padded_size=40)
    """
    if batch_size < 1:
        raise UsageError(f"`batch_size` must be at least 1, got {batch_size}.")
    if microbatch_size is not None and microbatch_size < 1:
        raise UsageError(f"`microbatch_size` must be at least 1, got {microbatch_size}.")
    size = min(microbatch_size or batch_size, batch_size)
    padded = -(-size // num_devices) * num_devices
    return BatchLayout(batch_size, size, -(-batch_size // size), padded)


def row_table(layout: BatchLayout) -> np.ndarray:
    """The batch's row at each place, -1 for padding; int64, shape (micro-batches, padded size).

    >>> row_table(batch_layout(5, 3, num_devices=2))
    array([[ 0,  1,  2, -1],
           [ 3,  4, -1, -1]])
    """
    places = np.arange(layout.padded_size)
    rows = places + layout.microbatch_size * np.arange(layout.num_microbatches)[:, None]
    real = (places < layout.microbatch_size) & (rows < layout.batch_size)
    return np.where(real, rows, -1)


def host_columns(layout: BatchLayout, process_index: int, process_count: int) -> slice:
    """The places of each micro-batch that belong to a host's devices."""
    width = layout.padded_size // process_count
    return slice(process_index * width, (process_index + 1) * width)


def host_rows(
    batch_size: int,
    microbatch_size: int | None,
    process_index: int,
    process_count: int,
    num_devices: int | None = None,
) -> np.ndarray:
    """The rows of a batch that a host reads, in the order in which it holds them.

    Together the hosts read each row exactly once, and the batch doesn't depend on their number.

    Args:
      batch_size: examples per update.
      microbatch_size: examples per micro-batch over all devices; None for no micro-batches.
      process_index: the host, from 0.
      process_count: the number of hosts.
      num_devices: devices of all hosts (default: one each); each host has the same number.

    Returns:
      int64, at most `batch_size` numbers below it.

    >>> host_rows(8, 4, process_index=1, process_count=2)
    array([2, 3, 6, 7])
    """
    num_devices = process_count if num_devices is None else num_devices
    if not 0 <= process_index < process_count:
        raise UsageError(
            f"`process_index` must be from 0 to {process_count - 1}, got {process_index}."
        )
    if num_devices % process_count:
        raise UsageError(
            f"`num_devices`={num_devices} can't be shared evenly by {process_count} hosts."
        )
    layout = batch_layout(batch_size, microbatch_size, num_devices)
    rows = row_table(layout)[:, host_columns(layout, process_index, process_count)].ravel()
    return rows[rows >= 0]
