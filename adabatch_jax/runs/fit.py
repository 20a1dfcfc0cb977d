"""Training as a library call: the loop over a plan, with evaluation, checkpoints and metrics."""

import contextlib
import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding

from adabatch_jax.cluster.ending_together import ending_together
from adabatch_jax.config.settings import AUTO, Keep, Layout, Operation
from adabatch_jax.data.epoch_order import prepare_order
from adabatch_jax.data.example_reading import ReadOnce, check_source
from adabatch_jax.data.mesh import BatchMesh, as_batch_mesh, check_backend
from adabatch_jax.data.sources import Source
from adabatch_jax.runs.background_compilation import compile_in_background
from adabatch_jax.runs.display.progress import Progress
from adabatch_jax.runs.due import Due, phase_stop
from adabatch_jax.runs.early_stop import EarlyStop, StopWhen
from adabatch_jax.runs.folder.followed_folder import run_store
from adabatch_jax.runs.folder.run_folder import RunFolder
from adabatch_jax.runs.kept_layout import check_microbatches, chosen_anew, kept
from adabatch_jax.runs.loop import Loop, StepCallback
from adabatch_jax.runs.metric_rows import Rows
from adabatch_jax.runs.nonfinite_recovery import Recovery
from adabatch_jax.runs.profiling import make_profile
from adabatch_jax.runs.record import RunRecord
from adabatch_jax.runs.resuming import check_allowed
from adabatch_jax.runs.same_data import data_digests
from adabatch_jax.runs.several_processes import (
    check_started_alike,
    clock_of_first,
    connect,
    processes_of,
    stall_watchdog,
    with_agreed_memory,
)
from adabatch_jax.runs.tracking.trackers import Tracking
from adabatch_jax.schedules.periods import Period, every
from adabatch_jax.schedules.plan import BatchPlan, check_plan
from adabatch_jax.system.errors import UsageError, check_call, check_type
from adabatch_jax.system.fault_points import reach
from adabatch_jax.system.quantities import checked_seed
from adabatch_jax.training.device_memory import device_bytes
from adabatch_jax.training.evaluation import EvalFn, EvalParams, Evaluator
from adabatch_jax.training.loss_functions import LossFn
from adabatch_jax.training.optimizers import refuse_multi_steps
from adabatch_jax.training.setup import Setup, keep_what_fits, set_up
from adabatch_jax.training.step_timing import seconds_by_size
from adabatch_jax.training.time_prediction import predict
from adabatch_jax.training.train_state import TrainState
from adabatch_jax.training.update import Update

