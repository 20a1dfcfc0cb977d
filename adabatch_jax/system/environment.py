"""What a run was made with: versions, machine, devices and the command."""

import functools
import hashlib
import importlib.metadata
import os
import platform
import re
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
    "opencv-python-headless",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "nvidia-cublas-cu12",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
    "libtpu",
)

THREAD_VARIABLES = ("PJRT_NPROC", "NPROC")
"""How many threads XLA takes on a CPU; the first counts, and without them its usable cores."""

# Read by XLA and by the libraries that it calls; what they say may change how results are rounded.
_VARIABLES = (
    "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG", "NCCL_ALGO",
    "NCCL_PROTO", "ONEDNN_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_MAX_CPU_ISA",
    "DNNL_DEFAULT_FPMATH_MODE",
)  # fmt: skip
# Dumps change nothing, and the number of devices is the layout's.
_OF_NO_NUMBERS = re.compile(r"--xla_(dump_|force_host_platform_device_count=)")
_ARITHMETIC = re.compile(
    r"(s?sse|avx|fma|f16c|amx|asimd|neon|vfp|fp(?!u)|sve|sme(?!p)|bf16|i8mm)\w*"
)


def describe_environment(devices: Iterable[str] = ()) -> dict[str, Any]:
    """Describes where a program runs, as JSON values.

    Args:
      devices: a name for each device, such as `device.device_kind` of `jax.devices()`. They are an
        argument so that describing needs no jax.
    """
    program, *arguments = sys.orig_argv or ["python"]
    return {
        # Where the interpreter lies on this machine is of no use to whoever reads it elsewhere.
        "command": command_text([Path(program).name, *arguments]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": usable_cores(),
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


@functools.cache
def code_digest() -> str:
    """A hash of this package's files of Python, by which processes know that they run the same."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)};".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def rounding_variables() -> dict[str, list[str]]:
    """What variables tell XLA of how to compute, each as sorted words."""
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if flags and not flags.startswith("-"):  # the name of a file of them
        try:
            flags = Path(flags).read_text()
        except (OSError, ValueError):
            flags = ""
    words = {name: _words(os.environ.get(name, "")) for name in _VARIABLES}
    words["XLA_FLAGS"] = [flag for flag in _words(flags) if not _OF_NO_NUMBERS.match(flag)]
    return words


def _words(text: str) -> list[str]:
    """Words, of which the last one of a name counts, whatever their order.

    >>> _words("--b --a=1 --a=2"), _words("Tree")
    (['--a=2', '--b=true'], ['Tree'])
    """
    words = {word.partition("=")[0]: word for word in text.split()}
    is_bare = {name for name, word in words.items() if name == word and name.startswith("-")}
    return sorted(f"{word}=true" if name in is_bare else word for name, word in words.items())


def cpu_instructions() -> list[str]:
    """The processor's instructions that arithmetic may be compiled to."""
    words = {word for name in ("flags", "Features") for word in _cpuinfo(name).split()}
    return sorted(filter(_ARITHMETIC.fullmatch, words)) or [platform.machine()]


def _cpu_model() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(name: str) -> str:
    """What Linux says of the first processor; elsewhere nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    values = (line.partition(":")[2].strip() for line in lines if line.startswith(name))
    return next(values, "")


def xla_threads() -> int:
    """How many threads XLA computes with on a CPU, unless it has more devices there.

    Sums are split by them: another number rounds differently, on however many cores they run.
    """
    numbers = (os.environ.get(name, "").strip() for name in THREAD_VARIABLES)
    chosen = [int(number) for number in numbers if re.fullmatch(r"[+-]?\d+", number)]
    return max(1, chosen[0]) if chosen else usable_cores()


def usable_cores() -> int:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # on Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
