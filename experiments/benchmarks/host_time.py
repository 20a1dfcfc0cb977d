"""What `fit` costs the host at each update of a small network, where nothing else is to be seen."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adabatch_jax import Layout, TrainState, array_source, fit, make_plan, weighted_mean
from experiments.benchmarks.options import Options
from experiments.benchmarks.rows import Row, Target
from experiments.benchmarks.timing import alternate, ratio

_BATCH_SIZE, _NUM_EXAMPLES = 64, 60_000
_TX = optax.sgd(0.1, momentum=0.9)
_NETWORK = "a network 64-128-10, batch 64"


def run(options: Options) -> list[Row]:
    """Compares `fit` with a hand-written loop, and grouped updates with a `lax.scan`."""
    rounds, number = (1, 40) if options.quick else (7, 4_000)
    random = np.random.default_rng(0)
    x = random.normal(size=(_NUM_EXAMPLES, 64)).astype(np.float32)
    y = random.integers(0, 10, _NUM_EXAMPLES).astype(np.int32)
    order = random.permutation(_NUM_EXAMPLES)[: 900 * _BATCH_SIZE].reshape(900, _BATCH_SIZE)
    seconds = alternate(
        {
            "loop": _hand_written(x, y, order, number),
            "fit": _fit(x, y, number, Layout(steps_per_dispatch=1)),
            "scan": _scanned(x, y, order, number),
            "grouped": _fit(x, y, number, Layout()),
        },
        rounds,
    )
    updates_per_second = {
        f"{name} (updates per second)": round(number / min(seconds[name])) for name in seconds
    }
    return [
        Row(
            f"`fit`, one update per dispatch / a hand-written jitted loop, {_NETWORK}",
            ratio(seconds["fit"], seconds["loop"]),
            Target(at_most=1.5),
            note="Rows of metrics every 10 updates, digest of examples and finite checks included.",
            beside=updates_per_second,
        ),
        Row(
            f"a `lax.scan` over updates / `fit` as it groups them by itself, {_NETWORK}",
            ratio(seconds["scan"], seconds["grouped"]),
            Target(at_least=0.9),
        ),
    ]


def _loss(params, x, y, weight):
    hidden = jax.nn.relu(x @ params["w1"] + params["b1"][None])
    logits = hidden @ params["w2"] + params["b2"][None]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return weighted_mean(losses, weight)


def _params() -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    return {
        "w1": (random.normal(size=(64, 128)) / 8).astype(np.float32),
        "b1": np.zeros(128, np.float32),
        "w2": (random.normal(size=(128, 10)) / 11).astype(np.float32),
        "b2": np.zeros(10, np.float32),
    }


def _update(carried, x, y):
    params, opt_state = carried
    loss, grads = jax.value_and_grad(_loss)(params, x, y, jnp.ones(_BATCH_SIZE))
    updates, opt_state = _TX.update(grads, opt_state)
    return (optax.apply_updates(params, updates), opt_state), loss


def _carried():
    params = jax.device_put(_params())
    return params, _TX.init(params)


def _hand_written(x, y, order, number: int) -> Callable[[], float]:
    update, carried = jax.jit(_update, donate_argnums=0), _carried()

    def measure() -> float:
        nonlocal carried
        start = time.perf_counter()
        for step in range(number):
            index = order[step % len(order)]
            carried, loss = update(carried, x[index], y[index])
        jax.block_until_ready((carried, loss))
        return time.perf_counter() - start

    return measure


def _scanned(x, y, order, number: int) -> Callable[[], float]:
    x, y, length, carried = jax.device_put(x), jax.device_put(y), 100, _carried()

    def body(carried, index):
        return _update(carried, x[index], y[index])

    scan = jax.jit(lambda carried, indices: jax.lax.scan(body, carried, indices), donate_argnums=0)

    def measure() -> float:
        nonlocal carried
        start = time.perf_counter()
        for step in range(0, number, length):
            places = np.arange(step, step + length) % len(order)
            carried, losses = scan(carried, order[places].astype(np.int32))
        jax.block_until_ready((carried, losses))
        return time.perf_counter() - start

    return measure


def _fit(x, y, number: int, layout: Layout) -> Callable[[], float]:
    source = array_source({"x": x, "y": y})
    # The first quarter warms up: rows say when each update was finished.
    plan = make_plan(_BATCH_SIZE, _NUM_EXAMPLES, f"{number + number // 3}st")

    def loss_fn(params, model_state, batch, rng):
        return _loss(params, batch["x"], batch["y"], batch["weight"]), (model_state, {})

    def measure() -> float:
        state = TrainState.create(params=_params(), tx=_TX)
        rows = fit(loss_fn, _TX, state, source, plan, layout=layout).history
        first, last = rows[len(rows) // 4], rows[-1]
        seconds = last["elapsed_seconds"] - first["elapsed_seconds"]
        return seconds * number / (last["step"] - first["step"])

    return measure
