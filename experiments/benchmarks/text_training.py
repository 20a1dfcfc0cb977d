"""A small GPT on tokens from a file: what the loop adds to a bare step, and how fast they come."""

import tempfile
import time
from pathlib import Path

from adabatch_jax.config.settings import Layout
from adabatch_jax.data.feeds import Feed
from adabatch_jax.training.updates_per_dispatch import pieces
from experiments.benchmarks.loop_overhead import (
    Updates,
    compare,
    compiled_updates,
    hand_written_updates,
)
from experiments.benchmarks.options import Options
from experiments.benchmarks.rows import Row, Target
from experiments.benchmarks.timing import alternate, ratio
from experiments.benchmarks.training import Run, gpt_nano, random_tokens

_BATCH_SIZE, _LENGTH = 16, 128
_WHAT = f"gpt_nano, {_BATCH_SIZE} sequences of {_LENGTH} tokens, tokens/s"
_STREAMING = Layout(input="streaming")


def run(options: Options) -> list[Row]:
    """Trains gpt_nano from a `.bin` that is read while training."""
    num_rounds, num_updates, num_fed = (1, 1, 5) if options.quick else (9, 10, 400)
    num_tokens = 20_000 if options.quick else 4_000_000
    with tempfile.TemporaryDirectory() as folder:
        training = gpt_nano(random_tokens(Path(folder), num_tokens, _LENGTH))
        plan = training.plan(_BATCH_SIZE, f"{num_updates * (num_rounds + 1)}st")
        bare = hand_written_updates(training, plan)
        alone = {"program": compiled_updates(training, plan, _STREAMING), "bare": bare}
        seconds = compare(training, plan, num_updates, _STREAMING, alone)
        tokens = num_updates * _BATCH_SIZE * _LENGTH
        paces = {f"{name} (tokens/s)": tokens / min(times) for name, times in seconds.items()}
        return [
            Row(
                f"{_WHAT}: training loop / a hand-written jitted step",
                ratio(seconds["bare"], seconds["loop"]),
                Target(at_least=0.98),
                note=(
                    "AdamW and clipping; the loop reads a .bin and writes one row of metrics each "
                    f"{num_updates} updates, the step has one batch."
                ),
                beside=paces,
            ),
            Row(
                f"{_WHAT}: training loop / its compiled updates alone",
                ratio(seconds["program"], seconds["loop"]),
                Target(at_least=0.98),
            ),
            _input_row(training, bare, num_rounds, num_updates, num_fed),
        ]


def _input_row(
    training: Run, bare: Updates, num_rounds: int, num_updates: int, num_fed: int
) -> Row:
    def model() -> float:
        start = time.perf_counter()
        bare(num_updates)
        return (time.perf_counter() - start) / num_updates

    def fed() -> float:
        plan = training.plan(_BATCH_SIZE, f"{num_fed}st")
        options = {"mesh": None, "microbatch_size": None, "kind": "streaming"}
        with Feed(training.source, plan, 0, **options) as feed:
            start = time.perf_counter()
            for _ in feed.run(pieces(plan, 0, 1, lambda finished: plan.num_steps)):
                pass
            return (time.perf_counter() - start) / num_fed

    seconds = alternate({"model": model, "input": fed}, num_rounds)
    return Row(
        f"{_WHAT}: batches from a .bin, fed to a step that does nothing / what the model takes",
        ratio(seconds["model"], seconds["input"]),
        Target(at_least=50),
        note="Sequences in the order of the seed, as the loop gets them, on the device.",
        beside={
            f"{name} (tokens/s)": _BATCH_SIZE * _LENGTH / min(times)
            for name, times in seconds.items()
        },
    )
