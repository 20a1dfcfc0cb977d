"""Which micro-batch is fastest, where several give the same numbers."""

import dataclasses
import functools

from adabatch_jax.data.row_layout import BatchLayout, Layouts
from adabatch_jax.reporting.planning.repeated_timing import Timing, repeated_timings
from adabatch_jax.reporting.planning.timed_updates import Updates

_MIN_ROWS = 8
_SPACING = 4
_MAX_CANDIDATES = 4
_BUDGET_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class MicrobatchComparison:
    """Times of the same update by its micro-batch; the whole batch counts as one too."""

    batch_size: int
    timings: dict[int, Timing]

    @property
    def best(self) -> int:
        """The fastest; the larger of two that are as fast."""
        return min(self.timings, key=lambda size: (self.timings[size].seconds, -size))


def compare_microbatches(
    updates: Updates, measured: Layouts, seconds_by_size: dict[int, float]
) -> MicrobatchComparison | None:
    """Times a batch that was measured in several micro-batches: the largest that there is time for.

    None where the network doesn't say that micro-batches leave its numbers alone, or the batches
    are too small to be cut.
    """
    group_rows, num_devices = updates.update.independent_groups, measured.num_devices
    if group_rows is None:
        return None

    def others(size: int) -> list[BatchLayout]:
        cut = microbatch_candidates(size, group_rows, num_devices)
        layouts = [Layouts(m, num_devices).of(size) for m in (*cut, size)]
        return [layout for layout in layouts if layout != measured.of(size)]

    sizes = [size for size in sorted(seconds_by_size) if others(size)]
    if not sizes:
        return None
    affordable = [s for s in sizes if 3 * len(others(s)) * seconds_by_size[s] < _BUDGET_SECONDS]
    size = max(affordable, default=sizes[0])
    programs = updates.compiled([measured.of(size), *others(size)])
    runs = {
        layout.microbatch_size: functools.partial(updates.prepared, layout)
        for layout in updates.fitting_together(programs, updates.machine_bytes)
    }
    return MicrobatchComparison(size, repeated_timings(runs, _BUDGET_SECONDS, are_ordered=False))


def microbatch_candidates(batch_size: int, group_rows: int, num_devices: int) -> list[int]:
    """Micro-batches of a batch that are worth trying, in examples over all devices.

    Each device gets whole groups of rows that are normalized together, at least eight rows: a
    group may be computed anywhere, and fewer rows leave processors idle.

    >>> microbatch_candidates(512, group_rows=1, num_devices=1)
    [8, 32, 128]
    >>> microbatch_candidates(512, group_rows=12, num_devices=2)
    [24, 96, 384]
    """
    smallest = -(-_MIN_ROWS // group_rows) * group_rows * num_devices
    sizes = (smallest * _SPACING**power for power in range(_MAX_CANDIDATES))
    return [size for size in sizes if size < batch_size]
