"""The same networks in PyTorch, trained the official script's way."""

import time
from typing import Any

from experiments.benchmarks.accelerator.workloads import Workload
from experiments.benchmarks.torch_process import TorchProcess, TorchUnavailable

MODES = {
    "eager": "eager, channels last",
    "default": "torch.compile",
    "reduce-overhead": "torch.compile with CUDA graphs",
}
_SECONDS = 1.0


def measure(
    torch: TorchProcess, workload: Workload, batch_size: int, dtype: str, mode: str, deadline: float
) -> dict[str, Any]:
    """Times updates of one network, as JSON values; "error" where that can't be."""
    row = {"batch_size": batch_size, "dtype": dtype, "mode": MODES[mode]}
    request = {
        "dtype": dtype,
        "mode": mode,
        "image_size": workload.image_size,
        "num_classes": workload.num_classes,
        "deadline": deadline,
    }
    start = time.monotonic()
    try:
        torch.seconds(workload.model, batch_size, updates=1, **request)
        row["compile_seconds"] = time.monotonic() - start
        estimate = torch.seconds(workload.model, batch_size, updates=3, **request) / 3
        count = max(round(_SECONDS / estimate), 3)
        taken = torch.seconds(workload.model, batch_size, updates=count, **request)
    except TorchUnavailable as error:
        return row | {"error": str(error)}
    seconds = taken / count
    return row | {"update_seconds": seconds, "examples_per_second": batch_size / seconds}
