"""How far a stage of the preparation is, and how tfds is kept from showing the same."""

import contextlib
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class StageProgress:
    """One report of progress.

    Attributes:
      stage: what is being done, such as "Writing train"; a new stage is a new text.
      total: how much there is to do; None where that isn't known.
      unit: what `done` and `total` count, "examples" or "bytes".
    """

    stage: str
    done: int
    total: int | None
    unit: str


Report = Callable[[StageProgress], None]


def counted(
    items: Iterable[_Item], stage: str, total: int, report: Report, every: int = 500
) -> Iterator[_Item]:
    """Passes `items` on, reporting their count at the start, every so often and at the end.

    >>> list(counted("ab", "Reading", 2, lambda progress: print(progress.done)))
    0
    2
    ['a', 'b']
    """
    report(StageProgress(stage, 0, total, "examples"))
    for done, item in enumerate(items, start=1):
        yield item
        if done % every == 0 or done == total:
            report(StageProgress(stage, done, total, "examples"))


def with_current_output(report: Report) -> Report:
    """A `Report` that prints to where stdout and stderr lead now, inside `discarded_output` too."""
    stdout, stderr = sys.stdout, sys.stderr

    def report_there(progress: StageProgress) -> None:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            report(progress)

    return report_there


@contextlib.contextmanager
def discarded_output() -> Iterator[None]:
    """Discards what is printed inside: tfds has no switch for its banners and progress bars."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
