"""What a run leaves on disk, and how it is taken up again."""

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax

from adabatch_jax.config.policies import Keeping
from adabatch_jax.data.example_digest import ExamplesDigest
from adabatch_jax.runs.checkpoints.found import Found
from adabatch_jax.runs.clocks import ACTIVITIES, Clocks
from adabatch_jax.runs.display.progress import Progress
from adabatch_jax.runs.folder.metrics import MetricsWriter, read_metrics
from adabatch_jax.runs.folder.run_files import RunFiles
from adabatch_jax.runs.folder.run_folder import FORMAT, RunFolder, has_its_rows
from adabatch_jax.runs.past import check_past, digest_of_order
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.system.environment import package_versions
from adabatch_jax.system.errors import UsageError, explain_missing
from adabatch_jax.system.watchdog import Watchdog
from adabatch_jax.training.digests import weights_digest
from adabatch_jax.training.train_state import TrainState

if TYPE_CHECKING:
    from adabatch_jax.runs.run_checkpoints import RunCheckpoints


class RunRecord:
    """The rows, the checkpoints and the account of seconds of a run; without folder in memory.

    Attributes:
      clocks: the account of seconds.
      history: the rows of metrics.
      examples: the digest of the examples consumed.
      decisions: what was decided while training, as JSON values, oldest first.
      start_step: the update to go on from.
      checkpoints: those of the folder, once it is open; None in memory.
      pending_row: a row whose evaluation was cut off by a stop, without its figures; or None.
    """

    def __init__(
        self,
        plan: BatchPlan,
        seed: int,
        folder: RunFolder | None,
        keeping: Keeping,
        identity: Mapping[str, Any],
        watchdog: Watchdog,
        progress: Progress,
    ):
        self.plan, self._seed, self._folder = plan, seed, folder
        self._keeping, self._identity = keeping, dict(identity)
        self._watchdog, self._progress = watchdog, progress
        self._files = None if folder is None else RunFiles(folder.path, plan, identity)
        self._metrics: MetricsWriter | None = None
        self._layout: dict[str, Any] = {}
        self._restarts = 0
        self.clocks = Clocks(len(plan.phases), watchdog)
        self.history: list[dict[str, Any]] = []
        self.examples = ExamplesDigest()
        self.decisions: list[dict[str, Any]] = []
        self.start_step = 0
        self.pending_row: dict[str, Any] | None = None
        self.checkpoints: RunCheckpoints | None = None

    @property
    def store(self):
        return self.checkpoints or _Nowhere()

    def open(self) -> dict[str, Any]:
        """Opens the checkpoints; returns the layout that the run was begun with, or nothing."""
        if self._folder is None:
            return {}
        try:
            # Not needed in memory.
            from adabatch_jax.runs.run_checkpoints import RunCheckpoints
        except ModuleNotFoundError as error:
            raise explain_missing(error) or error from error

        self._folder.look_again()
        self._files.write_identity(only_if_missing=True)
        self.checkpoints = RunCheckpoints(
            self._folder, self._keeping, self._watchdog, self._progress
        )
        found = self._folder.checkpoint
        return {} if found is None else found.run["layout"]

    def begin(self, state: TrainState) -> TrainState:
        """Returns the state of the folder's checkpoint, or where it has none `state`."""
        if self._folder is None:
            self._start_from(state)
            return state
        self._tell_notes()
        if self._folder.checkpoint is None:
            self._start_from(state)
        else:
            state = self._resume(state)
            if self._is_finished():
                rows = self._folder.path / "metrics.jsonl"
                self.history = read_metrics(rows) if rows.exists() else []
                return state
        if self.start_step < self.plan.num_steps:  # perhaps of a run that is prolonged
            self._files.remove_results()
        self._files.write_identity()
        self._files.write_plan()
        self._metrics = MetricsWriter(self._folder.path, self._folder.position_of_rows())
        self.history = read_metrics(self._folder.path / "metrics.jsonl")
        for row in self.history:
            self.checkpoints.measured(row)
        self._tell_notes()
        return state

    def _tell_notes(self) -> None:
        """Shows what was found in the folder, once."""
        while self._folder.notes:
            self._progress.message(self._folder.notes.pop(0))

    def keep_layout(self, layout: Mapping[str, Any]) -> None:
        """Notes what the bits of the result depend on beside the settings, as JSON values."""
        self._layout = dict(layout)
        if self._metrics is None:
            return
        self._files.write_environment(self._layout, self._restarts)
        found = self._folder.checkpoint
        before = self._layout if found is None else found.run["layout"]
        for name in ("devices", "shard_params", "microbatch_size"):
            if before[name] != self._layout[name]:
                self._progress.message(
                    f"note: the run goes on with {name} {self._layout[name]} instead of "
                    f"{before[name]}: the same examples in the same batches, rounded differently"
                )

    @property
    def wants_prediction(self) -> bool:
        """Whether there is a plan.json in which nothing was predicted for its plan."""
        return self._metrics is not None and self._files.wants_prediction

    def predicted(self, prediction: Mapping[str, Any]) -> None:
        """Adds what the run should take to plan.json."""
        self._files.write_prediction(prediction)

    def _start_from(self, state: TrainState) -> None:
        """Begins where the given state stands."""
        step = int(state.step)
        if step > self.plan.num_steps:
            raise UsageError(
                f"the state has {step} updates behind it, more than the plan's "
                f"{self.plan.num_steps}; give `TrainState.create(...)` to begin anew."
            )
        self.start_step = step

    def _is_finished(self) -> bool:
        return (
            self.start_step == self.plan.num_steps
            and self._files.read_summary() is not None
            and has_its_rows(self._folder.path, self._folder.checkpoint)
        )

    def _resume(self, state: TrainState) -> TrainState:
        def check(found: Found) -> None:
            check_past(found.run, self.plan, self._seed, self._folder.path)

        state = self.checkpoints.restored(state, check)
        found = self._folder.checkpoint
        run = found.run
        self.start_step = found.step
        self.examples = ExamplesDigest(run["examples_digest"])
        self.decisions = [*run["decisions"], *self._folder.changes]
        self.pending_row = run["pending_row"]
        self.clocks.restore(run)
        self._restarts = run["restarts"] + 1
        if found.step < self.plan.num_steps:
            self._progress.message(
                f"resuming after update {found.step:,} of {self.plan.num_steps:,} "
                f"(sample {run['samples']:,})"
            )
        for package, version in package_versions().items():
            before = run["versions"].get(package, version)
            if before != version:
                self._progress.message(
                    f"note: the run was begun with {package} {before} and goes on with {version}: "
                    "the bits of its results may differ"
                )
        return state

    def write_row(self, row: dict[str, Any]) -> None:
        """Adds a row of metrics."""
        self.history.append(row)
        if self._metrics is not None:
            self._metrics.write(row)
            self.checkpoints.measured(row)

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
        """Begins to save a checkpoint; rows before it are on disk already.

        Args:
          state: may be donated afterwards; all updates before it were looked at, and none after.
          position: what `position` said when the state was that of the run.
        """
        if self.checkpoints is None:
            return
        run = {
            **position,
            "run_id": self._folder.run_id,
            **self.clocks.to_dict(),
            # Those of later updates aren't found yet: results are looked at in order.
            "decisions": list(self.decisions),
            "layout": self._layout,
            "restarts": self._restarts,
            "identity": self._identity,
            "versions": package_versions(),
            "metrics": dataclasses.asdict(self._metrics.position()),
        }
        self.checkpoints.save(position["step"], state, run)

    def save_given(self, state: TrainState) -> None:
        """Saves a state that was given at the plan's end, so that another call finds it."""
        if self._folder is not None and self._folder.checkpoint is None:
            kind = {"is_planned": True, "pending_row": None}
            self.save(state, self.position(self.start_step) | kind)

    def finish(self, state: TrainState, stopped: bool) -> dict[str, Any]:
        """Waits for the last checkpoint and, at the plan's end, writes the summary."""
        if self._folder is not None and self._metrics is None:  # it was finished before
            return self._files.read_summary()
        if self.checkpoints is not None:
            with self.clocks.timed("checkpoint"):
                self.checkpoints.wait()
            if state.step > self.start_step:
                self.checkpoints.check_is_saved(int(state.step))
        summary = self._summary(state)
        if self._folder is not None and not stopped:
            summary = self._files.write_summary(summary)
        return summary

    def _summary(self, state: TrainState) -> dict[str, Any]:
        last = self.history[-1] if self.history else {}
        measured = (
            key for key in last if key.startswith(("train_", "test_", "holdout_")) or key == "epoch"
        )
        step = int(state.step)
        return {
            "step": step,
            "samples": self.plan.samples_at(step),
            **{key: _finite_or_none(last[key]) for key in measured},
            "weights_digest": weights_digest(state),
            "examples_digest": str(self.examples),
            "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
            "decisions": self.decisions,
            **{f"{name}_seconds": self.clocks.of(name) for name in ACTIVITIES},
            "total_seconds": self.clocks.elapsed_seconds(),
            "phase_training_seconds": self.clocks.phase_seconds,
        }

    def close(self) -> None:
        """Closes the files, also after an error."""
        try:
            if self.checkpoints is not None:
                self.checkpoints.close()
        finally:
            if self._metrics is not None:
                self._metrics.close()


def _finite_or_none(value: Any) -> Any:
    """The value; None for what JSON has no number for, as in the rows on disk."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Nowhere:
    save_seconds = 0.0

    def check_saves(self):
        pass

    def newest_planned_checkpoint(self):
        return None
