"""Predicted seconds of an update on several processes against those that it takes.

    python -m experiments.benchmarks.scaling PORT NUM_PROCESSES PROCESS_ID BATCH_SIZE ROUNDS

is one of the processes: it measures its rows alone, the network, and the update of all of them.
"""

import contextlib
import functools
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from adabatch_jax.data.row_layout import Layouts
from adabatch_jax.reporting.planning.scaling_efficiency import (
    Network,
    RowTimes,
    predicted_efficiency,
)
from experiments.benchmarks.options import Options
from experiments.benchmarks.rows import Row, Target
from experiments.benchmarks.timing import ratio

_BATCH_SIZE = 128
_LAYERS = ((1024, 1024), (1024, 1024), (1024, 128))  # inputs and outputs; 8.5 MiB
_INPUT_AXES = {"(out, in)": 1, "(in, out)": 0}
_SECONDS = 240  # after which a process is ended from outside


def run(options: Options) -> list[Row]:
    """Trains a network of three layers in 1, 2 and 4 processes of one thread each.

    All processes are at work when rows are timed, each for itself: here they share the cores.
    Without BatchNorm, whose statistics go from device to device and are no part of the model. The
    gradient of weights (out, in) is summed as it lies. That of weights (in, out), which most
    layers have, XLA computes as (out, in) on a mesh, sums, and transposes then, where one device
    computes it as it is wanted.
    """
    rows = []
    for num_processes in (1, 2) if options.quick else (1, 2, 4):
        found = _started(num_processes, 16 if options.quick else _BATCH_SIZE, options.quick)
        for kind, rounds in found.items():
            by_name = {name: [each[name] for each in rounds] for name in rounds[0]}
            usual = {name: statistics.median(values) for name, values in by_name.items()}
            beside = {f"{name} (ms)": 1e3 * seconds for name, seconds in usual.items()}
            if num_processes > 1:
                beside["three sums / one as large"] = usual["arrays"] / usual["all-reduce"]
            rows.append(
                Row(
                    f"update of three layers, weights {kind}, in {num_processes} process(es): "
                    "measured / predicted seconds, none of the all-reduce hidden",
                    ratio(by_name["update"], by_name["none hidden"]),
                    Target(at_least=0.8, at_most=1.25),
                    note=f"with all of it hidden {usual['all hidden'] / usual['none hidden']:.2f}.",
                    why_missed="XLA transposes each gradient after its sum: no model of a network knows.",
                    beside=beside,
                )
            )
    return rows


