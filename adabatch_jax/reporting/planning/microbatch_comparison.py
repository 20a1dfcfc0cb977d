"""Which micro-batch is fastest, where several give the same numbers."""

import dataclasses

_MIN_ROWS = 8
_SPACING = 4
_MAX_CANDIDATES = 4


@dataclasses.dataclass(frozen=True)
class MicrobatchComparison:
    """Times of the same update in micro-batches of several sizes.

    Attributes:
      batch_size: examples per update.
      seconds: micro-batch -> seconds per update; the whole batch counts as one too.
    """

    batch_size: int
    seconds: dict[int, float]

    @property
    def best(self) -> int:
        """The fastest; the larger of two that are as fast."""
        return min(self.seconds, key=lambda size: (self.seconds[size], -size))


def microbatch_candidates(batch_size: int, group_rows: int, num_devices: int) -> list[int]:
    """Micro-batches that are worth trying, in examples over all devices.

    Each device gets whole groups, at least eight rows: a group may be computed anywhere, and
    fewer rows leave processors idle.

    Args:
      batch_size: the batch that is to be cut; candidates are smaller.
      group_rows: rows that are normalized together, 1 where none are.
      num_devices: devices that share a micro-batch.

    >>> microbatch_candidates(512, group_rows=1, num_devices=1)
    [8, 32, 128]
    >>> microbatch_candidates(512, group_rows=12, num_devices=2)
    [24, 96, 384]
    """
    size = -(-_MIN_ROWS // group_rows) * group_rows * num_devices
    candidates = []
    while size < batch_size and len(candidates) < _MAX_CANDIDATES:
        candidates.append(size)
        size *= _SPACING
    return candidates
