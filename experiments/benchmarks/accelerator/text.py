"""Tokens per second of a GPT, and its share of what the device could compute."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from experiments.benchmarks.accelerator.peaks import Peak
from experiments.benchmarks.accelerator.sweep import first_line, update_seconds
from experiments.benchmarks.networks import Network


@dataclasses.dataclass(frozen=True)
class TextWorkload:
    """A GPT and the batches that it is tried with.

    Attributes:
      model: its name in `adabatch_jax.models`.
      sequence_length: tokens of each sequence that are trained on.
      vocabulary_size: logits of each token.
      batch_sizes: in sequences, from the largest on; the first that fits is measured.
      dtype: to compute in.
    """

    model: str
    sequence_length: int
    vocabulary_size: int
    batch_sizes: tuple[int, ...]
    dtype: str


# GPT-2's 50,257 tokens, filled up to a multiple of 64 as in nanoGPT. A sequence takes some 1 GB.
GPT_124M = TextWorkload("gpt_124m", 1024, 50_304, (64, 32, 16, 8), "bfloat16")
QUICK = TextWorkload("gpt_nano", 16, 256, (2,), "bfloat16")


def attentions(platform: str) -> tuple[str, ...]:
    """What attention can be computed by.

    >>> attentions("tpu"), attentions("gpu")
    (('xla',), ('cudnn', 'xla'))
    """
    return ("cudnn", "xla") if platform == "gpu" else ("xla",)


def measured(
    workload: TextWorkload,
    peak: Peak | None,
    seconds: float,
    deadline: float,
    leave_out: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """Measures updates with each attention at the largest batch that fits, as JSON values.

    Args:
      workload: what to train.
      peak: the device's, or None.
      seconds: of updates in each measurement.
      deadline: when `time.monotonic()` passes it, nothing more is begun.
      leave_out: is told what couldn't be measured, and why.
    """
    for attention in attentions(jax.devices()[0].platform):
        for batch_size in workload.batch_sizes:
            what = f"{workload.model}, {attention}, batch {batch_size}"
            if time.monotonic() > deadline:
                leave_out(f"{what}: no time")
                break
            try:
                row = _measure(workload, attention, batch_size, peak, seconds)
            except Exception as error:
                leave_out(f"{what}: {type(error).__name__}: {first_line(error)}")
                if "RESOURCE_EXHAUSTED" in str(error):
                    continue  # a smaller one may fit
                break
            yield row
            break


def _measure(
    workload: TextWorkload, attention: str, batch_size: int, peak: Peak | None, seconds: float
) -> dict[str, Any]:
    length = workload.sequence_length
    network = Network.of_tokens(
        workload.model, length, workload.vocabulary_size, workload.dtype, attention=attention
    )
    step, batch = network.step(), network.batch(batch_size)
    start = time.monotonic()
    program = step.compile(batch)
    compile_seconds = time.monotonic() - start
    each, quickest, slowest = update_seconds(lambda: step(batch, program), seconds)
    flops_per_second = network.module.update_flops(batch_size, length) / each
    stats = jax.devices()[0].memory_stats() or {}
    return {
        "network": workload.model,
        "dtype": workload.dtype,
        "attention": attention,
        "batch_size": batch_size,
        "sequence_length": length,
        "update_seconds": each,
        "update_seconds_range": [quickest, slowest],
        "tokens_per_second": batch_size * length / each,
        "model_flops_per_second": flops_per_second,
        "model_flop_utilisation": peak and flops_per_second / getattr(peak, workload.dtype),
        "process_peak_bytes": stats.get("peak_bytes_in_use"),
        "compile_seconds": compile_seconds,
    }
