"""A trace of some updates, for the profiler's tools."""

import dataclasses
from pathlib import Path

import jax

from adabatch_jax.config.value_texts import parse_profiled
from adabatch_jax.runs.display.progress import Progress
from adabatch_jax.system.errors import UsageError


@dataclasses.dataclass
class Profile:
    """Traces the updates [start_step, stop_step) with JAX's profiler; nothing without a directory.

    With several to a dispatch, from the first that begins one.
    """

    directory: Path | None = None
    start_step: int = 0
    stop_step: int = 0
    _is_tracing: bool = dataclasses.field(default=False, init=False)

    def is_due(self, step: int) -> bool:
        """Whether tracing begins or ends before this update."""
        is_wanted = self.directory is not None and self.start_step <= step < self.stop_step
        return self._is_tracing != is_wanted

    def switch(self, step: int, progress: Progress) -> None:
        """Begins or ends tracing where that is due; the devices should be idle."""
        if not self.is_due(step):
            return
        if self._is_tracing:
            jax.profiler.stop_trace()
            progress.message(f"updates up to {step:,} were traced: {self.directory}")
        else:
            jax.profiler.start_trace(str(self.directory))
        self._is_tracing = not self._is_tracing

    def close(self) -> None:
        """Ends a trace that the run's end, or an error, left open."""
        self.switch(self.stop_step, Progress())


def make_profile(steps: str | None, workdir: str | Path | None, num_steps: int) -> Profile:
    """A trace of a run's updates such as "10:20" into its folder; None traces nothing.

    Raises:
      UsageError: no range, none of this run, or no folder to write to.
    """
    if steps is None:
        return Profile()
    if workdir is None:
        raise UsageError("profile: a trace is written to the run's folder; give a workdir.")
    start, stop = parse_profiled(steps)
    if start >= num_steps:
        raise UsageError(f"profile: {steps!r} begins behind the run's last update, {num_steps:,}.")
    return Profile(Path(workdir) / "profile", start, stop)