# Apart from the keys of examples, which are folded from the same seed.
_RUN_KEY = 0x5EED


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What training left behind.

    Attributes:
      state: the last state.
      history: the rows of metrics, oldest first, those before a restart included.
      summary: final figures and where the seconds went.
      stopped: whether `on_step`, an interruption or `operation.stop_at_phase` ended the run before
        the plan, or `stop_when`, did; of the last the summary says "stopped_at_phase".
      start_step: the update that this call began with.

    >>> FitResult(None, [{"step": 5}], {"train_loss": 0.5}, stopped=False, start_step=0).history
    [{'step': 5}]
    """

    state: TrainState
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    stopped: bool
    start_step: int


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
    mesh: Mesh | NamedSharding | None = None,
    workdir: str | Path | RunFolder | None = None,
    eval_every: str | int = "1ep",
    checkpoint_every: str | int = "1ep",
    log_every: str | int = "10st",
    on_step: StepCallback | None = None,
    eval_batch_size: int = 512,
    eval_params: EvalParams | None = None,
    stop_when: StopWhen | None = None,
    sequential_model_state: bool = False,
    independent_groups: int | None = None,
    allow_change: Collection[str] = (),
    layout: Layout = Layout(),
    keep: Keep = Keep(),
    operation: Operation = Operation(),
    identity: Mapping[str, Any] | None = None,
) -> FitResult:
    """Trains along a plan; with a workdir, goes on where an earlier call stopped.

    Args:
      loss_fn: as in `make_train_step`.
      tx: the optimizer, with its learning rate inside.
      state: where to begin, from update `state.step` on; its arrays are donated.
      source: the training examples, `plan.num_examples` of them. Where sources have a `digest`,
        a run goes on with the same contents only. Its array "weight", if it has one, is how often
        each example counts, see `batches`.
      plan: which batch size when. To go on with a run that was finished, or with another future,
        give the run's own plan `continued` from where it stands.
      learning_rate: only logged: the schedule inside `tx`.
      eval_fn: `eval_fn(params, model_state, batch) -> metrics`; none: no evaluation.
      eval_source: the examples to evaluate on; or several such sources by name. Metrics are
        called "test_loss" or after the source's name, as "holdout_loss".
      seed: of the order of the examples and of the key that `loss_fn` gets, below `2**32`.
      mesh: the devices to train on, as in `make_train_step`; None for one. A state that comes
        sharded stays so, also from a checkpoint.
      workdir: the run's folder: metrics, checkpoints, plan and summary; or that folder as this
        process holds it already. None writes nothing.
      eval_every: a duration; also at the end of the run.
      checkpoint_every: a duration; also at the end and when `on_step` stops the run.
      log_every: a duration between rows of metrics; evaluations make a row too.
      on_step: called as `on_step(finished_steps, state, metrics)` after each update is
        dispatched; True stops the run. Reading `metrics` waits for the device. The next update
        takes the state's arrays: to keep a state, copy it, `jax.tree.map(jnp.copy, state)`.
        Where `layout.steps_per_dispatch` is a number above 1, it is called after so many, whose
        metrics have a leading axis; with it "auto" is 1.
      eval_batch_size: examples per batch of the evaluation.
      eval_params: `eval_params(opt_state, params)` makes the parameters that are evaluated, where
        they aren't those that are trained: `optax.contrib.schedule_free_eval_params`, or what an
        average keeps in `opt_state`. Checkpoints and the result hold those that are trained.
      stop_when: a rule that ends the run before the plan does, such as "test_accuracy >= 0.99",
        "no lower test_loss for 5ep", or several with "or" between them; or a function of a row of
        metrics, a dict as in `history`, which is called with each in its order, after a restart
        with those from before it too, and returns whether to end. The run ends at the first
        evaluation at or behind that row, without evaluations at the row, and is finished then.
      sequential_model_state, independent_groups: as in `make_train_step`.
      allow_change: what a run in the workdir may go on with changed, from here on:
        "microbatch_size", where that changes more than rounding; "dataset", with other contents
        of the sources; "rows", without rows of metrics that are damaged or missing.
      layout: how the run is laid out on its devices.
      keep: which checkpoints stay.
      operation: what is done where something goes wrong, and where to show how it goes.
      identity: settings, as JSON values, kept in config.json and in each checkpoint.

    Raises:
      UsageError: arguments that don't fit each other, or a loss or an `eval_fn` that sees padding,
        where there is any, see `check_padding`.
      DivergedError: the loss or a gradient is not finite, and `operation.on_nan` knows no way on.
      RestoreError: the workdir holds another run or one of other examples, none of its
        checkpoints is sound, or rows of metrics before the newest one are damaged or missing.
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
    check_backend()
    mesh = as_batch_mesh(mesh)
    check_arguments(
        state, source, eval_fn, eval_source, on_step, plan, mesh, layout, keep, operation, identity
    )
    if eval_params is not None and eval_fn is None:
        raise UsageError("`eval_params` makes parameters for `eval_fn`, which isn't given.")
    refuse_multi_steps(state.opt_state, "in `fit`")
    check_allowed(allow_change, "allow_change")
    seed = checked_seed(seed)
    if on_step is not None and layout.steps_per_dispatch == AUTO:
        layout = dataclasses.replace(layout, steps_per_dispatch=1)
    eval_sources = eval_source if isinstance(eval_source, Mapping) else {"test": eval_source}
    eval_sources = {} if eval_source is None else dict(eval_sources)
    # What isn't done needs no period: an endless stream has no epochs to count in.
    due = Due(
        plan.num_steps,
        evaluations=None if eval_fn is None else _period(plan, "eval_every", eval_every),
        checkpoints=None
        if workdir is None
        else _period(plan, "checkpoint_every", checkpoint_every),
        rows=_period(plan, "log_every", log_every),
        has_stop_rule=stop_when is not None,
    )
    early_stop = EarlyStop(stop_when, plan, due)
    processes = processes_of(mesh)
    tracking = Tracking(() if processes.index else operation.trackers)
    policy = operation.nan_policy
    progress = Progress() if operation.progress is None else operation.progress
    with contextlib.ExitStack() as stack:
        stack.enter_context(ending_together(processes))
        store = stack.enter_context(run_store(workdir, allow_change, processes))
        trace = make_profile(operation.profile, store.path, plan.num_steps)
        log_path = None if store.path is None else store.path / "stalls.log"
        watchdog = stack.enter_context(stall_watchdog(operation, log_path, processes))
        is_compared = store.path is not None or processes.count > 1
        digests = data_digests(source, eval_sources) if is_compared else {}
        check_started_alike(
            processes, plan, seed, state, identity or {}, digests,
            due=due, layout=layout, keep=keep, stop_when=stop_when, on_nan=operation.on_nan,
            stop_at_phase=operation.stop_at_phase, eval_batch_size=eval_batch_size,
        )  # fmt: skip
        connect(mesh, processes)
        record = RunRecord(
            plan, seed, store, keep, operation.on_save_error, identity or {}, watchdog, progress,
            digests, allow_change, early_stop, tracking, processes,
        )  # fmt: skip
        stack.push(store.close)
        stack.callback(tracking.finish)
        saved_layout = record.open()
        num_shards = 1 if mesh is None else mesh.num_shards
        layout = kept(saved_layout, layout, num_shards)
        update = Update(
            loss_fn, tx, mesh, None, sequential_model_state, independent_groups,
            layout.shard_params, skip_nonfinite=policy.kind == "skip",
        ).keeping(state)  # fmt: skip
        state = update.place(state)
        state = record.restored(state)
        if not record.is_done:
            check_microbatches(saved_layout, layout, plan, independent_groups, allow_change)
            stop = phase_stop(operation.stop_at_phase, plan, record.start_step)
            due = dataclasses.replace(due, phase_stop=stop)
        record.begin()
        if record.pending_row is None:
            record.note_phase_stop(record.start_step, due.phase_stop)
        is_there = record.stopped_at_phase is not None
        if record.is_done or is_there:
            record.save_given(state)
            summary = record.finish(state, is_there)
            return FitResult(state, record.history, summary, is_there, record.start_step)
        store.check_space(state)
        rng = update.place(jax.random.fold_in(jax.random.key(seed), _RUN_KEY))
        evaluators = {
            name: stack.enter_context(
                Evaluator(eval_fn, examples, eval_batch_size, mesh, eval_params=eval_params)
            )
            for name, examples in eval_sources.items()
        }
        layout = with_agreed_memory(layout, processes)
        reach("compile.first")
        # A run whose last evaluation is still to come needs no update, and is set up for its last.
        next_step = min(record.start_step, plan.num_steps - 1)
        begin = plan.samples_at(next_step)
        if plan.num_examples is None:
            source = ReadOnce(source, begin)
        prepare_order(plan.num_examples, seed, begin, plan.num_samples)  # while programs compile
        left_layout, note = chosen_anew(saved_layout, plan, independent_groups, num_shards)
        if note is not None and layout.microbatch_size == AUTO:
            progress.message(note)
        with record.clocks.timed("compile"):
            setup = set_up(
                update, state, rng, source, plan, next_step, seed, layout, left_layout,
                progress.message,
            )  # fmt: skip
        stack.callback(setup.close)
        free_bytes = keep_what_fits(evaluators.values(), setup.free_bytes)
        record.keep_layout(setup.layout | {"processes": processes.count})
        _predict(record, setup, plan, next_step, state)
        has_room = device_bytes(state) <= free_bytes
        compile_in_background(setup, evaluators, state, has_room)
        stack.callback(trace.close)
        rows = Rows(record, due, learning_rate, progress)
        recovery = Recovery(policy, record, rows, progress)
        loop = Loop(
            setup, state, due, record, rows, recovery, evaluators, on_step,
            operation.interruption, progress, trace, watchdog,
        )  # fmt: skip
        with progress:
            state, stopped = loop.run()
        record.clocks.add("background_compile", setup.dispatch.programs.background_seconds)
        summary = record.finish(state, stopped)
        if not stopped:
            tracking.finish(summary)
    return FitResult(state, record.history, summary, stopped, record.start_step)


