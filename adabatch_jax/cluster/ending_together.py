"""When one process of a run fails all end: by its reason, at once, and never with success."""

import atexit
import contextlib
import functools
import re
import sys
import threading
import time
from collections.abc import Iterator

from adabatch_jax.cluster.agreement import failure_of
from adabatch_jax.cluster.processes import PeerFailed, Processes, peer_error
from adabatch_jax.system.errors import AdabatchError, one_line
from adabatch_jax.system.number_texts import printable
from adabatch_jax.system.stop_requests import last_words, say_at_once

_LOOK_SECONDS = 1.0
# How long to wait for the reason of a process whose connections broke.
_REASON_SECONDS = 3.0
# How long a process that hears of a failure has to get to its own end, with what it has to clean up.
_OWN_END_SECONDS = 5.0

_LOST = re.compile(r"gloo|nccl|connection|coordination|socket|peer|heartbeat|barrier", re.I)
_watched: set[int] = set()


@contextlib.contextmanager
def ending_together(processes: Processes) -> Iterator[None]:
    """Tells other processes of an error inside, and ends this process when another one tells.

    A process that waits for the devices of one that has failed hears nothing of it: whoever uses
    this ends with exit code 42, or the other's where starting again wouldn't help, within some ten
    seconds. Inside another one it does nothing.

    Raises:
      PeerFailed: the devices or the connections of another process are gone.
    """
    if processes.count == 1 or _watched:
        yield
        return
    ended = threading.Event()
    _watched.add(processes.index)
    end_at_once_after_failure(processes)
    thread = threading.Thread(target=_look, args=(processes, ended), name="peers", daemon=True)
    thread.start()

    def say(why: str, code: int) -> None:
        processes.say_failure(why, code)
        processes.wait_to_end()

    try:
        with last_words(say):
            yield
    except BaseException as error:  # also where a user's function calls sys.exit
        ended.set()  # this is its own end
        known = _known_reason(processes, error)
        if known is None:
            processes.say_failure(*failure_of(error))
        processes.wait_to_end()
        if known is None:
            raise
        raise known from error
    finally:
        ended.set()
        _watched.clear()


@functools.cache
def end_at_once_after_failure(processes: Processes) -> None:
    """Has this process's end wait for no others where one of them has failed, this one included.

    JAX's own end waits for all, and then aborts. An error that ended the program, in a loop of its
    own as elsewhere, is told to them, or where it follows from another's that one is shown.
    """

    def end() -> None:
        error = getattr(sys, "last_value", None)  # which Python has just shown
        if error is not None:
            known = _known_reason(processes, error)
            if known is None:
                processes.say_failure(*failure_of(error))
                known = error
            elif error is not known:
                say_at_once(printable(f"error: {known}") + "\n")
            processes.end_now(failure_of(known)[1])
        failure = processes.failure()
        if failure is not None:
            is_own = failure.process_id == processes.index
            processes.end_now(failure.code if is_own else peer_error(failure).exit_code)

    # It runs before what JAX has registered.
    atexit.register(end)


def _known_reason(processes: Processes, error: BaseException) -> AdabatchError | None:
    """What another process has said that explains an error; None for one of this process's own.

    An expected error says it all: it is one's own, or was heard of another one. So do Ctrl-C, which
    all may have heard, and `sys.exit`.
    """
    if isinstance(error, AdabatchError) or not isinstance(error, Exception):
        return None
    is_lost = bool(_LOST.search(str(error)))
    until = time.monotonic() + (_REASON_SECONDS if is_lost else 0.0)
    while True:
        failure = processes.failure()
        if failure is not None and failure.process_id != processes.index:
            return peer_error(failure)
        if time.monotonic() >= until:
            break
        time.sleep(_LOOK_SECONDS / 4)
    if not is_lost:
        return None
    return PeerFailed(
        f"another process of the run is gone ({one_line(error)}); start all of them again."
    )


def _look(processes: Processes, ended: threading.Event) -> None:
    while not ended.wait(_LOOK_SECONDS):
        failure = processes.failure()
        if failure is None or failure.process_id == processes.index:
            continue
        if not ended.wait(_OWN_END_SECONDS):
            error = peer_error(failure)
            say_at_once(printable(f"error: {error}") + "\n")
            processes.end_now(error.exit_code)
        return
