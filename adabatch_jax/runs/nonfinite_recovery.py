"""What a run does about updates whose loss or gradients aren't finite."""

from adabatch_jax.config.value_texts import NanPolicy
from adabatch_jax.runs.display.progress import Progress
from adabatch_jax.runs.in_flight import BadUpdate
from adabatch_jax.runs.metric_rows import Rows
from adabatch_jax.runs.record import RunRecord
from adabatch_jax.system.errors import DivergedError
from adabatch_jax.training.finite_checks import rolled_back
from adabatch_jax.training.train_state import TrainState


class Recovery:
    """Follows a `NanPolicy`; what it decides goes into the record, and so into checkpoints.

    Args:
      policy: what to do.
      record: the run's.
      rows: knows the learning rate of each update, for errors.
      progress: told about each decision.
    """

    def __init__(self, policy: NanPolicy, record: RunRecord, rows: Rows, progress: Progress):
        self._policy, self._record = policy, record
        self._rows, self._progress = rows, progress

    @property
    def rolls_back(self) -> bool:
        """Whether a bad update is followed by `roll_back`."""
        return self._policy.kind == "rollback"

    def found(self, bad: BadUpdate) -> None:
        """Takes note of a bad update.

        Raises:
          DivergedError: that is the end.
        """
        if self._policy.kind == "stop":
            raise self.diverged(bad.finished, bad.what)
        if self._policy.kind == "rollback":
            return
        skipped = sum(decision["kind"] == "skip" for decision in self._record.decisions)
        if skipped >= self._policy.limit:
            raise self.diverged(
                bad.finished, f"{skipped} such updates were left out already, and {bad.what}"
            )
        self._record.decisions.append({"kind": "skip", "update": bad.finished, "reason": bad.what})
        self._progress.message(
            f"update {bad.finished:,} is left out: {bad.what} ({skipped + 1} of "
            f"{self._policy.limit} such)"
        )

    def roll_back(self, state: TrainState, bad: BadUpdate, finished: int) -> TrainState:
        """Returns the state to go on with: the newest checkpoint's weights at this position.

        Args:
          state: the state that is lost.
          bad: why.
          finished: how many updates are finished now; those since the checkpoint are left out.

        Raises:
          DivergedError: there is no checkpoint, or the run was rolled back to it before.
        """
        store, what = self._record.store, bad.what
        checkpoint = store.newest_planned_checkpoint()
        if checkpoint is None:
            raise self.diverged(bad.finished, f"there is no checkpoint to roll back to, and {what}")
        before = [d["checkpoint"] for d in self._record.decisions if d["kind"] == "rollback"]
        if checkpoint.step in before:
            raise self.diverged(
                bad.finished,
                f"the run was rolled back to checkpoint {checkpoint.step} before, and {what}",
            )
        decision = {"kind": "rollback", "update": bad.finished, "reason": what}
        decision |= {"checkpoint": checkpoint.step, "left_out_until": finished}
        self._record.decisions.append(decision)
        self._progress.message(
            f"{what} after update {bad.finished:,}: rolled back to the weights of checkpoint "
            f"{checkpoint.step}, updates {checkpoint.step + 1:,} to {finished:,} are left out"
        )
        self._record.roll_back_means(checkpoint)
        return rolled_back(store.restore_saved(checkpoint, state), state)

    def diverged(self, finished: int, what: str) -> DivergedError:
        """The error that ends a run for what was found after so many updates."""
        plan = self._record.plan
        size, phase = plan.batch_size_at(finished - 1), plan.phase_at(finished - 1)
        return DivergedError(
            f"{what} after update {finished} (sample {plan.samples_at(finished):,}, phase "
            f"{phase.index + 1} of {len(plan.phases)}, batch size {size}"
            f"{self._rows.rate_text(finished - 1)}); a rerun as it is would diverge again: "
            "lower the learning rate, lengthen its warm-up, or grow the batch later; labels that "
            "are no class, and NaN in the examples, do the same."
        )
