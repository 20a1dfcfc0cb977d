"""A process beside a run that ends it where its watchdog's thread can't: something holds the lock.

It is started by its path, and imports nothing but what Python starts with. Its parent writes "w"
(something is watched) or "-" to its standard input every so often, as long as its threads run.
"""

import os
import select
import signal
import sys
import time

EXIT_SIGNAL = 42
_KILL_SECONDS = 10.0


def guard(pid: int, timeout_seconds: float) -> None:
    """Ends the parent by `EXIT_SIGNAL` once it was silent for so long while it watched something.

    The time in which the parent is stopped (Ctrl-Z) doesn't count.
    """
    interval = min(timeout_seconds / 4, 1.0)
    silent, is_watching = 0.0, False
    while silent <= timeout_seconds:
        if os.getppid() != pid:
            return
        if select.select([0], [], [], interval)[0]:
            silent, is_watching = 0.0, os.read(0, 4096).endswith(b"w")
        elif is_watching and not _is_stopped(pid):
            silent += interval
    if select.select([], [2], [], 0)[1]:  # nobody may read it
        said = (
            f"error: Python itself hung for {timeout_seconds:g} s (--stall-timeout); the stacks:\n"
        )
        os.write(2, said.encode())
    os.kill(pid, EXIT_SIGNAL)
    until = time.monotonic() + _KILL_SECONDS
    while os.getppid() == pid:
        time.sleep(0.1)
        if time.monotonic() > until:  # the stacks can't be written
            os.kill(pid, signal.SIGKILL)


def _is_stopped(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] in "Tt"


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent may have much to save
    guard(int(sys.argv[1]), float(sys.argv[2]))
