"""The training loop: one piece of the plan after the other, and what is due in between."""

import collections
import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adabatch_jax.data.feeds import Feed, Piece
from adabatch_jax.errors import DivergedError
from adabatch_jax.reporting.metrics import COLUMNS
from adabatch_jax.reporting.progress import Progress
from adabatch_jax.schedules.periods import Period
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.training.dispatch import Dispatch, Dispatched
from adabatch_jax.training.evaluation import Evaluator
from adabatch_jax.training.profiling import Profile
from adabatch_jax.training.record import RunRecord
from adabatch_jax.training.state import TrainState

StepCallback = Callable[[int, TrainState, Mapping[str, jax.Array]], bool | None]

# What the program of `all_finite` is called among the run's programs.
ALL_FINITE = "all_finite"

# Dispatch runs ahead of the device; without a bound, batches pile up in memory.
_PIECES_IN_FLIGHT = 2


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
    record: RunRecord
    progress: Progress
    profile: Profile

    def run(self, state: TrainState) -> tuple[TrainState, bool]:
        """Runs from the record's position to the plan's end, or until `on_step` stops it."""
        record, plan = self.record, self.plan
        self._in_flight: collections.deque[_InFlight] = collections.deque()
        self._pace = _Pace(plan.samples_at(record.start_step))
        finished, stopped = record.start_step, False
        inputs_of_pieces = self.feed.run(self.dispatch.pieces(finished, self._is_boundary))
        while finished < plan.num_steps and not stopped:
            with record.timed("input"):
                piece, inputs = next(inputs_of_pieces)
            self._begin(piece)
            with record.timed("step"):
                dispatched = self.dispatch(piece, state, inputs, self.rng)
            state = dispatched.state
            self._in_flight.append(_InFlight(piece, dispatched))
            self._settle(self._num_to_leave())
            if dispatched.metrics is None:
                continue  # in the middle of an update
            finished = piece.steps[-1].index + 1
            for step in piece.steps:
                record.audit(step)
            self.progress.tick(finished)
            record.check()
            stopped = bool(self.on_step and self.on_step(finished, state, dispatched.metrics))
            self._do_what_is_due(finished, state, stopped)
        self._settle(0)
        return state, stopped and finished < plan.num_steps

    def _begin(self, piece: Piece) -> None:
        """What comes before a piece: its phase's announcement, its programs, the profiler."""
        step = piece.steps[0]
        phase = self.plan.phases[step.phase]
        self.record.phase = step.phase
        if step.index == phase.start_step > self.record.start_step and not piece.microbatch:
            rate = "" if self.learning_rate is None else f", lr {self._rate(step.index):.6g}"
            self.progress.message(
                f"phase {step.phase + 1} of {len(self.plan.phases)} from update {step.index:,}: "
                f"batch {phase.batch_size}{rate}"
            )
        for name in self.dispatch.names(step.batch_size):
            self._program(name)
        if self.profile.is_due(step.index):
            self._settle(0)
            self.profile.switch(step.index, self.progress)

    def _program(self, name: Hashable) -> jax.stages.Compiled:
        """A compiled program; waiting for it counts as compilation."""
        programs = self.dispatch.programs
        if programs.is_ready(name):
            return programs.get(name).compiled
        with self.record.timed("compile"):
            return programs.get(name).compiled

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

    def _do_what_is_due(self, finished: int, state: TrainState, stopped: bool) -> None:
        is_save = self.checkpoint_period is not None and (
            stopped or self._is_due(self.checkpoint_period, finished)
        )
        if self._is_due(self.eval_period, finished):
            metrics = self._settle(0)
            row = self._row(finished)
            seconds = self._seconds(row["samples"])
            measured = self._evaluate(finished, state)
            self._write_row(row | measured, metrics, seconds)
            self._pace.restart(row["samples"])
        elif self._is_due(self.log_period, finished):
            # It is written when the next piece is on its way: the device needn't wait.
            self._in_flight[-1].row = self._row(finished)
        if is_save:
            self._settle(0)
            self._check_weights(finished, state)
            with self.record.timed("checkpoint"):
                self.record.save(finished, state)

    def _num_to_leave(self) -> int:
        """How many pieces stay in flight: the newest alone, where a row waits to be written."""
        return 1 if any(entry.row for entry in self._in_flight) else _PIECES_IN_FLIGHT

    def _settle(self, num_to_leave: int) -> dict[str, float] | None:
        """Waits for the oldest pieces, looks at their losses and writes the rows that are due.

        Returns:
          The metrics of the last update that was waited for, if any.
        """
        metrics = None
        while len(self._in_flight) > num_to_leave:
            entry = self._in_flight.popleft()
            with self.record.timed("step"):
                # A signal is heard while blocking here, and not inside a copy.
                jax.block_until_ready(entry.dispatched.wait_for)
            if entry.dispatched.metrics is not None:
                metrics = self._checked(entry.piece, entry.dispatched.metrics)
                if entry.row is not None:
                    self._write_row(entry.row, metrics, self._seconds(entry.row["samples"]))
        return metrics

    def _checked(self, piece: Piece, metrics: Mapping[str, jax.Array]) -> dict[str, float]:
        """The metrics of the piece's last update; the losses of all of them must be finite."""
        values = {name: np.atleast_1d(value) for name, value in jax.device_get(metrics).items()}
        for step, loss in zip(piece.steps, values["loss"], strict=False):
            if not math.isfinite(loss):
                raise self._diverged(step.index + 1, f"the loss is {float(loss)}")
        return {name: float(value[len(piece.steps) - 1]) for name, value in values.items()}

    def _row(self, finished: int) -> dict[str, Any]:
        """What is known of a row before its updates are computed."""
        row: dict[str, Any] = {"step": finished, "samples": self.plan.samples_at(finished)}
        if self.plan.num_examples is not None:
            row["epoch"] = self.plan.epoch_at(finished)
        phase = self.plan.phase_at(finished - 1)
        row |= {"phase": phase.index, "batch_size": phase.batch_size}
        if self.learning_rate is not None:
            row["learning_rate"] = self._rate(finished - 1)
        return row | {"examples_digest": str(self.record.examples)}

    def _seconds(self, samples: int) -> dict[str, float]:
        """What the clocks say when so many samples are trained on."""
        return {
            "training_seconds": self.record.training_seconds(),
            "elapsed_seconds": self.record.elapsed_seconds(),
            "examples_per_second": self._pace.examples_per_second(samples),
        }

    def _write_row(
        self, row: dict[str, Any], metrics: Mapping[str, float], seconds: Mapping[str, float]
    ) -> None:
        row = {**row, **{f"train_{name}": value for name, value in metrics.items()}, **seconds}
        row = {key: row[key] for key in (*COLUMNS, *row) if key in row}
        self.record.write_row(row)
        self.progress.log(row)

    def _evaluate(self, finished: int, state: TrainState) -> dict[str, float]:
        """The metrics on all sources, finite."""
        measured = {}
        for name, evaluator in self.evaluators.items():
            evaluator.program = self._program(evaluation_program(name))
            with self.record.timed("evaluation"):
                results = evaluator(state)
            if not all(map(math.isfinite, results.values())):
                raise self._diverged(finished, f"the {name} {'/'.join(results)} is not finite")
            measured |= {f"{name}_{metric}": value for metric, value in results.items()}
        return measured

    def _rate(self, step: int) -> float:
        # On the host: a device would first finish the updates that were dispatched.
        with jax.transfer_guard("allow"), _on_cpu():
            return float(self.learning_rate(step))

    def _check_weights(self, finished: int, state: TrainState) -> None:
        """Looks before a checkpoint is saved, so that none holds weights that are lost."""
        with self.record.timed("step"):
            check = self._program(ALL_FINITE)
            finite = jax.block_until_ready(check((state.params, state.model_state)))
        if not jax.device_get(finite):
            raise self._diverged(finished, "a weight is not finite")

    def _diverged(self, finished: int, what: str) -> DivergedError:
        size = self.plan.batch_size_at(finished - 1)
        return DivergedError(
            f"{what} after update {finished} (sample {self.plan.samples_at(finished):,}, batch "
            f"size {size}); lower the learning rate, lengthen its warm-up, or grow the batch later."
        )


def evaluation_program(name: str) -> Hashable:
    """What the program that evaluates on a source is called among the run's programs."""
    return ("evaluation", name)


@contextlib.contextmanager
def _on_cpu() -> Iterator[None]:
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # the user allowed accelerators only
        device = None
    with jax.default_device(device):
        yield


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    """Whether all floating-point numbers of a pytree are finite."""
    leaves = (leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact))
    return jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in leaves]))


class _Pace:
    """Examples per second since the last row, evaluation left out."""

    def __init__(self, samples: int):
        self.restart(samples)

    def restart(self, samples: int) -> None:
        self._marks = collections.deque([(samples, time.monotonic())], maxlen=3)

    def examples_per_second(self, samples: int) -> float:
        now, marks = time.monotonic(), self._marks
        # Soon after a row another one would tell about a single update: it reaches further back.
        is_soon = len(marks) > 1 and now - marks[-1][1] < (marks[-1][1] - marks[-2][1]) / 2
        first, since = marks[-2] if is_soon else marks[-1]
        marks.append((samples, now))
        return (samples - first) / max(now - since, 1e-9)
