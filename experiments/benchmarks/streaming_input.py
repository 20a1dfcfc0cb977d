"""Waiting for input that is read while training, and how fast it could be read."""

import time

from adabatch_jax.config.settings import Layout
from adabatch_jax.data.feeds import Feed
from adabatch_jax.training.updates_per_dispatch import pieces
from experiments.benchmarks.options import Options
from experiments.benchmarks.rows import Row, Target
from experiments.benchmarks.timing import spread
from experiments.benchmarks.training import Run, random_images, resnet20

_BATCH_SIZE = 128


def run(options: Options) -> list[Row]:
    """Trains ResNet-20 on streamed images; then feeds a step that does nothing."""
    num_runs, num_updates, num_fed = (1, 2, 5) if options.quick else (3, 20, 400)
    training = resnet20(random_images(1_000 if options.quick else 50_000))
    plan = training.plan(_BATCH_SIZE, f"{num_updates}st")
    shares, paces = [], []
    for _ in range(num_runs):
        summary = training.fit(plan, layout=Layout(input="streaming")).summary
        wall = summary["input_seconds"] + summary["step_seconds"]
        shares.append(summary["input_seconds"] / wall)
        paces.append(plan.num_samples / wall)
    fed = _fed_per_second(training, num_fed)
    return [
        Row(
            "waiting for input / wall time, streaming 32x32 images to ResNet-20",
            spread(shares),
            Target(at_most=0.02),
            note=f"Batch {_BATCH_SIZE}, one thread that reads ahead.",
            beside={
                "trained (examples/s)": max(paces),
                "fed to a step that does nothing (examples/s)": fed,
            },
        )
    ]


def _fed_per_second(training: Run, num_updates: int) -> float:
    plan = training.plan(_BATCH_SIZE, f"{num_updates}st")
    options = {"mesh": None, "microbatch_size": None, "kind": "streaming"}
    with Feed(training.source, plan, 0, **options) as feed:
        start = time.perf_counter()
        for _ in feed.run(pieces(plan, 0, 1, lambda finished: plan.num_steps)):
            pass
        return plan.num_samples / (time.perf_counter() - start)
