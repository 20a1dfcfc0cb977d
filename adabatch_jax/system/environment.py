"""What a run was made with: versions, machine, devices and the command."""

import importlib.metadata
import os
import platform
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from adabatch_jax.system.command_lines import command_text

PACKAGES = (
    "adabatch_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorflow-datasets",
    "numpy",
)


def describe_environment(devices: Iterable[str] = ()) -> dict[str, Any]:
    """Describes where a program runs, as JSON values.

    Args:
      devices: a name for each device, such as `device.device_kind` of `jax.devices()`. They are an
        argument so that describing needs no jax.
    """
    return {
        "command": command_text(sys.orig_argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": _usable_cores(),
        "devices": dict(Counter(devices)),
        "packages": package_versions(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def package_versions() -> dict[str, str]:
    """The versions of those of `PACKAGES` that are installed."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that isn't installed, or a source tree on the path
    return versions


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []  # not Linux
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # on Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
