"""Runs what a study consists of, in one process; what is finished already is left alone."""

from collections.abc import Sequence
from pathlib import Path

import jax

from adabatch_jax.config.settings import Operation
from adabatch_jax.runs.configured_run import train
from adabatch_jax.system.errors import DivergedError
from adabatch_jax.system.stop_requests import Interruption
from adabatch_jax.training import compilation_cache
from adabatch_jax.training.numerics import settle_for_commands
from experiments.reproduction.display import StudyDisplay, make_display
from experiments.reproduction.jobs import Job, study_jobs
from experiments.reproduction.passes import Cache, measure_passes
from experiments.reproduction.studies import Study, save_study
from experiments.reproduction.tuning import edge_note, search_jobs, tuned


class Stopped(Exception):
    """The study was asked to stop, and has saved everything."""


def run_study(
    study: Study,
    out: Path,
    lr_scales: Sequence[float] = (),
    with_passes: bool = False,
    interruption: Interruption | None = None,
) -> Study:
    """Runs what is left to run of a study, and returns it with what was found on the way.

    A run that diverges is a result; the others go on.

    Args:
      study: what to run; what was found before is kept.
      out: the study's folder.
      lr_scales: factors of the learning rate to search over before anything else; none: no
        search.
      with_passes: whether to measure forward and backward passes at the end.
      interruption: stops the study as it stops a run.

    Raises:
      Stopped: it was interrupted.
      UsageError: a run can't work as configured; nothing has been run if its data or its plan
        are to blame.
      StorageError: the disk is full, or a file is damaged.
    """
    searches = search_jobs(study, lr_scales, out) if lr_scales else []
    jobs = study_jobs(study, out)
    display = make_display([*(job for search in searches for job in search), *jobs])
    save_study(out, study)
    display.say(_introduction(study, jobs, out))
    for note in settle_for_commands():
        display.say(note)
    compilation_cache.enable(out / "compiled")
    display.start()
    try:
        for search in searches:
            for job in search:
                _run(job, display, interruption)
            study = tuned(study, search, lr_scales)
            save_study(out, study)
        if (note := edge_note(study)) is not None:
            display.say(note)
        for job in study_jobs(study, out):
            _run(job, display, interruption)
        if with_passes:
            study = _with_passes(study, out, display, interruption)
    finally:
        display.stop()
    return study


def _run(job: Job, display: StudyDisplay, interruption: Interruption | None) -> None:
    if job.is_over:
        return
    if interruption is not None and interruption.requested:
        raise Stopped
    display.begin(job)
    operation = Operation(interruption=interruption, progress=display)
    try:
        result = train(job.config, job.folder, operation)
    except DivergedError as error:
        job.fail(str(error))
    else:
        if result.stopped:
            display.leave()
            raise Stopped
    display.end()


def _with_passes(
    study: Study, out: Path, display: StudyDisplay, interruption: Interruption | None
) -> Study:
    cache: Cache = {}
    plans = {(job.experiment, job.arm): job.plan for job in study_jobs(study, out)}
    for experiment, arm, config in study.items():
        if arm in study.passes.get(experiment, {}):
            continue
        if interruption is not None and interruption.requested:
            raise Stopped
        display.say(f"timing the forward and backward passes of {experiment}/{arm}")
        rows = measure_passes(config, plans[experiment, arm], cache)
        study = study.with_finding("passes", experiment, arm, rows)
        save_study(out, study)
    return study


def _introduction(study: Study, jobs: Sequence[Job], out: Path) -> str:
    arms = [f"{experiment}/{arm}" for experiment, arm, _ in study.items()]
    lengths = sorted({job.config.epochs for job in jobs})
    epochs = " or ".join(f"{length:g}" for length in lengths)
    updates = sum(job.plan.num_steps for job in jobs)
    over = sum(job.is_over for job in jobs)
    device = jax.devices()[0].device_kind
    return (
        f"{study.title}: {len(arms)} arms x {len(study.seeds)} seeds = {len(jobs)} runs of "
        f"{epochs} epochs on {study.dataset}, {updates:,} updates in all, on "
        f"{jax.local_device_count()} {device}; folder {out}"
        + (f"; {over} of them over already" if over else "")
    )
