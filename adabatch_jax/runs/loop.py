"""The training loop: one piece of the plan after the other, and what is due in between."""

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from adabatch_jax.config.value_texts import NanPolicy
from adabatch_jax.data.feeds import Feed, Piece
from adabatch_jax.runs.display.progress import Progress
from adabatch_jax.runs.nonfinite_recovery import Recovery
from adabatch_jax.runs.profiling import Profile
from adabatch_jax.runs.record import RunRecord
from adabatch_jax.runs.rows import Rows
from adabatch_jax.runs.state_copies import Saver
from adabatch_jax.schedules.periods import Period
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.system.errors import DivergedError
from adabatch_jax.system.fault_points import poisoned, reach
from adabatch_jax.system.interruption import Interruption
from adabatch_jax.system.watchdog import Watchdog
from adabatch_jax.training.dispatch import Dispatch, Dispatched
from adabatch_jax.training.evaluation import Evaluator
from adabatch_jax.training.train_state import TrainState

StepCallback = Callable[[int, TrainState, Mapping[str, jax.Array]], bool | None]

# Dispatch runs ahead of the device; without a bound, batches pile up in memory.
_PIECES_IN_FLIGHT = 2
# How often a wait for a compiler asks whether to stop.
_ASKING_SECONDS = 0.1


@dataclasses.dataclass
class _InFlight:
    """A piece that was dispatched and that nobody waited for yet.

    Attributes:
      piece: its updates.
      dispatched: what the dispatch returned.
      row: what is known already of the row of metrics that is due; None where none is.
    """

    piece: Piece
    dispatched: Dispatched
    row: dict[str, Any] | None = None


