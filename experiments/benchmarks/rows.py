"""A benchmark's results: rows, what they should reach, and how they are written."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.benchmarks.timing import Ratio


@dataclasses.dataclass(frozen=True)
class Target:
    """What a ratio should be: at least, at most, or between.

    >>> target = Target(at_most=1.03)
    >>> str(target), target.verdict(1.0), target.verdict(1.1)
    ('<= 1.03', 'ok', 'missed by 6.8 %')
    """

    at_least: float | None = None
    at_most: float | None = None

    def __str__(self) -> str:
        if self.at_least is not None and self.at_most is not None:
            return f"{self.at_least:g} to {self.at_most:g}"
        return f">= {self.at_least:g}" if self.at_most is None else f"<= {self.at_most:g}"

    def verdict(self, value: float) -> str:
        """ "ok", or by how much the value misses, as a share of the limit."""
        for limit, misses in ((self.at_least, -1), (self.at_most, 1)):
            if limit is not None and misses * (value - limit) > 0:
                return f"missed by {100 * abs(value / limit - 1):.3g} %"
        return "ok"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      what: which two things were compared, and on what.
      ratio: what came out; None where it couldn't be measured, and `note` says why.
      target: what it should be; None where it is only shown beside another.
      note: what to know about it.
      why_missed: the reason, if it misses.
      beside: other figures by name, with their unit in the name.
    """

    what: str
    ratio: Ratio | None
    target: Target | None = None
    note: str = ""
    why_missed: str = ""
    beside: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def verdict(self) -> str:
        if self.ratio is None:
            return "not measured"
        return "" if self.target is None else self.target.verdict(self.ratio.value)

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON values."""
        return {
            "what": self.what,
            "target": None if self.target is None else str(self.target),
            "ratio": None if self.ratio is None else dataclasses.asdict(self.ratio),
            "verdict": self.verdict,
            "note": " ".join(filter(None, [self.note, self._why()])),
            "beside": dict(self.beside),
        }

    def _why(self) -> str:
        return self.why_missed if self.verdict.startswith("missed") else ""


def summary_line(row: Mapping[str, Any]) -> str:
    """A row, as `Row.to_dict` gives it, in one line."""
    measured = "" if row["ratio"] is None else str(Ratio(**row["ratio"]))
    return ", ".join(filter(None, [row["what"], measured, row["verdict"], row["note"]]))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows, as `Row.to_dict` gives them, as a Markdown table."""
    lines = ["| what | target | ratio (quartiles) | verdict | beside |", "|---|---|---|---|---|"]
    for row in rows:
        measured = "" if row["ratio"] is None else str(Ratio(**row["ratio"]))
        # Milliseconds on a CPU tell about the machine's other work; they are in the JSON file.
        beside = [
            f"{name} {_text(value)}"
            for name, value in row["beside"].items()
            if not name.endswith("(ms)")
        ]
        details = "; ".join(filter(None, [*beside, row["note"]]))
        cells = (row["what"], row["target"] or "", measured, row["verdict"], details)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
