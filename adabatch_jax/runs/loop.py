"""The training loop: one piece of the plan after the other, and what is due in between."""

import collections
import math
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax

from adabatch_jax.cluster.agreed_stop import AgreedStop
from adabatch_jax.data.feeds import Inputs, Piece
from adabatch_jax.runs.background_compilation import evaluation_program
from adabatch_jax.runs.display.progress import Progress
from adabatch_jax.runs.due import Due
from adabatch_jax.runs.in_flight import BadUpdate, InFlight, Settled
from adabatch_jax.runs.metric_rows import Rows
from adabatch_jax.runs.nonfinite_recovery import Recovery
from adabatch_jax.runs.profiling import Profile
from adabatch_jax.runs.record import RunRecord
from adabatch_jax.runs.state_copies import COPY, StateCopies
from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.fault_points import are_asked_for, reach
from adabatch_jax.system.stop_requests import Interruption
from adabatch_jax.system.watchdog import Watchdog
from adabatch_jax.training.evaluation import Evaluator
from adabatch_jax.training.finite_checks import poisoned
from adabatch_jax.training.setup import Setup
from adabatch_jax.training.train_state import TrainState

StepCallback = Callable[[int, TrainState, dict[str, jax.Array]], bool | None]

_PIECES_IN_FLIGHT = 2
_ON_STEP = "on_step"  # why a run stops that was asked to by its own function
# How often a wait for a compiler asks whether to stop.
_ASKING_SECONDS = 0.1