def check_arguments(
    state: TrainState,
    source: Source,
    eval_fn: EvalFn | None,
    eval_source: Any,
    on_step: StepCallback | None,
    plan: BatchPlan,
    mesh: BatchMesh | None,
    layout: Layout,
    keep: Keep,
    operation: Operation,
    identity: Mapping[str, Any] | None,
) -> None:
    """Raises a UsageError where the arguments of `fit` can't work, or can't go together."""
    check_type("state", state, TrainState, "make it with `TrainState.create(params=..., tx=tx)`")
    check_plan(plan)
    for name, value, kind in (
        ("layout", layout, Layout), ("keep", keep, Keep), ("operation", operation, Operation),
        ("identity", {} if identity is None else identity, Mapping),
    ):  # fmt: skip
        check_type(name, value, kind)
    check_source("source", source, plan.num_examples is not None)
    try:
        json.dumps(identity and dict(identity))
    except (TypeError, ValueError) as error:
        raise UsageError(f"`identity` must be made of JSON values, but: {error}.") from None
    if (eval_fn is None) != (eval_source is None):
        raise UsageError("`eval_fn` and `eval_source` belong together: give both or neither.")
    if isinstance(eval_source, Mapping) and not eval_source:
        raise UsageError("`eval_source` has no source; name one, or give neither it nor `eval_fn`.")
    if isinstance(eval_source, Mapping):
        for name, examples in eval_source.items():
            check_source(f"eval_source[{name!r}]", examples)
    elif eval_source is not None:
        check_source("eval_source", eval_source)
    if eval_fn is not None:
        check_call("eval_fn", eval_fn, "params", "model_state", "batch")
    if on_step is not None:
        check_call("on_step", on_step, "finished_steps", "state", "metrics")
    if isinstance(state.step, jax.Array) and state.step.is_deleted():
        raise UsageError(
            "`state` was given to an earlier call, which took its arrays; go on with the state "
            "that the call returned, or with a new `TrainState.create(...)`."
        )
    if int(state.step) < 0:
        raise UsageError(f"`state.step` must be at least 0, got {int(state.step)}.")
    largest = max(plan.batch_sizes)
    if mesh is not None and mesh.num_shards > largest:
        raise UsageError(
            f"there are {mesh.num_shards} devices to share a batch out to, more than the largest has "
            f"examples ({largest}), so some would never work; use at most {largest}."
        )


def _period(plan: BatchPlan, name: str, duration: str | int) -> Period:
    """The period that an argument of that name says."""
    try:
        return every(plan, duration)
    except UsageError as error:
        raise UsageError(f"`{name}`: {error}") from None


def _predict(
    record: RunRecord,
    setup: Setup,
    plan: BatchPlan,
    next_step: int,
    state: TrainState,
) -> None:
    """Times the programs that are there, and writes what the run should take into plan.json.

    An endless stream may be live: it isn't read for this.
    """
    if not record.store.wants_prediction(plan) or plan.num_examples is None:
        return
    with record.clocks.timed("compile"):
        seconds = seconds_by_size(
            setup.dispatch,
            setup.feed,
            plan,
            next_step,
            state,
            setup.limit_bytes,
            clock_of_first(record.processes),
        )
    if seconds:
        record.store.write_prediction(plan, predict(plan, seconds).to_dict())
