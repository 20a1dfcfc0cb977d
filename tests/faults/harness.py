"""Starts the real command line again and again, with faults, and compares what it leaves."""

import contextlib
import csv
import dataclasses
import hashlib
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIMEOUT_SECONDS = 240
# A limit of files' sizes below what the largest array takes: no checkpoint fits, however
# tensorstore spreads its arrays over files.
NO_ARRAYS = 15_000

# Two changes of the batch size in mid-epoch, an epoch of 1,442 examples that no batch divides,
# and rows, checkpoints and evaluations that seldom fall together.
COMMON = (
    "--batch-schedule 16, 0.7ep: 24, 1.3ep: 40 --lr 0.05 x0.375 every 4ep --epochs 2.3 "
    "--log-every 3st --checkpoint-every 7st --eval-every 0.5ep --eval-batch-size 100"
)
# What else is different between runs: each policy at an epoch's end, each way of computing an
# update and of bringing the examples to the devices.
SETTINGS = {
    "carry": "--remainder carry --steps-per-dispatch 1 --input resident",
    "partial": "--remainder partial --steps-per-dispatch 4 --input streaming --data.flip",
    "drop": "--remainder drop --accumulation split --microbatch-size 8 --optimizer adamw",
    "devices": "--cpu-devices 2 --shard-params --steps-per-dispatch auto --input resident",
    "two_streams": "--cpu-devices 2 --input streaming --remainder partial --keep-checkpoints 1",
}
# The updates before a change of the batch size: ceil(0.7 * 1442 / 16), and 865 samples on.
PHASE_ENDS = {"carry": (64, 100)}

