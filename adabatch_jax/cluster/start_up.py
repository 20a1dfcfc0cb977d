"""Joins the processes of a job, before any device is touched."""

import importlib.util
import math
import os

from adabatch_jax.cluster.addresses import host_and_port
from adabatch_jax.cluster.ending_together import end_at_once_after_failure
from adabatch_jax.cluster.gpus import visible_gpus
from adabatch_jax.cluster.jax_internals import detected_by_jax, devices_are_in_use
from adabatch_jax.cluster.launchers import Told
from adabatch_jax.cluster.membership import FLAGS, Membership, membership
from adabatch_jax.cluster.processes import Processes, are_joined, current
from adabatch_jax.cluster.rendezvous import meet
from adabatch_jax.system.errors import UsageError, one_line

_START_SECONDS = 120.0
_HEARTBEAT_SECONDS = 30.0
_SHUTDOWN_SECONDS = 60.0
# JAX's own time to join, where all are known to be there: it ends with an abort.
_JOIN_SECONDS = 60.0
# For a name that is wrong; in Kubernetes names come to be while their pods start.
_RESOLVE_SECONDS = 5.0
_TPU, _KUBERNETES = ("GkeTpuCluster", "GceTpuCluster"), ("K8sCluster",)
_KINDS = {"GkeTpuCluster": "Cloud TPU", "GceTpuCluster": "Cloud TPU", "K8sCluster": "Kubernetes"}


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    start_timeout: float = _START_SECONDS,
    heartbeat_timeout: float = _HEARTBEAT_SECONDS,
    shutdown_timeout: float = _SHUTDOWN_SECONDS,
) -> Processes:
    """Joins this process with the others that train with it, if there are any.

    What no argument says is found out from what started the processes: torchrun, Open MPI, SLURM,
    SkyPilot, Cloud TPU, an indexed Job or JobSet of Kubernetes. Where there is nothing of this the
    process is alone, and JAX isn't asked to join anything; where the program has called
    `jax.distributed.initialize` itself, that holds. SIGTERM stays with whoever handles it: JAX's
    preemption service, which would swallow it, is off.

    Args:
      coordinator: "host:port" of process 0, as the others reach it; the port must be free there.
      num_processes: how many there are.
      process_id: which one this is, counted from 0.
      start_timeout: how long to wait for the others, in seconds.
      heartbeat_timeout: after how many seconds of silence a process counts as dead, which ends the
        others.
      shutdown_timeout: how long a process that ends waits for the others to end, in seconds.

    Returns:
      The processes, with this one's index. Afterwards `jax.devices()` are those of all.

    Raises:
      UsageError: variables or arguments are half set or wrong, the processes can't meet, or JAX's
        devices are in use already.

    >>> import adabatch_jax as ab
    >>> ab.cluster.initialize(num_processes=1)
    Processes(index=0, count=1)
    """
    for name, value in (
        ("start_timeout", start_timeout),
        ("heartbeat_timeout", heartbeat_timeout),
        ("shutdown_timeout", shutdown_timeout),
    ):
        if not 0 < value < math.inf:
            raise UsageError(f"`{name}` must be a number of seconds above 0, got {value}.")
    if are_joined():
        return current()
    flags = (coordinator, num_processes, process_id)
    told = _told_by_jax(flags, start_timeout) if None in flags and num_processes != 1 else None
    place = membership(os.environ, *flags, gpus=visible_gpus(os.environ), told=told)
    if place is None:
        return Processes()
    if devices_are_in_use():
        raise UsageError(
            f"this is process {place.process_id} of {place.num_processes} ({place.found_by}), and "
            "JAX's devices are in use already; call adabatch_jax.cluster.initialize() before "
            "anything computes or asks for jax.devices()."
        )
    is_in_kubernetes = "KUBERNETES_SERVICE_HOST" in os.environ
    meet(place, start_timeout, start_timeout if is_in_kubernetes else _RESOLVE_SECONDS)
    _join(place, heartbeat_timeout, shutdown_timeout)
    end_at_once_after_failure(current())
    return current()


def _join(place: Membership, heartbeat_timeout: float, shutdown_timeout: float) -> None:
    import jax

    # JAX's connections would go through a proxy for the web, and never arrive.
    without = [os.environ.get("no_grpc_proxy") or os.environ.get("no_proxy")]
    without.append(host_and_port(place.coordinator)[0])
    os.environ["no_grpc_proxy"] = ",".join(filter(None, without))
    jax.config.update("jax_check_proxy_envs", False)
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_enable_recoverability", False)  # survivors would end with 0
    jax.distributed.initialize(
        place.coordinator, place.num_processes, place.process_id,
        local_device_ids=place.local_devices, cluster_detection_method="deactivate",
        initialization_timeout=math.ceil(_JOIN_SECONDS),
        heartbeat_timeout_seconds=math.ceil(heartbeat_timeout),
        shutdown_timeout_seconds=math.ceil(shutdown_timeout),
    )  # fmt: skip


def _told_by_jax(flags: tuple, timeout: float) -> Told | None:
    """What JAX finds out by asking the cloud or the cluster, which no variable says."""
    kinds = _TPU
    if "JOB_COMPLETION_INDEX" in os.environ and importlib.util.find_spec("kubernetes"):
        kinds = _TPU + _KUBERNETES
    try:
        found = detected_by_jax(kinds, math.ceil(timeout))
    except Exception as error:
        raise UsageError(
            f"JAX can't find out how many processes there are ({one_line(error)}); give --coordinator "
            "HOST:PORT --num-processes N --process-id I, or say --num-processes 1 to train alone."
        ) from error
    if found is None:
        return None
    kind, *values = found
    return Told(_KINDS[kind], FLAGS, *values)
