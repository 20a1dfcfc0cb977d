"""Memory of the host while batches stream that grow from 128 to 16,384."""

import os
from pathlib import Path

from adabatch_jax.data.feeds import Feed
from adabatch_jax.training.updates_per_dispatch import pieces
from experiments.benchmarks.options import Options
from experiments.benchmarks.rows import Row, Target
from experiments.benchmarks.timing import spread
from experiments.benchmarks.training import Run, random_images, resnet20

_SIZES = (128, 1024, 16384)
# Two are ready, one is trained on, one is being made: as the host's arrays and the device's.
_IN_FLIGHT = 2 * 4


def run(options: Options) -> list[Row]:
    """Feeds a step that does nothing, and watches the process."""
    sizes, num_batches = ((16, 64), 15) if options.quick else (_SIZES, 60)
    num_examples = 640 if options.quick else 50_000
    training = resnet20(random_images(num_examples))
    peaks = {size: _peaks(training, size, num_batches) for size in sizes}
    small, large = max(peaks[sizes[0]]), max(peaks[sizes[-1]])
    batch_bytes = training.source.read(range(sizes[-1]))["image"].nbytes
    third = num_batches // 3  # the first third fills what the allocator keeps
    early, late = max(peaks[sizes[-1]][third : 2 * third]), max(peaks[sizes[-1]][2 * third :])
    beside = {f"batch {size} (MiB)": max(peak) / 2**20 for size, peak in peaks.items()}
    what = "host memory, streaming 32x32 images"
    return [
        Row(
            f"{what}: growth from batch {sizes[0]} to {sizes[-1]:,} / bytes of the large batch",
            spread([(large - small) / batch_bytes]),
            Target(at_most=_IN_FLIGHT),
            note=(
                "Two batches are ready, one is trained on and one is being made, each once on the "
                "host and once on the device, which is the host's memory here."
            ),
            beside=beside,
        ),
        Row(
            f"{what}: peak of the third {third} batches of {sizes[-1]:,} / of the second {third}",
            spread([late / early]),
            Target(at_most=1.02),
            why_missed=(
                "The allocator gives pages back at its own pace: such peaks differ by some 10 % "
                "both ways from run to run."
            ),
        ),
    ]


def _peaks(training: Run, batch_size: int, num_batches: int) -> list[int]:
    """Resident bytes of the process as each batch arrives."""
    plan = training.plan(batch_size, f"{num_batches}st")
    options = {"mesh": None, "microbatch_size": None, "kind": "streaming"}
    resident = []
    with Feed(training.source, plan, 0, **options) as feed:
        for _ in feed.run(pieces(plan, 0, 1, lambda finished: plan.num_steps)):
            resident.append(_resident_bytes())
    return resident


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