_COMMITTED = re.compile(r"0|[1-9]\d*")
_RESUMING = re.compile(r"resuming after update ([\d,]+) of ")
_STOPPED = re.compile(r"^stopped by .* after update ([\d,]+);", re.MULTILINE)
_COMMAND = re.compile(r"python -m adabatch_jax\.train .*$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a process ended: exit code (below 0: the signal that killed it) and what it printed."""

    code: int
    out: str
    err: str

    @property
    def resumed_after(self) -> int | None:
        """The update that it says it went on from."""
        match = _RESUMING.search(self.out)
        return int(match[1].replace(",", "")) if match else None

    @property
    def stopped_after(self) -> int | None:
        """The update that it says it stopped after."""
        match = _STOPPED.search(self.out)
        return int(match[1].replace(",", "")) if match else None

    @property
    def command(self) -> list[str]:
        """The arguments of the command that it says goes on."""
        return shlex.split(_COMMAND.search(self.out)[0])[3:]


class Run:
    """A run's folder and the command that trains there, started as often as need be.

    After every process that it sees to the end it checks that no checkpoint was lost: the newest
    one is as new as before, and a process that went on did so from the newest one.

    Attributes:
      workdir: the run's folder.
      arguments: of the command, all but the folder.
      outcomes: how its processes ended, in order.
    """

    def __init__(self, workdir: Path, arguments: str):
        self.workdir = workdir
        self.outcomes: list[Outcome] = []
        self.arguments = arguments

    def start(self, fault: str = "", further: str = "", **environment: str) -> subprocess.Popen:
        """Starts a process; `fault` is what ADABATCH_FAULT says, `further` more arguments."""
        arguments = f"{self.arguments} {further} --workdir".split()
        return start("train", *arguments, str(self.workdir), ADABATCH_FAULT=fault, **environment)

    def go(
        self,
        fault: str = "",
        code: int = 0,
        says: str = "",
        further: str = "",
        sound: int | None = None,
        **environment: str,
    ) -> Outcome:
        """Sees a process to its end and checks how it ended.

        Args:
          fault: what ADABATCH_FAULT says.
          code: the exit code to expect; below 0: the signal that kills it.
          says: what its output must contain.
          further: more arguments.
          sound: the newest checkpoint that was left undamaged; none: the newest one.
          environment: further variables.
        """
        before = self.newest() if sound is None else sound
        return self.ended(self.start(fault, further, **environment), before, code, says)

    def ended(
        self, process: subprocess.Popen, before: int | None, code: int, says: str = ""
    ) -> Outcome:
        """Waits for a process that found `before` as the newest sound checkpoint."""
        outcome = finish(process)
        self.outcomes.append(outcome)
        assert outcome.code == code, outcome
        assert says in outcome.out + outcome.err, outcome
        assert "Traceback" not in outcome.err, outcome.err
        if outcome.resumed_after is not None:
            assert outcome.resumed_after == before, outcome
        if code >= 0:
            assert len(outcome.err.splitlines()) <= 3, outcome.err
        if before is not None:
            assert self.newest() is not None and self.newest() >= before, outcome
        return outcome

    def newest(self) -> int | None:
        """The newest checkpoint that was committed."""
        return max(self.steps(), default=None)

    def steps(self) -> list[int]:
        """The checkpoints that were committed, oldest first."""
        folder = self.workdir / "checkpoints"
        paths = folder.iterdir() if folder.is_dir() else ()
        return sorted(int(path.name) for path in paths if _COMMITTED.fullmatch(path.name))

    def checkpoint(self, step: int | None = None) -> Path:
        """The folder of a checkpoint; of none named: of the newest."""
        return self.workdir / "checkpoints" / str(self.newest() if step is None else step)

    def at(self, point: str, step: int, action: str = "kill9") -> str:
        """The fault at a point that each update reaches once, for the run's `step`-th update."""
        return f"{point}:{step - (self.newest() or 0)}:{action}"

    def rows(self) -> list[dict[str, str]]:
        """The rows of metrics without what a clock decides, numbers as they are spelled."""
        *lines, _torn = (self.workdir / "metrics.jsonl").read_text().split("\n")
        return [_timeless(json.loads(line, parse_float=str, parse_int=str)) for line in lines]

    def table(self) -> list[dict[str, str]]:
        """The same of the CSV file."""
        with open(self.workdir / "metrics.csv", newline="") as file:
            return [_timeless(row) for row in csv.DictReader(file)]

    def summary(self) -> dict:
        return json.loads((self.workdir / "summary.json").read_text())


def start(program: str, *arguments: str, **environment: str) -> subprocess.Popen:
    """Starts a command of the package."""
    return subprocess.Popen(
        [sys.executable, "-m", f"adabatch_jax.{program}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def finish(process: subprocess.Popen) -> Outcome:
    """Waits for the end of a process, which must come."""
    try:
        out, err = process.communicate(timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"it hung after printing {out}{err}") from None
    return Outcome(process.returncode, out, err)


def assert_same(run: Run, oracle: Run) -> None:
    """Every row of metrics and the digests of weights and examples are those of the oracle."""
    assert run.rows() == oracle.rows()
    assert run.table() == oracle.table()
    for name in ("step", "samples", "weights_digest", "examples_digest"):
        assert run.summary()[name] == oracle.summary()[name], name
    assert run.newest() == oracle.newest()


def assert_rows_follow(run: Run, oracle: Run) -> None:
    """The rows that are written so far are the oracle's first ones, no matter how it ended."""
    rows = run.rows()
    assert rows == oracle.rows()[: len(rows)]


def content(folder: Path) -> dict[str, str]:
    """What is below a folder: each file's sha256; the lock, which says who came last, left out."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file() and not path.is_symlink()
        else "no file"
        for path in folder.rglob("*")
        if path.name != ".lock"
    }


def wait_for(happened: Callable[[], bool], process: subprocess.Popen) -> None:
    """Waits until something happened that a process does."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not happened():
        if process.poll() is not None:
            raise AssertionError(f"the process ended first: {finish(process)}")
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


def wait_for_training(run: Run, process: subprocess.Popen) -> None:
    """Waits until a process has written a row of metrics, or has ended."""
    path = run.workdir / "metrics.jsonl"
    files: dict[int, int] = {}  # size when first seen, by inode: at its start a process makes anew

    def has_row() -> bool:
        if process.poll() is not None:
            return True
        with contextlib.suppress(FileNotFoundError):
            found = path.stat()
            files.setdefault(found.st_ino, 0 if is_first else found.st_size)
            return found.st_ino != old and found.st_size > files[found.st_ino]
        return False

    is_first = not path.exists()
    old = None if is_first else path.stat().st_ino
    wait_for(has_row, process)


def limit_file_size(process: subprocess.Popen, num_bytes: int) -> None:
    """From now on the process can write no file beyond this size, as on a full disk."""
    _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (num_bytes, hard))


def killed_by(number: signal.Signals) -> int:
    """The exit code of a process that a signal killed."""
    return -int(number)


def _timeless(row: dict) -> dict:
    return {k: v for k, v in row.items() if not k.endswith(("_seconds", "_per_second"))}
