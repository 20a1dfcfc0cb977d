"""How a run may be laid out on its devices."""

import dataclasses
import numbers

from adabatch_jax.config.choices import ACCUMULATIONS, AUTO
from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.quantities import parse_bytes


@dataclasses.dataclass(frozen=True)
class LayoutOptions:
    """How to lay a run out on its devices; `fit` describes the fields.

    >>> LayoutOptions(device_memory="2KiB").device_memory
    2048
    """

    microbatch_size: int | str | None = None
    steps_per_dispatch: int | str = 1
    accumulation: str = "fused"
    input: str = AUTO
    shard_params: bool = False
    device_memory: int | str | None = None

    def __post_init__(self):
        for name in ("microbatch_size", "steps_per_dispatch"):
            value = getattr(self, name)
            if value == AUTO or (value is None and name == "microbatch_size"):
                continue
            if not isinstance(value, numbers.Integral) or value < 1:
                raise UsageError(f"{name}: must be at least 1, or 'auto', got {value!r}.")
            object.__setattr__(self, name, int(value))
        if isinstance(self.device_memory, str):
            object.__setattr__(self, "device_memory", parse_bytes(self.device_memory))
        if self.device_memory is not None and self.device_memory <= 0:
            raise UsageError(f"device_memory: must be above 0 bytes, got {self.device_memory}.")
        if self.accumulation not in ACCUMULATIONS:
            raise UsageError(
                f"accumulation: must be one of {', '.join(ACCUMULATIONS)}, got "
                f"{self.accumulation!r}."
            )
        if self.accumulation == "split" and self.microbatch_size in (None, AUTO):
            raise UsageError(
                "accumulation: split computes one micro-batch at a time; give microbatch_size a "
                "number."
            )
        if self.accumulation == "split" and self.steps_per_dispatch not in (1, AUTO):
            raise UsageError(
                "accumulation: split dispatches one micro-batch at a time, so steps_per_dispatch "
                f"must be 1 or auto, got {self.steps_per_dispatch}."
            )
