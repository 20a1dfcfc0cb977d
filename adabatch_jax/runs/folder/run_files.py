"""The files of a run's folder that describe it: settings, plan, environment, summary."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from adabatch_jax.config.settings import settings_digest
from adabatch_jax.runs.folder.summary import read_summary
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.system.environment import describe_environment
from adabatch_jax.system.errors import AdabatchError
from adabatch_jax.system.files import read_file, storage_errors, write_json
from adabatch_jax.training.time_prediction import Prediction


class RunFiles:
    """Writes what describes a run; what lies there already is never trusted to be readable.

    Args:
      path: the run's folder.
      plan: its plan.
      identity: its settings, as JSON values.
    """

    def __init__(self, path: Path, plan: BatchPlan, identity: Mapping[str, Any]):
        self._path, self._plan, self._identity = path, plan, dict(identity)

    def write_identity(self, only_if_missing: bool = False) -> None:
        """Writes config.json, which also tells a run's folder from a foreign one."""
        config = self._path / "config.json"
        if not (only_if_missing and config.exists()):
            write_json(config, self._identity)

    def write_plan(self) -> None:
        """Writes plan.json; what was predicted before a restart stays in it."""
        predicted = self._predicted()
        kept = {} if predicted is None else {"prediction": predicted.to_dict()}
        write_json(self._path / "plan.json", self._plan.to_dict() | kept)

    @property
    def wants_prediction(self) -> bool:
        """Whether nothing was predicted for this very plan; a run may have been prolonged."""
        predicted = self._predicted()
        if predicted is None:
            return True
        phases = [(phase.batch_size, phase.num_updates) for phase in predicted.phases]
        return phases != [(phase.batch_size, phase.num_steps) for phase in self._plan.phases]

    def write_prediction(self, prediction: Mapping[str, Any]) -> None:
        """Adds what the run should take to plan.json."""
        plan = self._plan.to_dict() | {"prediction": dict(prediction)}
        write_json(self._path / "plan.json", plan)

    def write_environment(self, layout: Mapping[str, Any], restarts: int) -> None:
        """Writes environment.json."""
        environment = describe_environment(device.device_kind for device in jax.devices())
        environment |= {"layout": dict(layout), "restarts": restarts}
        write_json(self._path / "environment.json", environment)

    def read_summary(self) -> dict[str, Any] | None:
        """The summary of a run that was finished with these settings, or None."""
        return read_summary(self._path, settings_digest(self._identity))

    def write_summary(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Writes summary.json; returns what it holds."""
        summary = {**summary, "config_digest": settings_digest(self._identity)}
        write_json(self._path / "summary.json", summary)
        return summary

    def remove_results(self) -> None:
        """Takes away the summary and the report of a run that goes on."""
        with storage_errors(self._path):
            for name in ("summary.json", "report.html"):
                (self._path / name).unlink(missing_ok=True)

    def _predicted(self) -> Prediction | None:
        try:
            return Prediction.from_dict(
                json.loads(read_file(self._path / "plan.json"))["prediction"]
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
                RecursionError, AdabatchError):  # fmt: skip
            return None  # not there yet, or damaged: it decides nothing
