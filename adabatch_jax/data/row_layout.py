"""Which row of a batch goes where: micro-batches, devices, hosts, and padding.

Micro-batch k holds the rows [k*m, (k+1)*m) of the batch on every layout; each is padded to a
multiple of the devices and split over them in order. Devices that hold the same rows, as those
along the other axes of a mesh do, count as one here.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from adabatch_jax.system.errors import UsageError


@dataclasses.dataclass(frozen=True)
class BatchLayout:
    """The shape that a batch has on its devices; `Layouts.of` makes it.

    Attributes:
      microbatch_size: examples per micro-batch over all devices, at most `batch_size`.
    """

    batch_size: int
    microbatch_size: int
    num_devices: int

    @property
    def num_microbatches(self) -> int:
        """Micro-batches per update; the last one may be short."""
        return -(-self.batch_size // self.microbatch_size)

    @property
    def rows_per_device(self) -> int:
        """Rows of a micro-batch on each device, padding included."""
        return -(-self.microbatch_size // self.num_devices)

    @property
    def padded_size(self) -> int:
        """Rows of a micro-batch on all devices, padding included."""
        return self.rows_per_device * self.num_devices

    @property
    def has_padding(self) -> bool:
        """Whether any row is padding."""
        return self.batch_size < self.num_microbatches * self.padded_size

    @property
    def padding_share(self) -> float:
        """The share of the rows that are padding, 0 to 1."""
        return 1 - self.batch_size / (self.num_microbatches * self.padded_size)


@dataclasses.dataclass(frozen=True)
class Layouts:
    """How a run lays its batches out: one rule, which gives each batch size its `BatchLayout`.

    Attributes:
      microbatch_size: examples per micro-batch over all devices; None for whole batches, whose
        arrays then have no axis of micro-batches.
      num_devices: devices that share a (micro-)batch.

    Raises:
      UsageError: `microbatch_size` is below 1.

    >>> layout = Layouts(36, num_devices=8).of(96)
    >>> layout.num_microbatches, layout.padded_size, layout.rows_per_device
    (3, 40, 5)
    """

    microbatch_size: int | None = None
    num_devices: int = 1

    def __post_init__(self):
        if self.microbatch_size is not None and self.microbatch_size < 1:
            raise UsageError(f"`microbatch_size` must be at least 1, got {self.microbatch_size}.")

    def of(self, batch_size: int) -> BatchLayout:
        """The layout of a batch; raises a UsageError if `batch_size` < 1."""
        if batch_size < 1:
            raise UsageError(f"`batch_size` must be at least 1, got {batch_size}.")
        microbatch_size = min(self.microbatch_size or batch_size, batch_size)
        return BatchLayout(batch_size, microbatch_size, self.num_devices)


def row_table(layout: BatchLayout) -> np.ndarray:
    """The batch's row at each place, -1 for padding; int64, shape (micro-batches, padded size).

    >>> row_table(Layouts(3, num_devices=2).of(5))
    array([[ 0,  1,  2, -1],
           [ 3,  4, -1, -1]])
    """
    places = np.arange(layout.padded_size)
    rows = places + layout.microbatch_size * np.arange(layout.num_microbatches)[:, None]
    real = (places < layout.microbatch_size) & (rows < layout.batch_size)
    return np.where(real, rows, -1)


def host_table(layout: BatchLayout, shards: Sequence[int]) -> np.ndarray:
    """The part of `row_table` that belongs to these of its `num_devices` devices."""
    table = row_table(layout)
    of_devices = table.reshape(len(table), layout.num_devices, layout.rows_per_device)
    return of_devices[:, list(shards)].reshape(len(table), -1)


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

    Raises:
      UsageError: there is no such host, the hosts can't share the devices evenly, or
        `batch_size` or `microbatch_size` is below 1.

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
    layout = Layouts(microbatch_size, num_devices).of(batch_size)
    each = num_devices // process_count
    rows = host_table(layout, range(process_index * each, (process_index + 1) * each))
    return rows[rows >= 0]
