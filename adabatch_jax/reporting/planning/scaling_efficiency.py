"""How much of many devices a batch uses: measured times of one, and the all-reduce of a network.

All of it is predicted: nothing here was run on more devices than the times were measured on.
"""

import bisect
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adabatch_jax.data.row_layout import BatchLayout

COUNTS = tuple(2**k for k in range(3, 15))
"""The numbers of devices that predictions are drawn for: 8 to 16,384."""


@dataclasses.dataclass(frozen=True)
class Network:
    """What connects the devices; the defaults are assumptions, about a server of eight H100s.

    Attributes:
      devices_per_host: devices of a host, which are connected by links.
      link_bandwidth: bytes per second that each device sends inside of its host.
      link_latency: seconds that a message takes there beside its bytes.
      host_bandwidth: bytes per second that each device sends to other hosts.
      host_latency: seconds that a message takes from host to host beside its bytes.

    >>> network = Network(4, link_bandwidth=100e9, link_latency=0, host_bandwidth=10e9, host_latency=0)
    >>> network.all_reduce_seconds(4 * 10**9, num_devices=4)  # 2 * 3/4 of 4 GB at 100 GB/s
    0.06
    >>> network.all_reduce_seconds(4 * 10**9, num_devices=8)  # and 2 * 1/2 of 1 GB at 10 GB/s
    0.16
    """

    devices_per_host: int = 8
    link_bandwidth: float = 450e9
    link_latency: float = 3e-6
    host_bandwidth: float = 50e9
    host_latency: float = 15e-6

    def all_reduce_seconds(self, num_bytes: int, num_devices: int) -> float:
        """The time to sum so many bytes over all devices, in each of which the sum then is.

        A reduce-scatter around the g devices of each host, an all-reduce of each device's share
        with its peers in the H hosts, and an all-gather around the host:

            2 (g-1)/g S / W_in  +  2 (H-1)/H (S/g) / W_out  +  2 (g-1) a_in  +  2 ceil(log2 H) a_out

        The factors of the bandwidths are those of nccl-tests' page on performance.
        """
        g = min(self.devices_per_host, num_devices)
        hosts = math.ceil(num_devices / g)
        inside = 2 * (g - 1) / g * num_bytes / self.link_bandwidth
        outside = 2 * (hosts - 1) / hosts * (num_bytes / g) / self.host_bandwidth
        latencies = 2 * (g - 1) * self.link_latency
        latencies += 2 * math.ceil(math.log2(hosts)) * self.host_latency
        return inside + outside + latencies


@dataclasses.dataclass(frozen=True)
class RowTimes:
    """Measured seconds of an update by its rows on one device; at least one size.

    >>> times = RowTimes({8: 0.010, 16: 0.012})
    >>> round(times.seconds(12), 6), times.seconds(4), times.seconds(32)
    (0.011, None, 0.024)
    """

    by_rows: Mapping[int, float]

    def seconds(self, rows: int) -> float | None:
        """The time of so many rows; None below the fewest that were measured.

        Between two measured sizes it is interpolated, since a line through all would miss the
        jumps of kernels and memory. Fewer rows than were measured may take as long as those or
        not: nothing is said. More than were measured take as long as several updates of the most
        that were, as in micro-batches.
        """
        known = sorted(self.by_rows)
        if rows < known[0]:
            return None
        if rows > known[-1]:
            return self.by_rows[known[-1]] * rows / known[-1]
        above = bisect.bisect_left(known, rows)
        if known[above] == rows:
            return self.by_rows[rows]
        few, many = known[above - 1], known[above]
        share = (rows - few) / (many - few)
        return (1 - share) * self.by_rows[few] + share * self.by_rows[many]

    @property
    def rows_per_second(self) -> float:
        """The most rows per second that were measured: what an efficiency is a share of.

        No interpolated size has more: between two of them it lies between theirs.
        """
        return max(rows / seconds for rows, seconds in self.by_rows.items())


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """What is predicted of a batch on many devices, from none to all of the all-reduce hidden.

    Attributes:
      none_hidden, all_hidden: examples per second, as a share of what as many devices compute by
        themselves at their best number of rows; 0 to 1.
      compute_seconds: of each device's rows.
      all_reduce_seconds: of the gradients.
    """

    none_hidden: float
    all_hidden: float
    compute_seconds: float
    all_reduce_seconds: float

    def __str__(self) -> str:
        low, high = (f"{100 * share:.0f}" for share in (self.none_hidden, self.all_hidden))
        return range_text(low, high, "%")


def range_text(low: str, high: str, unit: str) -> str:
    """A range for people, or the one value that it is.

    >>> range_text("75", "80", "%"), range_text("75", "75", "%")
    ('75 to 80 %', '75 %')
    """
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"


def predicted_efficiency(
    layout: "BatchLayout", times: RowTimes, gradient_bytes: int, network: Network
) -> Efficiency | None:
    """Predicts what a batch uses of the devices that it is laid out on; None where nothing is known.

    An update takes between max(t, T) and t + T seconds, t the time of each device's rows, padding
    included, and T that of the all-reduce: backward passes hide between all and nothing of it. On
    one device T = 0, and the efficiency is that of its rows alone.

    >>> from adabatch_jax.data.row_layout import Layouts
    >>> network = Network(2, link_bandwidth=1e9, link_latency=0)
    >>> str(predicted_efficiency(Layouts(None, 2).of(32), RowTimes({16: 0.03}), 10**7, network))
    '75 to 100 %'
    """
    seconds = times.seconds(layout.rows_per_device)
    if seconds is None:
        return None
    compute = layout.num_microbatches * seconds
    all_reduce = network.all_reduce_seconds(gradient_bytes, layout.num_devices)
    # Examples, as seconds of all devices at their best.
    best = layout.batch_size / (layout.num_devices * times.rows_per_second)
    return Efficiency(
        none_hidden=best / (compute + all_reduce),
        all_hidden=best / max(compute, all_reduce),
        compute_seconds=compute,
        all_reduce_seconds=all_reduce,
    )


def rows_to_measure(layouts: Sequence["BatchLayout"], group_rows: int | None = None) -> list[int]:
    """The numbers of rows to time for predictions about these layouts: few, the fewest first.

    Each is about twice the one before; what lies between is interpolated. The fewest and the most
    are among them. Where BatchNorm has groups, whole ones only.

    >>> from adabatch_jax.data.row_layout import Layouts
    >>> rows_to_measure([Layouts(None, count).of(96) for count in (1, 2, 3, 4, 16, 96)])
    [1, 6, 24, 48, 96]
    """
    unit = group_rows or 1
    wanted = {-(-layout.rows_per_device // unit) * unit for layout in layouts}
    chosen: list[int] = []
    for rows in sorted(wanted):
        if not chosen or rows >= 2 * chosen[-1] or rows == max(wanted):
            chosen.append(rows)
    return chosen
