"""`python -m adabatch_jax.train`: trains a network while its batch grows.

With nothing at all it trains the embedded default, a small CNN on handwritten digits.
"""

import os
import shlex
import signal
import sys
from collections.abc import Sequence

from adabatch_jax import commands
from adabatch_jax.interruption import Interruption

PROG = "python -m adabatch_jax.train"


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, or goes on with an interrupted run; returns the exit code."""
    with Interruption() as interruption:
        return commands.run(lambda: _train(argv, interruption))


def _train(argv: Sequence[str] | None, interruption: Interruption) -> int:
    import dataclasses
    from pathlib import Path

    from adabatch_jax.arguments import parse_arguments
    from adabatch_jax.workdir import default_workdir, finished_summary

    @dataclasses.dataclass(frozen=True)
    class Options:
        config: str | None = None
        """Python file that defines `config = TrainConfig(...)`, or a run's config.json."""

        workdir: str | None = None
        """Folder of the run; none: runs/<name>-<digest of the settings>."""

        profile: str | None = None
        """Updates to trace with JAX's profiler, such as 10:20; the trace goes into the run's
        folder."""

        cpu_devices: int | None = None
        """Without an accelerator: how many devices to make of the CPU, best one per core."""

    try:
        options, config = parse_arguments(Options, argv, PROG, __doc__)
    except SystemExit as stop:  # --help was printed
        return int(stop.code or 0)
    workdir = Path(options.workdir) if options.workdir else default_workdir(config)
    summary = finished_summary(config, workdir)
    if summary is not None:
        if not (workdir / "report.html").exists():  # killed in between
            from adabatch_jax.report import write_report

            write_report(workdir)
        print(f"finished already: {_result(summary)}; run folder {workdir}")
        return 0

    # Orbax and others read this when they are imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from adabatch_jax import compilation_cache
    from adabatch_jax.run import train
    from adabatch_jax.training.mesh import check_backend

    check_backend(options.cpu_devices)
    compilation_cache.enable()
    interruption.defer()
    result = train(
        config, workdir, on_step=lambda *_: interruption.happened, profile=options.profile
    )
    if result.stopped:
        command = shlex.join([*PROG.split(), *(sys.argv[1:] if argv is None else argv)])
        print(
            f"stopped by {interruption.name} after update {result.summary['step']:,}; everything "
            f"is saved in {workdir}, and the same command goes on: {command}"
        )
        return interruption.exit_code
    from adabatch_jax.report import write_report

    report = write_report(workdir)
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
    # Until the loop can save, a signal has nothing to wait for; and an exception raised inside
    # the imports of compiled modules can abort the process.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda signum, _: os._exit(128 + signum))
    code = main()
    sys.stdout.flush()
    if code:
        # After an error Orbax's threads may still complain about the one that was reported.
        os._exit(code)
