"""Whether a run is finished, and with which settings; no third-party import."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adabatch_jax.system.files import read_file


def read_summary(workdir: Path, config_digest: str) -> dict[str, Any] | None:
    """The summary of the run in a folder, if it was finished with just these settings; else None.

    What a person wrote into config.json since is not what the run was made with. A summary whose
    figures can't be told is none: it is written again.
    """
    try:
        summary = json.loads(read_file(workdir / "summary.json"))
    except (OSError, ValueError, RecursionError):
        return None
    is_ours = isinstance(summary, dict) and summary.get("config_digest") == config_digest
    return summary if is_ours and has_figures(summary) else None


def has_figures(summary: Mapping[str, Any]) -> bool:
    """Whether a summary holds what every finished run has."""
    counts = (summary.get("step"), summary.get("samples"))
    return all(type(count) is int for count in counts) and all(
        isinstance(figure, int | float)
        for figure in (summary.get("total_seconds"), summary.get("test_accuracy", 0.0))
    )
