"""The files that benchmarks leave: one as JSON, and the same as a page of Markdown."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.benchmarks.rows import table

RESULTS = Path(__file__).parents[1] / "results" / "benchmarks"


class Results:
    """Results by benchmark, kept on disk after each.

    What was measured before stays, until it is measured again.

    Args:
      folder: where the two files lie.
      name: theirs.
    """

    def __init__(self, folder: Path, name: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.json_path, self.markdown_path = folder / f"{name}.json", folder / f"{name}.md"
        self._benchmarks: dict[str, Any] = {}
        if self.json_path.exists():
            self._benchmarks = json.loads(self.json_path.read_text())

    def put(self, name: str, measured: Mapping[str, Any]) -> None:
        """Adds what `run_apart` returned for a benchmark, and writes both files."""
        self._benchmarks[name] = measured
        write(self.json_path, json.dumps(self._benchmarks, indent=1) + "\n")
        write(self.markdown_path, self._markdown())

    def _markdown(self) -> str:
        machines: dict[str, list[str]] = {}
        for name, benchmark in self._benchmarks.items():
            machines.setdefault(machine_text(benchmark["environment"]), []).append(name)
        rows = [row for benchmark in self._benchmarks.values() for row in benchmark["rows"]]
        parts = [
            "# Benchmarks on the CPU",
            "Two things that are compared take turns, round by round; a ratio is the median of "
            "the rounds' ratios, and in brackets are their quartiles.",
            table(rows),
            "Measured with:",
            *(f"* {', '.join(names)}: {text}" for text, names in machines.items()),
        ]
        return "\n\n".join(parts) + "\n"


def machine_text(environment: Mapping[str, Any]) -> str:
    """Hardware, versions and command in one sentence each."""
    devices = ", ".join(f"{n} x {kind}" for kind, n in environment["devices"].items())
    packages = ", ".join(f"{name} {v}" for name, v in environment["packages"].items())
    return (
        f"{devices}; {environment['cores']} cores of {environment['cpu']}. Python "
        f"{environment['python']}, {packages}. `{environment['command']}`"
    )


def write(path: Path, text: str) -> None:
    """Writes a file so that a killed run leaves the old one or the new one."""
    new = path.with_suffix(f"{path.suffix}.new")
    new.write_text(text)
    os.replace(new, path)
