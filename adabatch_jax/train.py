"""`python -m adabatch_jax.train`: trains a network while its batch grows.

With nothing at all it trains the embedded default, a small CNN on handwritten digits.
"""

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from adabatch_jax.cluster.local_processes import as_given, end_with_parent, run_locally
from adabatch_jax.config.command_line import flags_parser, parse_arguments
from adabatch_jax.config.declarations import as_in, flag
from adabatch_jax.config.recipe_flags import RecipeFlags
from adabatch_jax.config.settings import TRACKERS, Next, Operation, TrainConfig
from adabatch_jax.system import command_lines
from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.number_texts import printable
from adabatch_jax.system.quantities import parse_seconds
from adabatch_jax.system.stop_requests import Interruption, exit_on_signals

if TYPE_CHECKING:
    from adabatch_jax.runs.fit import FitResult
    from adabatch_jax.runs.folder.finished_run import Finished
    from adabatch_jax.system.mirrored_folder import WorkFolder

PROG = "python -m adabatch_jax.train"


@dataclasses.dataclass(frozen=True)
class Options(RecipeFlags):
    """The flags that are no settings of the run: where it is, and how it is operated."""

    config: str | None = flag(
        None, "Python file that defines `config = TrainConfig(...)`, or a run's config.json."
    )
    workdir: str | None = flag(
        None,
        "Folder of the run, or gs://bucket/folder; none: runs/<name>-<digest of the settings>.",
    )
    max_time: str | None = flag(
        None,
        "How long this process may take, such as 3h50m: it stops and saves before, with exit code "
        "143; the same command goes on.",
        read=parse_seconds,
    )
    stall_timeout: str | None = as_in(Operation, "stall_timeout")
    on_save_error: str = as_in(Operation, "on_save_error")
    allow_change: tuple[str, ...] = flag(
        (),
        "Settings that a run may go on with changed, such as lr batch_schedule; dataset: with other "
        "contents of its examples; rows: without rows of metrics that were lost.",
    )
    lock_wait: str = flag(
        "2s",
        "How long to wait for another process that is training in the folder.",
        read=parse_seconds,
    )
    take_over: bool = flag(
        False,
        "Train in a folder whose lock can't be had: of a machine that is gone, or on a disk that "
        "knows no locks. No other process may be at work there.",
    )
    stop_at_phase: int | Next | None = as_in(Operation, "stop_at_phase")
    profile: str | None = as_in(Operation, "profile")
    track: tuple[str, ...] = flag(
        ("tensorboard",),
        "Where to show the run beside its folder: tensorboard, wandb (Weights & Biases), both, or "
        "with nothing behind it nowhere.",
        choices=TRACKERS,
    )
    cpu_devices: int | None = flag(
        None, "Without an accelerator: how many devices to make of the CPU, best one per core."
    )

    coordinator: str | None = flag(
        None,
        "Of several processes: HOST:PORT of process 0, whose port must be free; none: what started "
        "them says it (SLURM, Open MPI, torchrun, SkyPilot, Cloud TPU).",
    )
    num_processes: int | None = flag(
        None, "How many processes train together; 1 trains alone, whatever started this.",
        at_least=1,
    )  # fmt: skip
    process_id: int | None = flag(None, "Which of them this one is, counted from 0.", at_least=0)
    start_timeout: str = flag(
        "2m", "How long to wait at the start until all processes are there.", read=parse_seconds
    )
    heartbeat_timeout: str = flag(
        "30s",
        "After how long without a sign of life a process counts as dead, which ends the others.",
        read=parse_seconds,
    )
    local_processes: int | None = flag(
        None,
        "Start so many processes on this machine, with a share of its GPUs each, or of "
        "--cpu-devices as many each, and end all when one fails.",
        at_least=1,
    )


