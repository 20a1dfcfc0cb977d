"""What users are told about the layout of their run, before the first update."""

from collections.abc import Mapping
from typing import Any

import jax

from adabatch_jax.data.layout import MANY_PROGRAMS
from adabatch_jax.reporting.progress import Progress
from adabatch_jax.training.programs import Programs
from adabatch_jax.training.slow_loops import slow_convolutions


def tell(layout: Mapping[str, Any], input_reason: str, programs: Programs, to: Progress) -> None:
    """Says how the run is laid out, and what will make it slow.

    Args:
      layout: as in `Setup.layout`.
      input_reason: the kind of input and why.
      programs: the run's; those that are compiled already are looked at.
      to: who is told.
    """
    size, number = layout["microbatch_size"], layout["steps_per_dispatch"]
    rows = "whole batches" if size is None else f"micro-batches of {size}"
    updates = f"; {number} updates per dispatch" if number > 1 else ""
    if layout["accumulation"] == "split":
        updates = ", one per dispatch"
    to.message(f"input {input_reason}; {rows}{updates}")
    if len(programs.names) > MANY_PROGRAMS:
        to.message(
            f"warning: {len(programs.names)} programs have to be compiled, one per batch size; "
            "with accumulation 'split' and a microbatch_size all sizes share one"
        )
    if slow := num_slow_convolutions(programs):
        to.message(
            f"warning: {slow} convolutions (or their gradients) lie in a loop, where XLA is 18 to "
            "40 times slower on CPU; use adabatch_jax.models.convolution.conv2d, or no "
            "micro-batches and one update per dispatch"
        )


def num_slow_convolutions(programs: Programs) -> int:
    """Convolutions that a CPU computes slowly, of the programs that are compiled; else 0."""
    if jax.default_backend() != "cpu":
        return 0
    ready = [programs.get(name) for name in programs.names if programs.is_ready(name)]
    return max(slow_convolutions(program.compiled.as_text()) for program in ready)