class Loop:
    """Performs a plan's updates, from where the record stands.

    Args:
      setup: the feed and the compiled programs.
      state: after as many updates as the record says.
      due: when to evaluate, to save, and to write rows.
      record: the run's own values, and where they are kept.
      rows: makes its rows of metrics.
      recovery: what to do about updates that aren't finite.
      evaluators: by name, the sources to evaluate on.
      on_step: called after each dispatch; True stops the run.
      interruption: may ask to stop; or None.
      progress: told how it goes.
      profile: traces some updates.
      watchdog: told that an evaluation gets on.
    """

    def __init__(
        self,
        setup: Setup,
        state: TrainState,
        due: Due,
        record: RunRecord,
        rows: Rows,
        recovery: Recovery,
        evaluators: Mapping[str, Evaluator],
        on_step: StepCallback | None,
        interruption: Interruption | None,
        progress: Progress,
        profile: Profile,
        watchdog: Watchdog,
    ):
        self._dispatch, self._feed = setup.dispatch, setup.feed
        self._padding_trial = setup.padding_trial
        self._state, self._finished = state, record.start_step
        self._due, self._record, self._rows, self._recovery = due, record, rows, recovery
        self._evaluators, self._on_step = evaluators, on_step
        self._interruption, self._progress = interruption, progress
        self._profile, self._watchdog = profile, watchdog
        self._in_flight, self._settled = InFlight(), record.start_step
        self._ready_for: int | None = None  # the number of examples whose programs are there
        self._copies = StateCopies(record, recovery)
        self._is_alone = record.processes.count == 1
        self._agreed, self._wants_stop = AgreedStop(record.processes), False
        self._stop_time = _StopTime(interruption, record, self._agreed.delay_seconds)

    def run(self) -> tuple[TrainState, bool]:
        """Runs to the plan's end, or until it is stopped.

        Returns:
          The last state, and whether something is left to be done.
        """
        clocks, num_steps = self._record.clocks, self._due.num_steps
        if self._interruption is not None:
            self._interruption.defer()
        pending_row = self._record.pending_row
        is_cut_off = pending_row is not None and not self._evaluate_into(pending_row)
        pieces = self._dispatch.pieces(self._finished, self._due.next_stop)
        next_stop = self._due.next_stop(self._finished)
        has_faults = are_asked_for()  # asking at every update would cost a small network 5 %
        clocks.enter("input")
        is_ended = self._is_end(self._finished)
        run = () if is_cut_off or is_ended else self._feed.run(pieces, self._may_break_off)
        for piece, inputs in run:
            if self._padding_trial is not None:
                self._try(piece, inputs)
            if has_faults:
                inputs = _with_fault(inputs)
            if not self._is_ready_for(piece.steps[0].num_real):
                break  # a stop came first
            self._announce(piece)
            clocks.enter("step")
            dispatched = self._dispatch(piece, self._state, inputs)
            self._state = dispatched.state
            is_whole = dispatched.metrics is not None  # else in the middle of an update
            rows = self._rows.due_in(piece, inputs.digest_shares) if is_whole else ()
            self._in_flight.add(piece, dispatched, rows)
            self._settle(self._num_to_leave(piece, is_whole))
            if is_whole:
                self._finished = piece.steps[-1].index + 1
                self._progress.tick(self._finished)
                if has_faults:
                    reach("step.end")
                self._record.store.check_saves()
                if self._on_step is not None or self._finished == next_stop:
                    clocks.enter(None)
                if self._on_step is not None and self._called(dispatched.metrics):
                    self._wants_stop = True
                if self._finished == next_stop:
                    is_cut_off = not self._do_what_is_due()
                    is_ended = self._is_end(self._finished)
                    next_stop = self._due.next_stop(self._finished)
                    if not is_cut_off:
                        self._check_stop_rule()
                if is_cut_off or is_ended or (self._wants_stop and self._is_alone):
                    break
            if self._may_stop():
                break
            clocks.enter("input")
        self._save_all()
        if not is_cut_off:
            self._record.note_phase_stop(self._finished, self._due.phase_stop)
        is_left = is_cut_off or not (is_ended or self._finished == num_steps)
        return self._state, is_left or self._record.stopped_at_phase is not None

    def _is_end(self, finished: int) -> bool:
        """Whether nothing is trained behind so many updates: a rule ends the run, or a phase."""
        return finished == self._due.phase_stop or self._record.early_stop.ends_at(finished)

    def _called(self, metrics: Mapping[str, jax.Array]) -> bool | None:
        try:
            return self._on_step(self._finished, self._state, metrics)
        except StopIteration as error:  # which a generator around the run would make its own end
            raise UsageError(
                f"`on_step` raised StopIteration after update {self._finished}; to stop the run, "
                "return True."
            ) from error

    def _try(self, piece: Piece, inputs: Inputs) -> None:
        """Tries the loss with one of the first pieces, until they tell all."""
        with self._record.clocks.timed("compile"):
            if self._padding_trial(self._state, piece, inputs):
                self._padding_trial = None

    def _may_stop(self) -> bool:
        """Whether to stop here: a bad update that is in flight is first followed by its rollback.

        What a rollback leaves out is then the same as without the stop.
        """
        if not self._is_asked_to_stop():
            return False
        return not (self._recovery.rolls_back and self._in_flight.holds_bad_update())

    def _may_break_off(self) -> bool:
        """Whether to stop while waiting for something.

        Several processes stop between two pieces only: each waits at other times.
        """
        return self._is_alone and self._may_stop()

    def _is_asked_to_stop(self) -> bool:
        """Whether any process is; all of them ask at the same places."""
        is_asked = self._interruption is not None and self._interruption.requested
        if self._is_alone:
            return is_asked
        wish = self._interruption.name if is_asked else _ON_STEP if self._wants_stop else None
        reason = self._agreed.reason(wish)
        if reason not in (None, _ON_STEP) and self._interruption is not None:
            self._interruption.adopt(reason)
        return reason is not None

    def _announce(self, piece: Piece) -> None:
        """Says that a phase begins, and begins or ends a trace of the profiler."""
        step, plan = piece.steps[0], self._record.plan
        phase = plan.phases[step.phase]
        self._record.clocks.phase = step.phase
        if step.index == phase.start_step > self._record.start_step and not piece.microbatch:
            reach("phase.switch")
            self._progress.message(
                f"phase {step.phase + 1} of {len(plan.phases)} from update {step.index:,}: "
                f"batch {phase.batch_size}{self._rows.rate_text(step.index)}"
            )
        if self._profile.is_due(step.index):
            self._settle(0)
            self._profile.switch(step.index, self._progress)

    def _is_ready_for(self, num_real: int) -> bool:
        """Waits for the programs of so many examples; returns False where a stop comes first."""
        if num_real != self._ready_for:
            if not all(map(self._is_compiled, self._dispatch.names(num_real))):
                return False
            self._ready_for = num_real
        return True

    def _is_compiled(self, name: Hashable) -> bool:
        """Waits until a program is compiled; returns False where a stop comes first.

        A compiler may take longer than whoever stops the run gives it.
        """
        programs = self._dispatch.programs
        if programs.is_ready(name):
            return True
        with self._record.clocks.timed("compile"):
            while not programs.wait(name, _ASKING_SECONDS):
                if self._may_break_off():
                    return False
            programs.get(name)
        self._stop_time.skip()  # stopping needs no new program
        return True

    def _do_what_is_due(self) -> bool:
        """Evaluates and saves; returns False where a stop cut the evaluation off."""
        finished, pending_row = self._finished, None
        if self._due.is_evaluation(finished) or self._due.is_stop(finished):
            self._settle(0)
        if self._due.is_evaluation(finished):
            row = self._rows.with_metrics(self._rows.begin(finished))
            if not self._evaluate_into(row):
                pending_row = row
        if self._due.is_checkpoint(finished) or pending_row:
            self._save(pending_row)
        return pending_row is None

    def _check_stop_rule(self) -> None:
        """Raises a UsageError for a rule about figures that there are none of, with all saved."""
        try:
            if self._due.is_stop(self._finished):
                self._record.early_stop.check_figures()
        except UsageError:
            self._save_all()
            raise

    def _save_all(self) -> None:
        """Begins to save what was trained, up to the last update."""
        self._record.clocks.enter("step")
        self._settle(0)
        if self._due.checkpoints and self._finished > self._copies.newest:
            self._save()  # stopped in between, or rolled back behind the last one
        self._copies.save_settled(self._finished)
        self._record.clocks.enter(None)

    def _save(self, pending_row: dict[str, Any] | None = None) -> None:
        """Saves the state after the last update: from a copy, or where there is no room at once."""
        # There is room for one copy. And a rollback leaves out what is in flight: that must not
        # depend on where the process began, as it would on which copies had to wait.
        if self._copies.is_waiting or self._recovery.rolls_back:
            self._settle(0)
        # A stop needs the copying program too, and so waits for its compiler.
        with self._record.clocks.timed("compile"):
            program = self._dispatch.programs.get(COPY).compiled
        is_planned = self._due.is_checkpoint(self._finished)
        if not self._copies.take(program, self._finished, self._state, is_planned, pending_row):
            self._settle(0)

    def _num_to_leave(self, piece: Piece, is_whole: bool) -> int:
        """How many pieces stay in flight: the newest alone, where a row waits to be written."""
        if self._recovery.rolls_back and is_whole:
            step = piece.steps[-1]
            if piece.microbatch is not None:
                return 0  # the next update's sums would begin with weights that may be lost
            if step.index + 1 == self._record.plan.phases[step.phase].stop_step:
                return 0  # what is left out doesn't depend on a stop between two phases
        return 1 if self._in_flight.holds_rows else _PIECES_IN_FLIGHT

    def _settle(self, num_to_leave: int) -> None:
        """Waits for the oldest pieces, looks at their results, and writes what waited for them."""
        self._copies.save_settled(self._settled)
        for settled in self._in_flight.settle(num_to_leave):
            bad = self._look_at(settled)
            if bad is not None and self._recovery.rolls_back:
                for lost in self._in_flight.settle(0):  # computed with weights that are lost
                    self._look_at(lost, is_kept=False)
                self._copies.forget()
                self._state = self._recovery.roll_back(self._state, bad, self._settled)
            self._copies.save_settled(self._settled)

    def _look_at(self, settled: Settled, is_kept: bool = True) -> BadUpdate | None:
        """Writes a piece's rows; returns its first update that isn't finite, if there is one.

        Those that aren't, and all of a piece that isn't kept, count in no row.
        """
        self._stop_time.observe()
        if not settled.is_whole:
            return None
        rows = collections.deque(settled.rows)
        bad = {update.finished: update for update in settled.bad_updates}
        for place, step in enumerate(settled.piece.steps):
            finished = step.index + 1
            if finished in bad:
                self._recovery.found(bad[finished])
            elif is_kept:
                self._record.means.add(settled.dispatched, place)
            if rows and rows[0]["step"] == finished:
                self._rows.write(self._rows.with_metrics(rows.popleft()))
        self._settled = settled.finished
        return next(iter(settled.bad_updates), None)

    def _evaluate_into(self, row: dict[str, Any]) -> bool:
        """Evaluates, and writes the row with the figures; returns False where a stop came first."""
        seconds = self._rows.seconds(row["samples"])
        measured: dict[str, float] = {}
        for name, evaluator in self._evaluators.items():
            for num_rows in evaluator.programs:
                program = evaluation_program(name, num_rows)
                if not self._is_compiled(program):
                    return False
                evaluator.programs[num_rows] = self._dispatch.programs.get(program).compiled
            with self._record.clocks.timed("evaluation"):
                results = evaluator(
                    self._state, self._is_asked_to_stop, self._watchdog.beat, self._may_break_off
                )
            if results is None:
                return False
            if not all(map(math.isfinite, results.values())):
                what = f"the {name} {'/'.join(results)} is not finite"
                raise self._recovery.diverged(row["step"], what)
            measured |= {f"{name}_{metric}": value for metric, value in results.items()}
        self._rows.write(row | measured, seconds)
        self._rows.restart(row["samples"])
        self._stop_time.skip()
        return True


def _with_fault(inputs: Inputs) -> Inputs:
    reach("step.begin")
    if reach("batch.ready") != "nan":
        return inputs
    weight = poisoned(inputs.arrays["weight"], int(inputs.first))
    return inputs._replace(arrays=inputs.arrays | {"weight": weight})


class _StopTime:
    """Tells an interruption how long stopping takes: a delay, what is in flight, a checkpoint."""

    def __init__(self, interruption: Interruption | None, record: RunRecord, delay: float):
        self._interruption, self._record, self._delay = interruption, record, delay
        self._since, self._longest = time.monotonic(), 0.0

    def observe(self) -> None:
        """Notes that a piece was waited for."""
        now = time.monotonic()
        self._longest, self._since = max(self._longest, now - self._since), now
        if self._interruption is not None:
            saving = self._record.store.save_seconds
            pieces = (_PIECES_IN_FLIGHT + 1) * self._longest
            self._interruption.expect(self._delay + pieces + 2 * saving + 1)

    def skip(self) -> None:
        """What passed since the last piece says nothing about pieces."""
        self._since = time.monotonic()
