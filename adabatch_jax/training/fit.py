"""Training as a library call: the loop over a plan, with evaluation, checkpoints and metrics."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from adabatch_jax.data.sources import Source
from adabatch_jax.errors import UsageError
from adabatch_jax.reporting.progress import NullProgress, Progress
from adabatch_jax.schedules.periods import every
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.training.evaluation import EvalFn, Evaluator
from adabatch_jax.training.loop import Loop, StepCallback
from adabatch_jax.training.record import RunRecord
from adabatch_jax.training.state import TrainState
from adabatch_jax.training.step import LossFn, make_train_step

# Apart from the keys of examples, which are folded from the same seed.
_RUN_KEY = 0x5EED


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What training left behind.

    Attributes:
      state: the last state.
      history: the rows of metrics, oldest first, those before a restart included.
      summary: final figures and where the seconds went.
      stopped: whether `on_step` ended the run before the plan did.
    """

    state: TrainState
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    stopped: bool


def fit(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    state: TrainState,
    source: Source,
    plan: BatchPlan,
    *,
    learning_rate: optax.Schedule | None = None,
    eval_fn: EvalFn | None = None,
    eval_source: Source | Mapping[str, Source] | None = None,
    seed: int = 0,
    mesh: Mesh | None = None,
    microbatch_size: int | None = None,
    workdir: str | Path | None = None,
    eval_every: str | int = "1ep",
    checkpoint_every: str | int = "1ep",
    log_every: str | int = "50st",
    on_step: StepCallback | None = None,
    eval_batch_size: int = 512,
    keep_checkpoints: int = 3,
    progress: Progress | None = None,
    identity: Mapping[str, Any] | None = None,
) -> FitResult:
    """Trains along a plan; with a workdir, goes on where an earlier call stopped.

    Args:
      loss_fn: as in `make_train_step`.
      tx: the optimizer, with its learning rate inside.
      state: where to begin, from update `state.step` on; its arrays are donated.
      source: the training examples, `plan.num_examples` of them.
      plan: which batch size when. To go on with a run that was finished, or with another future,
        give the run's own plan `continued` from where it stands.
      learning_rate: only logged: the schedule inside `tx`.
      eval_fn: `eval_fn(params, model_state, batch) -> metrics`; none: no evaluation.
      eval_source: the examples to evaluate on; or several such sources by name. Metrics are
        called "test_loss" or after the source's name, as "holdout_loss".
      seed: of the order of the examples and of the key that `loss_fn` gets.
      mesh: the devices to train on; None for one.
      microbatch_size: examples over all devices that are computed at a time.
      workdir: the run's folder: metrics, checkpoints, plan and summary. None writes nothing.
      eval_every: a duration; also at the end of the run.
      checkpoint_every: a duration; also at the end and when `on_step` stops the run.
      log_every: a duration between rows of metrics; evaluations make a row too.
      on_step: called as `on_step(finished_steps, state, metrics)` after each update is
        dispatched; True stops the run. Reading `metrics` waits for the device.
      eval_batch_size: examples per batch of the evaluation.
      keep_checkpoints: how many of the newest checkpoints to keep.
      progress: where to show how it goes.
      identity: settings, as JSON values, kept in config.json and in each checkpoint.

    Raises:
      UsageError: arguments that don't fit each other.
      DivergedError: the loss is not finite any more.
      RestoreError: the workdir holds another run, or none that can be read.
      StorageError: the workdir can't be written.

    >>> import jax.numpy as jnp, numpy as np
    >>> from adabatch_jax import array_source, make_plan, weighted_mean
    >>> x = np.linspace(-1, 1, 64, dtype=np.float32)
    >>> def loss_fn(params, model_state, batch, rng):
    ...     error = params["w"] * batch["x"] - batch["y"]
    ...     return weighted_mean(error**2, batch["weight"]), (model_state, {})
    >>> tx = optax.sgd(0.5)
    >>> result = fit(loss_fn, tx, TrainState.create(params={"w": jnp.zeros(())}, tx=tx),
    ...              array_source({"x": x, "y": 3 * x}), make_plan("4 x2 every 2ep", 64, "6ep"))
    >>> round(float(result.state.params["w"]), 3)
    3.0
    """
    if (eval_fn is None) != (eval_source is None):
        raise UsageError("`eval_fn` and `eval_source` belong together: give both or neither.")
    if state.step.is_deleted():
        raise UsageError(
            "`state` was given to an earlier call, which took its arrays; go on with the state "
            "that the call returned, or with a new `TrainState.create(...)`."
        )
    eval_sources = dict(eval_source) if isinstance(eval_source, Mapping) else {"test": eval_source}
    # What isn't done needs no period: an endless stream has no epochs to count in.
    eval_period = None if eval_fn is None else every(plan, eval_every)
    checkpoint_period = None if workdir is None else every(plan, checkpoint_every)
    progress = NullProgress() if progress is None else progress
    train_step = make_train_step(loss_fn, tx, mesh, microbatch_size)
    record = RunRecord(plan, seed, workdir, keep_checkpoints, identity or {})
    try:
        state = record.begin(train_step.place(state), progress)
        loop = Loop(
            train_step=train_step,
            source=source,
            plan=plan,
            seed=seed,
            rng=train_step.place(jax.random.fold_in(jax.random.key(seed), _RUN_KEY)),
            learning_rate=learning_rate,
            evaluators={
                name: Evaluator(eval_fn, eval_source, eval_batch_size, mesh)
                for name, eval_source in eval_sources.items()
                if eval_fn is not None
            },
            eval_period=eval_period,
            checkpoint_period=checkpoint_period,
            log_period=every(plan, log_every),
            on_step=on_step,
            record=record,
            progress=progress,
        )
        with progress:
            state, stopped = loop.run(state)
        summary = record.finish(state, stopped)
    finally:
        record.close()
    return FitResult(state, record.history, summary, stopped)