@dataclasses.dataclass
class Loop:
    """Everything that one run of the loop needs; `fit` describes the parts."""

    dispatch: Dispatch
    feed: Feed
    plan: BatchPlan
    rng: jax.Array
    learning_rate: optax.Schedule | None
    evaluators: Mapping[str, Evaluator]
    eval_period: Period | None
    checkpoint_period: Period | None
    log_period: Period
    on_step: StepCallback | None
    on_nan: NanPolicy
    interruption: Interruption | None
    record: RunRecord
    progress: Progress
    profile: Profile
    watchdog: Watchdog

    def run(self, state: TrainState) -> tuple[TrainState, bool]:
        """Runs from the record's position to the plan's end, or until it is stopped."""
        record, plan = self.record, self.plan
        self._state, self._finished = state, record.start_step
        self._settled, self._settled_at, self._longest = self._finished, time.monotonic(), 0.0
        self._in_flight: collections.deque[_InFlight] = collections.deque()
        self._metrics: dict[str, float] = {}
        self._rows = Rows(plan, self.learning_rate, record, self.progress)
        self._saver = Saver(record, self._program, self._diverged)
        self._recovery = Recovery(self.on_nan, record, self.progress, self._diverged)
        if self.interruption is not None:
            self.interruption.defer()
        self._is_cut_off = not self._finish_pending_row()
        stopped = self._is_cut_off
        pieces = self.dispatch.pieces(self._finished, self._is_boundary)
        inputs_of_pieces = self.feed.run(pieces, self._may_stop)
        while self._finished < plan.num_steps and not stopped:
            with record.clocks.timed("input"):
                piece, inputs = next(inputs_of_pieces, (None, None))
            stopped = piece is None or self._train_on(piece, inputs)
        self._settle(0)
        if self.checkpoint_period and self._finished > self._saver.newest:
            self._save()  # stopped in between, or rolled back behind the last one
        self._saver.save_settled(self._finished)
        is_done = self._finished == plan.num_steps and not self._is_cut_off
        return self._state, stopped and not is_done

    def _train_on(self, piece: Piece, inputs: Mapping[str, jax.Array]) -> bool:
        """Dispatches a piece and does what is due behind it; returns whether to stop."""
        reach("step.begin")
        if reach("batch.ready") == "nan":
            inputs = poisoned(inputs)
        if not all(map(self._is_compiled, self.dispatch.names(piece.steps[0].batch_size))):
            return True
        self._begin(piece)
        with self.record.clocks.timed("step"):
            dispatched = self.dispatch(piece, self._state, inputs, self.rng)
        self._state = dispatched.state
        self._in_flight.append(_InFlight(piece, dispatched))
        self._settle(self._num_to_leave(piece, dispatched))
        if dispatched.metrics is None:
            return self._may_stop()  # in the middle of an update, which is then dropped
        self._finished = piece.steps[-1].index + 1
        for step in piece.steps:
            self.record.audit(step)
        self.progress.tick(self._finished)
        reach("step.end")
        if self.record.checkpoints is not None:
            self.record.checkpoints.check()
        if self.on_step and self.on_step(self._finished, self._state, dispatched.metrics):
            self._do_what_is_due()
            return True
        return self._do_what_is_due() or self._may_stop()

    def _may_stop(self) -> bool:
        """Whether to stop here: a bad update that is in flight is first followed by its rollback.

        What a rollback leaves out is then the same as without the stop.
        """
        if not self._should_stop():
            return False
        if not self._recovery.rolls_back:
            return True
        flags = jax.device_get([entry.dispatched.is_finite for entry in self._in_flight])
        return all(np.all(flag) for flag in flags if flag is not None)

    def _should_stop(self) -> bool:
        return self.interruption is not None and self.interruption.requested

    def _begin(self, piece: Piece) -> None:
        """What comes before a piece: its phase's announcement, the profiler."""
        step = piece.steps[0]
        phase = self.plan.phases[step.phase]
        self.record.clocks.phase = step.phase
        if step.index == phase.start_step > self.record.start_step and not piece.microbatch:
            reach("phase.switch")
            rate = self._rows.rate_text(step.index)
            self.progress.message(
                f"phase {step.phase + 1} of {len(self.plan.phases)} from update {step.index:,}: "
                f"batch {phase.batch_size}{rate}"
            )
        if self.profile.is_due(step.index):
            self._settle(0)
            self.profile.switch(step.index, self.progress)

    def _is_compiled(self, name: Hashable, may_stop: bool = True) -> bool:
        """Waits until a program is compiled; returns False where a stop comes first.

        A compiler may take longer than whoever stops the run gives it.
        """
        programs = self.dispatch.programs
        if programs.is_ready(name):
            return True
        with self.record.clocks.timed("compile"):
            while not programs.wait(name, _ASKING_SECONDS):
                if may_stop and self._may_stop():
                    return False
            programs.get(name)
        self._settled_at = time.monotonic()  # stopping needs no new program
        return True

    def _program(self, name: Hashable) -> jax.stages.Compiled:
        """A compiled program that a stop needs too, and so waits for."""
        self._is_compiled(name, may_stop=False)
        return self.dispatch.programs.get(name).compiled

    def _is_boundary(self, finished: int) -> bool:
        """Whether anything is due when so many updates are finished."""
        return (
            self._is_due(self.eval_period, finished)
            or self._is_due(self.checkpoint_period, finished)
            or self._is_due(self.log_period, finished)
        )

    def _is_due(self, period: Period | None, finished: int) -> bool:
        if period is None:
            return False
        return finished == self.plan.num_steps or period.is_due(finished)

    def _do_what_is_due(self) -> bool:
        """Evaluates, logs and saves; returns whether the evaluation was cut off by a stop."""
        finished, pending_row = self._finished, None
        if self._is_due(self.eval_period, finished):
            self._settle(0)
            row = self._rows.with_metrics(self._rows.begin(finished), self._metrics)
            if not self._evaluate_into(row):
                pending_row = row
        elif self._is_due(self.log_period, finished):
            row = self._rows.begin(finished)
            if self._in_flight:
                # It is written when the next piece is on its way: the device needn't wait.
                self._in_flight[-1].row = row
            else:
                self._rows.write(self._rows.with_metrics(row, self._metrics))
        if self._is_due(self.checkpoint_period, finished) or pending_row:
            self._save(pending_row)
        self._is_cut_off = pending_row is not None
        return self._is_cut_off

    def _save(self, pending_row: dict[str, Any] | None = None) -> None:
        """Saves the state after the last update: from a copy, or where there is no room at once."""
        if self._saver.is_waiting:
            self._settle(0)  # there is room for one copy
        is_planned = self._is_due(self.checkpoint_period, self._finished)
        if not self._saver.take(self._finished, self._state, is_planned, pending_row):
            self._settle(0)

    def _num_to_leave(self, piece: Piece, dispatched: Dispatched) -> int:
        """How many pieces stay in flight: the newest alone, where a row waits to be written."""
        is_last_microbatch = piece.microbatch is not None and dispatched.metrics is not None
        if self._recovery.rolls_back and is_last_microbatch:
            return 0  # the next update's sums would begin with weights that may be lost
        return 1 if any(entry.row for entry in self._in_flight) else _PIECES_IN_FLIGHT

    def _settle(self, num_to_leave: int) -> None:
        """Waits for the oldest pieces, looks at their results, and writes what waited for them."""
        self._saver.save_settled(self._settled)
        while len(self._in_flight) > num_to_leave:
            bad = self._wait_for(self._in_flight.popleft())
            if bad and self._recovery.rolls_back:
                while self._in_flight:  # computed with weights that are lost
                    self._wait_for(self._in_flight.popleft())
                self._saver.forget()
                self._state = self._recovery.roll_back(self._state, *bad, self._settled)
            self._saver.save_settled(self._settled)

    def _wait_for(self, entry: _InFlight) -> tuple[int, str] | None:
        """Waits for a piece and writes its row.

        Returns:
          The first update that isn't finite, if any: how many are finished with it, and what was
          found.
        """
        with self.record.clocks.timed("step"):
            # A signal is heard while blocking here, and not inside a copy.
            jax.block_until_ready(entry.dispatched.wait_for)
        self._expect_as_long()
        if entry.dispatched.metrics is None:
            return None
        bad, self._metrics = self._checked(entry.piece, entry.dispatched)
        self._settled = entry.piece.steps[-1].index + 1
        if entry.row is not None:
            self._rows.write(self._rows.with_metrics(entry.row, self._metrics))
        return bad

    def _checked(
        self, piece: Piece, dispatched: Dispatched
    ) -> tuple[tuple[int, str] | None, dict[str, float]]:
        """The first update that isn't finite, if any, and the metrics of the last one."""
        metrics, is_finite = jax.device_get((dispatched.metrics, dispatched.is_finite))
        values = {name: np.atleast_1d(value) for name, value in metrics.items()}
        first_bad = None
        for number, step in enumerate(piece.steps):
            if np.atleast_1d(is_finite)[number]:
                continue
            loss = float(values["loss"][number])
            what = "a gradient is not finite" if math.isfinite(loss) else f"the loss is {loss}"
            first_bad = first_bad or (step.index + 1, what)
            self._recovery.found(step.index + 1, what)
        return first_bad, {
            name: float(value[len(piece.steps) - 1]) for name, value in values.items()
        }

    def _expect_as_long(self) -> None:
        """Tells who may stop the run how long that takes: what is in flight, and a checkpoint."""
        now = time.monotonic()
        self._longest = max(self._longest, now - self._settled_at)
        self._settled_at = now
        if self.interruption is not None:
            checkpoints = self.record.checkpoints
            saving = 0.0 if checkpoints is None else checkpoints.save_seconds
            self.interruption.expect((_PIECES_IN_FLIGHT + 1) * self._longest + 2 * saving + 1)

    def _finish_pending_row(self) -> bool:
        """Does the evaluation that a stop cut off; returns whether it wasn't cut off again."""
        row = self.record.pending_row
        return row is None or self._evaluate_into(row)

    def _evaluate_into(self, row: dict[str, Any]) -> bool:
        """Evaluates, and writes the row with the figures; returns False where a stop came first."""
        seconds = self._rows.seconds(row["samples"])
        measured: dict[str, float] = {}
        for name, evaluator in self.evaluators.items():
            if not self._is_compiled(evaluation_program(name)):
                return False
            evaluator.program = self._program(evaluation_program(name))
            with self.record.clocks.timed("evaluation"):
                results = evaluator(self._state, self._should_stop, self.watchdog.beat)
            if results is None:
                return False
            if not all(map(math.isfinite, results.values())):
                what = f"the {name} {'/'.join(results)} is not finite"
                raise self._diverged(row["step"], what)
            measured |= {f"{name}_{metric}": value for metric, value in results.items()}
        self._rows.write(row | measured, seconds)
        self._rows.restart(row["samples"])
        self._settled_at = time.monotonic()
        return True

    def _diverged(self, finished: int, what: str) -> DivergedError:
        size, phase = self.plan.batch_size_at(finished - 1), self.plan.phase_at(finished - 1)
        return DivergedError(
            f"{what} after update {finished} (sample {self.plan.samples_at(finished):,}, phase "
            f"{phase.index + 1} of {len(self.plan.phases)}, batch size {size}"
            f"{self._rows.rate_text(finished - 1)}); a rerun as it is would diverge again: "
            "lower the learning rate, lengthen its warm-up, or grow the batch later."
        )


def evaluation_program(name: str) -> Hashable:
    """What the program that evaluates on a source is called among the run's programs."""
    return ("evaluation", name)
