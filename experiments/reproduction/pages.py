"""A study's pages: one document as Markdown and HTML, its figures as PNG and JSON."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from adabatch_jax.config import TrainConfig
from adabatch_jax.reporting.plot_elements import png
from adabatch_jax.system.files import write_atomically
from experiments.reproduction import figures, provenance, tables
from experiments.reproduction.comparisons import method, sentence
from experiments.reproduction.document import (
    Code,
    Heading,
    Items,
    Paragraph,
    Part,
    Picture,
    to_html,
    to_markdown,
)
from experiments.reproduction.numbers import study_numbers
from experiments.reproduction.results import (
    DIVERGED,
    FINISHED,
    REFERENCE,
    UNFINISHED,
    ExperimentResult,
    StudyResult,
    load_study,
)
from experiments.sections import SECTIONS, load_arms


def write_pages(out: Path) -> list[Path]:
    """Writes results.md, results.html, results.json and the figures as PNG into a study's folder.

    Works on an unfinished study too, and says there that it is one.

    Returns:
      The files.

    Raises:
      UsageError: there is no study, or its runs have other settings than it says.
      StorageError: a file is damaged, or can't be written.
    """
    out = Path(out)
    study = load_study(out)
    parts = document(study)
    contents = {
        "results.md": to_markdown(study.title, parts),
        "results.html": to_html(study.title, parts),
        "results.json": json.dumps(study_numbers(study), indent=1, allow_nan=False) + "\n",
    }
    for name, content in contents.items():
        write_atomically(out / name, content.encode("utf-8", "backslashreplace"))
    pictures = [part for part in parts if isinstance(part, Picture)]
    for picture in pictures:
        write_atomically(out / f"{picture.name}.png", png(picture.figure))
    return [out / name for name in (*contents, *(f"{p.name}.png" for p in pictures))]


def document(study: StudyResult) -> list[Part]:
    """The page, part by part."""
    parts: list[Part] = [*_summary(study)]
    for experiment in study.experiments:
        parts += _experiment(study, experiment)
    return [*parts, *_findings(study), *_provenance(study)]


def _summary(study: StudyResult) -> Iterable[Part]:
    several = len(study.experiments) > 1
    for experiment in study.experiments:
        prefix = f"{_network(experiment)}: " if several else ""
        for text in _sentences(study, experiment):
            yield Paragraph(prefix + text, "lead")
    states = Counter(run.state for run in study.runs)
    if states[UNFINISHED]:
        yield Paragraph(
            f"This study is unfinished: {states[FINISHED]} of {len(study.runs)} runs are finished, "
            f"{states[DIVERGED]} diverged, {states[UNFINISHED]} are still to come or on their way."
        )
    num_machines = len(provenance.machines(study))
    if num_machines > 1:
        yield Paragraph(
            f"The runs were made in {num_machines} different environments, told at the end of the "
            "page: their times can't be compared across them."
        )
    if study.notes:
        yield Items(study.notes)
    if several:
        yield Heading(2, "Summary")
        yield tables.summary_table(study)
        yield Paragraph(_difference_note(study), "note")


def _sentences(study: StudyResult, experiment: ExperimentResult) -> list[str]:
    if experiment.reference is None:
        return [f"This study has no arm {REFERENCE} to compare with."]
    compared = tables.comparisons(experiment, study.margin)
    return [sentence(comparison) for comparison in compared if method(comparison.arm) is not None]


def _experiment(study: StudyResult, experiment: ExperimentResult) -> Iterable[Part]:
    epochs = experiment.arms[0].config.epochs
    yield Heading(2, f"{_network(experiment)}, {epochs:g} epochs")
    yield tables.main_table(experiment)
    yield Paragraph(
        f"Final test {experiment.outcome.name}: mean ± standard deviation over n seeds, with Student's interval of the "
        "mean. Training: seconds in updates and their input, without compilation, evaluation and "
        f"checkpoints. Speed-up: seconds of {REFERENCE} divided by the arm's, seed by seed.",
        "note",
    )
    failures = tuple(
        f"{arm.name}, seed {run.seed}, diverged: {run.message}"
        for arm in experiment.arms
        for run in arm.diverged
    )
    if failures:
        yield Items(failures)
    yield from _pictures(experiment)
    if experiment.reference is not None:
        yield Heading(3, f"Differences from {REFERENCE}")
        yield tables.difference_table(experiment, study.margin)
        yield Paragraph(_difference_note(study), "note")
    yield from _best_epoch(study, experiment)
    yield from _times(experiment)
    yield from _tuning(experiment)
    yield from _settings(study, experiment)


def _pictures(experiment: ExperimentResult) -> Iterable[Part]:
    length = "epochs" if experiment.sequence_length is None else "tokens"
    yield Picture(
        figures.outcome_curves(experiment),
        f"{experiment.name}_test_{experiment.outcome.name.replace(' ', '_')}",
        f"Test {experiment.outcome.name} against {length}, updates and seconds",
        "Lines are means over the seeds, with a band from the lowest to the highest. A thin "
        "line is a run that did not finish; a cross is where it diverged.",
    )
    yield Picture(
        figures.speedup_bars(experiment),
        f"{experiment.name}_speedup",
        f"Speed-up and final test {experiment.outcome.name} of each arm",
        f"Training speed relative to {REFERENCE}, and final test {experiment.outcome.name}: mean and 95 % interval; "
        "small dots are seeds.",
    )
    yield Picture(
        figures.schedules(experiment),
        f"{experiment.name}_schedules",
        "Learning rate and batch size against epochs",
        "Learning rate and batch size of the first update that begins in each epoch, or of short "
        "runs hundredth, as the settings say.",
    )


def _difference_note(study: StudyResult) -> str:
    outcome = study.outcome
    points = ", in percentage points" if outcome.unit else ""
    return (
        f"Test {outcome.name} minus that of {REFERENCE}{points}, by Welch's method. "
        f"Equivalent within {outcome.difference_text(study.margin)}: two one-sided tests (TOST) at "
        "5 %, which is to say that the 90 % interval lies inside the margin. Different: the 95 % "
        "interval excludes zero. Not shown: neither."
    )


def _best_epoch(study: StudyResult, experiment: ExperimentResult) -> Iterable[Part]:
    table = tables.best_epoch_table(experiment)
    if table is not None:
        yield Heading(3, "Best epoch")
        yield table
        yield Paragraph(
            f"Of each run the evaluation with the lowest {study.outcome.name} on "
            f"{study.holdout_percent:g} % of the training set, which was held out. The test set has "
            "no say in the choice.",
            "note",
        )


def _times(experiment: ExperimentResult) -> Iterable[Part]:
    found = [
        (
            tables.passes_table(experiment),
            "Forward and backward passes of a whole run, measured apart; speed-up in brackets.",
        ),
        (
            tables.epoch_time_table(experiment),
            f"Training seconds per epoch at each batch size; speed-up over {REFERENCE}.",
        ),
        (
            tables.time_table(experiment),
            (
                "Seconds of whole runs, compilation included, and the speed-up in all. The runs of "
                "a study share their compiled programs: the first that needs one compiles it."
            ),
        ),
    ]
    if any(table is not None for table, _ in found):
        yield Heading(3, "Time")
    for table, caption in found:
        if table is not None:
            yield table
            yield Paragraph(caption, "note")


def _tuning(experiment: ExperimentResult) -> Iterable[Part]:
    table = tables.tuning_table(experiment)
    if table is not None:
        yield Heading(3, "Tuned learning rates")
        yield table
        yield Paragraph(
            f"Holdout {experiment.outcome.heading} with the arm's learning rate multiplied by each "
            "of the candidates; the lowest was chosen, before and apart from the runs above, with "
            "a seed of its own.",
            "note",
        )


def _settings(study: StudyResult, experiment: ExperimentResult) -> Iterable[Part]:
    yield Heading(3, "Settings")
    yield provenance.differing_settings(experiment.arms)
    yield Paragraph(provenance.common_settings(experiment.arms), "note")
    yield Code(
        tuple(
            provenance.train_command(
                experiment.name,
                arm.name,
                arm.config,
                study.seeds[0],
                _written(experiment.name, arm.name, arm.config),
            )
            for arm in experiment.arms
        )
    )


def _findings(study: StudyResult) -> Iterable[Part]:
    section = SECTIONS.get(study.section)
    if section is not None and section.findings:
        yield Heading(2, "What is ours, and what others found")
        yield Items(section.findings)


def _provenance(study: StudyResult) -> Iterable[Part]:
    yield Heading(2, "Where these figures come from")
    yield Code((study.command,))
    seeds = ", ".join(map(str, study.seeds))
    yield Paragraph(f"Dataset {study.dataset}; seeds {seeds}; the commands of the arms are above.")
    made = provenance.machines(study)
    if len(made) == 1:
        machine = next(iter(made))
        yield Items((machine.hardware, machine.software))
    elif made:
        yield Items(
            tuple(
                f"{machine.hardware}; {machine.software}. Runs: {', '.join(runs)}."
                for machine, runs in made.items()
            )
        )


def _network(experiment: ExperimentResult) -> str:
    config = experiment.arms[0].config
    return f"{config.model} on {config.dataset}"


def _written(experiment: str, arm: str, config: TrainConfig) -> TrainConfig:
    """The arm as its module has it; the study's own where there is no such module any more."""
    # What stands in the study's file must not get any module imported.
    if not any(experiment in section.experiments.values() for section in SECTIONS.values()):
        return config
    return load_arms(experiment).get(arm, config)
