"""A plan's parts: stretches of one batch size, and the updates in them."""

import dataclasses
from typing import NamedTuple


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of the run with one batch size.

    Steps `start_step <= s < stop_step` begin at samples `start_sample <= c < stop_sample`, and
    `stop_sample` is where the next phase starts.
    """

    index: int
    start_step: int
    stop_step: int
    start_sample: int
    stop_sample: int
    batch_size: int

    @property
    def num_steps(self) -> int:
        return self.stop_step - self.start_step


class Step(NamedTuple):
    """One update: `num_real` examples, `num_real <= batch_size`, from `start_sample` on."""

    index: int
    phase: int
    start_sample: int
    batch_size: int
    num_real: int
