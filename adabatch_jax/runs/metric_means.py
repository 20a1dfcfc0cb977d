"""Means of the updates' metrics over the examples since the last row."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from adabatch_jax.training.dispatch import Dispatched
from adabatch_jax.training.text_figures import with_text_figures
from adabatch_jax.training.update import Metrics

# So many dispatches' metrics are looked at together, at most.
_TOGETHER = 64


class MetricMeans:
    """Adds up metrics in the order of the updates, each times its batch's sum of weights.

    The sums are float64, and the same bits whenever they are saved and restored in between.
    """

    def __init__(self) -> None:
        self._weight = 0.0
        self._sums: dict[str, float] = {}
        self._waiting: list[tuple[Metrics, jax.Array, list[int]]] = []

    def add(self, dispatched: Dispatched, place: int) -> None:
        """Adds one update of a dispatch that is computed: number `place` of its updates."""
        if not self._waiting or self._waiting[-1][0] is not dispatched.metrics:
            if len(self._waiting) == _TOGETHER:
                self._add_up()
            self._waiting.append((dispatched.metrics, dispatched.weight, []))
        self._waiting[-1][2].append(place)

    def take(self) -> dict[str, float]:
        """The means, by name, and begins anew; {} if no update was added."""
        self._add_up()
        weight, sums = self._weight, self._sums
        self.clear()
        return with_text_figures({n: total / weight for n, total in sums.items()} if weight else {})

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
        for metrics, weights, places in waiting:
            weights = _numbers(weights)
            # One after the other: `sum` rounds otherwise, by how many there are at a time.
            for place in places:
                self._weight += weights[place]
            for name, values in metrics.items():
                values, total = _numbers(values), self._sums.get(name, 0.0)
                for place in places:
                    total += weights[place] * values[place]
                self._sums[name] = total


def _numbers(values: Any) -> list[float]:
    # Python's own, which add up faster than numpy's; `jax.device_get` takes ten times as long.
    return np.asarray(values, np.float64).ravel().tolist()
