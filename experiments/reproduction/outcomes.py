"""What the arms of a study are compared by: a figure of which less is better."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A figure of an evaluation, of which less is better.

    Attributes:
      name: as pages call it.
      unit: behind its values; "" for none.
      difference_unit: behind a difference of 1.
      decimals: that mean something.
      margin: differences below count as none where nobody says another.
      metric: the evaluation's, of which it is made.
      of_metric: makes it.
      told: how a sentence tells a difference, of its size and "higher" or "lower".
      key: how files call it.
    """

    name: str
    unit: str
    difference_unit: str
    decimals: int
    margin: float
    metric: str
    of_metric: Callable[[float], float]
    told: str
    key: str

    def of(self, figures: Mapping[str, Any], split: str) -> float | None:
        """The outcome on a split, "test" or "holdout", in a row or a summary; None without it.

        >>> OUTCOMES["error"].of({"test_accuracy": 0.75}, "test")
        25.0
        >>> OUTCOMES["bits_per_byte"].of({"test_accuracy": 0.75}, "test")
        """
        value = figures.get(f"{split}_{self.metric}")
        return None if value is None else self.of_metric(value)

    @property
    def heading(self) -> str:
        """The name and the unit, as over a column: "error (%)"."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def text(self, value: float) -> str:
        """A value with its unit.

        >>> OUTCOMES["error"].text(7.125), OUTCOMES["bits_per_byte"].text(2.0)
        ('7.12 %', '2.000')
        """
        return f"{value:.{self.decimals}f}{f' {self.unit}' if self.unit else ''}"

    def difference_text(self, value: float) -> str:
        """The size of a difference with its unit, as a rounded number.

        >>> OUTCOMES["error"].difference_text(1.0), OUTCOMES["bits_per_byte"].difference_text(0.01)
        ('1 point', '0.01 bits per byte')
        """
        plural = "s" if self.difference_unit == "point" and value != 1 else ""
        return f"{value:g} {self.difference_unit}{plural}"


OUTCOMES = {
    "error": Outcome(
        name="error",
        unit="%",
        difference_unit="point",
        decimals=2,
        margin=1.0,
        metric="accuracy",
        of_metric=lambda accuracy: 100 * (1 - accuracy),
        told="test error is {:.2f} points {}",
        key="error_percent",
    ),
    "bits_per_byte": Outcome(
        name="bits per byte",
        unit="",
        difference_unit="bits per byte",
        decimals=3,
        margin=0.01,
        metric="bits_per_byte",
        of_metric=float,
        told="bits per byte of the test text are {:.3f} {}",
        key="bits_per_byte",
    ),
}
"""By the names that sections and `study.json` give them."""
