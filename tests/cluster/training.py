"""A small smooth problem that processes train together: `training.py FOLDER WHAT... --coordinator`.

One start answers many questions: each WHAT prints a line of JSON. The tests call the same functions
in their own process, on one device.
"""

import argparse
import contextlib
import errno
import hashlib
import itertools
import json
import os
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adabatch_jax as ab
from adabatch_jax.cluster import agreed_stop
from adabatch_jax.runs import fit as fit_module
from adabatch_jax.runs import several_processes as agreed
from adabatch_jax.runs.checkpoints import checkpoint_files
from adabatch_jax.runs.display.progress import Progress
from adabatch_jax.system import fault_points

NUM_EXAMPLES, NUM_TESTS, SEED = 203, 77, 5
SCHEDULE, DURATION, RATE, MOMENTUM = "16, 1ep: 30, 2ep: 64", "3ep", 0.002, 0.9
_RANDOM = np.random.default_rng(0)
X = _RANDOM.normal(size=(NUM_EXAMPLES + NUM_TESTS, 6)).astype(np.float32)
Y = np.sin(X.sum(1)).astype(np.float32)
WEIGHT = _RANDOM.integers(1, 4, NUM_EXAMPLES).astype(np.float32)
TEST = ab.array_source({"x": X[NUM_EXAMPLES:], "y": Y[NUM_EXAMPLES:]})


class NotingSource:
    """Examples that are read on demand; `asked` counts how often each was."""

    def __init__(self, weighted=False, on_read=lambda: None):
        arrays = {"x": X[:NUM_EXAMPLES], "y": Y[:NUM_EXAMPLES]}
        self._source = ab.array_source(arrays | ({"weight": WEIGHT} if weighted else {}))
        self.asked, self._on_read = Counter(), on_read

    def __len__(self):
        return NUM_EXAMPLES

    def digest(self):
        return "the examples"

    def read(self, indices):
        self._on_read()
        self.asked.update(np.asarray(indices).tolist())
        return self._source.read(indices)


def make_params():
    random = np.random.default_rng(1)
    shapes = {"w1": (6, 256), "b1": (256,), "w2": (256,)}
    # Large enough for `shard_params`, and small enough for a rate that grows.
    return {n: (0.3 * random.normal(size=s)).astype(np.float32) for n, s in shapes.items()}


def apply(params, x):
    return jnp.tanh(x @ params["w1"] + params["b1"][None]) @ params["w2"]


def loss_fn(params, model_state, batch, rng):
    losses = (apply(params, batch["x"]) - batch["y"]) ** 2
    return ab.weighted_mean(losses, batch["weight"]), (model_state, {})


def eval_fn(params, model_state, batch):
    is_near = jnp.abs(apply(params, batch["x"]) - batch["y"]) < 0.5
    return {"near": ab.weighted_mean(is_near.astype(jnp.float32), batch["weight"])}


def make_plan(schedule=SCHEDULE):
    return ab.make_plan(schedule, NUM_EXAMPLES, DURATION)


def make_mesh(devices=None):
    return ab.data_mesh(jax.devices() if devices is None else devices)


def optimizer(plan):
    rate = ab.coupled_learning_rate(plan, RATE)
    return rate, optax.sgd(rate, momentum=MOMENTUM)


def reproducible(rows):
    times = ("_seconds", "_per_second")
    return [{k: v for k, v in row.items() if not k.endswith(times)} for row in rows]


def bits(tree):
    """A digest of all numbers of a state, wherever they lie."""
    from jax.experimental.multihost_utils import process_allgather

    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.asarray(process_allgather(leaf, tiled=True)).tobytes())
    return digest.hexdigest()


class Messages(Progress):
    """Keeps what is said."""

    def __init__(self):
        self.told = []

    def message(self, text):
        self.told.append(text)


def own_loop(mesh, microbatch_size=None, prefetch=0, source=None):
    """A loop of one's own; tells the examples of each update that are here, and the losses."""
    plan, source = make_plan(), source or NotingSource()
    rate, tx = optimizer(plan)
    step = ab.make_train_step(loss_fn, tx, mesh=mesh, microbatch_size=microbatch_size)
    state, key = ab.TrainState.create(params=make_params(), tx=tx), jax.random.key(0)
    updates, num_asked = [], []
    for batch in ab.batches(
        source, plan, SEED, mesh=mesh, microbatch_size=microbatch_size, prefetch=prefetch
    ):
        num_asked.append(sum(source.asked.values()))
        state, metrics = step(state, batch, key)
        here = {}  # by the row, with those of padding left out
        for index, weight in zip(
            batch["index"].addressable_shards, batch["weight"].addressable_shards, strict=True
        ):
            first = [axis.start or 0 for axis in index.index]
            for place in zip(*np.nonzero(np.asarray(weight.data)), strict=True):
                where = [int(a + b) for a, b in zip(first, place, strict=True)]
                row = where[0] if microbatch_size is None else where[0] * microbatch_size + where[1]
                here[row] = int(index.data[place])
        updates.append({"here": here, "loss": float(metrics["loss"])})
    near = ab.evaluate(eval_fn, state, TEST, 30, mesh)
    return {"updates": updates, "near": near["near"], "asked": dict(source.asked),
            "num_asked": num_asked}  # fmt: skip


