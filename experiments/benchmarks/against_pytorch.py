"""ResNet-20 against PyTorch: the same network, batch, type and machine, data on the device."""

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence

import jax

from adabatch_jax.data.mesh import data_mesh
from experiments.benchmarks.networks import Network, RunningStep
from experiments.benchmarks.options import Options
from experiments.benchmarks.rows import Row, Target
from experiments.benchmarks.timing import alternate, ratio, timed
from experiments.benchmarks.torch_process import TorchProcess, TorchUnavailable

_NETWORK = "resnet20_cifar"
_MODES = {"PyTorch eager": "eager", "PyTorch compiled": "default"}
_GROUP = 8
_WHY = (
    "XLA's convolutions reach 105 to 175 GFLOP/s on this machine and oneDNN's 200, see "
    "`adabatch_jax/models/convolution.py`."
)


def run(options: Options) -> list[Row]:
    """Compares examples per second from batch 32 to 1024; two virtual devices are expected."""
    sizes = (16,) if options.quick else (32, 128, 256, 1024)
    try:
        with TorchProcess(options.torch_python) as torch:
            return [row for size in sizes for row in _rows(torch, size, options.quick)]
    except TorchUnavailable as error:
        return [Row("ResNet-20, examples/s / PyTorch's", None, note=f"{error}.")]


def _rows(torch: TorchProcess, batch_size: int, quick: bool) -> list[Row]:
    whole, grouped = (Network.create(_NETWORK, group_size=size) for size in (None, _GROUP))
    ours = ways(whole, grouped, batch_size, _GROUP)
    seconds, best = in_turns(torch, ours, _NETWORK, batch_size, quick)
    beside = {f"{name} (ms)": 1e3 * statistics.median(s) for name, s in seconds.items()}
    plain, ours_best = next(iter(ours)), fastest(seconds, [*ours])
    what = f"ResNet-20, float32, batch {batch_size}, examples/s"
    return [
        Row(
            f"{what}: the whole batch in one program / PyTorch",
            ratio(seconds[best], seconds[plain]),
            Target(at_least=0.33),
            note="BatchNorm over the whole batch on both sides.",
            why_missed=_WHY,
            beside=beside,
        ),
        Row(
            f"{what}: the best, {ours_best} / PyTorch",
            ratio(seconds[best], seconds[ours_best]),
            Target(at_least=0.73 if batch_size < 512 else 1.05),
            note=(
                f"BatchNorm over groups of {_GROUP} on our side, over the whole batch on "
                "PyTorch's. The goal is 1."
            ),
            why_missed=_WHY,
        ),
    ]


def in_turns(
    torch: TorchProcess,
    ours: Mapping[str, Callable[[], float]],
    network: str,
    batch_size: int,
    quick: bool,
    **shape: int,
) -> tuple[dict[str, list[float]], str]:
    """Lets updates of ours and PyTorch's take turns, eager and compiled, as far as it can.

    Returns:
      Seconds of each round by name, and PyTorch's fastest name.

    Raises:
      TorchUnavailable: it can do neither.
    """
    measures, reason = dict(ours), None
    for name, mode in _MODES.items():
        try:
            # Builds it, and compiles.
            torch.seconds(network, batch_size, mode=mode, **shape)
        except TorchUnavailable as error:
            reason = error
            continue
        measures[name] = functools.partial(torch.seconds, network, batch_size, mode=mode, **shape)
    theirs = [name for name in measures if name not in ours]
    if not theirs:
        raise TorchUnavailable(str(reason))
    seconds = alternate(measures, rounds=1 if quick else 9, limit_seconds=8)
    torch.forget()
    return seconds, fastest(seconds, theirs)


def ways(
    whole: Network, grouped: Network, batch_size: int, group_size: int
) -> dict[str, Callable[[], float]]:
    """Our ways to compute an update, by name, and what measures one of each.

    `whole` takes the batch in one program, `grouped` so many examples at a time on each device.
    """
    measures = {"one program": _measure(whole.step(), whole.batch(batch_size))}
    for num_devices in (1, jax.device_count()):
        mesh = data_mesh(jax.devices()[:num_devices])
        microbatch_size = group_size * num_devices
        shape = (batch_size // microbatch_size, microbatch_size)
        name = f"{group_size} examples at a time on {num_devices} device{'s' * (num_devices > 1)}"
        step = grouped.step(microbatch_size, mesh)
        measures[name] = _measure(step, grouped.batch(*shape, mesh=mesh))
    return measures


def fastest(seconds: Mapping[str, Sequence[float]], names: Sequence[str]) -> str:
    """The name of those whose median is the least."""
    return min(names, key=lambda name: statistics.median(seconds[name]))


def _measure(step: RunningStep, batch: Mapping[str, jax.Array]) -> Callable[[], float]:
    program = step.compile(batch)
    return timed(lambda: step(batch, program))
