"""The flags of `train` that aren't settings of the run: how it is operated."""

import dataclasses
from collections.abc import Callable

from adabatch_jax.config.choices import ON_SAVE_ERROR
from adabatch_jax.system.errors import UsageError, did_you_mean
from adabatch_jax.system.quantities import parse_seconds


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    config: str | None = None
    """Python file that defines `config = TrainConfig(...)`, or a run's config.json."""

    workdir: str | None = None
    """Folder of the run; none: runs/<name>-<digest of the settings>."""

    max_time: str | None = None
    """How long this process may take, such as 3h50m: it stops and saves before, with exit code
    143; the same command goes on."""

    stall_timeout: str | None = None
    """The longest that an update, a batch or a checkpoint may take, such as 10m: then all stacks
    are written to stalls.log, and the exit code is 42."""

    on_save_error: str = "stop"
    """Where a checkpoint can't be written: stop; or warn, and train on until the next one."""

    allow_change: tuple[str, ...] = ()
    """Settings that a run may go on with changed, such as lr batch_schedule; rows: without rows of
    metrics that were lost."""

    lock_wait: str = "2s"
    """How long to wait for another process that is training in the folder."""

    take_over: bool = False
    """Train in a folder whose lock can't be had: of a machine that is gone, or on a disk that knows
    no locks. No other process may be at work there."""

    profile: str | None = None
    """Updates to trace with JAX's profiler, such as 10:20; the trace goes into the run's folder."""

    cpu_devices: int | None = None
    """Without an accelerator: how many devices to make of the CPU, best one per core."""

    def __post_init__(self):
        for name in ("max_time", "stall_timeout", "lock_wait"):
            text = getattr(self, name)
            if text is not None:
                _named(f"--{name.replace('_', '-')}", parse_seconds, text)
        if self.on_save_error not in ON_SAVE_ERROR:
            hint = did_you_mean(self.on_save_error, ON_SAVE_ERROR) or "."
            raise UsageError(
                f"--on-save-error: {self.on_save_error!r} is not one of "
                f"{', '.join(ON_SAVE_ERROR)}{hint}"
            )

    @property
    def max_seconds(self) -> float | None:
        """The time limit, if any."""
        return None if self.max_time is None else parse_seconds(self.max_time)

    @property
    def lock_seconds(self) -> float:
        """The longest wait for the folder's lock."""
        return parse_seconds(self.lock_wait)

    @property
    def stall_seconds(self) -> float | None:
        """The watchdog's limit, if any."""
        return None if self.stall_timeout is None else parse_seconds(self.stall_timeout)


def _named(flag: str, read: Callable[[str], float], text: str) -> float:
    try:
        return read(text)
    except UsageError as error:
        raise UsageError(f"{flag}: {error}") from None
