"""Several processes of one command on this machine, watched together."""

import contextlib
import ctypes
import math
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO, TextIO

from adabatch_jax.cluster.gpus import share, visible_gpus
from adabatch_jax.cluster.jax_internals import num_tpu_chips
from adabatch_jax.system.errors import UsageError

# The reading end of a pipe that only the process that started this one can write to.
PARENT_VARIABLE = "ADABATCH_JAX_PARENT_PIPE"
_PORTS = range(61_440, 65_535)  # above those that Linux gives to outgoing connections
_FORWARDED = [signal.SIGTERM, signal.SIGINT]
if hasattr(signal, "SIGUSR1"):  # not on Windows
    _FORWARDED.append(signal.SIGUSR1)
_STOPPED = (130, 143)  # a stop that was asked for: all save, and then end by themselves
_ABORTED = 128 + signal.SIGABRT  # how JAX ends a process whose others have gone
_LOOK_SECONDS = 0.05
_READ_SECONDS = 5.0
_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
_PR_SET_PDEATHSIG = 1


def run_locally(
    module: str,
    arguments: Sequence[str],
    num_processes: int,
    end_seconds: float = 15.0,
    stop_seconds: float = 300.0,
) -> int:
    """Runs `python -m MODULE ARGUMENTS` as so many processes that train together.

    Each gets the flags that say which one it is, an equal share of the GPUs, and its lines are
    printed with its number in front. SIGTERM, SIGINT and SIGUSR1 are passed on to all. When one
    fails the others may end by themselves for a while, then they get SIGTERM, and at last are
    killed. None outlives this one.

    Args:
      module: the module, which calls `end_with_parent`, and has the flags `--coordinator`,
        `--num-processes`, `--process-id` and `--local-processes`.
      arguments: its arguments, in which `--local-processes` may stand.
      num_processes: how many to start, at least 1.
      end_seconds: how long the others may take to end after a failure, and again after SIGTERM.
      stop_seconds: how long after the end of one that was asked to stop, while others may save.

    Returns:
      0 if all ended so, else the exit code of the first failure; 128 + N for a signal N.

    Raises:
      UsageError: the GPUs can't be shared out evenly, or the machine has TPUs.
    """
    _check_no_tpus()
    gpus = visible_gpus(os.environ)
    shares = [share(gpus, index, num_processes) for index in range(num_processes)]
    own_end, their_end = os.pipe() if os.name == "posix" else (None, None)
    address = f"127.0.0.1:{free_port()}"
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    if own_end is not None:
        environment[PARENT_VARIABLE] = str(own_end)
    children: list[subprocess.Popen] = []
    with _forwarding(children):
        try:
            for index in range(num_processes):
                if gpus:
                    environment["CUDA_VISIBLE_DEVICES"] = ",".join(shares[index])
                given = [*arguments, *_appended(address, num_processes, index)]
                command = [sys.executable, "-m", module, *given]
                children.append(_start(command, environment, own_end))
            return _watch(children, end_seconds, stop_seconds)
        finally:
            for child in children:
                _kill_group(child)
                child.wait()
            for end in filter(None, (own_end, their_end)):
                os.close(end)