def parser() -> command_lines.Parser:
    """The command's flags."""
    return flags_parser(PROG, __doc__, Options(), TrainConfig())


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, or goes on with an interrupted run; returns the exit code."""
    started = time.monotonic()
    return command_lines.run(lambda: _train(argv, started))


def _train(argv: Sequence[str] | None, started: float) -> int:
    from adabatch_jax.runs.folder.opened_folder import opened
    from adabatch_jax.runs.folder.workdir_choice import default_workdir

    options, config = parse_arguments(Options, argv, PROG, __doc__)
    given = as_given(sys.argv[1:] if argv is None else argv)
    if options.local_processes is not None:
        _check_own_place(options)
        return run_locally("adabatch_jax.train", given, options.local_processes)
    end_with_parent()
    with opened(options.workdir or default_workdir(config)) as workdir:
        return _train_in(workdir, config, options, given, started)


def _check_own_place(options: Options) -> None:
    """Raises a UsageError where a process that starts others is said to be one itself."""
    for name in ("coordinator", "num_processes", "process_id"):
        if getattr(options, name) is not None:
            raise UsageError(
                f"--{name.replace('_', '-')}: --local-processes {options.local_processes} says all "
                "of it, on this machine alone; give one of the two."
            )


def _train_in(
    workdir: "WorkFolder",
    config: TrainConfig,
    options: Options,
    given: Sequence[str],
    started: float,
) -> int:
    from adabatch_jax.runs.folder.folder_reading import STOPPED_AT_PHASE

    lock_wait = parse_seconds(options.lock_wait)
    max_seconds = None if options.max_time is None else parse_seconds(options.max_time)
    with contextlib.ExitStack() as stack:
        interruption = stack.enter_context(Interruption(max_seconds, started))
        from adabatch_jax.cluster.agreement import from_first
        from adabatch_jax.cluster.ending_together import ending_together
        from adabatch_jax.cluster.start_up import initialize

        processes = initialize(
            options.coordinator,
            options.num_processes,
            options.process_id,
            parse_seconds(options.start_timeout),
            parse_seconds(options.heartbeat_timeout),
        )
        stack.enter_context(ending_together(processes))
        if from_first(processes, "finished run", lambda: _was_finished(config, workdir, options)):
            processes.leave()
            return 0

        from adabatch_jax.data.mesh import check_backend
        from adabatch_jax.report import write_report
        from adabatch_jax.runs.configured_run import train
        from adabatch_jax.runs.kept_numerics import keep_threads
        from adabatch_jax.training import compilation_cache
        from adabatch_jax.training.numerics import settle_for_commands

        for note in (keep_threads(workdir.path, options.cpu_devices), *settle_for_commands()):
            if note is not None and not processes.index:
                print(note)
        check_backend(options.cpu_devices)
        compilation_cache.enable()
        operation = Operation(
            interruption=interruption,
            on_save_error=options.on_save_error,
            stall_timeout=options.stall_timeout,
            stop_at_phase=options.stop_at_phase,
            profile=options.profile,
            trackers=options.track,
        )
        result = train(
            config, workdir, operation, options.allow_change, write_report, lock_wait,
            options.take_over, processes,
        )  # fmt: skip
        processes.leave()
        code = _exit_code(result, interruption, started)
        if processes.index:
            return code
        if STOPPED_AT_PHASE in result.summary:
            _tell_phase_stop(result, workdir)
        elif result.stopped:
            command = command_lines.command_text([*PROG.split(), *given])
            step = result.summary["step"]
            is_saved = printable(f"everything is saved in {workdir}, and ") if step else ""
            print(
                f"stopped by {interruption.name} after update {step:,}; {is_saved}the same "
                f"command goes on: {command}"
            )
        if result.stopped:
            return code
    where = f"report {workdir}/report.html; run folder {workdir}"
    print(printable(f"done: {_result(result.summary)}; {where}"))
    return 0


def _exit_code(result: "FitResult", interruption: Interruption, started: float) -> int:
    """The exit code of each process, the same for all of them.

    Raises:
      UsageError: its time was over before anything was done: the same command would do nothing.
    """
    from adabatch_jax.runs.folder.folder_reading import STOPPED_AT_PHASE

    if not result.stopped or STOPPED_AT_PHASE in result.summary:
        return 0
    if interruption.is_time_up and result.summary["step"] == result.start_step:
        raise UsageError(
            "--max-time: the time was over before an update was done, starting "
            f"took {time.monotonic() - started:.0f} s; give more time."
        )
    return interruption.exit_code


def _tell_phase_stop(result: "FitResult", workdir: "WorkFolder") -> None:
    """Says that a run stands before the phase that it was asked to stop at."""
    from adabatch_jax.runs.folder.folder_reading import STOPPED_AT_PHASE

    summary = result.summary
    done = "already, nothing was trained" if summary["step"] == result.start_step else "as asked"
    print(
        printable(
            f"stopped before phase {summary[STOPPED_AT_PHASE]}, after update {summary['step']:,}, "
            f"{done}; everything is saved in {workdir}, and the same command goes on with another "
            "--stop-at-phase, with --stop-at-phase next, or without it"
        )
    )


def _was_finished(config: TrainConfig, workdir: "WorkFolder", options: Options) -> bool:
    """Whether there is nothing to train, which is told then."""
    from adabatch_jax.runs.checkpoints.verifying import committed_steps
    from adabatch_jax.runs.folder.finished_run import find_finished
    from adabatch_jax.runs.folder.folder_reading import CHECKPOINTS

    finished = find_finished(workdir.path, config.digest)
    if finished.summary is None or not (
        finished.is_whole or not committed_steps(workdir / CHECKPOINTS)
    ):
        return False
    _tell_finished(config, workdir, finished, options)
    return True


def _tell_finished(
    config: TrainConfig, workdir: "WorkFolder", finished: "Finished", options: Options
) -> None:
    """Leaves a finished run alone, but for its report; raises an error if its data are others."""
    from adabatch_jax.runs.configured_data import check_prepared_data

    check_prepared_data(config, finished.run, workdir.path, options.allow_change)
    if finished.is_whole:
        _report_again(workdir, parse_seconds(options.lock_wait), options.take_over)
    else:
        print(
            printable(
                f"warning: not as the finished run left it: {', '.join(finished.changed)}; "
                f"without its checkpoints nothing in {workdir} can be written anew"
            )
        )
    print(printable(f"finished already: {_result(finished.summary)}; run folder {workdir}"))


def _report_again(workdir: "WorkFolder", lock_wait: float, take_over: bool) -> None:
    """Writes a finished run's report, where it is missing or was changed."""
    from adabatch_jax.reporting.saved_run import is_reported

    if not is_reported(workdir.path):
        from adabatch_jax.report import write_report
        from adabatch_jax.runs.folder.folder_reading import check_no_obstacles
        from adabatch_jax.runs.folder.opened_folder import locked_folder

        if (workdir / "report.html").exists():  # else killed before it was written
            print("note: report.html isn't what the finished run left there, and is written anew")
        with locked_folder(workdir, "--workdir", lock_wait, take_over):
            check_no_obstacles(workdir.path)
            write_report(workdir.path)
            workdir.push()


def _result(summary: Mapping) -> str:
    from adabatch_jax.runs.display.status import result_text

    text = f"{summary['step']:,} updates, {summary['total_seconds']:.0f} s"
    if result := result_text(summary):
        text = f"{result}, {text}"
    if "stopped_by" in summary:
        text += ", ended by {rule} at update {step:,}".format(**summary["stopped_by"])
    return text


if __name__ == "__main__":
    exit_on_signals()
    code = main()
    sys.stdout.flush()
    if code:
        # After an error Orbax's threads may still complain about the one that was reported.
        os._exit(code)
