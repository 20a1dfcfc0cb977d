"""K micro-batches in one program, against K single updates and against `optax.MultiSteps`."""

import optax

from experiments.benchmarks.networks import Network, optimizer
from experiments.benchmarks.options import Options
from experiments.benchmarks.rows import Row, Target
from experiments.benchmarks.timing import alternate, ratio, timed

# (K, m): what the CPU is fastest with, and something larger.
_SPLITS = ((16, 8), (8, 32))


def run(options: Options) -> list[Row]:
    """Times an accumulated update of ResNet-20 and its rivals, for two sizes of micro-batch."""
    splits = ((2, 2),) if options.quick else _SPLITS
    return [row for split in splits for row in _rows(*split, rounds=1 if options.quick else 7)]


def _rows(num_microbatches: int, microbatch_size: int, rounds: int) -> list[Row]:
    network = Network.create("resnet20_cifar", group_size=microbatch_size)
    accumulated = network.step(microbatch_size)
    single = network.step()
    multi = network.step(tx=optax.MultiSteps(optimizer(), num_microbatches))
    stacked = network.batch(num_microbatches, microbatch_size)
    batch = network.batch(microbatch_size)

    def several(step):
        # What an update returns is gone when the next one has taken the state.
        return timed(lambda: [step(batch) for _ in range(num_microbatches)][-1])

    seconds = alternate(
        {
            "accumulated": timed(lambda: accumulated(stacked)),
            "single": several(single),
            "multi": several(multi),
        },
        rounds,
    )
    what = f"{num_microbatches} micro-batches of {microbatch_size} in one program"
    beside = {f"{name} (ms)": 1e3 * min(times) for name, times in seconds.items()}
    group = f"ResNet-20, float32, BatchNorm's group {microbatch_size}."
    return [
        Row(
            f"{what} / as many single updates of that size",
            ratio(seconds["accumulated"], seconds["single"]),
            Target(at_most=1.03),
            note=group,
            beside=beside,
        ),
        Row(
            f"{what} / `optax.MultiSteps`",
            ratio(seconds["accumulated"], seconds["multi"]),
            Target(at_most=1.0),
            note=group,
        ),
    ]
