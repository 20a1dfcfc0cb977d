"""Batch size and learning rate of every update of a run, from its plan and its settings.

Rows of metrics may be far apart; the plan isn't.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from adabatch_jax.reporting.saved_run import Run
from adabatch_jax.schedules.growth_with_decay import schedule_and_rate
from adabatch_jax.schedules.learning_rate_at_step import ResolvedRate, StepClock, resolve
from adabatch_jax.schedules.learning_rate_text import parse_learning_rate
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.schedules.schedule_text import parse_schedule
from adabatch_jax.system.errors import UsageError

# Of a smooth rate; steps of a piecewise one are all drawn.
_NUM_POINTS = 500
_SAME_RATE = 1e-6  # rows hold float32


@dataclasses.dataclass(frozen=True, eq=False)
class Line:
    """Values at points in the order of the run.

    Attributes:
      steps: (points,) how many updates are finished there, int64.
      values: (points,) float64; at a jump two points have the same step.
    """

    steps: np.ndarray
    values: np.ndarray


def end_step(run: Run) -> int:
    """How far a run is drawn: as it came by its rows, without any the whole plan."""
    return run.last_row.get("step", run.plan["num_steps"])


def positions(run: Run, steps: np.ndarray, key: str) -> np.ndarray:
    """Where a run stood after so many updates, as the rows' key says it: exact but for seconds.

    Seconds between two rows are interpolated, and NaN where no row has any.
    """
    if key == "step":
        return steps.astype(float)
    if key == "elapsed_seconds":
        rows = [row for row in run.rows if math.isfinite(row.get(key, math.nan))]
        if not rows:
            return np.full(len(steps), math.nan)
        seconds = [0.0, *(row[key] for row in rows)]
        return np.interp(steps, [0, *(row["step"] for row in rows)], seconds)
    samples = _samples(run, steps).astype(float)
    if key == "tokens":
        return samples * run.plan["tokens_per_example"]
    return samples / (run.plan["num_examples"] or math.nan) if key == "epoch" else samples


def batch_sizes(run: Run) -> Line:
    """The plan's batch sizes as a staircase, two points for each phase."""
    end = end_step(run)
    phases = [phase for phase in run.plan["phases"] if phase["start_step"] < end]
    edges = [[phase["start_step"], min(phase["stop_step"], end)] for phase in phases]
    sizes = [[phase["batch_size"]] * 2 for phase in phases]
    return Line(np.array(edges, np.int64).ravel(), np.array(sizes, float).ravel())


@dataclasses.dataclass(frozen=True, eq=False)
class Rates:
    """The learning rates of a run, as far as they are known.

    Attributes:
      resolved: what the settings mean on the plan; None where they aren't settings of ours.
      since: the first update that it holds for: rows before it say otherwise, as where the
        rate was changed while the run went on.
      logged: what the rows before say.
    """

    resolved: ResolvedRate | None
    since: int
    logged: Line

    def of_phases(self, phases: Sequence[dict]) -> list[float | None]:
        """Of each phase's first update, or its first logged one; None where neither is known."""
        places = np.searchsorted(self.logged.steps, [p["start_step"] for p in phases], side="right")
        rates: list[float | None] = []
        for phase, place in zip(phases, places.tolist(), strict=True):
            if self.resolved is not None and phase["start_step"] >= self.since:
                rates.append(self.resolved.at(phase["start_step"]))
            else:
                logged = place < len(self.logged.steps)
                is_inside = logged and self.logged.steps[place] <= phase["stop_step"]
                rates.append(self.logged.values[place].item() if is_inside else None)
        return rates

    def line(self, end: int) -> Line:
        """The resolved rate up to an update; without points where there is none."""
        if self.resolved is None or self.since >= end:
            return Line(np.array([], np.int64), np.array([]))
        jumps = self.resolved.steps[
            (self.resolved.steps > self.since) & (self.resolved.steps < end)
        ]
        even = np.linspace(self.since, end - 1, _NUM_POINTS).astype(np.int64)
        updates = np.concatenate([np.union1d(even, jumps), jumps - 1, [end - 1]])
        # An update's rate holds from its beginning; that of the last before a jump up to there.
        steps = np.concatenate([np.union1d(even, jumps), jumps, [end]])
        order = np.lexsort([updates, steps])
        values = self.resolved(np, updates[order]).astype(np.float32)
        return Line(steps[order], values.astype(float))


def known_rates(run: Run) -> Rates:
    """The learning rates of a run: its settings' where they agree with its rows, else the rows'."""
    rows = [row for row in run.rows if math.isfinite(row.get("learning_rate", math.nan))]
    steps = np.array([row["step"] for row in rows], np.int64)
    values = np.array([row["learning_rate"] for row in rows], float)
    resolved = _resolved(run)
    if resolved is None:
        return Rates(None, 0, Line(steps, values))
    meant = resolved(np, np.maximum(steps - 1, 0))
    others = np.flatnonzero(~np.isclose(meant, values, rtol=_SAME_RATE, atol=0))
    place = others[-1] + 1 if len(others) else 0
    since = int(steps[place - 1]) if place else 0
    if place and place == len(rows):  # not even the last one agrees
        resolved = None
    return Rates(resolved, since, Line(steps[:place], values[:place]))


def _resolved(run: Run) -> ResolvedRate | None:
    text, coupling = run.config.get("lr"), run.config.get("coupling", "linear")
    if not isinstance(text, str):
        return None
    try:
        base, plan = parse_learning_rate(text), BatchPlan.from_dict(run.plan)
        _, base = schedule_and_rate(parse_schedule(run.config.get("batch_schedule", "1")), base)
        return resolve(plan, base, coupling, run.config.get("reference_batch_size"))
    except (UsageError, ValueError, TypeError):
        return None  # a setting of somebody else's that has the same name


def _samples(run: Run, steps: np.ndarray) -> np.ndarray:
    plan, columns = run.plan, ("start_step", "start_sample", "batch_size")
    tables = (np.array([phase[name] for phase in plan["phases"]], np.int64) for name in columns)
    clock = StepClock(*tables, plan["num_examples"], plan["remainder"], plan["num_steps"] - 1)
    _, samples = clock.phase_and_sample(np, steps)
    return np.minimum(samples, plan["num_samples"])
