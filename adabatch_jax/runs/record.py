"""What a run leaves on disk, and how it is taken up again."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import jax

from adabatch_jax.cluster.agreement import from_first
from adabatch_jax.cluster.processes import ALONE, Processes
from adabatch_jax.config.settings import Keep
from adabatch_jax.data.example_digest import ExamplesDigest
from adabatch_jax.runs.checkpoints.verifying import Found
from adabatch_jax.runs.display.progress import Progress
from adabatch_jax.runs.early_stop import EarlyStop
from adabatch_jax.runs.folder.finished_run import Finished
from adabatch_jax.runs.folder.folder_reading import ENVIRONMENT, FORMAT, STOPPED_AT_PHASE
from adabatch_jax.runs.folder.in_memory import InMemory
from adabatch_jax.runs.folder.run_folder import RunFolder
from adabatch_jax.runs.kept_layout import change_text, setting_changes
from adabatch_jax.runs.kept_numerics import changes_text, check_meaning, numeric_changes
from adabatch_jax.runs.metric_means import MetricMeans
from adabatch_jax.runs.resuming import Change, check_past, digest_of_order
from adabatch_jax.runs.same_data import Digests, check_data, known_digests
from adabatch_jax.runs.seconds_spent import ACTIVITIES, Clocks
from adabatch_jax.runs.tracking.tracked_run import TrackedRun
from adabatch_jax.runs.tracking.trackers import Tracking
from adabatch_jax.schedules.periods import every
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.watchdog import Watchdog
from adabatch_jax.training.numerics import numerics
from adabatch_jax.training.train_state import TrainState
from adabatch_jax.training.weights_digest import weights_digest


class RunRecord:
    """A run's own values: what a checkpoint keeps beside the weights, and how it is taken up again.

    Attributes:
      history: the rows of metrics.
      examples: the digest of the examples consumed; of a state that was given in mid-plan, of
        those since.
      means: those of the metrics since the last row.
      decisions: what was decided while training, as JSON values, oldest first.
      start_step: the update to go on from.
      pending_row: a row whose evaluation was cut off by a stop, without its figures; or None.
      is_done: whether no update and no evaluation is left.
      early_stop: whether the run ends before its plan does.
      processes: those that train together.
      stopped_at_phase: the phase, from 1, before whose first update the run was asked to stop, and
        stands with nothing left to do before it; None: it doesn't.
    """

    def __init__(
        self,
        plan: BatchPlan,
        seed: int,
        store: RunFolder | InMemory,
        keep: Keep,
        on_save_error: str,
        identity: Mapping[str, Any],
        watchdog: Watchdog,
        progress: Progress,
        data: Digests,
        allow_change: Collection[str],
        early_stop: EarlyStop,
        tracking: Tracking,
        processes: Processes = ALONE,
    ):
        self.plan, self._seed, self.store = plan, seed, store
        self._keep, self._on_save_error, self._identity = keep, on_save_error, dict(identity)
        self._watchdog, self._progress = watchdog, progress
        self._data, self._allow_change = dict(data), allow_change
        self.early_stop, self._tracking, self.processes = early_stop, tracking, processes
        self._data_change: Change | None = None
        self._layout: dict[str, Any] = {}
        self._numerics: dict[str, Any] = {}
        self._restarts = 0
        # The summary of a finished run that is left alone, and of one in which all else is put right.
        self._finished: Mapping[str, Any] | None = None
        self._summary_there: Mapping[str, Any] | None = None
        self.clocks = Clocks(len(plan.phases), watchdog, processes)
        self.history: list[dict[str, Any]] = []
        self.examples = ExamplesDigest()
        self.means = MetricMeans()
        self.decisions: list[dict[str, Any]] = []
        self.start_step = 0
        self.pending_row: dict[str, Any] | None = None
        self.is_done = False
        self.stopped_at_phase: int | None = None

    def open(self) -> dict[str, Any]:
        """Opens the store; returns the layout that the run was begun with, or nothing."""
        period = None if self._keep.every is None else every(self.plan, self._keep.every)
        self.store.open(self._keep, period, self._on_save_error, self._watchdog, self._progress)
        found = self.store.checkpoint
        return {} if found is None else found.run["layout"]

    def restored(self, state: TrainState) -> TrainState:
        """Returns the state of the store's checkpoint, or where it has none `state`.

        On disk nothing is changed: the run may still be refused. The state lies on the run's
        devices.
        """
        self._numerics = numerics(next(iter(jax.tree.leaves(state)[0].devices())))
        if self.store.checkpoint is not None:
            state = self.store.restored(state, self._check)
            self.start_step = self.store.checkpoint.step
            self.pending_row = self.store.checkpoint.run["pending_row"]
            is_evaluated = (
                self.pending_row is None or self.store.find_finished(self._identity).is_whole
            )
            # An evaluation that was cut off, and made since, left its row behind the checkpoint's.
            is_newer = is_evaluated and self.pending_row is not None
            if self.early_stop.has_rules:
                for row in self.store.read_rows() if is_newer else self.store.kept_rows():
                    if row["step"] <= self.start_step:
                        self.early_stop.see(row)
            ends_here = self.early_stop.ends_at(self.start_step)
            self.is_done = is_evaluated and (ends_here or self.start_step == self.plan.num_steps)
            return state
        self.start_step = int(state.step)
        self.is_done = self.start_step == self.plan.num_steps
        if self.start_step > self.plan.num_steps:
            raise UsageError(
                f"the state has {self.start_step} updates behind it, more than the plan's "
                f"{self.plan.num_steps}; give `TrainState.create(...)` to begin anew."
            )
        return state

    def begin(self) -> None:
        """Goes on from what was `restored`, or begins anew: from here on the run writes."""
        found, there = self.store.checkpoint, Finished()
        if found is not None:
            self.store.put_right()
            if self._data_change is not None:
                self.store.changes.append(self._data_change.to_dict())
                self.store.notes.append(f"note: {self._data_change}")
        self._tell_notes()
        if found is None:
            self.decisions = [*self.store.changes]
        else:
            self._resume(found)
            if self.is_done:
                there = self.store.find_finished(self._identity)
        if there.is_whole and there.summary.get("decisions") == self.decisions:
            self._finished, self.history = there.summary, self.store.read_rows()
            return
        for name in there.changed:
            self._progress.message(
                f"note: {name} isn't what the finished run left there, and is written anew"
            )
        self._summary_there = there.summary
        self.history = self.store.begin(self.plan, self._identity, self.is_done, there.changed)
        if not self.is_done:
            last_row = self.history[-1] if self.history else None
            identity, folder = self._identity, self.store.path
            self._tracking.start(TrackedRun(self.store.run_id, folder, identity, last_row))
        if ENVIRONMENT in there.changed:
            self.store.write_environment(found.run["layout"], found.run["numerics"], self._restarts)

    def _tell_notes(self) -> None:
        """Shows what was found in the folder, once."""
        while self.store.notes:
            self._progress.message(self.store.notes.pop(0))

    def keep_layout(self, layout: Mapping[str, Any]) -> None:
        """Notes what the bits of the result depend on beside the settings, as JSON values."""
        self._layout = dict(layout)
        self.store.write_environment(self._layout, self._numerics, self._restarts)
        found = self.store.checkpoint
        if found is None:
            return
        saved = found.run["layout"]
        for change in setting_changes("layout", saved, self._layout, self.start_step):
            self.decisions.append(change)
            self._progress.message(change_text(change))
        changes = numeric_changes(found.run["numerics"], self._numerics, self.start_step)
        if changes:
            self.decisions += changes
            self._progress.message(f"note: {changes_text(changes)}")

    def _check(self, found: Found) -> None:
        check_meaning(found.run["numerics"], self._numerics, self.store.path)
        check_past(found.run, self.plan, self._seed, self.store.path)
        self._data_change = check_data(found.run, self._data, self.store.path, self._allow_change)

    def _resume(self, found: Found) -> None:
        run = found.run
        self.examples = ExamplesDigest(run["examples_digest"])
        changes = (change for change in self.store.changes if change not in run["decisions"])
        self.decisions = [*run["decisions"], *changes]
        self._data = known_digests(run, self._data)
        self.means.restore(run["means"])
        self.clocks.restore(run)
        self._restarts = run["restarts"] + 1
        if found.step < self.plan.num_steps:
            self._progress.message(
                f"resuming after update {found.step:,} of {self.plan.num_steps:,} "
                f"(sample {run['samples']:,})"
            )

    def write_row(self, row: dict[str, Any]) -> None:
        """Adds a row of metrics."""
        if self.early_stop.has_rules:
            # All decide by the first one's: seconds differ, and a rule may be about them.
            row = from_first(self.processes, "row", lambda: row)
        self.history.append(row)
        self.store.write_row(row)
        self.early_stop.see(row)
        self._tracking.row(row)

    def roll_back_means(self, checkpoint: Found) -> None:
        """Leaves the updates since a checkpoint out of the means of the next row."""
        if self.history and self.history[-1]["step"] > checkpoint.step:
            self.means.clear()  # those before the checkpoint are in a row by now
        else:
            self.means.restore(checkpoint.run["means"])

    def position(self, step: int) -> dict[str, Any]:
        """What a checkpoint says about where the run stands, to be taken before it goes on."""
        samples = self.plan.samples_at(step)
        return {
            "format": FORMAT,
            "step": step,
            "samples": samples,
            "seed": self._seed,
            "plan": self.plan.to_dict(),
            "fingerprint": self.plan.fingerprint(samples),
            "examples_digest": str(self.examples),
            "order_digest": digest_of_order(self.plan, self._seed, samples),
        }

    def save(self, state: TrainState, position: Mapping[str, Any]) -> None:
        """Begins to save a state, to which just the updates were looked at that are before it."""
        run = {
            **position,
            **self.clocks.to_dict(),
            # Those of later updates aren't found yet: results are looked at in order.
            "means": self.means.to_dict(),
            "decisions": list(self.decisions),
            "data": self._data,
            "layout": self._layout,
            "restarts": self._restarts,
            "identity": self._identity,
            "numerics": self._numerics,
        }
        self.store.save(position["step"], state, run)

    def save_given(self, state: TrainState) -> None:
        """Saves a state that was given at the plan's end, so that another call finds it."""
        if self.store.checkpoint is None:
            kind = {"is_planned": True, "pending_row": None}
            self.save(state, self.position(self.start_step) | kind)

    def note_phase_stop(self, finished: int, step: int | None) -> None:
        """Takes note that the run stands where it was asked to stop, if it does."""
        if finished == step and not self.early_stop.ends_at(finished):
            self.stopped_at_phase = self.plan.phase_at(step).index + 1

    def finish(self, state: TrainState, stopped: bool) -> dict[str, Any]:
        """Waits for the last checkpoint; writes the summary, unless something stopped the run."""
        if self._finished is not None:
            return dict(self._finished)
        step = int(state.step)
        with self.clocks.timed("checkpoint"):
            self.store.wait_for_saves(step if step > self.start_step else None)
        if self._summary_there is None:
            summary = self._summary(state)
        else:  # it knows more of the seconds than the checkpoint, and figures of rows that are lost
            summary = {**self._summary_there, "decisions": self.decisions}
        if stopped and self.stopped_at_phase is None:
            return summary
        return self.store.write_summary(summary, self._identity)

    def _summary(self, state: TrainState) -> dict[str, Any]:
        last = self.history[-1] if self.history else {}
        step = int(state.step)
        return {
            "step": step,
            "samples": self.plan.samples_at(step),
            **{
                key: _finite_or_none(value)
                for key, value in last.items()
                if key.startswith(("train_", "test_", "holdout_")) or key in ("epoch", "tokens")
            },
            "weights_digest": weights_digest(state),
            "examples_digest": str(self.examples),
            "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
            "decisions": self.decisions,
            **({"stopped_by": self.early_stop.met} if self._ended_early(step) else {}),
            **({STOPPED_AT_PHASE: self.stopped_at_phase} if self.stopped_at_phase else {}),
            **{f"{name}_seconds": self.clocks.of(name) for name in ACTIVITIES},
            "total_seconds": self.clocks.elapsed_seconds(),
            "phase_training_seconds": self.clocks.phase_seconds,
        }

    def _ended_early(self, step: int) -> bool:
        return step < self.plan.num_steps and self.early_stop.ends_at(step)


def _finite_or_none(value: Any) -> Any:
    """The value; None for what JSON has no number for, as in the rows on disk."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
