"""A small GPT-2 against nanoGPT's in PyTorch: the same shape, step, batch, type and machine."""

from experiments.benchmarks.against_pytorch import fastest, in_turns, ways
from experiments.benchmarks.networks import Network
from experiments.benchmarks.options import Options
from experiments.benchmarks.rows import Row
from experiments.benchmarks.timing import ratio
from experiments.benchmarks.torch_process import TorchProcess, TorchUnavailable

_VOCABULARY, _LENGTH = 256, 128
_SHAPE = {"width": 64, "num_layers": 4, "num_heads": 4}
_GROUP = 4
_WHAT = "GPT-2 of 0.2 M parameters, float32"


def run(options: Options) -> list[Row]:
    """Compares tokens per second at two batch sizes; two virtual devices are expected."""
    length, sizes = (16, (8,)) if options.quick else (_LENGTH, (16, 64))
    try:
        with TorchProcess(options.torch_python) as torch:
            return [row for size in sizes for row in _rows(torch, size, length, options.quick)]
    except TorchUnavailable as error:
        return [Row(f"{_WHAT}, tokens/s / nanoGPT's", None, note=f"{error}.")]


def _rows(torch: TorchProcess, batch_size: int, length: int, quick: bool) -> list[Row]:
    gpt = Network.of_tokens("gpt_124m", length, _VOCABULARY, num_positions=length, **_SHAPE)
    ours = ways(gpt, gpt, batch_size, _GROUP)
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
