"""A plan's parts: stretches of one batch size, and the updates in them."""

import dataclasses
from typing import NamedTuple


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of the run with one batch size.

    Steps `start_step <= s < stop_step` begin at samples `start_sample <= c < stop_sample`, and
    `stop_sample` is where the next phase starts. `index` counts phases from 0.

    >>> from adabatch_jax import make_plan
    >>> make_plan("2, 4sp: 3", num_examples=10, duration="1ep").phases[1]
    Phase(index=1, start_step=2, stop_step=4, start_sample=4, stop_sample=10, batch_size=3)
    """

    index: int
    start_step: int
    stop_step: int
    start_sample: int
    stop_sample: int
    batch_size: int

    @property
    def num_steps(self) -> int:
        """The number of its updates."""
        return self.stop_step - self.start_step


class Step(NamedTuple):
    """One update: `num_real` examples, `num_real <= batch_size`, from `start_sample` on.

    `index` is its number in the run and `phase` that of its phase, both from 0.

    >>> from adabatch_jax import make_plan
    >>> [*make_plan("4", num_examples=10, duration="1ep").steps()][-1]
    Step(index=2, phase=0, start_sample=8, batch_size=4, num_real=2)
    """

    index: int
    phase: int
    start_sample: int
    batch_size: int
    num_real: int
