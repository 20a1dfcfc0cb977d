"""`python -m adabatch_jax.train`: trains a network while its batch grows.

With nothing at all it trains the embedded default, a small CNN on handwritten digits.
"""

import os
import shlex
import sys
import time
from collections.abc import Sequence

from adabatch_jax.config.train_options import TrainOptions
from adabatch_jax.system import command_lines
from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.interruption import Interruption, exit_on_signals

PROG = "python -m adabatch_jax.train"


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, or goes on with an interrupted run; returns the exit code."""
    started = time.monotonic()
    return command_lines.run(lambda: _train(argv, started))


def _train(argv: Sequence[str] | None, started: float) -> int:
    from pathlib import Path

    from adabatch_jax.config.flags import parse_arguments
    from adabatch_jax.runs.folder.contents import finished_summary
    from adabatch_jax.runs.folder.workdir import default_workdir

    try:
        options, config = parse_arguments(TrainOptions, argv, PROG, __doc__)
    except SystemExit as stop:  # --help was printed
        return int(stop.code or 0)
    workdir = Path(options.workdir) if options.workdir else default_workdir(config)
    summary = finished_summary(workdir, config.digest)
    if summary is not None:
        is_reported = (workdir / "report.html").exists()
        if not is_reported and (workdir / "metrics.jsonl").exists():  # killed in between
            from adabatch_jax.report import write_report
            from adabatch_jax.runs.folder.lock import locked

            with locked(workdir, "--workdir", options.lock_seconds, options.take_over):
                write_report(workdir)
        print(f"finished already: {_result(summary)}; run folder {workdir}")
        return 0

    # Orbax and others read this when they are imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with Interruption(options.max_seconds, started) as interruption:
        from adabatch_jax.data.mesh import check_backend
        from adabatch_jax.report import write_report
        from adabatch_jax.runs.configured_run import Operation, train
        from adabatch_jax.training import compilation_cache

        check_backend(options.cpu_devices)
        compilation_cache.enable()
        operation = Operation(
            interruption=interruption,
            on_save_error=options.on_save_error,
            stall_timeout=options.stall_seconds,
            allow_change=options.allow_change,
            lock_seconds=options.lock_seconds,
            take_over=options.take_over,
            profile=options.profile,
        )
        result = train(config, workdir, operation=operation, on_done=write_report)
        if result.stopped:
            command = shlex.join([*PROG.split(), *(sys.argv[1:] if argv is None else argv)])
            step = result.summary["step"]
            if interruption.is_time_up and step == result.start_step:
                raise UsageError(
                    f"--max-time: {options.max_time} were over before an update was done, starting "
                    f"took {time.monotonic() - started:.0f} s; give more time."
                )
            is_saved = f"everything is saved in {workdir}, and " if step else ""
            print(
                f"stopped by {interruption.name} after update {step:,}; {is_saved}the same "
                f"command goes on: {command}"
            )
            return interruption.exit_code
    report = workdir / "report.html"
    print(f"done: {_result(result.summary)}; report {report}; run folder {workdir}")
    return 0


def _result(summary: dict) -> str:
    parts = []
    if "test_accuracy" in summary:
        parts.append(f"test accuracy {100 * summary['test_accuracy']:.2f} %")
    parts.append(f"{summary['step']:,} updates")
    parts.append(f"{summary['total_seconds']:.0f} s")
    return ", ".join(parts)


if __name__ == "__main__":
    exit_on_signals()
    code = main()
    sys.stdout.flush()
    if code:
        # After an error Orbax's threads may still complain about the one that was reported.
        os._exit(code)
