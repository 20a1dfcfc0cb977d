"""Running a benchmark in a process of its own: with its devices, and nobody else's memory."""

import concurrent.futures
import importlib
import multiprocessing
import os
import time
from typing import Any

from adabatch_jax.system.environment import describe_environment
from experiments.benchmarks.options import Options
from experiments.benchmarks.rows import Row

BENCHMARKS = {
    "loop_overhead": 1,
    "text_training": 1,
    "host_time": 1,
    "phase_change": 1,
    "warm_start": 1,
    "streaming_input": 1,
    "jpeg_input": 1,
    "accumulation": 1,
    "prediction": 1,
    "checkpoints": 1,
    "sharded_parameters": 8,
    "scaling": 1,
    "host_memory": 1,
    "against_pytorch": 2,
    "against_nanogpt": 2,
}
"""The modules here that have a `run`, in order, and how many devices each needs."""


def run_apart(name: str, options: Options, cache: str) -> dict[str, Any]:
    """Runs a benchmark on the CPU.

    Args:
      name: the benchmark.
      options: for it.
      cache: folder of compiled programs, so that none is compiled more often than it is measured.

    Returns:
      Its rows and environment as JSON values. A benchmark that fails has one row that says so,
      because the others are worth having.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_NUM_CPU_DEVICES"] = str(BENCHMARKS[name])
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    context, start = multiprocessing.get_context("spawn"), time.monotonic()
    with concurrent.futures.ProcessPoolExecutor(1, context) as process:
        try:
            rows = process.submit(_run_here, name, options).result()
        except Exception as error:
            rows = [Row(name, None, note=f"failed: {type(error).__name__}: {error}")]
    devices = ["cpu"] * BENCHMARKS[name]
    return {
        "environment": describe_environment(devices),
        "benchmark_seconds": round(time.monotonic() - start, 1),
        "rows": [row.to_dict() for row in rows],
    }


def _run_here(name: str, options: Options) -> list[Row]:
    return importlib.import_module(f"experiments.benchmarks.{name}").run(options)
