"""Whether a run's rows of metrics go with its checkpoints."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adabatch_jax.reporting.diagnosis.findings import (
    RESTORE,
    Finding,
    good,
    note,
    of_error,
    problem,
)
from adabatch_jax.runs.checkpoints.verifying import Found
from adabatch_jax.runs.folder.metrics import read_metrics
from adabatch_jax.runs.folder.run_folder import can_use_rows
from adabatch_jax.system.errors import AdabatchError, StorageError
from adabatch_jax.system.files import read_file


def metrics_findings(workdir: Path, newest: Found | None, is_in_use: bool) -> Iterator[Finding]:
    """Compares metrics.jsonl and metrics.csv with each other and with the newest checkpoint.

    Args:
      workdir: the run's folder.
      newest: the checkpoint that training would go on from; None where there is none.
      is_in_use: whether a process is training there, and may be writing a row.
    """
    jsonl = workdir / "metrics.jsonl"
    if newest is not None and not _can_resume(workdir, newest):
        yield problem(
            "metrics",
            f"metrics.jsonl and metrics.csv have lost rows from before checkpoint {newest.step}; "
            "move both away to go on without them.",
            RESTORE,
        )
    if not jsonl.exists():
        if newest is not None:
            yield note("metrics.jsonl", "it is missing; a run goes on without its rows.")
        return
    try:
        rows = read_metrics(jsonl)
        torn = read_file(jsonl)[-1:] not in (b"", b"\n")
    except AdabatchError as error:
        yield of_error("metrics.jsonl", error)
        return
    yield _rows(rows, torn and not is_in_use, None if is_in_use else newest)
    yield from _csv(workdir / "metrics.csv", len(rows), is_in_use)


def _can_resume(workdir: Path, newest: Found) -> bool:
    try:
        return can_use_rows(workdir, newest)
    except StorageError:
        return True  # what can't be read stops a run, but isn't lost
    except (KeyError, TypeError, ValueError):  # it is another program's
        return False


def _rows(rows: list[dict[str, Any]], is_torn: bool, newest: Found | None) -> Finding:
    last = rows[-1]["step"] if rows else 0
    text = f"{_counted(len(rows))}, up to update {last:,}" if rows else "no row yet"
    data = {"num_rows": len(rows), "last_step": last, "is_torn": is_torn}
    beyond = [row for row in rows if newest is not None and row["step"] > newest.step]
    notes = []
    if is_torn:
        notes.append("the last line was cut short")
    if beyond:
        verb = "lies" if len(beyond) == 1 else "lie"
        notes.append(f"{_counted(len(beyond))} {verb} beyond checkpoint {newest.step}")
    if not notes:
        return good("metrics.jsonl", text, **data)
    return note(
        "metrics.jsonl",
        f"{text}; {' and '.join(notes)}, which a run removes and writes anew.",
        num_beyond=len(beyond),
        **data,
    )


def _counted(num_rows: int) -> str:
    return "1 row" if num_rows == 1 else f"{num_rows:,} rows"


def _csv(path: Path, num_rows: int, is_in_use: bool) -> Iterator[Finding]:
    try:
        text = read_file(path).decode(errors="replace")
        found = sum(1 for _ in csv.reader(io.StringIO(text, newline=""))) - 1
    except (OSError, csv.Error) as error:
        yield note("metrics.csv", f"it can't be read ({error}); a run writes it anew.")
        return
    if found != num_rows and not is_in_use:
        yield note(
            "metrics.csv",
            f"{found:,} rows where metrics.jsonl has {num_rows:,}; a run writes it anew.",
            num_rows=found,
        )