def _check_no_tpus() -> None:
    """One process takes all chips of a machine, and a second one would wait for them for ever."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if not platforms or "tpu" in platforms:
        if num_chips := num_tpu_chips():
            raise UsageError(
                f"--local-processes: one process takes all {num_chips} TPU chips of this machine; "
                "leave it out, or set JAX_PLATFORMS=cpu."
            )


def as_given(arguments: Sequence[str]) -> list[str]:
    """The arguments of a process that `run_locally` started, as its user gave them.

    >>> as_given([*"--epochs 2 --local-processes 2".split(), *_appended("n1:9", 2, 0)])
    ['--epochs', '2', '--local-processes', '2']
    """
    num = len(_appended("", 0, 0))
    is_appended = list(arguments[-num:][:2]) == _appended("", 0, 0)[:2]
    return list(arguments[:-num] if is_appended else arguments)


def _appended(address: str, num_processes: int, index: int) -> list[str]:
    return [
        "--local-processes", "none", "--coordinator", address,
        "--num-processes", str(num_processes), "--process-id", str(index),
    ]  # fmt: skip


def end_with_parent() -> None:
    """Has this process end when the one that started it as one of several has gone.

    It does nothing in a process that `run_locally` didn't start.
    """
    pipe = os.environ.pop(PARENT_VARIABLE, None)
    if pipe is None:
        return
    if sys.platform == "linux":  # also where this process is stopped, or holds Python's lock
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def wait_for_its_end() -> None:
        with contextlib.suppress(OSError):
            os.read(int(pipe), 1)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=wait_for_its_end, name="parent", daemon=True).start()


def _start(command: Sequence[str], environment: dict, pipe: int | None) -> subprocess.Popen:
    # In a group of its own it hears Ctrl-C once, from us; a second one would cut its saving short.
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, pass_fds=() if pipe is None else (pipe,),
        process_group=0 if os.name == "posix" else None,
    )  # fmt: skip


def free_port() -> int:
    """A port that nobody listens on now."""
    ports = [*_PORTS]
    random.SystemRandom().shuffle(ports)
    for port in ports:
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port
    raise UsageError("no port is free on this machine for --local-processes.")


@contextlib.contextmanager
def _forwarding(children: Sequence[subprocess.Popen]) -> Iterator[None]:
    """Passes signals on to all children, those included that are started later."""

    def forward(number: int, frame: object) -> None:
        for child in children:
            _send(child, number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _watch(children: Sequence[subprocess.Popen], end_seconds: float, stop_seconds: float) -> int:
    """Prints what the children say until all have ended; returns the code of them all."""
    lock = threading.Lock()
    readers = [
        threading.Thread(target=_copy, args=(stream, target, f"[{index}] ", lock), daemon=True)
        for index, child in enumerate(children)
        for stream, target in ((child.stdout, sys.stdout), (child.stderr, sys.stderr))
    ]
    for reader in readers:
        reader.start()
    stop: tuple[int, int] | None = None  # the number and code of the first of each kind
    failure: tuple[int, int] | None = None
    deadline, means = math.inf, [signal.SIGTERM, _KILL]
    while True:
        codes = [child.poll() for child in children]
        ended = [(index, _exit_code(code)) for index, code in enumerate(codes) if code]
        stop = stop or next((pair for pair in ended if pair[1] in _STOPPED), None)
        failures = [pair for pair in ended if pair[1] not in _STOPPED]
        # Of those that ended between two looks, one that JAX aborted is the consequence.
        failures.sort(key=lambda pair: pair[1] == _ABORTED)
        if failures and failure is None:
            failure, deadline = failures[0], time.monotonic() + end_seconds
        elif stop and deadline == math.inf:
            deadline = time.monotonic() + stop_seconds
        if None not in codes:
            break
        if time.monotonic() >= deadline:
            means_now = means.pop(0) if len(means) > 1 else means[0]
            for child in children:
                _send(child, means_now)
            deadline = time.monotonic() + end_seconds
        time.sleep(_LOOK_SECONDS)
    for child in children:
        _kill_group(child)  # what they have left would keep their output open
    for reader in readers:
        reader.join(_READ_SECONDS)
    if failure is not None:
        print(
            f"error: process {failure[0]} ended first, with exit code {failure[1]}.",
            file=sys.stderr,
        )
    return (failure or stop or (0, 0))[1]


def _copy(stream: IO[bytes], target: TextIO, prefix: str, lock: threading.Lock) -> None:
    for line in stream:
        text = line.decode(errors="replace").rstrip("\r\n")
        with lock:
            target.write(f"{prefix}{text}\n")
            target.flush()


def _exit_code(code: int) -> int:
    """As a shell tells it."""
    return 128 - code if code < 0 else code


def _send(child: subprocess.Popen, number: int) -> None:
    with contextlib.suppress(OSError):
        child.send_signal(number)  # nothing where it has ended


def _kill_group(child: subprocess.Popen) -> None:
    with contextlib.suppress(OSError):
        if os.name == "posix":
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
