"""What a checkpoint per epoch costs, and what a restart spends on verifying it."""

import tempfile
import time
from pathlib import Path

import jax

from adabatch_jax.config.settings import Layout
from adabatch_jax.runs.checkpoints.restoring import restore
from adabatch_jax.runs.checkpoints.verifying import check_checkpoint
from adabatch_jax.training.train_state import TrainState
from experiments.benchmarks.options import Options
from experiments.benchmarks.rows import Row, Target
from experiments.benchmarks.timing import spread
from experiments.benchmarks.training import Run, resnet20

_BATCH_SIZE = 128
# CIFAR's, whose epochs the paper counts in.
_EPOCH_EXAMPLES = 50_000


def run(options: Options) -> list[Row]:
    """Trains ResNet-20 with a checkpoint behind every other group of updates."""
    num_rounds, num_updates = (1, 3) if options.quick else (8, 10)
    training = resnet20()
    with tempfile.TemporaryDirectory() as folder:
        with_save, without = compare(training, Path(folder), num_rounds, num_updates)
        found, verified, restored = _restart(training.state(), Path(folder))
        num_bytes = sum(path.stat().st_size for path in found.path.rglob("*") if path.is_file())
    groups_per_epoch = _EPOCH_EXAMPLES / (_BATCH_SIZE * num_updates)
    pairs = list(zip(with_save, without, strict=True))
    of_epoch = [(a - b) / (groups_per_epoch * b) for a, b in pairs]
    epoch_seconds = groups_per_epoch * min(without)
    return [
        Row(
            f"seconds that a checkpoint adds / an epoch of {_EPOCH_EXAMPLES:,} examples, "
            f"ResNet-20, batch {_BATCH_SIZE}",
            spread(of_epoch),
            Target(at_most=0.02),
            note=(
                f"From groups of {num_updates} updates, every other one with a save at its "
                f"beginning: a group with / without is {spread([a / b for a, b in pairs])}."
            ),
        ),
        Row(
            "verifying and restoring a checkpoint / an epoch, ResNet-20",
            spread([(verified + restored) / epoch_seconds]),
            Target(at_most=0.02),
            beside={
                "verifying (ms)": 1e3 * verified,
                "restoring (ms)": 1e3 * restored,
                "checkpoint (bytes)": num_bytes,
            },
        ),
    ]


def compare(
    training: Run, folder: Path, num_rounds: int, num_updates: int
) -> tuple[list[float], list[float]]:
    """Lets groups of updates with a save at their beginning and without take turns.

    Returns:
      Seconds of each group: those with, and those without.
    """
    marks = []

    def on_step(finished, state, metrics):
        if finished % num_updates == 0:
            jax.block_until_ready((metrics, state))
            marks.append(time.perf_counter())

    # The first saves of a process are slower: one round is thrown away.
    plan = training.plan(_BATCH_SIZE, f"{2 * num_updates * (num_rounds + 2)}st")
    every = f"{2 * num_updates}st"
    training.fit(
        plan, layout=Layout(input="resident"), workdir=folder, log_every=every, checkpoint_every=every,
        on_step=on_step,
    )  # fmt: skip
    seconds = [stop - start for start, stop in zip(marks, marks[1:], strict=False)]
    # The group behind mark k is seconds[k]; a save is taken at marks 1, 3, 5, ...
    with_save, without = seconds[3::2], seconds[2::2]
    return with_save[:num_rounds], without[:num_rounds]


def _restart(state: TrainState, folder: Path):
    """Verifies and restores the newest checkpoint; returns it and the seconds of each."""
    directory = folder / "checkpoints"
    newest = max(directory.glob("[0-9]*"), key=lambda path: int(path.name))
    start = time.perf_counter()
    found = check_checkpoint(newest)
    verified = time.perf_counter()
    jax.block_until_ready(restore(found, state))
    return found, verified - start, time.perf_counter() - verified
