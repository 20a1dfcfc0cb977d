"""What a run of several processes has beside one's: what they must have alike, and agree on."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adabatch_jax.cluster.agreement import check_alike, from_all, from_first
from adabatch_jax.cluster.processes import ALONE, Processes, current
from adabatch_jax.config.declarations import flattened
from adabatch_jax.config.settings import Layout, Operation
from adabatch_jax.data.mesh import BatchMesh
from adabatch_jax.runs.same_data import Digests
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.system.environment import code_digest, package_versions
from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.watchdog import Watchdog
from adabatch_jax.training.device_memory import device_memory_bytes
from adabatch_jax.training.train_state import TrainState
from adabatch_jax.training.weights_digest import digest_of_named, named_arrays

# How long anything may take in several processes, where the user doesn't say.
_STALL_SECONDS = 60.0


def processes_of(mesh: BatchMesh | None) -> Processes:
    """Those whose devices the mesh has; on its own devices alone each process trains apart."""
    if mesh is None or not mesh.mesh.is_multi_process:
        return ALONE
    processes = current()
    if len({device.process_index for device in mesh.mesh.devices.flat}) < processes.count:
        raise UsageError(
            f"`mesh` has devices of some of the {processes.count} processes only; make it of all "
            "`jax.devices()`, or of one process's own, `jax.local_devices()`."
        )
    return processes


def check_started_alike(
    processes: Processes,
    plan: BatchPlan,
    seed: int,
    state: TrainState,
    identity: Mapping[str, Any],
    data: Digests,
    **arguments: Any,
) -> None:
    """Raises a UsageError, in all processes, where one was started with anything else than the first.

    Args:
      processes: those of the run.
      plan, seed, state, identity: as in `fit`.
      data: digests of what it reads.
      arguments: others of `fit`'s, by name, whose texts say what they are.
    """

    def facts() -> dict[str, Any]:
        versions = {f"the version of {name}": text for name, text in package_versions().items()}
        leaves = named_arrays(state).items()
        # Of arrays on the devices of several processes nobody has a part of his own.
        own = {name: leaf for name, leaf in leaves if getattr(leaf, "is_fully_addressable", True)}
        return {
            **versions,
            "the code of adabatch_jax": code_digest(),
            **flattened(dict(identity)),
            "the plan": plan.fingerprint(),
            "the seed": seed,
            "the state": digest_of_named(own)[:16],
            **{name: ", ".join(known) for name, known in data.items()},
            **{f"`{name}`": _text(value) for name, value in arguments.items()},
        }

    check_alike(processes, "run", facts)


def connect(mesh: BatchMesh | None, processes: Processes) -> None:
    """Has the devices of all processes reach each other, while these are at the same place.

    Devices connect in their first collective, where Gloo waits 30 s for the others: behind a
    compiler, which may take one process much longer than another, that would end the run.
    """
    if mesh is not None and processes.count > 1:
        one_each = np.ones(mesh.num_shards, np.float32)
        array = jax.make_array_from_callback(one_each.shape, mesh.of_rows(), one_each.__getitem__)
        jax.block_until_ready(jax.jit(jnp.sum, out_shardings=mesh.whole)(array))


def _text(value: Any) -> str:
    return getattr(value, "__qualname__", str(value))  # a function's text has its address


def with_agreed_memory(layout: Layout, processes: Processes) -> Layout:
    """A layout for the device with the least memory, so that all processes choose alike."""
    if processes.count == 1 or layout.device_memory is not None:
        return layout
    known = from_all(processes, "memory", lambda: device_memory_bytes(jax.local_devices()))
    least = min(known)
    return layout if math.isinf(least) else dataclasses.replace(layout, device_memory=int(least))


def clock_of_first(processes: Processes) -> Callable[[], float]:
    """The first process's clock, in seconds, so that all decide alike by what it shows."""
    return lambda: from_first(processes, "clock", time.perf_counter)


def stall_watchdog(operation: Operation, log_path: Path | None, processes: Processes) -> Watchdog:
    """Sees what hangs; of several processes always, as one that hangs holds up all others.

    While one of them compiles, the others may wait for it.
    """
    if processes.count == 1:
        return Watchdog(operation.stall_timeout, log_path)
    return Watchdog(operation.stall_timeout or _STALL_SECONDS, log_path, processes.any_busy)
