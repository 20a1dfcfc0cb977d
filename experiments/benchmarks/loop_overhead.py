"""What the training loop adds to the compiled updates that it performs."""

import time

import jax

from adabatch_jax.config.settings import Layout
from adabatch_jax.runs.display.progress import Progress
from adabatch_jax.training.setup import set_up
from adabatch_jax.training.update import Update
from experiments.benchmarks.options import Options
from experiments.benchmarks.rows import Row, Target
from experiments.benchmarks.timing import ratio
from experiments.benchmarks.training import GROUP_SIZE, Run

_BATCH_SIZE = 128


def run(options: Options) -> list[Row]:
    """Compares the loop's updates of ResNet-20 with the same program alone."""
    num_rounds, num_updates = (1, 1) if options.quick else (7, 5)
    bare, in_loop = compare(Run(), _BATCH_SIZE, num_rounds, num_updates)
    return [
        Row(
            f"compiled updates alone / training loop, ResNet-20, batch {_BATCH_SIZE}, resident",
            ratio(bare, in_loop),
            Target(at_least=0.98),
            note=(
                f"Whole updates with gathering in the program; {num_updates} updates and one row "
                f"of metrics a round; BatchNorm's group {GROUP_SIZE}, micro-batch chosen by auto."
            ),
            beside={
                "alone (ms)": 1e3 * min(bare) / num_updates,
                "loop (ms)": 1e3 * min(in_loop) / num_updates,
            },
        )
    ]


def compare(
    training: Run, batch_size: int, num_rounds: int, num_updates: int
) -> tuple[list[float], list[float]]:
    """Lets the loop and the bare program take turns, some updates each.

    The loop is stopped in its callback, where the program that it runs is then called as often
    with the arguments of one update: no input, no record, no log.

    Returns:
      Seconds of each round: of the bare updates, and of those in the loop.
    """
    plan = training.plan(batch_size, f"{num_updates * (num_rounds + 1)}st")
    alone = _bare_updates(training, plan)
    alone(2)
    in_loop, bare = [], []
    mark = None

    def on_step(finished, state, metrics):
        nonlocal mark
        if finished % num_updates:
            return
        jax.block_until_ready((metrics, state))
        if mark is not None:
            in_loop.append(time.perf_counter() - mark)
            start = time.perf_counter()
            alone(num_updates)
            bare.append(time.perf_counter() - start)
        mark = time.perf_counter()

    # A row of metrics is logged in every round.
    training.fit(
        plan, layout=Layout(input="resident"), log_every=f"{num_updates}st", on_step=on_step
    )
    return bare, in_loop


def _bare_updates(training: Run, plan):
    """Returns what calls the loop's program some times with one and the same input."""
    state, rng = training.state(), jax.random.key(0)
    options = Layout(input="resident")
    setup = set_up(
        Update(training.loss_fn, training.tx, **training.properties), state, rng,
        training.source, plan, 0, 0, options, {}, Progress().message,
    )  # fmt: skip
    piece, inputs = next(setup.feed.run(setup.dispatch.pieces(0, lambda finished: plan.num_steps)))

    def updates(count: int) -> None:
        nonlocal state
        for _ in range(count):
            dispatched = setup.dispatch(piece, state, inputs)
            state = dispatched.state
        jax.block_until_ready(state)

    return updates
