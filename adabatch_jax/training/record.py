"""What a run leaves on disk, and how it is taken up again."""

import dataclasses
import itertools
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax

from adabatch_jax.checkpoints.found import Damaged, Found
from adabatch_jax.checkpoints.space import check_free_space, checkpoint_bytes
from adabatch_jax.data.batches import examples_at
from adabatch_jax.errors import RestoreError, StorageError, UsageError, explain_missing
from adabatch_jax.reporting.environment import package_versions
from adabatch_jax.reporting.metrics import MetricsPosition, MetricsWriter, read_metrics
from adabatch_jax.reporting.progress import Progress
from adabatch_jax.run_folder import CHECKPOINTS, FORMAT, RunFolder
from adabatch_jax.schedules.periods import Period
from adabatch_jax.schedules.plan import BatchPlan, Step
from adabatch_jax.scores import Score
from adabatch_jax.training.clocks import ACTIVITIES, Clocks
from adabatch_jax.training.digests import ExamplesDigest, weights_digest
from adabatch_jax.training.past import check_past, digest_of_order
from adabatch_jax.training.run_files import RunFiles
from adabatch_jax.training.state import TrainState
from adabatch_jax.training.watchdog import Watchdog

if TYPE_CHECKING:
    from adabatch_jax.checkpoints.checkpoints import Checkpoints


@dataclasses.dataclass(frozen=True)
class Keeping:
    """Which checkpoints stay, and what is done where one can't be saved.

    Attributes:
      newest: how many of the newest.
      best: the best one by this score too, or None.
      every: one for each such period too, or None.
      on_error: "stop", or "warn" to train on until the next one is due.
    """

    newest: int = 3
    best: Score | None = None
    every: Period | None = None
    on_error: str = "stop"


