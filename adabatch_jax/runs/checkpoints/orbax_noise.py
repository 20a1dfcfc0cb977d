"""What Orbax says beside the errors that it raises, kept off the user's terminal."""

import logging
import sys
import warnings
from typing import Any


def silence() -> None:
    """From now on only the error that a failed save raises is heard of, once, from us.

    Orbax logs it, asyncio logs each write that it gave up, Python warns of those that hadn't even
    begun, and tensorstore's threads report to an event loop that Orbax has closed meanwhile, which
    Python prints as an unraisable exception, in pieces that mix with other lines. Everything else
    goes where it went before.
    """
    warnings.filterwarnings("ignore", r"coroutine 'async_serialize.* was never awaited")
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    if not isinstance(sys.unraisablehook, _WithoutClosedLoop):
        sys.unraisablehook = _WithoutClosedLoop(sys.unraisablehook)


class _WithoutClosedLoop:
    def __init__(self, following: Any):
        self._following = following

    def __call__(self, unraisable: Any) -> None:
        error = unraisable.exc_value
        if isinstance(error, RuntimeError) and str(error) == "Event loop is closed":
            return
        self._following(unraisable)
