"""PyTorch's side of a comparison: a process that trains a network when it is told to.

    python -m experiments.benchmarks.torch_worker

Reads a request per line, `{"network", "batch_size", "dtype", "mode", "updates"}` and what else the
network is built with as JSON, and answers each with `{"seconds"}` or `{"error"}`. It needs torch
only, so that any Python will do.
"""

import functools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from experiments.benchmarks import torch_gpt, torch_networks


def device() -> str:
    """Where to train: the GPU, if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@functools.cache
def training(
    network: str, batch_size: int, dtype: str, mode: str, **shape: int
) -> Callable[[], object]:
    """Returns what performs one update, on one batch that stays on the device.

    bfloat16 is autocast, that is parameters stay float32, as ours do.

    Args:
      mode: "eager", or a mode of `torch.compile`.
      shape: what else the network and its batches are built with.
    """
    torch.manual_seed(0)
    build = _gpt if network == "nanogpt" else functools.partial(_classifier, network)

    def prepared(function: Callable) -> Callable:
        """A loss, or what it calls, in the wanted type and mode."""

        def cast(*inputs):
            with torch.autocast(device(), torch.bfloat16, enabled=dtype == "bfloat16"):
                return function(*inputs)

        return cast if mode == "eager" else torch.compile(cast, mode=mode, dynamic=False)

    update = build(batch_size, prepared, **shape)
    update()
    return update


def _classifier(
    network: str,
    batch_size: int,
    prepared: Callable[[Callable], Callable],
    image_size: int = 32,
    num_classes: int = 100,
) -> Callable[[], object]:
    """As the official script trains, with channels last: SGD with momentum 0.9 and weight decay."""
    module = torch_networks.create(network, num_classes).to(device())
    module = module.to(memory_format=torch.channels_last).train()
    fused = device() == "cuda"
    optimizer = torch.optim.SGD(
        module.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=fused
    )
    shape = (batch_size, 3, image_size, image_size)
    images = torch.randn(shape, device=device()).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(num_classes, (batch_size,), device=device())
    loss_of = prepared(
        lambda images, labels: functional.cross_entropy(module(images).float(), labels)
    )

    def update() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(images, labels).backward()
        optimizer.step()

    return update


def _gpt(
    batch_size: int, prepared: Callable[[Callable], Callable], length: int, **shape: int
) -> Callable[[], object]:
    module = torch_gpt.GPT(length=length, **shape).to(device()).train()
    tokens = torch.randint(shape["vocabulary_size"], (batch_size, length + 1), device=device())
    return functools.partial(torch_gpt.updates(module, prepared(module)), tokens)


def seconds(request: dict[str, Any]) -> float:
    """Performs the updates that a request asks for; returns the seconds they took."""
    updates = request.pop("updates")
    update = training(**request)
    _wait()
    start = time.perf_counter()
    for _ in range(updates):
        update()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if device() == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Answers requests until there are no more."""
    torch._dynamo.config.cache_size_limit = 64
    torch.backends.cudnn.benchmark = True  # as the official script sets it
    answers = sys.stdout
    sys.stdout = sys.stderr  # whatever else is printed
    gpu = torch.cuda.get_device_name() if device() == "cuda" else "cpu"
    print(json.dumps({"torch": torch.__version__, "device": gpu}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("forget"):
            training.cache_clear()
            torch._dynamo.reset()
            torch.cuda.empty_cache()
            answer = {}
        else:
            try:
                answer = {"seconds": seconds(request)}
            except Exception as error:  # no memory, no compiler, ...
                answer = {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
