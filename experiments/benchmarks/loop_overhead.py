"""What the training loop adds to the compiled updates that it performs."""

import functools
import time
from collections.abc import Callable, Mapping

import jax
import optax

from adabatch_jax import batches
from adabatch_jax.config.settings import Layout
from adabatch_jax.runs.display.progress import Progress
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.training.setup import set_up
from adabatch_jax.training.update import Update
from experiments.benchmarks.options import Options
from experiments.benchmarks.rows import Row, Target
from experiments.benchmarks.timing import ratio
from experiments.benchmarks.training import GROUP_SIZE, Run, resnet20

_BATCH_SIZE = 128
_RESIDENT = Layout(input="resident")

Updates = Callable[[int], None]
"""Performs so many updates, and waits for them."""


def run(options: Options) -> list[Row]:
    """Compares the loop's updates of ResNet-20 with the same program alone."""
    num_rounds, num_updates = (1, 1) if options.quick else (7, 5)
    training = resnet20()
    plan = training.plan(_BATCH_SIZE, f"{num_updates * (num_rounds + 1)}st")
    alone = {"program": compiled_updates(training, plan, _RESIDENT)}
    seconds = compare(training, plan, num_updates, _RESIDENT, alone)
    return [
        Row(
            f"compiled updates alone / training loop, ResNet-20, batch {_BATCH_SIZE}, resident",
            ratio(seconds["program"], seconds["loop"]),
            Target(at_least=0.98),
            note=(
                f"Whole updates with gathering in the program; {num_updates} updates and one row "
                f"of metrics a round; BatchNorm's group {GROUP_SIZE}, micro-batch chosen by auto."
            ),
            beside={
                "alone (ms)": 1e3 * min(seconds["program"]) / num_updates,
                "loop (ms)": 1e3 * min(seconds["loop"]) / num_updates,
            },
        )
    ]


def compare(
    training: Run,
    plan: BatchPlan,
    num_updates: int,
    layout: Layout,
    alone: Mapping[str, Updates],
) -> dict[str, list[float]]:
    """Lets the loop and what does the same without it take turns, some updates each.

    The loop is stopped in its callback, where the others are then called: no input, no record, no
    log. Its first round isn't counted, and a row of metrics is logged in every one.

    Returns:
      Seconds of each round: of "loop", and of the others by their names.
    """
    for updates in alone.values():
        updates(2)
    seconds: dict[str, list[float]] = {name: [] for name in ("loop", *alone)}
    mark = None

    def on_step(finished, state, metrics):
        nonlocal mark
        if finished % num_updates:
            return
        jax.block_until_ready((metrics, state))
        if mark is not None:
            seconds["loop"].append(time.perf_counter() - mark)
            for name, updates in alone.items():
                start = time.perf_counter()
                updates(num_updates)
                seconds[name].append(time.perf_counter() - start)
        mark = time.perf_counter()

    training.fit(plan, layout=layout, log_every=f"{num_updates}st", on_step=on_step)
    return seconds


def compiled_updates(training: Run, plan: BatchPlan, layout: Layout) -> Updates:
    """The loop's own program, called with one and the same input."""
    state, rng = training.state(), jax.random.key(0)
    setup = set_up(
        Update(training.loss_fn, training.tx, **training.properties), state, rng,
        training.source, plan, 0, 0, layout, {}, Progress().message,
    )  # fmt: skip
    piece, inputs = next(setup.feed.run(setup.dispatch.pieces(0, lambda finished: plan.num_steps)))

    def updates(count: int) -> None:
        nonlocal state
        for _ in range(count):
            dispatched = setup.dispatch(piece, state, inputs)
            state = dispatched.state
        jax.block_until_ready(state)

    return updates


def hand_written_updates(training: Run, plan: BatchPlan) -> Updates:
    """A jitted step as one writes it without this package, on the plan's first batch."""
    batch = jax.device_put(next(batches(training.source, plan)))
    state = training.state()
    carried = state.params, state.model_state, state.opt_state

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carried, batch):
        params, model_state, opt_state = carried
        loss_fn = jax.value_and_grad(training.loss_fn, has_aux=True)
        (loss, (model_state, _)), grads = loss_fn(params, model_state, batch, None)
        updates, opt_state = training.tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), model_state, opt_state), loss

    def updates(count: int) -> None:
        nonlocal carried
        for _ in range(count):
            carried, _ = step(carried, batch)
        jax.block_until_ready(carried)

    return updates
