"""Processes that a test starts: none waits for ever, and none is left."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from adabatch_jax.cluster.local_processes import free_port

PROGRAM = str(Path(__file__).with_name("program.py"))
_LAUNCHERS = ("SLURM_", "OMPI_", "PMI", "SKYPILOT_", "MASTER_", "JAX_COORDINATOR", "KUBERNETES_")


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, its lines of JSON, all that it wrote."""

    code: int
    told: list[dict]
    text: str


def clean_environment(devices=1, **variables):
    """The variables of a process on the CPU that no launcher has started."""
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_LAUNCHERS) and name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    flags = f"--xla_force_host_platform_device_count={devices}"
    return own | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags} | variables


def ended(process, seconds=60):
    try:
        text = process.communicate(timeout=seconds)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    lines = [line for line in text.splitlines() if line.startswith("{")]
    return Ended(process.returncode, [*map(json.loads, lines)], text)


def start(command, environment):
    return subprocess.Popen(
        ["timeout", "-k", "5", "60", *command], env=environment, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, process_group=0,
    )  # fmt: skip


@pytest.fixture
def run_together():
    """`run_together("sum", 2)`: how each of two processes ended that were started by hand."""

    def run(what, count, devices=1, **variables):
        address = f"127.0.0.1:{free_port()}"
        flags = ["--coordinator", address, "--num-processes", str(count), "--process-id"]
        command = [sys.executable, PROGRAM, what, *flags]
        environment = clean_environment(devices, **variables)
        started = [start([*command, str(index)], environment) for index in range(count)]
        return [ended(process) for process in started]

    return run
