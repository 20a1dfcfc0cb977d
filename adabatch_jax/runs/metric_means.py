"""Means of the updates' metrics over the examples since the last row."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from adabatch_jax.training.dispatch import Dispatched

# So many dispatches' metrics are fetched together, at most: fetching each would cost short updates
# more than adding it up.
_TOGETHER = 64


class MetricMeans:
    """Adds up metrics in the order of the updates, each times its batch's sum of weights.

    The sums are float64, and the same bits whenever they are saved and restored in between.
    """

    def __init__(self) -> None:
        self._weight = 0.0
        self._sums: dict[str, float] = {}
        self._waiting: list[tuple[tuple[Any, Any], int]] = []

    def add(self, dispatched: Dispatched, place: int) -> None:
        """Adds one update of a dispatch that is computed: number `place` of its updates."""
        self._waiting.append(((dispatched.weight, dispatched.metrics), place))
        if len(self._waiting) >= _TOGETHER:
            self._add_up()

    def take(self) -> dict[str, float]:
        """The means, by name, and begins anew; {} if no update was added."""
        self._add_up()
        weight, sums = self._weight, self._sums
        self.clear()
        return {name: value / weight for name, value in sums.items()} if weight else {}

    def clear(self) -> None:
        """Begins anew."""
        self._weight, self._sums, self._waiting = 0.0, {}, []

    def to_dict(self) -> dict[str, Any]:
        """What `restore` takes, as JSON values that lose no bit and no NaN."""
        self._add_up()
        sums = {name: value.hex() for name, value in self._sums.items()}
        return {"weight": self._weight.hex(), "sums": sums}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Goes on from what `to_dict` gave."""
        self.clear()
        self._weight = float.fromhex(saved["weight"])
        self._sums = {name: float.fromhex(value) for name, value in saved["sums"].items()}

    def _add_up(self) -> None:
        waiting, self._waiting = self._waiting, []
        fetched = jax.device_get([results for results, _ in waiting])
        for (weights, metrics), (_, place) in zip(fetched, waiting, strict=True):
            weight = float(np.ravel(weights)[place])
            self._weight += weight
            for name, values in metrics.items():
                value = float(np.ravel(values)[place])
                self._sums[name] = self._sums.get(name, 0.0) + weight * value
