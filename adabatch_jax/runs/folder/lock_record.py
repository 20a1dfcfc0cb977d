"""Who locked a run's folder: what the lock's file says of a process, and whether it still runs."""

import dataclasses
import json
import os
import re
import socket
import time
from pathlib import Path

# Instead of the start of a process that has ended and that nobody waited for yet.
_DEAD = -1
_HOST = r"[\w.:-]{1,253}"
_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


@dataclasses.dataclass(frozen=True)
class Owner:
    """Who has, or had, a run's folder.

    Attributes:
      host: the machine's name; None where the lock's file can't be read.
      pid: the process.
      started: when it took the folder, UTC, as in "2026-08-01T12:00:00Z".
      is_alive: whether it still runs; None where that can't be known from here.
    """

    host: str | None
    pid: int | None
    started: str | None
    is_alive: bool | None

    def __str__(self) -> str:
        if self.host is None:
            return "an unknown process"
        return f"process {self.pid} on {self.host}, since {self.started}"


@dataclasses.dataclass(frozen=True)
class Record:
    """What the lock's file says: the owner, what tells it from others of its name, and its beat.

    Attributes:
      host, pid, started: as in `Owner`.
      boot: which start of which machine; containers share it. None where unknown.
      namespace: where the process number counts; containers have their own. None where unknown.
      start_ticks: when the process started, in clock ticks of the machine. None where unknown.
      beat: renewed every 5 seconds; only that it changes matters.
    """

    host: str
    pid: int
    started: str
    boot: str | None
    namespace: str | None
    start_ticks: int | None
    beat: float = dataclasses.field(compare=False)

    def owner(self, is_alive: bool | None) -> Owner:
        """The same for people."""
        return Owner(self.host, self.pid, self.started, is_alive)


def is_alive(record: Record, is_free: bool | None) -> bool | None:
    """Whether an owner lives whose kernel's lock is free, or (None) isn't supported here."""
    here = own_record()
    if record.boot and here.boot:
        is_same_machine = record.boot == here.boot
    else:
        is_same_machine = record.host == here.host
    if not is_same_machine:
        return None
    if is_free:
        return False
    if record.namespace != here.namespace:
        return None
    try:
        os.kill(record.pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # somebody else's
    ticks = _start_ticks(record.pid)
    # The number may have been given to another process since.
    return None if record.start_ticks is None or ticks is None else ticks == record.start_ticks


def read_record(text: str) -> Record | None:
    """The record that a lock's file holds, or None where it is none of ours."""
    try:
        found = json.loads(text)
        record = Record(**{f.name: found.get(f.name) for f in dataclasses.fields(Record)})
        is_ours = (
            re.fullmatch(_HOST, record.host)
            and type(record.pid) is int
            and record.pid > 0
            and re.fullmatch(_TIME, record.started)
        )
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    return record if is_ours else None


def own_record() -> Record:
    """This process's record, from now on."""
    boot = _line("/proc/sys/kernel/random/boot_id")
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = None
    return Record(
        host=re.sub(r"[^\w.:-]", "_", socket.gethostname())[:253] or "unknown",
        pid=os.getpid(),
        started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        boot=boot,
        namespace=namespace,
        start_ticks=_start_ticks(os.getpid()),
        beat=0.0,
    )


def _start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since the machine did; None where unknown."""
    line = _line(f"/proc/{pid}/stat")
    if line is None:
        return None
    # The name in parentheses may hold anything; field 3, the state, follows it.
    fields = line.rpartition(")")[2].split()
    return _DEAD if fields[0] in "ZX" else int(fields[19])


def _line(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except (OSError, ValueError):
        return None
