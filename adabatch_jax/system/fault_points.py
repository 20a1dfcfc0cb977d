"""Places where a test makes a run fail; nothing happens unless `ADABATCH_FAULT` asks for it.

    ADABATCH_FAULT=step.begin:7                          killed at the beginning of the 7th step
    ADABATCH_FAULT=save.mid:2:sigterm,eval.mid:3:sleep:5 several, each with an action

Each is `point:n[:action[:argument]]`, the n-th time that this process reaches the point.
"""

import functools
import math
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from adabatch_jax.system.errors import UsageError

VARIABLE = "ADABATCH_FAULT"

POINTS = (
    "compile.first",
    "step.begin",
    "batch.ready",
    "step.end",
    "phase.switch",
    "eval.mid",
    "save.before",
    "save.scheduled",
    "save.mid",
    "save.committed",
    "gc.before",
    "gc.mid",
    "metrics.mid_line",
)

_SIGNALS = {
    "kill9": "SIGKILL",
    "sigterm": "SIGTERM",
    "sigint": "SIGINT",
    "sigusr1": "SIGUSR1",
}
ACTIONS = (*_SIGNALS, "raise", "sleep", "nan")


class InjectedFault(RuntimeError):
    """What the action `raise` raises: an error that nobody expects."""


class _Fault(NamedTuple):
    action: str
    argument: str


_counts: Counter[str] = Counter()
_lock = threading.Lock()


def are_asked_for() -> bool:
    """Whether the environment asks for any fault."""
    return bool(os.environ.get(VARIABLE))


def reach(point: str, before: Callable[[], Any] | None = None) -> str | None:
    """Tells that the program is at one of the `POINTS`; almost free where no fault is asked for.

    Calls `before` before a fault that is due, such as a file's `flush`. Returns "nan" where the
    caller is to spoil what it holds. Raises a UsageError where the variable can't be meant.
    """
    if not (text := os.environ.get(VARIABLE)):
        return None
    with _lock:  # points are reached by threads too
        _counts[point] += 1
        fault = _faults(text).get((point, _counts[point]))
    if fault is None:
        return None
    if before is not None:
        before()
    return _perform(point, fault)


def _perform(point: str, fault: _Fault) -> str | None:
    if fault.action == "nan":
        return "nan"
    if fault.action == "raise":
        raise InjectedFault(f"{VARIABLE} asks for an error at {point}")
    if fault.action == "sleep":
        time.sleep(float(fault.argument))
    else:
        os.kill(os.getpid(), getattr(signal, _SIGNALS[fault.action]))
    return None


@functools.cache
def _faults(text: str) -> dict[tuple[str, int], _Fault]:
    return dict(_parsed(item.strip()) for item in text.split(","))


def _parsed(item: str) -> tuple[tuple[str, int], _Fault]:
    point, number, action, argument = (*item.split(":", 3), "", "", "")[:4]
    action = action or "kill9"
    is_sound = (
        point in POINTS
        and number.isdecimal()
        and int(number) > 0
        and action in ACTIONS
        and (_is_duration(argument) if action == "sleep" else not argument)
    )
    if not is_sound:
        raise UsageError(
            f"{VARIABLE} must be point:n[:action[:argument]], got {item!r}; the points are "
            f"{', '.join(POINTS)}, the actions {', '.join(ACTIONS)} (sleep:SECONDS)."
        )
    return (point, int(number)), _Fault(action, argument)


def _is_duration(text: str) -> bool:
    try:
        return 0 <= float(text) < math.inf
    except ValueError:
        return False
