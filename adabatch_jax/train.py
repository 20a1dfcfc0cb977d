"""`python -m adabatch_jax.train`: trains a network while its batch grows.

With nothing at all it trains the embedded default, a small CNN on handwritten digits.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from adabatch_jax.config.command_line import flags_parser, parse_arguments
from adabatch_jax.config.declarations import as_in, flag
from adabatch_jax.config.recipe_flags import RecipeFlags
from adabatch_jax.config.settings import TRACKERS, Operation, TrainConfig
from adabatch_jax.system import command_lines
from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.number_texts import printable
from adabatch_jax.system.quantities import parse_seconds
from adabatch_jax.system.stop_requests import Interruption, exit_on_signals

if TYPE_CHECKING:
    from pathlib import Path

    from adabatch_jax.runs.folder.finished_run import Finished

PROG = "python -m adabatch_jax.train"


@dataclasses.dataclass(frozen=True)
class Options(RecipeFlags):
    """The flags that are no settings of the run: where it is, and how it is operated."""

    config: str | None = flag(
        None, "Python file that defines `config = TrainConfig(...)`, or a run's config.json."
    )
    workdir: str | None = flag(
        None, "Folder of the run; none: runs/<name>-<digest of the settings>."
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


def parser() -> command_lines.Parser:
    """The command's flags."""
    return flags_parser(PROG, __doc__, Options(), TrainConfig())


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, or goes on with an interrupted run; returns the exit code."""
    started = time.monotonic()
    return command_lines.run(lambda: _train(argv, started))


def _train(argv: Sequence[str] | None, started: float) -> int:
    from pathlib import Path

    from adabatch_jax.runs.checkpoints.verifying import committed_steps
    from adabatch_jax.runs.folder.finished_run import find_finished
    from adabatch_jax.runs.folder.folder_reading import CHECKPOINTS
    from adabatch_jax.runs.folder.workdir_choice import default_workdir

    options, config = parse_arguments(Options, argv, PROG, __doc__)
    workdir = Path(options.workdir) if options.workdir else default_workdir(config)
    lock_wait = parse_seconds(options.lock_wait)
    finished = find_finished(workdir, config.digest)
    if finished.summary is not None and (
        finished.is_whole or not committed_steps(workdir / CHECKPOINTS)
    ):
        _tell_finished(config, workdir, finished, options)
        return 0

    max_seconds = None if options.max_time is None else parse_seconds(options.max_time)
    with Interruption(max_seconds, started) as interruption:
        from adabatch_jax.data.mesh import check_backend
        from adabatch_jax.report import write_report
        from adabatch_jax.runs.configured_run import train
        from adabatch_jax.runs.kept_numerics import keep_threads
        from adabatch_jax.training import compilation_cache
        from adabatch_jax.training.numerics import settle_for_commands

        for note in (keep_threads(workdir, options.cpu_devices), *settle_for_commands()):
            if note is not None:
                print(note)
        check_backend(options.cpu_devices)
        compilation_cache.enable()
        operation = Operation(
            interruption=interruption,
            on_save_error=options.on_save_error,
            stall_timeout=options.stall_timeout,
            profile=options.profile,
            trackers=options.track,
        )
        result = train(
            config, workdir, operation, options.allow_change, write_report, lock_wait,
            options.take_over,
        )  # fmt: skip
        if result.stopped:
            command = command_lines.command_text(
                [*PROG.split(), *(sys.argv[1:] if argv is None else argv)]
            )
            step = result.summary["step"]
            if interruption.is_time_up and step == result.start_step:
                raise UsageError(
                    f"--max-time: {options.max_time} were over before an update was done, starting "
                    f"took {time.monotonic() - started:.0f} s; give more time."
                )
            is_saved = printable(f"everything is saved in {workdir}, and ") if step else ""
            print(
                f"stopped by {interruption.name} after update {step:,}; {is_saved}the same "
                f"command goes on: {command}"
            )
            return interruption.exit_code
    where = f"report {workdir / 'report.html'}; run folder {workdir}"
    print(printable(f"done: {_result(result.summary)}; {where}"))
    return 0


def _tell_finished(
    config: TrainConfig, workdir: "Path", finished: "Finished", options: Options
) -> None:
    """Leaves a finished run alone, but for its report; raises an error if its data are others."""
    from adabatch_jax.runs.configured_data import check_prepared_data

    check_prepared_data(config, finished.run, workdir, options.allow_change)
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


def _report_again(workdir: "Path", lock_wait: float, take_over: bool) -> None:
    """Writes a finished run's report, where it is missing or was changed."""
    from adabatch_jax.reporting.saved_run import is_reported

    if not is_reported(workdir):
        from adabatch_jax.report import write_report
        from adabatch_jax.runs.folder.folder_reading import check_no_obstacles
        from adabatch_jax.runs.folder.lock import locked

        if (workdir / "report.html").exists():  # else killed before it was written
            print("note: report.html isn't what the finished run left there, and is written anew")
        with locked(workdir, "--workdir", lock_wait, take_over):
            check_no_obstacles(workdir)
            write_report(workdir)


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
