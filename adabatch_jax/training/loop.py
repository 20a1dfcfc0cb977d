"""The training loop: one update after the other, and what is due in between."""

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adabatch_jax.data.batches import numbered_batches
from adabatch_jax.data.sources import Source
from adabatch_jax.errors import DivergedError
from adabatch_jax.reporting.metrics import COLUMNS
from adabatch_jax.reporting.progress import Progress
from adabatch_jax.schedules.periods import Period
from adabatch_jax.schedules.plan import BatchPlan, Step
from adabatch_jax.training.evaluation import Evaluator
from adabatch_jax.training.record import RunRecord
from adabatch_jax.training.state import TrainState
from adabatch_jax.training.step import TrainStep

StepCallback = Callable[[int, TrainState, Mapping[str, jax.Array]], bool | None]

# Dispatch runs ahead of the device; without a bound, batches pile up in memory.
_STEPS_IN_FLIGHT = 2


@dataclasses.dataclass
class Loop:
    """Everything that one run of the loop needs; `fit` describes the parts."""

    train_step: TrainStep
    source: Source
    plan: BatchPlan
    seed: int
    rng: jax.Array
    learning_rate: optax.Schedule | None
    evaluators: Mapping[str, Evaluator]
    eval_period: Period | None
    checkpoint_period: Period | None
    log_period: Period
    on_step: StepCallback | None
    record: RunRecord
    progress: Progress

    def run(self, state: TrainState) -> tuple[TrainState, bool]:
        """Runs from the record's position to the plan's end, or until `on_step` stops it."""
        record, plan = self.record, self.plan
        batches = numbered_batches(
            self.source,
            plan,
            self.seed,
            plan.samples_at(record.start_step),
            self.train_step.mesh,
            self.train_step.microbatch_size,
        )
        in_flight: collections.deque[Any] = collections.deque()
        compiled: set[int] = set()
        self._pace = _Pace(plan.samples_at(record.start_step))
        finished, stopped = record.start_step, False
        while finished < plan.num_steps and not stopped:
            with record.timed("input"):
                step, batch = next(batches)
            self._announce(step, is_first=not compiled)
            with record.timed("step" if step.batch_size in compiled else "compile"):
                state, metrics = self.train_step(state, batch, self.rng)
            compiled.add(step.batch_size)
            record.audit(step)
            in_flight.append(metrics)
            if len(in_flight) > _STEPS_IN_FLIGHT:
                with record.timed("step"):
                    jax.block_until_ready(in_flight.popleft())
            finished = step.index + 1
            self.progress.tick(finished)
            record.check()
            stopped = bool(self.on_step and self.on_step(finished, state, metrics))
            self._do_what_is_due(step, state, metrics, stopped)
        return state, stopped and finished < plan.num_steps

    def _announce(self, step: Step, is_first: bool) -> None:
        phase = self.plan.phases[step.phase]
        if is_first or step.index != phase.start_step:
            return
        rate = "" if self.learning_rate is None else f", lr {self._rate(step.index):.6g}"
        self.progress.message(
            f"phase {step.phase + 1} of {len(self.plan.phases)} from update {step.index:,}: "
            f"batch {phase.batch_size}{rate}"
        )

    def _do_what_is_due(
        self, step: Step, state: TrainState, metrics: Mapping[str, jax.Array], stopped: bool
    ) -> None:
        finished = step.index + 1
        at_end = finished == self.plan.num_steps
        is_eval = self.eval_period is not None and (at_end or self.eval_period.is_due(finished))
        is_save = self.checkpoint_period is not None and (
            at_end or stopped or self.checkpoint_period.is_due(finished)
        )
        if at_end or is_eval or self.log_period.is_due(finished):
            self._write_row(step, state, metrics, is_eval)
        if is_save:
            self._check_weights(finished, state)
            with self.record.timed("checkpoint"):
                self.record.save(finished, state)

    def _write_row(
        self, step: Step, state: TrainState, metrics: Mapping[str, jax.Array], is_eval: bool
    ) -> None:
        finished = step.index + 1
        loss = self._finite_loss(finished, metrics)
        samples = self.plan.samples_at(finished)
        row = {"step": finished, "samples": samples}
        if self.plan.num_examples is not None:
            row["epoch"] = self.plan.epoch_at(finished)
        row |= {"phase": step.phase, "batch_size": step.batch_size}
        if self.learning_rate is not None:
            row["learning_rate"] = self._rate(step.index)
        row |= {"train_loss": loss, "examples_digest": str(self.record.examples)}
        row |= {
            f"train_{name}": float(value) for name, value in metrics.items() if name != "loss"
        }
        pace = self._pace.examples_per_second(samples)
        if is_eval:
            row |= self._evaluate(finished, state)
            self._pace.restart(samples)
        row |= {
            "training_seconds": self.record.training_seconds(),
            "elapsed_seconds": self.record.elapsed_seconds(),
            "examples_per_second": pace,
        }
        row = {key: row[key] for key in (*COLUMNS, *row) if key in row}
        self.record.write_row(row)
        self.progress.log(row)

    def _evaluate(self, finished: int, state: TrainState) -> dict[str, float]:
        """The metrics on all sources, finite."""
        measured = {}
        for name, evaluator in self.evaluators.items():
            with self.record.timed("evaluation"):
                results = evaluator(state)
            if not all(map(math.isfinite, results.values())):
                raise self._diverged(finished, f"the {name} {'/'.join(results)} is not finite")
            measured |= {f"{name}_{metric}": value for metric, value in results.items()}
        return measured

    def _rate(self, step: int) -> float:
        return float(self.learning_rate(step))

    def _finite_loss(self, finished: int, metrics: Mapping[str, jax.Array]) -> float:
        with self.record.timed("step"):
            # A signal is heard while blocking here, and not inside float().
            jax.block_until_ready(metrics)
        loss = float(metrics["loss"])
        if not math.isfinite(loss):
            raise self._diverged(finished, f"the loss is {loss}")
        return loss

    def _check_weights(self, finished: int, state: TrainState) -> None:
        """Looks before a checkpoint is saved, so that none holds weights that are lost."""
        with self.record.timed("step"):
            finite = jax.block_until_ready(_all_finite((state.params, state.model_state)))
        if not finite:
            raise self._diverged(finished, "a weight is not finite")

    def _diverged(self, finished: int, what: str) -> DivergedError:
        size = self.plan.batch_size_at(finished - 1)
        return DivergedError(
            f"{what} after update {finished} (sample {self.plan.samples_at(finished):,}, batch "
            f"size {size}); lower the learning rate, lengthen its warm-up, or grow the batch later."
        )


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    leaves = (leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact))
    return jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in leaves]))


class _Pace:
    """Examples per second since the last row, evaluation left out."""

    def __init__(self, samples: int):
        self.restart(samples)

    def restart(self, samples: int) -> None:
        self._samples, self._since = samples, time.monotonic()

    def examples_per_second(self, samples: int) -> float:
        rate = (samples - self._samples) / max(time.monotonic() - self._since, 1e-9)
        self.restart(samples)
        return rate
