"""How long a study will take: from what its runs took so far."""

import time
from collections import Counter
from collections.abc import Callable, Sequence

from experiments.reproduction.jobs import Job


class Estimate:
    """The time left for all runs of a study.

    A run is expected to take as long per example as the finished runs of its arm; those of arms
    that haven't been run yet as long as everything so far.

    Args:
      jobs: all runs, those that are over already included.
      clock: seconds that never run backwards.
    """

    def __init__(self, jobs: Sequence[Job], clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._left = tuple(job for job in jobs if not job.is_over)
        self._total = sum(job.plan.num_samples for job in jobs)
        self._seconds: Counter[tuple[str, str]] = Counter()
        self._samples: Counter[tuple[str, str]] = Counter()
        self._job: Job | None = None
        for job in jobs:
            if job.summary is not None:
                self._note(job, job.summary["total_seconds"], job.plan.num_samples)

    def begin(self, job: Job) -> None:
        """A run begins."""
        self._left = tuple(other for other in self._left if other.folder != job.folder)
        self._since, self._first, self._now = self._clock(), None, 0
        self._job = job

    def advance(self, step: int) -> None:
        """The current run has finished `step` updates; those before the first call don't count."""
        if self._first is None:
            self._first = self._job.plan.samples_at(step - 1)
        self._now = self._job.plan.samples_at(step)

    def end(self) -> None:
        """The current run is over, whether it came to its end or not."""
        job, done = self._job, self._now - (self._first or 0)
        if job is not None and done:
            self._note(job, self._clock() - self._since, done)
        self._job = None

    @property
    def share_done(self) -> float:
        """Of all examples, 0 to 1."""
        current = self._job
        left = sum(job.plan.num_samples for job in self._left)
        left += 0 if current is None else current.plan.num_samples - self._now
        return 1 - left / self._total if self._total else 1.0

    def seconds_left(self) -> float | None:
        """Seconds until all is done; None before there is anything to go by."""
        job, elapsed, done = self._job, 0.0, 0
        if job is not None:
            elapsed, done = self._clock() - self._since, self._now - (self._first or 0)
        seconds, samples = self._seconds.total() + elapsed, self._samples.total() + done
        if not samples or not seconds:
            return None

        def pace(other: Job) -> float:
            key = other.experiment, other.arm
            known = self._samples[key]
            return self._seconds[key] / known if known else seconds / samples

        left = sum(pace(other) * other.plan.num_samples for other in self._left)
        if job is not None:
            left += pace(job) * (job.plan.num_samples - self._now)
        return left

    def _note(self, job: Job, seconds: float, samples: int) -> None:
        self._seconds[job.experiment, job.arm] += seconds
        self._samples[job.experiment, job.arm] += samples
