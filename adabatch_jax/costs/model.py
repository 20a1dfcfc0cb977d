"""Seconds per update as a function of the batch size, T(B) = a + b B, and what follows from it."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from adabatch_jax.errors import UsageError

# Growth pays while each doubling of the batch adds this share to the examples per second.
WORTHWHILE_GAIN = 0.05
# b B is then 9 a: the examples take 90 % of the update's time.
_SATURATED_RATIO = 9


@dataclasses.dataclass(frozen=True)
class UpdateCost:
    """An update on B examples takes `overhead_seconds + B * example_seconds`.

    Attributes:
      overhead_seconds: what an update takes whatever its size (a).
      example_seconds: what each example adds (b).

    >>> cost = UpdateCost(overhead_seconds=0.03, example_seconds=0.001)
    >>> round(cost.update_seconds(70), 6), cost.saturating_batch_size
    (0.1, 270)
    """

    overhead_seconds: float
    example_seconds: float

    def update_seconds(self, batch_size: int) -> float:
        """The time of one update."""
        return self.overhead_seconds + self.example_seconds * batch_size

    @property
    def saturating_batch_size(self) -> int | None:
        """The smallest batch whose examples per second reach 90 % of the limit 1 / b.

        B / (a + b B) >= 0.9 / b from B = 9 a / b on; doubling a batch of this size adds a last
        20/19, about 5 %. None where examples cost nothing (b = 0) and every growth pays.
        """
        if self.example_seconds == 0:
            return None
        return max(math.ceil(_SATURATED_RATIO * self.overhead_seconds / self.example_seconds), 1)


def fit_update_cost(seconds_by_size: Mapping[int, float]) -> UpdateCost:
    """Fits T(B) = a + b B with a, b >= 0 to measured seconds.

    Least squares of the relative errors, `(T(B) - t) / t`: a small batch counts as much as a
    large one. One size alone can't tell a from b; everything is put down to the examples then.

    Args:
      seconds_by_size: batch size -> seconds per update, at least one.

    Raises:
      UsageError: nothing was measured, or a size or a time isn't above 0 and finite.

    >>> fit_update_cost({128: 0.2})
    UpdateCost(overhead_seconds=0.0, example_seconds=0.0015625)
    """
    _check(seconds_by_size)
    sizes = np.array(list(seconds_by_size), float)
    seconds = np.array(list(seconds_by_size.values()), float)
    # Columns of a and b; the wanted value of each row is 1.
    overhead, example = 1 / seconds, sizes / seconds
    candidates = [(0.0, example.sum() / (example @ example))]
    if len(sizes) > 1:
        candidates.append((overhead.sum() / (overhead @ overhead), 0.0))
        free = np.linalg.lstsq(np.stack([overhead, example], 1), np.ones_like(seconds))[0]
        if min(free) >= 0:
            candidates.append(tuple(free))
    # The problem is convex: where the free optimum is not allowed, the best is on a boundary.
    best = min(candidates, key=lambda ab: np.sum((ab[0] * overhead + ab[1] * example - 1) ** 2))
    return UpdateCost(float(best[0]), float(best[1]))


def largest_paying_size(seconds_by_size: Mapping[int, float]) -> int:
    """The largest size that is worth growing to, by its examples per second.

    A size pays if it beats the fastest of the smaller sizes by at least 5 % for each doubling
    in between. The fastest and not the next smaller: one slow size in the row makes neither
    itself nor the size after it look good.

    Args:
      seconds_by_size: batch size -> seconds per update, at least one.

    Returns:
      One of the sizes; the smallest if no growth pays.

    Raises:
      UsageError: as `fit_update_cost`.

    >>> largest_paying_size({64: 0.10, 128: 0.11, 256: 0.15, 512: 0.29, 1024: 0.57})
    256
    """
    _check(seconds_by_size)
    sizes = sorted(seconds_by_size)
    fastest = paying = sizes[0]
    for size in sizes[1:]:
        gain = (size / seconds_by_size[size]) / (fastest / seconds_by_size[fastest])
        if gain >= (1 + WORTHWHILE_GAIN) ** math.log2(size / fastest):
            paying = size
        if gain > 1:
            fastest = size
    return paying


def _check(seconds_by_size: Mapping[int, float]) -> None:
    if not seconds_by_size:
        raise UsageError("`seconds_by_size` must have the time of at least one batch size.")
    for size, seconds in seconds_by_size.items():
        if size < 1 or not 0 < seconds < math.inf:
            raise UsageError(
                "`seconds_by_size` must be batch sizes of at least 1 and finite times above 0, "
                f"got {size}: {seconds}."
            )
