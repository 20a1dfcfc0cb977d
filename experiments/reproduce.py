"""`python -m experiments.reproduce SECTION`: runs a section of the paper and reports on it.

All arms over several seeds, then pages with errors, times and an equivalence test. The same
command goes on where it was stopped.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adabatch_jax.config.command_line import flag_of, parse_flags
from adabatch_jax.config.declarations import check, flag
from adabatch_jax.system import command_lines
from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.stop_requests import Interruption, exit_on_signals

if TYPE_CHECKING:
    from experiments.reproduction.studies import Study

PROG = "python -m experiments.reproduce"


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says besides the section."""

    seeds: int = flag(5, "Runs of each arm: with the seeds 0, 1, ...")
    dataset: str | None = flag(None, "Dataset to train on in place of the section's own.")
    networks: tuple[str, ...] = flag((), "Networks of the section to run; none: all.")
    arms: tuple[str, ...] = flag((), "Arms to run; none: all.")
    holdout_percent: int | None = flag(
        None,
        "Part of the training set that isn't trained on, for choosing the best epoch and tuning; "
        "0: train on everything, as the paper did; none: the section's own, 10 of images.",
    )
    margin: float | None = flag(
        None,
        "Outcomes that differ by less count as equivalent; none: 1 point of test error, 0.01 bits "
        "per byte.",
        above=0,
    )
    epochs: float | None = flag(
        None,
        "Length of each run; the schedules are stretched or shortened with it. None: the paper's.",
    )
    microbatch_size: int | None = flag(
        None, "Examples that are computed at a time; none: the section's own."
    )
    compute_dtype: str | None = flag(
        None, "Type to compute in, float32 or bfloat16; none: the section's own."
    )
    data_dir: str | None = flag(
        None, "Folder of the prepared datasets; none: the user's cache folder."
    )
    tune_lr: bool = flag(
        False, "Search for each arm's learning rate first, by the error on the held-out part."
    )
    lr_scales: tuple[float, ...] = flag(
        (0.5, 1.0, 2.0), "What the search multiplies the learning rate by."
    )
    measure_passes: bool = flag(
        False, "Time forward and backward passes apart, when all runs are done."
    )
    only_report: bool = flag(False, "Write the pages anew from what is there, and run nothing.")
    out: str | None = flag(
        None, "Folder of the study; none: reproductions/SECTION, or SECTION-DATASET."
    )

    def __post_init__(self):
        check(self, flag_of)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a study, or goes on with one; returns the exit code."""
    with Interruption() as interruption:
        return command_lines.run(lambda: _reproduce(argv, interruption))


def _reproduce(argv: Sequence[str] | None, interruption: Interruption) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    options, section = _parse(argv)
    from experiments.reproduction.studies import check_section, load_study

    check_section(section)
    dataset = "" if options.dataset is None else f"-{options.dataset.replace('/', '_')}"
    out = Path(options.out or f"reproductions/{section}{dataset}")
    if options.only_report:
        study = load_study(out)
        if study is None:
            raise UsageError(f"--only-report: there is no study in {str(out)!r}; run it first.")
        if study.section != section:
            raise UsageError(
                f"--only-report: the study in {str(out)!r} is of the section {study.section!r}, "
                f"not {section!r}."
            )
        return _report(out)
    from adabatch_jax.runs.folder.lock import locked
    from experiments.reproduction.jobs import study_jobs
    from experiments.reproduction.resuming import check_out
    from experiments.sections import SECTIONS

    command = command_lines.command_text([*PROG.split(), *argv])
    study = _study(section, options, command)
    try:
        study_jobs(study, out)  # refuses data and plans that can't work before anything is written
    except UsageError as error:
        data_from = SECTIONS[section].data_from
        if options.dataset is not None or not data_from or not str(error).startswith("dataset:"):
            raise
        raise UsageError(f"{str(error).rstrip('.')}; {data_from}.") from None
    check_out(out)
    with locked(out, flag="--out"):
        if not _run(study, out, options, interruption):
            print(
                f"stopped by {interruption.name}; everything is saved in {out}, and the same "
                f"command goes on: {command}"
            )
            return interruption.exit_code
        return _report(out)


def _parse(argv: Sequence[str]) -> tuple[Options, str]:
    from experiments.sections import SECTIONS

    described = "\n".join(f"  {name}: {section.title}" for name, section in SECTIONS.items())
    description = f"{__doc__}\nSections:\n{described}"
    return parse_flags(argv, PROG, description, Options(), positional="SECTION")


def _study(section: str, options: Options, command: str) -> "Study":
    from experiments.reproduction.studies import make_study
    from experiments.reproduction.tuning import check_search

    overrides = {
        name: getattr(options, name)
        for name in ("microbatch_size", "compute_dtype")
        if getattr(options, name) is not None
    }
    study = make_study(
        section,
        num_seeds=options.seeds,
        dataset=options.dataset,
        data_dir=options.data_dir,
        networks=options.networks,
        arms=options.arms,
        holdout_percent=options.holdout_percent,
        margin=options.margin,
        epochs=options.epochs,
        overrides=overrides,
        command=command,
    )
    if options.tune_lr:
        check_search(options.lr_scales, study.holdout_percent)
    return study


def _run(study: "Study", out: Path, options: Options, interruption: Interruption) -> bool:
    """Runs what is left; returns whether it came to the end."""
    from experiments.reproduction.resuming import resumed
    from experiments.reproduction.studies import load_study

    lr_scales = options.lr_scales if options.tune_lr else ()
    saved = load_study(out)
    if saved is not None:
        study = resumed(saved, study, out, lr_scales)
    from experiments.reproduction.running import Stopped, run_study

    interruption.defer()
    try:
        run_study(study, out, lr_scales, options.measure_passes, interruption)
    except Stopped:
        return False
    return True


def _report(out: Path) -> int:
    """Writes the pages; prints where they are, and what came out."""
    from experiments.reproduction.pages import write_pages

    pages = write_pages(out)
    print(f"pages: {', '.join(str(page) for page in pages if page.suffix != '.png')}")
    experiments = json.loads((out / "results.json").read_text())["experiments"]
    for name, figures in experiments.items():
        for sentence in figures["sentences"]:
            print(f"{name}: {sentence}" if len(experiments) > 1 else sentence)
    return 0


if __name__ == "__main__":
    exit_on_signals()
    code = main()
    sys.stdout.flush()
    if code:
        # After an error Orbax's threads may still complain about the one that was reported.
        os._exit(code)
