"""A run directory, read back."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adabatch_jax.reporting.html_elements import is_sealed
from adabatch_jax.runs.folder.finished_run import has_figures
from adabatch_jax.runs.folder.folder_reading import STOPPED_AT_PHASE, SUMMARY
from adabatch_jax.runs.folder.metrics_files import COLUMNS, read_metrics
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.system.errors import StorageError, UsageError, did_you_mean
from adabatch_jax.system.files import read_file, read_sealed, storage_errors
from adabatch_jax.system.number_texts import printable

REQUIRED = ("config.json", "plan.json", "metrics.jsonl")
_TEXTS = ("examples_digest",)
_MAX_COUNT = 2**63 - 1  # a float is near every smaller one


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run directory says about a run, finished or not.

    Attributes:
      name: the configuration's name, or the directory's where that has none.
      plan: the batch plan, as `BatchPlan.to_dict` writes it.
      summary: the final figures, None while the run is unfinished.
      environment: empty where it wasn't written.
    """

    directory: Path
    name: str
    config: Mapping[str, Any]
    plan: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...]
    summary: Mapping[str, Any] | None
    environment: Mapping[str, Any]

    @property
    def last_row(self) -> Mapping[str, Any]:
        """The last row, empty where there is none yet."""
        return self.rows[-1] if self.rows else {}

    def final(self, key: str) -> Any:
        """A figure at the end of the run or as far as it came; None if it wasn't measured."""
        if self.summary is not None and self.summary.get(key) is not None:
            return self.summary[key]
        values = self.series(key)
        return values[-1] if values else None

    def series(self, key: str) -> list[Any]:
        """The measured values of one metric, in order."""
        return [row[key] for row in self.rows if key in row]


def load_run(directory: os.PathLike | str) -> Run:
    """Reads a run directory.

    Raises:
      UsageError: it isn't one.
      StorageError: one of its files can't be read or is damaged.
    """
    directory = Path(directory)
    _check_is_run(directory)
    config, plan = (read_json(directory / f"{name}.json") for name in ("config", "plan"))
    _check_plan(directory / "plan.json", plan)
    rows = tuple(read_metrics(directory / "metrics.jsonl"))
    summary = read_sealed(directory / SUMMARY)
    _check_figures(directory / "metrics.jsonl", rows)
    _check_figures(directory / SUMMARY, () if summary is None else (summary,))
    if summary is not None and not has_figures(summary):
        raise StorageError(
            f"{directory / SUMMARY} is damaged: it lacks the run's figures; the command that "
            "trained it writes it again."
        )
    return Run(
        directory=directory,
        name=printable(str(config.get("name") or directory.resolve().name)),
        config=config,
        plan=plan,
        rows=rows,
        summary=None if summary is None or STOPPED_AT_PHASE in summary else summary,
        environment=_read_json_if_there(directory / "environment.json") or {},
    )


def page_subject(directory: Path) -> bytes:
    """What the page about a finished run is about: as long as it is this, the page is right."""
    with storage_errors(directory, action="read"):
        path = directory / SUMMARY
        return read_file(path) if path.exists() else b""


def is_reported(directory: Path) -> bool:
    """Whether a run's own page is there, whole, and about its summary."""
    report = directory / "report.html"
    with storage_errors(report, action="read"):
        return report.is_file() and is_sealed(read_file(report), page_subject(directory))


def run_labels(runs: Sequence[Run]) -> list[str]:
    """Short labels that tell the runs apart: names, else directory names, else paths."""
    for label in (lambda run: run.name, lambda run: run.directory.resolve().name):
        labels = [printable(label(run)) for run in runs]
        if len(set(labels)) == len(runs):
            return labels
    return [printable(str(run.directory)) for run in runs]


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      StorageError: the file can't be read, or holds something else.
    """
    with storage_errors(path, action="read"):
        content = read_file(path)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path} is damaged: it is not JSON ({error}).") from error
    if not isinstance(value, dict):
        raise StorageError(f"{path} is damaged: it is not a JSON object.")
    return value


def _check_is_run(directory: Path) -> None:
    if not directory.is_dir():
        siblings = directory.parent.iterdir() if directory.parent.is_dir() else ()
        names = {str(path): path for path in siblings if path.is_dir()}
        hint = did_you_mean(str(directory), names) or "."
        raise UsageError(f"there is no run directory {str(directory)!r}{hint}")
    missing = [name for name in REQUIRED if not (directory / name).is_file()]
    if missing:
        inside = sorted(path.name for path in directory.iterdir() if _looks_like_run(path))
        hint = f"; it holds the run {inside[0]!r}" if inside else ""
        raise UsageError(
            f"{str(directory)!r} is not a run directory: {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing{hint}."
        )


def _check_plan(path: Path, plan: Mapping[str, Any]) -> None:
    try:
        phases = BatchPlan.from_dict(plan).phases
        numbers = [number for phase in phases for number in dataclasses.astuple(phase)]
    except (ValueError, TypeError, AttributeError) as error:
        raise StorageError(f"{path} is damaged: it holds no plan.") from error
    counts = [plan.get("num_steps"), plan["num_samples"], plan["num_examples"] or 0, *numbers]
    if any(type(count) is not int or abs(count) > _MAX_COUNT for count in counts):
        raise StorageError(f"{path} is damaged: it holds no plan.")


def _check_figures(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuses anything but numbers where pages and plots count on them."""
    for name in (*COLUMNS, "total_seconds"):
        for value in (row[name] for row in rows if name in row):
            if name in _TEXTS:
                if not isinstance(value, str) or not value.isprintable():
                    raise StorageError(f"{path} is damaged: {name} is no text but {value!r:.50}.")
            elif not is_figure(value):
                raise StorageError(f"{path} is damaged: {name} is no number but {value!r:.50}.")


def is_figure(value: Any) -> bool:
    """Whether a value is a number that pages and plots can count on, or what rows have for none."""
    if isinstance(value, float):
        return not math.isinf(value)  # for which rows have null
    return value is None or (isinstance(value, int) and abs(value) <= _MAX_COUNT)


def _looks_like_run(path: Path) -> bool:
    return all((path / name).is_file() for name in REQUIRED)


def _read_json_if_there(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.exists() else None
