"""Predicted seconds of an update on several processes against those that it takes.

    python -m experiments.benchmarks.scaling PORT NUM_PROCESSES PROCESS_ID BATCH_SIZE ROUNDS

is one of the processes: it measures its rows alone, the network, and the update of all of them.
"""

import functools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from adabatch_jax.data.row_layout import Layouts
from adabatch_jax.reporting.planning.repeated_timing import timing_of
from adabatch_jax.reporting.planning.scaling_efficiency import (
    Network,
    RowTimes,
    predicted_efficiency,
)
from experiments.benchmarks.options import Options
from experiments.benchmarks.rows import Row, Target
from experiments.benchmarks.timing import ratio

_BATCH_SIZE = 128
_LAYERS = ((1024, 1024), (1024, 1024), (1024, 128))  # 8.5 MiB
_LARGE = 4 * 2**20  # floats, whose sum tells the bandwidth
_SECONDS = 240  # after which a process is ended from outside


def run(options: Options) -> list[Row]:
    """Trains a network of three layers in 1, 2 and 4 processes of one thread each.

    The rows are timed while all processes are at work, each for itself: here they share the cores.
    Without BatchNorm, and of few arrays: on a CPU each array is summed by itself, and statistics
    that go from device to device are no part of the model.
    """
    rows = []
    for num_processes in (1, 2) if options.quick else (1, 2, 4):
        found = _started(num_processes, 16 if options.quick else _BATCH_SIZE, options.quick)
        low, high = found["predicted"]
        rows.append(
            Row(
                f"update of three layers in {num_processes} processes: measured / predicted seconds, "
                "none of the all-reduce hidden",
                ratio([found["update_seconds"]], [high]),
                Target(at_least=0.8, at_most=1.25),
                note=f"batch {found['batch_size']}; with all of it hidden {low / high:.2f}.",
                beside={
                    "rows on each": found["rows"],
                    "rows alone (ms)": 1e3 * found["compute_seconds"],
                    "all-reduce, predicted (ms)": 1e3 * found["all_reduce_seconds"],
                    "bandwidth (GB/s)": found["bandwidth"] / 1e9,
                    "latency (us)": 1e6 * found["latency"],
                },
            )
        )
    return rows


def _started(num_processes: int, batch_size: int, is_quick: bool) -> dict[str, Any]:
    """What process 0 of so many tells."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [str(batch_size), "3" if is_quick else "15"]
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
    from adabatch_jax.data.abstract_arrays import tree_bytes
    from adabatch_jax.data.mesh import as_batch_mesh
    from adabatch_jax.data.row_layout import host_rows

    random, tx = np.random.default_rng(0), optax.sgd(1e-3, momentum=0.9)
    params = [random.normal(0, 0.02, size).astype(np.float32) for size in _LAYERS]
    inputs = random.normal(size=(batch_size, _LAYERS[0][0])).astype(np.float32)
    mesh = data_mesh(jax.devices())
    placed = as_batch_mesh(mesh)
    rows = host_rows(batch_size, None, number, num_processes)
    batch = {"x": inputs[rows], "weight": np.ones(len(rows), np.float32)}

    def loss_fn(params: Any, model_state: Any, batch: Any, rng: Any) -> Any:
        hidden = batch["x"]
        for layer in params:
            hidden = jnp.tanh(hidden @ layer)
        return weighted_mean(hidden[:, 0] ** 2, batch["weight"]), (model_state, {})

    def updates(mesh: Any, batch: Any) -> Callable[[], Any]:
        step = make_train_step(loss_fn, tx, mesh, independent_groups=1)
        state = step.place(TrainState.create(params=params, tx=tx))
        key = step.place(jax.random.key(0))

        def perform() -> Any:
            nonlocal state
            state, metrics = step(state, batch, key)
            return state, metrics

        return perform

    # The sum is wanted whole everywhere, or each would be left with a part of it.
    @functools.partial(jax.jit, out_shardings=placed.whole)
    def summed(rows: jax.Array) -> jax.Array:
        return rows.sum(0)

    def all_reduce(size: int) -> Callable[[], Any]:
        ones = placed.put({"x": jnp.ones((1, size))})["x"]
        return lambda: summed(ones)

    small, large = all_reduce(1), all_reduce(_LARGE)
    measures = {
        "alone": updates(None, batch),
        "together": updates(mesh, placed.put(batch)),
        "small": small,
        "large": large,
    }
    seconds: dict[str, list[float]] = {name: [] for name in measures}
    for turn in range(rounds + 2):
        for name, perform in measures.items():
            jax.block_until_ready(small())  # all begin at the same time
            begin = time.perf_counter()
            jax.block_until_ready(perform())
            if turn >= 2:
                seconds[name].append(time.perf_counter() - begin)
    if number == 0:
        gradient_bytes = tree_bytes(params)
        found = _predicted(seconds, num_processes, batch_size, gradient_bytes)
        print(json.dumps(found), flush=True)
    jax.block_until_ready(small())
    os._exit(0)  # an ordinary end waits for all others


def _predicted(
    seconds: dict[str, list[float]], num_processes: int, batch_size: int, gradient_bytes: int
) -> dict[str, Any]:
    """The prediction from what was measured apart, each process a host with one device."""
    # Other programs make a process late, and never early, and the others wait for it.
    usual = {name: timing_of(taken).seconds for name, taken in seconds.items()}
    layout, bandwidth, latency = Layouts(None, num_processes).of(batch_size), float("inf"), 0.0
    if num_processes > 1:
        sent = 2 * (num_processes - 1) / num_processes * 4 * _LARGE
        bandwidth = sent / max(usual["large"] - usual["small"], 1e-9)
        latency = usual["small"] / (2 * (num_processes - 1).bit_length())
    network = Network(1, host_bandwidth=bandwidth, host_latency=latency)
    times = RowTimes({layout.rows_per_device: usual["alone"]})
    predicted = predicted_efficiency(layout, times, gradient_bytes, network)
    compute, all_reduce = predicted.compute_seconds, predicted.all_reduce_seconds
    return {
        "batch_size": batch_size,
        "rows": layout.rows_per_device,
        "update_seconds": usual["together"],
        "predicted": [max(compute, all_reduce), compute + all_reduce],
        "compute_seconds": compute,
        "all_reduce_seconds": all_reduce,
        "bandwidth": bandwidth if num_processes > 1 else 0.0,
        "latency": latency,
    }


if __name__ == "__main__":
    _process(*map(int, sys.argv[1:]))
