"""One training run from a configuration: everything between the command line and `fit`."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from adabatch_jax.cluster.agreement import from_first, in_turn
from adabatch_jax.cluster.processes import ALONE, Processes
from adabatch_jax.config.own_functions import is_reference
from adabatch_jax.config.settings import Operation, TrainConfig
from adabatch_jax.data.mesh import data_mesh
from adabatch_jax.runs.configured_data import ConfiguredData, open_data
from adabatch_jax.runs.configured_model import configured_model
from adabatch_jax.runs.configured_optimizer import make_optimizer
from adabatch_jax.runs.display.process_logs import own_log
from adabatch_jax.runs.display.progress import Progress
from adabatch_jax.runs.display.stream_choice import make_progress
from adabatch_jax.runs.fit import FitResult, fit
from adabatch_jax.runs.folder.folder_reading import LOGS
from adabatch_jax.runs.folder.followed_folder import run_folder
from adabatch_jax.runs.folder.lock import LOCK_SECONDS
from adabatch_jax.runs.folder.run_folder import RunFolder
from adabatch_jax.runs.folder.workdir_choice import check_workdir
from adabatch_jax.runs.initial_weights import with_given_weights
from adabatch_jax.runs.resuming import plan_of_run
from adabatch_jax.runs.same_data import check_tokenizer
from adabatch_jax.schedules.learning_rate_at_step import resolve
from adabatch_jax.schedules.learning_rate_pieces import unreached
from adabatch_jax.schedules.learning_rate_schedule import rate_schedule
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.system.mirrored_folder import WorkFolder
from adabatch_jax.training.train_state import TrainState


def train(
    config: TrainConfig,
    workdir: Path | WorkFolder,
    operation: Operation = Operation(),
    allow_change: Sequence[str] = (),
    on_done: Callable[[Path], Any] = lambda workdir: None,
    lock_seconds: float = LOCK_SECONDS,
    take_over: bool = False,
    processes: Processes = ALONE,
) -> FitResult:
    """Trains as configured, or goes on with what the workdir holds.

    Args:
      workdir: the folder, or one that was `opened`.
      operation: its `on_nan` is that of the settings; without `progress` the terminal shows it.
      allow_change, lock_seconds, take_over: as in `RunFolder` and `plan_of_run`.
      on_done: called with the workdir at the plan's end, while no other process may use it; of
        several processes by the first one.
      processes: those that train together, on the devices of all.
    """
    data = in_turn(processes, lambda: opened_data(config, processes.count))
    path = Path(workdir)
    from_first(processes, "workdir", lambda: check_workdir(path))
    with (
        own_log(path / LOGS, processes) as log,
        run_folder(
            workdir, allow_change=allow_change, lock_seconds=lock_seconds, take_over=take_over,
            processes=processes,
        ) as folder,
    ):  # fmt: skip
        if folder.checkpoint is not None:
            check_tokenizer(folder.checkpoint.run, data.spec.text, path)
        plan, changes = plan_of_run(config, len(data.train), folder.checkpoint, path, allow_change)
        folder.changes += [change.to_dict() for change in changes]
        folder.notes += [*data.notes, *(f"note: {change}" for change in changes)]
        progress = operation.progress or make_progress(plan, log=log)
        operation = dataclasses.replace(operation, on_nan=config.on_nan, progress=progress)
        folder.dataset = data.spec.to_dict()
        folder.tokenizer = data.tokenizer and data.tokenizer.content
        result = _fit(config, folder, plan, operation, allow_change, data)
        if not result.stopped and not processes.index:
            on_done(path)
        processes.barrier("done")
        return result


def opened_data(config: TrainConfig, num_processes: int) -> ConfiguredData:
    """The examples, in memory where they are few.

    Not where several processes are asked to stream them: each is to read only its own rows then.
    """
    data = open_data(config)
    if num_processes == 1 or config.input != "streaming":
        data = data.in_memory()
    return data.with_statistics(config.data)


def _fit(
    config: TrainConfig,
    folder: RunFolder,
    plan: BatchPlan,
    operation: Operation,
    allow_change: Sequence[str],
    data: ConfiguredData,
) -> FitResult:
    rate = resolve(plan, config.learning_rate, config.coupling, config.reference_batch_size)
    learning_rate = rate_schedule(rate)
    tx = make_optimizer(config, learning_rate, plan)
    network = configured_model(config, data.spec)
    if network.probabilities is not None and is_reference(config.dataset):
        data.check_evaluated()
    if config.init_from is not None and folder.checkpoint is None:
        network, given = with_given_weights(config, data.spec, network)
        folder.notes.append(f"note: {given}")
        folder.changes.append(given.to_dict())
    if network.eval_fn is None:
        folder.notes.append(f"note: {config.model} has no eval_fn, so nothing is evaluated")
    mesh = data_mesh(jax.devices()) if jax.device_count() > 1 else None
    layout = config.layout
    if mesh is None:  # one device has it all
        layout = dataclasses.replace(layout, shard_params=False)
    _introduce(config, plan, folder.where, mesh, operation.progress)
    return fit(
        network.loss_fn,
        tx,
        TrainState.create(params=network.params, tx=tx, model_state=network.model_state),
        data.train,
        plan,
        learning_rate=learning_rate,
        eval_fn=network.eval_fn,
        eval_source=None if network.eval_fn is None else data.evals,
        seed=config.seed,
        mesh=mesh,
        workdir=folder,
        eval_every=config.eval_every,
        checkpoint_every=config.checkpoint_every,
        log_every=config.log_every,
        eval_batch_size=config.eval_batch_size,
        stop_when=config.stop_rule,
        layout=layout,
        keep=config.keep,
        operation=operation,
        allow_change=allow_change,
        **network.properties,
        identity=config.to_dict(),
    )


def _introduce(
    config: TrainConfig, plan: BatchPlan, workdir: str, mesh: Any, progress: Progress
) -> None:
    sizes = plan.batch_sizes
    batch = f"batch {sizes[0]}" + (f" to {sizes[-1]}" if len(sizes) > 1 else "")
    devices = 1 if mesh is None else mesh.size
    epochs = config.epochs or plan.num_samples / plan.num_examples
    progress.message(
        f"training {config.model} on {config.dataset}: {epochs:g} epochs of "
        f"{plan.num_examples:,} examples, {batch} in {plan.num_steps:,} updates, on "
        f"{devices} {jax.devices()[0].device_kind} device{'s' if devices > 1 else ''}; "
        f"run folder {workdir}"
    )
    for sentence in (*plan.unreached, *unreached(plan, config.learning_rate)):
        progress.message(f"note: {sentence}")
    for sentence in config.coupling_warnings(plan):
        progress.message(f"warning: {sentence}")
