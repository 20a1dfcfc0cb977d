"""Processes that train together, started by a test: none waits for ever, and none is left."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from adabatch_jax.cluster.local_processes import free_port
from tests.cluster.conftest import clean_environment

TRAINING = str(Path(__file__).with_name("training.py"))


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, by what name it told what, all that it wrote."""

    code: int
    told: dict[str, dict]
    text: str
    seconds: float  # since all were started


class Group:
    """Processes of one job. A context manager, whose end is theirs.

    Args:
      folder: where their output goes.
      command: what each is, without the flags that say which one.
      count, devices: how many processes, with how many devices of the CPU each.
      variables: of all; those of one process by its number.
      own: flags of one process, by its number.
      seconds: when `timeout` ends one that hasn't ended.
    """

    def __init__(self, folder, command, count, devices=1, variables=None, own=None, seconds=100):
        self._folder, self._command, self._count = Path(folder), [*map(str, command)], count
        self._devices, self._seconds = devices, seconds
        self._variables, self._own = variables or {}, own or {}
        self.processes = []

    def __enter__(self):
        self._folder.mkdir(parents=True, exist_ok=True)
        address, self.began = f"127.0.0.1:{free_port()}", time.monotonic()
        flags = ["--coordinator", address, "--num-processes", self._count, "--process-id"]
        for index in range(self._count):
            theirs = {k: v for k, v in self._variables.items() if isinstance(k, str)}
            theirs |= self._variables.get(index, {})
            command = ["timeout", "-k", "5", self._seconds, sys.executable, *self._command]
            command += [*self._own.get(index, ()), *flags, index]
            with open(self._output(index), "wb") as output:
                self.processes.append(
                    subprocess.Popen(
                        [*map(str, command)], env=clean_environment(self._devices, **theirs),
                        stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0,
                    )
                )  # fmt: skip
        return self

    def __exit__(self, *exception):
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _output(self, index):
        return self._folder / f"output-{index}.txt"

    def text(self, index):
        return self._output(index).read_text(errors="replace")

    def signal(self, index, number):
        """Sends a signal to the process itself: `timeout` is the one that was started."""
        own = Path(f"/proc/{self.processes[index].pid}/task/{self.processes[index].pid}/children")
        os.kill(int(own.read_text().split()[0]), number)

    def wait_for(self, index, text, seconds=60):
        """Waits until a process has written a text."""
        until = time.monotonic() + seconds
        while text not in self.text(index):
            assert self.processes[index].poll() is None, self.text(index)
            assert time.monotonic() < until, self.text(index)
            time.sleep(0.05)

    def ended(self):
        """How each ended, when all have."""
        seconds = {}
        while len(seconds) < self._count:
            for index, process in enumerate(self.processes):
                if index not in seconds and process.poll() is not None:
                    seconds[index] = time.monotonic() - self.began
            time.sleep(0.02)
        ended = []
        for index, process in enumerate(self.processes):
            lines = [line for line in self.text(index).splitlines() if line.startswith('{"what"')]
            told = {line["what"]: line for line in map(json.loads, lines)}
            code = process.returncode  # of `timeout`, which ends by the signal that it passes on
            ended.append(
                Ended(128 - code if code < 0 else code, told, self.text(index), seconds[index])
            )
        return ended


def run(folder, what, count, devices=1, **kwargs):
    """How each of so many processes of `training.py` ended that did `what`."""
    command = [TRAINING, folder, *what]
    with Group(folder / "output", command, count, devices, **kwargs) as group:
        return group.ended()


def sound(ended):
    """What processes told that ended well, by its name: a list over them."""
    for one in ended:
        assert one.code == 0, one.text
    return {what: [one.told[what] for one in ended] for what in ended[0].told}