def train(mesh, workdir=None, source=None, schedule=SCHEDULE, operation=None, **kwargs):
    plan, messages = make_plan(schedule), Messages()
    rate, tx = optimizer(plan)
    state = ab.TrainState.create(params=make_params(), tx=tx, model_state={"seen": jnp.zeros(3)})
    source = NotingSource() if source is None else source
    defaults = dict(eval_fn=eval_fn, eval_source=TEST, eval_batch_size=30, log_every="2st")
    defaults |= dict(seed=SEED, checkpoint_every="6st", eval_every="1ep")
    kwargs = {**defaults, **kwargs}
    operation = ab.Operation(progress=messages, trackers=(), **(operation or {}))
    result = ab.fit(
        loss_fn, tx, state, source, plan, learning_rate=rate, mesh=mesh, workdir=workdir,
        operation=operation, **kwargs,
    )  # fmt: skip
    return {
        "rows": reproducible(result.history), "stopped": result.stopped,
        "step": result.summary["step"], "start": result.start_step,
        "decisions": result.summary["decisions"], "weights": result.summary["weights_digest"],
        "bits": bits(result.state), "messages": messages.told, "asked": dict(source.asked),
    }  # fmt: skip


# How `fit` may be laid out; each gives the same numbers.
LAYOUTS = {
    "resident": dict(layout=ab.Layout(None, input="resident")),
    "streaming": dict(layout=ab.Layout(None, input="streaming", steps_per_dispatch=1)),
    "ragged": dict(layout=ab.Layout(7, input="streaming", accumulation="fused")),
    "split": dict(layout=ab.Layout(8, accumulation="split")),
    "sharded": dict(layout=ab.Layout(8, shard_params=True)),
    "weighted": dict(is_weighted=True),
}


def laid_out(mesh, name):
    kwargs = dict(LAYOUTS[name])
    return train(mesh, source=NotingSource(kwargs.pop("is_weighted", False)), **kwargs)


def whole_loop(processes, folder, mesh):
    return own_loop(mesh)


def ragged_loop(processes, folder, mesh):
    return own_loop(mesh, microbatch_size=7, prefetch=2)


def not_finite(processes, folder, mesh):
    """One process finds a number that isn't finite: all do the same about it."""
    told = {}
    for policy in ("skip:2", "rollback"):
        with fault("batch.ready:11:nan"):
            told[policy] = train(
                mesh, folder / policy, layout=ab.Layout(None, steps_per_dispatch=1),
                operation=dict(on_nan=policy),
            )  # fmt: skip
    return told


@contextlib.contextmanager
def fault(text):
    """Something goes wrong in this process, counted from here."""
    fault_points._counts.clear()
    os.environ[fault_points.VARIABLE] = text
    try:
        yield
    finally:
        del os.environ[fault_points.VARIABLE]


# Sharded, so that each process saves a part of the checkpoints.
SLOWLY = dict(schedule="4, 1ep: 8, 2ep: 16", checkpoint_every="20st")
SHARDED = SLOWLY | dict(layout=ab.Layout(None, shard_params=True, steps_per_dispatch=1))

# What stops the first part of a run, the second and so on: in which process, where, and by what.
STOPS = [
    (1, "step.end:4:sigterm"),
    (1, "save.mid:1:sigint"),
    (0, "eval.mid:1:sigusr1"),
    (1, "--max-time"),
]


def stops(processes, folder, mesh):
    """A run that is stopped again and again by one process, beside one that isn't."""
    agreed_stop._LEASE_SECONDS = 0.05  # the run is short
    told = {"whole": train(mesh, folder / "whole", **SHARDED), "parts": []}
    for who, what in [*STOPS, (None, "")]:
        is_here = who == processes.index % processes.count
        limit = 0.001 if is_here and what.startswith("--") else None
        with contextlib.ExitStack() as stack:
            interruption = stack.enter_context(ab.Interruption(limit))
            if is_here and limit is None:
                stack.enter_context(fault(what))
            part = train(
                mesh, folder / "stopped", operation=dict(interruption=interruption), **SHARDED
            )
        part |= {"code": interruption.exit_code, "name": interruption.name}
        part["checkpoints"] = sorted(os.listdir(folder / "stopped" / "checkpoints"))
        processes.barrier("part")
        told["parts"].append(part)
    return told