def _started(
    num_processes: int, batch_size: int, is_quick: bool
) -> dict[str, list[dict[str, float]]]:
    """What process 0 of so many tells: by the kind of weights, each round."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [str(batch_size), "3" if is_quick else "20"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PJRT_NPROC": "1"}
    processes = [
        subprocess.Popen(
            ["timeout", "-k", "5", str(_SECONDS), sys.executable, "-m", __name__, str(port),
             str(num_processes), str(number), *arguments],
            env=environment, stdout=subprocess.PIPE, text=True,
        )
        for number in range(num_processes)
    ]  # fmt: skip
    outputs = [process.communicate()[0] for process in processes]
    codes = [process.returncode for process in processes]
    if any(codes):
        raise RuntimeError(f"processes ended with {codes}")
    return json.loads(outputs[0].splitlines()[-1])


def _process(port: int, num_processes: int, number: int, batch_size: int, rounds: int) -> None:
    import jax
    import jax.numpy as jnp

    if num_processes > 1:
        jax.distributed.initialize(
            f"127.0.0.1:{port}", num_processes, number,
            heartbeat_timeout_seconds=20, shutdown_timeout_seconds=20,
        )  # fmt: skip
    import numpy as np
    import optax

    from adabatch_jax import TrainState, data_mesh, make_train_step, weighted_mean
    from adabatch_jax.data.mesh import as_batch_mesh
    from adabatch_jax.data.row_layout import host_rows

    random, tx = np.random.default_rng(0), optax.sgd(1e-3, momentum=0.9)
    layers = [random.normal(0, 0.02, size).astype(np.float32) for size in _LAYERS]
    inputs = random.normal(size=(batch_size, _LAYERS[0][0])).astype(np.float32)
    mesh = data_mesh(jax.devices())
    placed = as_batch_mesh(mesh)
    rows = host_rows(batch_size, None, number, num_processes)
    batch = {"x": inputs[rows], "weight": np.ones(len(rows), np.float32)}

    def updates(kind: str, mesh: Any, batch: Any) -> Callable[[], Any]:
        axis = _INPUT_AXES[kind]

        def loss_fn(params: Any, model_state: Any, batch: Any, rng: Any) -> Any:
            hidden = batch["x"]
            for layer in params:
                hidden = jnp.tanh(jax.lax.dot_general(hidden, layer, (((1,), (axis,)), ((), ()))))
            return weighted_mean(hidden[:, 0] ** 2, batch["weight"]), (model_state, {})

        params = [layer.T if axis else layer for layer in layers]
        step = make_train_step(loss_fn, tx, mesh, independent_groups=1)
        state = step.place(TrainState.create(params=params, tx=tx))
        key = step.place(jax.random.key(0))

        def perform() -> Any:
            nonlocal state
            state, metrics = step(state, batch, key)
            return state, metrics

        return perform

    # The sums are wanted whole everywhere, or each would be left with a part of them.
    @functools.partial(jax.jit, out_shardings=placed.whole)
    def summed(arrays: list[jax.Array]) -> list[jax.Array]:
        return [rows.sum(0) for rows in arrays]

    def all_reduce(sizes: list[int]) -> Callable[[], Any]:
        ones = [placed.put({"x": jnp.ones((1, size))})["x"] for size in sizes]
        return lambda: summed(ones)

    sizes = [layer.size for layer in layers]
    small, batches = all_reduce([1]), placed.put(batch)
    measures = {
        "small": lambda: None,
        "sum": all_reduce([sum(sizes)]),
        "arrays": all_reduce(sizes),
        **{f"rows {kind}": updates(kind, None, batch) for kind in _INPUT_AXES},
        **{f"update {kind}": updates(kind, mesh, batches) for kind in _INPUT_AXES},
    }
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in _INPUT_AXES}
    for turn in range(rounds + 2):
        if turn == 2:
            _before_others()
        seconds: dict[str, float] = {}
        for name, perform in measures.items():
            jax.block_until_ready(small())  # all begin at the same time
            begin = time.perf_counter()
            jax.block_until_ready(perform())
            jax.block_until_ready(small())  # what counts is when the last one is done
            seconds[name] = time.perf_counter() - begin - seconds.get("small", 0.0)
        for kind, compared in found.items() if turn >= 2 else ():
            compared.append(_compared(seconds, kind, num_processes, batch_size, 4 * sum(sizes)))
    if number == 0:
        print(json.dumps(found), flush=True)
    jax.block_until_ready(small())
    os._exit(0)  # an ordinary end waits for all others


def _before_others() -> None:
    """Lets this process's threads run before other programs, where the system allows it.

    Else each part of a sum waits for whatever has a core just then, milliseconds at a time.
    """
    with contextlib.suppress(AttributeError, OSError):
        for thread in os.listdir("/proc/self/task"):
            os.sched_setscheduler(int(thread), os.SCHED_RR, os.sched_param(1))


def _compared(
    seconds: dict[str, float], kind: str, num_processes: int, batch_size: int, gradient_bytes: int
) -> dict[str, float]:
    """A round's update, and its prediction from what was measured apart.

    Each process is a host with one device. The bandwidth is that of one sum of as many bytes: that
    of others is another, since here the time of a sum grows faster than its bytes.
    """
    layout, bandwidth, latency = Layouts(None, num_processes).of(batch_size), float("inf"), 0.0
    if num_processes > 1:
        sent = 2 * (num_processes - 1) / num_processes * gradient_bytes
        bandwidth = sent / max(seconds["sum"] - seconds["small"], 1e-9)
        latency = seconds["small"] / (2 * (num_processes - 1).bit_length())
    network = Network(1, host_bandwidth=bandwidth, host_latency=latency)
    times = RowTimes({layout.rows_per_device: seconds[f"rows {kind}"]})
    predicted = predicted_efficiency(layout, times, gradient_bytes, network)
    compute, all_reduce = predicted.compute_seconds, predicted.all_reduce_seconds
    return {
        "update": seconds[f"update {kind}"],
        "all hidden": max(compute, all_reduce),
        "none hidden": compute + all_reduce,
        "rows alone": compute,
        "all-reduce": all_reduce,
        "arrays": seconds["arrays"],
        "small": seconds["small"],
    }


if __name__ == "__main__":
    _process(*map(int, sys.argv[1:]))
