"""The time that a run is predicted to take, before its first update, against what it takes."""

import json
import tempfile
from pathlib import Path

from experiments.benchmarks.options import Options
from experiments.benchmarks.rows import Row, Target
from experiments.benchmarks.timing import ratio
from experiments.benchmarks.training import GROUP_SIZE, random_images, resnet20

_SCHEDULE = "32 x2 every 20% max 256"


def run(options: Options) -> list[Row]:
    """Trains ResNet-20 through growing batches, and compares plan.json with summary.json.

    A shorter run before them fills the cache of compiled programs that benchmarks have: beside so
    few updates, a compiler at work would take a large part of the cores.
    """
    training = resnet20(random_images(640 if options.quick else 3840))
    plan = training.plan(_SCHEDULE, "1ep")
    predicted, measured = [], []
    with tempfile.TemporaryDirectory() as folder:
        training.fit(training.plan(_SCHEDULE, "640sp"), workdir=Path(folder, "first"))
        for number in range(1 if options.quick else 2):
            workdir = Path(folder, f"run{number}")
            summary = training.fit(plan, workdir=workdir, checkpoint_every="1ep").summary
            prediction = json.loads((workdir / "plan.json").read_text())["prediction"]
            predicted.append(prediction["total_seconds"])
            measured.append(sum(summary["phase_training_seconds"]))
    return [
        Row(
            "predicted / measured seconds of a run, ResNet-20, batch 32 to 256",
            ratio(predicted, measured),
            Target(at_least=0.9, at_most=1.1),
            note=(
                f"{plan.num_steps} updates; the prediction is made of the first and the largest "
                f"size; BatchNorm's group {GROUP_SIZE}."
            ),
            beside={"predicted (s)": min(predicted), "measured (s)": min(measured)},
        )
    ]
