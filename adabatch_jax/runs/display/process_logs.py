"""Each process of several has a file for what it says; the first one says it on the terminal too."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from adabatch_jax.cluster.processes import Processes
from adabatch_jax.runs.display.progress import Progress
from adabatch_jax.system.files import storage_errors


@contextlib.contextmanager
def own_log(folder: Path, processes: Processes) -> Iterator[TextIO | None]:
    """The open log of this process, `process-0003.log`; None of a process that is alone.

    What others than the first one print goes there, and no more to their standard output.

    >>> from adabatch_jax.cluster.processes import ALONE
    >>> with own_log(Path("logs"), ALONE) as log:
    ...     print(log)
    None
    """
    if processes.count == 1:
        yield None
        return
    path = folder / f"process-{processes.index:04}.log"
    with contextlib.ExitStack() as stack:
        with storage_errors(path):
            folder.mkdir(parents=True, exist_ok=True)
            log = stack.enter_context(open(path, "a", buffering=1, encoding="utf-8"))
        if processes.index:
            stack.enter_context(contextlib.redirect_stdout(log))
        yield log


class BothProgress(Progress):
    """Tells two displays how training goes: the terminal's and a log's."""

    def __init__(self, *displays: Progress):
        self._displays = displays
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "BothProgress":
        for display in self._displays:
            self._stack.enter_context(display)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.__exit__(*exception)

    def log(self, row: Mapping[str, Any]) -> None:
        for display in self._displays:
            display.log(row)

    def tick(self, step: int) -> None:
        for display in self._displays:
            display.tick(step)

    def message(self, text: str) -> None:
        for display in self._displays:
            display.message(text)
