"""A small GPT-2 against nanoGPT's in PyTorch: the same shape, step, batch, type and machine."""

import jax

from adabatch_jax.data.mesh import data_mesh
from experiments.benchmarks.against_pytorch import fastest, in_turns, measure
from experiments.benchmarks.networks import Network
from experiments.benchmarks.options import Options
from experiments.benchmarks.rows import Row
from experiments.benchmarks.timing import ratio
from experiments.benchmarks.torch_process import TorchProcess, TorchUnavailable

_VOCABULARY, _LENGTH = 256, 128
_SHAPE = {"width": 64, "num_layers": 4, "num_heads": 4}
_WHAT = "GPT-2 of 0.2 M parameters, float32"


def run(options: Options) -> list[Row]:
    """Compares tokens per second at two batch sizes; two virtual devices are expected."""
    length, sizes = (16, (2,)) if options.quick else (_LENGTH, (16, 64))
    try:
        with TorchProcess(options.torch_python) as torch:
            return [row for size in sizes for row in _rows(torch, size, length, options.quick)]
    except TorchUnavailable as error:
        return [Row(f"{_WHAT}, tokens/s / nanoGPT's", None, note=f"{error}.")]


def network(length: int) -> Network:
    """GPT-2's parts in the benchmark's size."""
    return Network.of_tokens("gpt_124m", length, _VOCABULARY, num_positions=length, **_SHAPE)


def _rows(torch: TorchProcess, batch_size: int, length: int, quick: bool) -> list[Row]:
    ours = dict(_ours(batch_size, length))
    shape = {"vocabulary_size": _VOCABULARY, "length": length, **_SHAPE}
    seconds, theirs = in_turns(torch, ours, "nanogpt", batch_size, quick, **shape)
    plain, best = next(iter(ours)), fastest(seconds, [*ours])
    tokens = batch_size * length
    paces = {f"{name} (tokens/s)": tokens / min(times) for name, times in seconds.items()}
    what = f"{_WHAT}, {batch_size} sequences of {length} tokens, tokens/s"
    rival = f"nanoGPT's step in PyTorch {torch.description['torch']}, {theirs}"
    note = "AdamW and clipping; one batch on the device; the goal is 1."
    return [
        Row(
            f"{what}: one program / {rival}",
            ratio(seconds[theirs], seconds[plain]),
            note=note,
            beside=paces,
        ),
        Row(f"{what}: the best, {best} / {rival}", ratio(seconds[theirs], seconds[best])),
    ]


def _ours(batch_size: int, length: int):
    """Yields our ways to compute it, by name, and what measures one update of each."""
    gpt = network(length)
    yield "one program", measure(gpt.step(), gpt.batch(batch_size))
    mesh = data_mesh(jax.devices())
    name = f"on {mesh.size} devices"
    yield name, measure(gpt.step(mesh=mesh), gpt.batch(batch_size, mesh=mesh))