class RunRecord:
    """The rows, the checkpoints and the account of seconds of a run; without folder in memory.

    Attributes:
      clocks: the account of seconds.
      history: the rows of metrics.
      examples: the digest of the examples consumed.
      decisions: what was decided while training, as JSON values, oldest first.
      start_step: the update to go on from.
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
        self._plan, self._seed, self._folder = plan, seed, folder
        self._keeping, self._identity = keeping, dict(identity)
        self._watchdog, self._progress = watchdog, progress
        self._files = None if folder is None else RunFiles(folder.path, plan, identity)
        self._checkpoints: Checkpoints | None = None
        self._metrics: MetricsWriter | None = None
        self._layout: dict[str, Any] = {}
        self._restarts = 0
        self._last_save = 0
        self._has_warned = False
        self._save_watch: int | None = None
        self.clocks = Clocks(len(plan.phases), watchdog)
        self.history: list[dict[str, Any]] = []
        self.examples = ExamplesDigest()
        self.decisions: list[dict[str, Any]] = []
        self.start_step = 0
        self.pending_row: dict[str, Any] | None = None
        self.save_seconds = 0.0

    def open(self) -> dict[str, Any]:
        """Opens the checkpoints; returns the layout that the run was begun with, or nothing."""
        if self._folder is None:
            return {}
        try:
            # Not needed in memory.
            from adabatch_jax.checkpoints.checkpoints import Checkpoints
        except ModuleNotFoundError as error:
            raise explain_missing(error) or error from error

        self._files.write_identity(only_if_missing=True)
        self._checkpoints = Checkpoints(self._folder.path / CHECKPOINTS, self._keeping.newest)
        found = self._folder.checkpoint
        return {} if found is None else found.run["layout"]

    def begin(self, state: TrainState) -> TrainState:
        """Returns the state of the folder's checkpoint, or where it has none `state`."""
        if self._folder is None:
            self._start_from(state)
            return state
        for note in self._folder.notes:
            self._progress.message(note)
        found = self._folder.checkpoint
        position = None
        if found is None:
            self._start_from(state)
        else:
            state = self._resume(state)
            position = MetricsPosition(**self._folder.checkpoint.run["metrics"])
            if self._is_finished():
                self.history = read_metrics(self._folder.path / "metrics.jsonl")
                return state
        if self.start_step < self._plan.num_steps:  # perhaps of a run that is prolonged
            self._files.remove_summary()
        self._files.write_identity()
        self._files.write_plan()
        self._metrics = MetricsWriter(self._folder.path, position)
        self.history = read_metrics(self._folder.path / "metrics.jsonl")
        return state

    def check_space(self, state: TrainState) -> None:
        """Warns where the disk is short of room for checkpoints of this size.

        Raises:
          StorageError: it hasn't room for one.
        """
        if self._folder is None:
            return
        num_bytes = checkpoint_bytes(state)
        warning = check_free_space(self._folder.path, num_bytes, self._keeping.newest)
        if warning is not None and not self._has_warned:
            self._has_warned = True
            self._progress.message(f"warning: {warning}")

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
        if step > self._plan.num_steps:
            raise UsageError(
                f"the state has {step} updates behind it, more than the plan's "
                f"{self._plan.num_steps}; give `TrainState.create(...)` to begin anew."
            )
        self.start_step = self._last_save = step
        for past in itertools.islice(self._plan.steps(), step):
            self.audit(past)

    def _is_finished(self) -> bool:
        return self.start_step == self._plan.num_steps and self._files.read_summary() is not None

    def audit(self, step: Step) -> None:
        """Adds an update's examples to the digest."""
        index, epoch = examples_at(
            self._plan.num_examples, self._seed, step.start_sample, step.num_real
        )
        self.examples.update(step.start_sample, index, epoch)

    def _resume(self, state: TrainState) -> TrainState:
        state = self._restored(state)
        found = self._folder.checkpoint
        run = found.run
        self.start_step = self._last_save = found.step
        self.examples = ExamplesDigest(run["examples_digest"])
        self.decisions = [*run["decisions"], *self._folder.changes]
        self.pending_row = run["pending_row"]
        self.clocks.restore(run)
        self._restarts = run["restarts"] + 1
        if found.step < self._plan.num_steps:
            self._progress.message(
                f"resuming after update {found.step:,} of {self._plan.num_steps:,} "
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

    def _restored(self, like: TrainState) -> TrainState:
        """The state of the folder's checkpoint, or of the newest older one that can be restored."""
        while True:
            found = self._folder.checkpoint
            check_past(found.run, self._plan, self._seed, self._folder.path)
            try:
                return self._checkpoints.restore(found, like)
            except Damaged as error:
                self._folder.reject(str(error))
                self._progress.message(self._folder.notes[-1])

    def restore(self, found: Found, like: TrainState) -> TrainState:
        """Reads a checkpoint that this process saved; raises a RestoreError where it can't be."""
        try:
            return self._checkpoints.restore(found, like)
        except Damaged as error:
            raise RestoreError(
                f"checkpoint {found.step} in {found.path.parent} can't be restored ({error})."
            ) from error

    def newest_saved(self) -> Found | None:
        """Waits for a save under way; the newest sound checkpoint, or None."""
        if self._checkpoints is None:
            return None
        self._after_saving(self._checkpoints.wait)
        return self._folder.newest_checkpoint()

    def write_row(self, row: dict[str, Any]) -> None:
        """Adds a row of metrics."""
        self.history.append(row)
        if self._metrics is not None:
            self._metrics.write(row)

    def position(self, step: int) -> dict[str, Any]:
        """What a checkpoint says about where the run stands, to be taken before it goes on."""
        samples = self._plan.samples_at(step)
        return {
            "format": FORMAT,
            "step": step,
            "samples": samples,
            "seed": self._seed,
            "plan": self._plan.to_dict(),
            "fingerprint": self._plan.fingerprint(samples),
            "examples_digest": str(self.examples),
            "order_digest": digest_of_order(self._plan, self._seed, samples),
            "decisions": list(self.decisions),
            "pending_row": None,
        }

    def save(self, state: TrainState, position: Mapping[str, Any]) -> None:
        """Begins to save a checkpoint; rows before it are on disk already.

        Args:
          state: may be donated afterwards.
          position: what `position` said when the state was that of the run.
        """
        if self._checkpoints is None:
            return
        step, began = position["step"], time.monotonic()
        every, score = self._keeping.every, self._keeping.best
        last_row = self.history[-1] if self.history else {}
        is_measured = last_row.get("step") == step and score is not None
        run = {
            **position,
            **self.clocks.to_dict(),
            "layout": self._layout,
            "restarts": self._restarts,
            "identity": self._identity,
            "versions": package_versions(),
            "metrics": dataclasses.asdict(self._metrics.position()),
            "score": score.of(last_row) if is_measured else None,
            "keep": every is not None and every.is_passed(self._last_save, step),
        }

        def begin_to_save() -> None:
            self.check_space(state)
            self._checkpoints.save(step, state, run)

        self._after_saving(begin_to_save)
        self._last_save = step
        if self._checkpoints.is_saving and self._save_watch is None:
            self._save_watch = self._watchdog.begin("a checkpoint")
        self.save_seconds = max(self.save_seconds, time.monotonic() - began)

    def check(self) -> None:
        """Looks whether a save in the background has ended; raises what it failed with."""
        if self._checkpoints is not None:
            self._after_saving(self._checkpoints.check)

    def _after_saving(self, act: Any) -> None:
        """Does what may end a save; notes what was saved, and what couldn't be."""
        before = self._checkpoints.latest
        try:
            act()
        except StorageError as error:
            if self._keeping.on_error == "stop":
                raise
            self._progress.message(f"warning: {error} Training goes on without it.")
        if self._save_watch is not None and not self._checkpoints.is_saving:
            self._watchdog.end(self._save_watch)
            self._save_watch = None
        if self._checkpoints.latest != before:
            self._folder.note_saved(self._checkpoints.latest)

    def finish(self, state: TrainState, stopped: bool) -> dict[str, Any]:
        """Waits for the last checkpoint and, at the plan's end, writes the summary."""
        if self._folder is not None and self._metrics is None:  # it was finished before
            return self._files.read_summary()
        if self._checkpoints is not None:
            with self.clocks.timed("checkpoint"):
                self._after_saving(self._checkpoints.wait)
            self._check_is_saved(int(state.step))
        summary = self._summary(state)
        if self._folder is not None and not stopped:
            summary = self._files.write_summary(summary)
        return summary

    def _check_is_saved(self, step: int) -> None:
        """An end without its checkpoint is no success, whatever was warned about before."""
        if step > self.start_step and self._checkpoints.latest != step:
            raise StorageError(
                f"the last checkpoint, after update {step:,}, could not be saved in "
                f"{self._folder.path / CHECKPOINTS}; make room and give the same command again."
            )

    def _summary(self, state: TrainState) -> dict[str, Any]:
        last = self.history[-1] if self.history else {}
        measured = (
            key for key in last if key.startswith(("train_", "test_", "holdout_")) or key == "epoch"
        )
        step = int(state.step)
        return {
            "step": step,
            "samples": self._plan.samples_at(step),
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
            if self._checkpoints is not None:
                self._checkpoints.close()
        finally:
            if self._metrics is not None:
                self._metrics.close()


def _finite_or_none(value: Any) -> Any:
    """The value; None for what JSON has no number for, as in the rows on disk."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
