"""Which display a stream gets: a live one on a terminal, plain lines elsewhere, or nothing."""

import sys
from typing import TYPE_CHECKING, TextIO

from adabatch_jax.runs.display.process_logs import BothProgress
from adabatch_jax.runs.display.progress import LineProgress, Progress
from adabatch_jax.system.output_streams import ForgivingStream, can_be_redrawn

if TYPE_CHECKING:
    from adabatch_jax.schedules.plan import BatchPlan


def make_progress(
    plan: "BatchPlan", *, stream: TextIO | None = None, log: TextIO | None = None
) -> Progress:
    """Chooses how to show progress on a stream, or on standard output, and as lines in a `log`.

    A live display needs a terminal that can move its cursor; a file, a pipe, a notebook and
    `TERM=dumb` get plain lines. `NO_COLOR` takes the colours away and leaves the display. A
    stream that breaks (`| head`, a closed terminal) ends the display, never the training.
    """
    stream = sys.stdout if stream is None else stream
    if log is not None:
        in_log = LineProgress(plan, ForgivingStream(log))
        return in_log if stream is log else BothProgress(make_progress(plan, stream=stream), in_log)
    if stream is None:  # started with standard output closed
        return Progress()
    stream = ForgivingStream(stream)
    if not can_be_redrawn(stream):
        return LineProgress(plan, stream)
    from adabatch_jax.runs.display.live import LiveProgress

    return LiveProgress(plan, stream)