def checkpoints(processes, folder, mesh):
    """Goes on with what one process left in `one`, and with `stops`'s run when it is damaged."""
    told = {"one": train(mesh, folder / "one", **SHARDED)}
    for process in range(processes.count):
        damaged = folder / f"damaged-{process}"
        if processes.index == 0:
            shutil.copytree(folder / "whole", damaged)
            newest = max(map(int, os.listdir(damaged / "checkpoints")))
            flip_a_bit(damaged / "checkpoints" / str(newest) / "state" / f"parts-{process}")
        processes.barrier("damaged")
        told[damaged.name] = train(mesh, damaged, **SHARDED)
    return told


def flip_a_bit(folder):
    """In the middle of the largest file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    file = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def early(processes, folder, mesh):
    """A rule about seconds, which differ between processes: all end by the same ones."""

    def stop_when(row):
        return int(row["elapsed_seconds"] * 1e7) % 5 == 0

    return train(mesh, folder / "early", stop_when=stop_when)


def broken_loop(processes, folder, mesh):
    """A loop of one's own that one process doesn't get through, beside `fit`."""

    def on_read():
        if processes.index == 1 and next(num_reads) == 10:
            raise ValueError("example 7 is broken")

    num_reads = itertools.count()
    return own_loop(mesh, source=NotingSource(on_read=on_read))


def plain(processes, folder, mesh, name="run"):
    """A run that something may happen to, which then goes on."""
    with ab.Interruption() as interruption:
        told = train(
            mesh, folder / name, operation=dict(interruption=interruption, **OPERATION),
            **SHARDED | SETTINGS,
        )  # fmt: skip
    return told | {"code": interruption.exit_code}


def undisturbed(processes, folder, mesh):
    return plain(processes, folder, mesh, "undisturbed")


# What one process has otherwise: flags of it alone.
OPERATION, SETTINGS = {}, {"identity": {"lr": "0.002", "seed": SEED}}


def with_another_seed():
    SETTINGS["seed"] = SEED + 1


def with_another_schedule():
    SETTINGS["schedule"] = "4, 1ep: 8, 2ep: 32"


def with_another_rate():
    SETTINGS["identity"] = {"lr": "0.003", "seed": SEED}


def with_other_examples():
    NotingSource.digest = lambda source: "other examples"


def with_another_layout():
    SETTINGS["layout"] = ab.Layout(8)


def with_another_program():
    agreed.code_digest = lambda: "0123"


def with_another_jax():
    versions = agreed.package_versions()
    agreed.package_versions = lambda: versions | {"jax": "0.9.9"}


def with_a_full_disk():
    def fail(checkpoint, folder=None):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    checkpoint_files.written_files = fail


def with_a_slow_compiler():
    """Much longer than anything watched may take."""
    set_up = fit_module.set_up

    def slowly(*args):
        time.sleep(33)  # Gloo connects within 30 s
        return set_up(*args)

    fit_module.set_up = slowly


def with_an_error_in_the_source():
    num_reads = itertools.count()

    def on_read():
        if next(num_reads) == 60:
            raise ValueError("example 7 is broken")

    SETTINGS["source"] = NotingSource(on_read=on_read)


KINDS = {
    f.__name__: f
    for f in (
        whole_loop,
        ragged_loop,
        not_finite,
        stops,
        checkpoints,
        early,
        broken_loop,
        plain,
        undisturbed,
    )
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("what", nargs="+")
    parser.add_argument("--heartbeat", type=float, default=10)
    parser.add_argument("--operation", type=json.loads, default={})
    parser.add_argument("--differs", choices=[n for n in globals() if n.startswith("with_")])
    parser.add_argument("--own-folder", type=Path)
    parser.add_argument("--coordinator")
    parser.add_argument("--num-processes", type=int)
    parser.add_argument("--process-id", type=int)
    given = parser.parse_args()
    began = time.monotonic()
    processes = ab.cluster.initialize(
        given.coordinator, given.num_processes, given.process_id,
        start_timeout=40, heartbeat_timeout=given.heartbeat, shutdown_timeout=10,
    )  # fmt: skip
    print(f"start {time.monotonic() - began:.1f}", file=sys.stderr, flush=True)
    OPERATION.update(given.operation)
    if given.differs:
        globals()[given.differs]()
    mesh, folder = make_mesh(), given.own_folder or given.folder
    for what in given.what:
        began = time.monotonic()
        if what in LAYOUTS:
            told = laid_out(mesh, what)
        else:
            told = KINDS[what](processes, folder, mesh)
        print(f"{what} {time.monotonic() - began:.1f}", file=sys.stderr, flush=True)
        print(json.dumps({"what": what, "process": processes.index} | told), flush=True)
    processes.leave()
    return 0


if __name__ == "__main__":
    from adabatch_jax.system import command_lines

    code = command_lines.run(main)
    sys.stdout.flush()
    os._exit(code)
