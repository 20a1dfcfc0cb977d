"""Examples per second, utilisation and memory of a network over its batch sizes."""

import concurrent.futures
import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from experiments.benchmarks.accelerator.peaks import Peak
from experiments.benchmarks.accelerator.workloads import Workload, largest_microbatch
from experiments.benchmarks.networks import Network, RunningStep

_REPETITIONS = 3
# Enough for the optimizer's share to vanish.
_BATCH_OF_FLOPS = 16


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled update for one batch size.

    Attributes:
      shape: (B,) or, in micro-batches, (K, m).
      compiled: the program.
      compile_seconds: what compiling took, among others that were compiled at the same time.
    """

    shape: tuple[int, ...]
    compiled: jax.stages.Compiled
    compile_seconds: float


class Sweep:
    """One network in one type of computation.

    Args:
      workload: the network and its batch sizes.
      dtype: "float32" or "bfloat16".
      peak: the device's, or None.

    Attributes:
      programs: by batch size, what was compiled.
      failures: by batch size, why there is none.
    """

    def __init__(self, workload: Workload, dtype: str, peak: Peak | None):
        size = workload.image_size
        self.workload, self.dtype = workload, dtype
        self.network = Network.create(
            workload.model,
            dtype=dtype,
            image_shape=(size, size, 3),
            num_classes=workload.num_classes,
        )
        self.steps = {False: self.network.step()}
        self.example_flops = _example_flops(self.steps[False], self.network)
        self._peak_flops = None if peak is None else getattr(peak, dtype)
        stats = jax.devices()[0].memory_stats() or {}
        self._largest = largest_microbatch(workload, stats.get("bytes_limit"))
        self.programs: dict[int, Program] = {}
        self.failures: dict[int, str] = {}

    def compile(self, deadline: float) -> None:
        """Compiles all sizes at the same time, in order, as far as that is done in time."""
        if self._largest < self.workload.batch_sizes[-1]:
            self.steps[True] = self.network.step(self._largest)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
            futures = {
                size: threads.submit(self._compile, size) for size in self.workload.batch_sizes
            }
            left = max(deadline - time.monotonic(), 0)
            concurrent.futures.wait(futures.values(), timeout=left)
            for future in futures.values():
                future.cancel()  # what runs goes on, and is waited for: it would disturb
        for size, future in futures.items():
            if future.cancelled():
                self.failures[size] = "no time to compile it"
            elif error := future.exception():
                self.failures[size] = first_line(error)
            else:
                self.programs[size] = future.result()

    def measure(self, batch_size: int, wanted_seconds: float) -> dict[str, Any]:
        """Times so many seconds of updates of one size, some times; returns JSON values."""
        program = self.programs[batch_size]
        update = self.updates(batch_size)
        seconds, quickest, slowest = update_seconds(update, wanted_seconds)
        memory = program.compiled.memory_analysis()
        stats = jax.devices()[0].memory_stats() or {}
        measured = {
            "batch_size": batch_size,
            "microbatch_size": program.shape[-1],
            "update_seconds": seconds,
            "update_seconds_range": [quickest, slowest],
            "examples_per_second": batch_size / seconds,
            "model_flop_utilisation": None,
            "temporary_bytes": None if memory is None else memory.temp_size_in_bytes,
            "argument_bytes": None if memory is None else memory.argument_size_in_bytes,
            "process_peak_bytes": stats.get("peak_bytes_in_use"),
            "compile_seconds": program.compile_seconds,
        }
        if self._peak_flops and self.example_flops:
            rate = self.example_flops * batch_size / seconds
            measured["model_flop_utilisation"] = rate / self._peak_flops
        return measured

    def restart(self) -> None:
        """Begins with a new state, where a failed update has taken the old one."""
        for step in self.steps.values():
            step.state = step.step.place(self.network.state(step.step.tx))

    def updates(self, batch_size: int):
        """Returns what dispatches one update of this size, on a batch that stays on the device."""
        program = self.programs[batch_size]
        step = self.steps[len(program.shape) == 2]
        batch = self.network.batch(*program.shape)
        return lambda: step(batch, program.compiled)

    def _compile(self, batch_size: int) -> Program:
        is_split = batch_size > self._largest
        shape = (batch_size // self._largest, self._largest) if is_split else (batch_size,)
        start = time.monotonic()
        compiled = self.steps[is_split].compile(self.network.abstract_batch(*shape))
        return Program(shape, compiled, time.monotonic() - start)


def first_line(error: BaseException) -> str:
    """The beginning of what an error says; XLA's go on for pages."""
    return (str(error).splitlines() or [""])[0]


def update_seconds(update: Callable[[], Any], wanted_seconds: float) -> tuple[float, float, float]:
    """Times so many seconds of updates, some times.

    Returns:
      Seconds per update: the median, the least and the most.
    """
    jax.block_until_ready([update() for _ in range(2)][-1])
    estimate = _seconds(update, 2) / 2
    count = max(round(wanted_seconds / estimate), 2)
    each = [_seconds(update, count) / count for _ in range(_REPETITIONS)]
    return statistics.median(each), min(each), max(each)


def _seconds(update, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        outputs = update()
    jax.block_until_ready(outputs)
    return time.perf_counter() - start


def _example_flops(step: RunningStep, network: Network) -> float | None:
    """FLOPs of an update per example, as XLA counts them in a program without loops."""
    batch = network.abstract_batch(_BATCH_OF_FLOPS)
    try:
        costs = step.step.lower(step.state, batch, step.rng).cost_analysis()
    except Exception:  # not every backend can tell
        return None
    return costs["flops"] / _BATCH_OF_FLOPS if costs and "flops" in costs else None
