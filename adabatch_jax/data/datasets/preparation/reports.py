"""How preparing tells its progress, and how tfds is kept from telling its own."""

import contextlib
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Progress:
    """One report of progress.

    Attributes:
      stage: what is being done, such as "Writing train"; a new stage is a new text.
      done: how much of it is done.
      total: how much there is to do; None where that isn't known.
      unit: what `done` and `total` count, "examples" or "bytes".
    """

    stage: str
    done: int
    total: int | None
    unit: str


Report = Callable[[Progress], None]


def report_nothing(progress: Progress) -> None:
    """A `Report` for callers that don't want to know."""


def counted(
    items: Iterable[_Item], stage: str, total: int, report: Report, every: int = 500
) -> Iterator[_Item]:
    """Passes `items` on, reporting their count at the start, every so often and at the end.

    >>> list(counted("ab", "Reading", 2, lambda progress: print(progress.done)))
    0
    2
    ['a', 'b']
    """
    report(Progress(stage, 0, total, "examples"))
    for done, item in enumerate(items, start=1):
        yield item
        if done % every == 0 or done == total:
            report(Progress(stage, done, total, "examples"))


def aloud(report: Report) -> Report:
    """Returns a `Report` that prints to where stdout and stderr lead now, inside `quiet` too."""
    stdout, stderr = sys.stdout, sys.stderr

    def report_aloud(progress: Progress) -> None:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            report(progress)

    return report_aloud


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallows what is printed inside: tfds has no switch for its banners and progress bars."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
