"""What a run does about updates whose loss or gradients aren't finite."""

from collections.abc import Callable

from adabatch_jax.config.value_texts import NanPolicy
from adabatch_jax.runs.display.progress import Progress
from adabatch_jax.runs.record import RunRecord
from adabatch_jax.system.errors import DivergedError
from adabatch_jax.training.nonfinite import rolled_back
from adabatch_jax.training.train_state import TrainState


class Recovery:
    """Follows a `NanPolicy`; what it decides goes into the record, and so into checkpoints.

    Args:
      policy: what to do.
      record: the run's.
      progress: told about each decision.
      diverged: makes the error for what was found after so many updates.
    """

    def __init__(
        self,
        policy: NanPolicy,
        record: RunRecord,
        progress: Progress,
        diverged: Callable[[int, str], DivergedError],
    ):
        self._policy, self._record, self._progress = policy, record, progress
        self._diverged = diverged

    @property
    def rolls_back(self) -> bool:
        """Whether a bad update is followed by `roll_back`."""
        return self._policy.kind == "rollback"

    def found(self, finished: int, what: str) -> None:
        """Takes note of a bad update, the last of `finished` ones.

        Raises:
          DivergedError: that is the end.
        """
        if self._policy.kind == "stop":
            raise self._diverged(finished, what)
        if self._policy.kind == "rollback":
            return
        skipped = sum(decision["kind"] == "skip" for decision in self._record.decisions)
        if skipped >= self._policy.limit:
            raise self._diverged(
                finished, f"{skipped} such updates were left out already, and {what}"
            )
        self._record.decisions.append({"kind": "skip", "update": finished, "reason": what})
        self._progress.message(
            f"update {finished:,} is left out: {what} ({skipped + 1} of {self._policy.limit} such)"
        )

    def roll_back(self, state: TrainState, bad: int, what: str, finished: int) -> TrainState:
        """Returns the state to go on with: the newest checkpoint's weights at this position.

        Args:
          state: the state that is lost.
          bad: how many updates were finished with the bad one.
          what: what was found.
          finished: how many updates are finished now; those since the checkpoint are left out.

        Raises:
          DivergedError: there is no checkpoint, or the run was rolled back to it before.
        """
        checkpoints = self._record.checkpoints
        checkpoint = None if checkpoints is None else checkpoints.newest_planned()
        if checkpoint is None:
            raise self._diverged(bad, f"there is no checkpoint to roll back to, and {what}")
        before = [d["checkpoint"] for d in self._record.decisions if d["kind"] == "rollback"]
        if checkpoint.step in before:
            raise self._diverged(
                bad, f"the run was rolled back to checkpoint {checkpoint.step} before, and {what}"
            )
        decision = {"kind": "rollback", "update": bad, "reason": what}
        decision |= {"checkpoint": checkpoint.step, "left_out_until": finished}
        self._record.decisions.append(decision)
        self._progress.message(
            f"{what} after update {bad:,}: rolled back to the weights of checkpoint "
            f"{checkpoint.step}, updates {checkpoint.step + 1:,} to {finished:,} are left out"
        )
        return rolled_back(checkpoints.restore(checkpoint, state), state)
