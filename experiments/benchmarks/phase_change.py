"""What a change of batch size stalls training, and what it would if programs were compiled then."""

import statistics
import time

import jax

from adabatch_jax.config.settings import Layout
from adabatch_jax.training.train_step import make_train_step
from experiments.benchmarks.options import Options
from experiments.benchmarks.rows import Row, Target
from experiments.benchmarks.timing import spread
from experiments.benchmarks.training import Run, resnet20

_SIZES = (32, 64, 96, 128)


def run(options: Options) -> list[Row]:
    """Trains through phases whose programs are compiled in the background, and times updates."""
    jax.config.update("jax_enable_compilation_cache", False)
    sizes = (8, 16) if options.quick else _SIZES
    # The first phase is as long as the background needs for three programs.
    first_updates, updates = (30, 4) if options.quick else (150, 12)
    training = resnet20()
    starts, step = [0], first_updates
    for _ in sizes[1:]:
        starts.append(step)
        step += updates
    pieces = [f"{start}st: {size}" for start, size in zip(starts[1:], sizes[1:], strict=True)]
    plan = training.plan(", ".join([f"{sizes[0]}", *pieces]), f"{step}st")
    seconds: list[float] = []
    mark = time.perf_counter()

    def on_step(finished, state, metrics):
        nonlocal mark
        jax.block_until_ready((metrics, state))
        now = time.perf_counter()
        seconds.append(now - mark)
        mark = now

    training.fit(plan, layout=Layout(None, input="resident"), on_step=on_step)
    stalls, usual = [], 0.0
    for phase in plan.phases[1:]:
        usual = statistics.median(seconds[phase.start_step + 1 : phase.stop_step])
        stalls.append(seconds[phase.start_step] / usual - 1)
    again = _recompilation(training, sizes[-1])
    return [
        Row(
            "stall at a phase change / one update of the new phase, ResNet-20",
            spread([max(stall, 0.0) for stall in stalls]),
            Target(at_most=1.0),
            note=(
                f"Changes to {', '.join(map(str, sizes[1:]))} within {len(seconds)} updates; the "
                "first update's time less the median one's."
            ),
            beside={
                f"`jax.jit` compiling at the change to {sizes[-1]} (updates)": again / usual - 1,
                "that (s)": again - usual,
            },
        )
    ]


def _recompilation(training: Run, batch_size: int) -> float:
    """Seconds of the first update of a size that `jax.jit` hasn't met."""
    step = make_train_step(training.loss_fn, training.tx)
    state, rng = training.state(), jax.random.key(0)
    batch = dict(training.source.read(range(batch_size)))
    batch |= {name: jax.numpy.zeros(batch_size, "int32") for name in ("index", "epoch")}
    batch = jax.device_put(batch | {"weight": jax.numpy.ones(batch_size)})
    jax.block_until_ready((state, batch))
    start = time.perf_counter()
    jax.block_until_ready(step(state, batch, rng))
    return time.perf_counter() - start
