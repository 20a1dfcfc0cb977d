"""What JAX keeps to itself and joining processes needs: the only file of this room that touches it.

Where another version of JAX names one of these otherwise, this is the place to mend.
"""

import importlib.util
import os
from typing import Any


def store() -> Any:
    """The key-value store that JAX starts joined processes with; it has no public name."""
    from jax._src import distributed

    if distributed.global_state.client is None:
        raise RuntimeError("the processes aren't joined; call adabatch_jax.cluster.initialize()")
    return distributed.global_state.client


def joined_place() -> tuple[int, int]:
    """Which process this is of those that this program has joined, and how many they are.

    JAX's public names say so too, but open the devices first.
    """
    from jax._src import distributed

    return distributed.global_state.process_id, distributed.global_state.num_processes


def devices_are_in_use() -> bool:
    """Whether JAX has opened its devices already."""
    from jax._src import xla_bridge

    return xla_bridge.backends_are_initialized()


def num_tpu_chips() -> int:
    """How many chips of TPUs this machine has that JAX could use; none is touched.

    >>> num_tpu_chips()
    0
    """
    if importlib.util.find_spec("libtpu") is None:
        return 0
    from jax._src import hardware_utils

    return hardware_utils.num_available_tpu_chips_and_device_id()[0]


def detected_by_jax(names: tuple[str, ...], timeout: int) -> tuple[str, str, int, int] | None:
    """What JAX's own detection finds, of the kinds of clusters of these class names.

    Returns:
      The kind, the coordinator's "host:port", the number of processes and this one's; None where
      it is none of them.
    """
    from jax._src import clusters

    for name in names:
        cluster = getattr(clusters, name, None)
        if cluster is not None and cluster.is_env_present():
            port = os.environ.get("JAX_COORDINATOR_PORT")
            address = cluster.get_coordinator_address(
                timeout_secs=timeout, override_coordinator_port=port
            )
            return name, address, cluster.get_process_count(), cluster.get_process_id()
    return None
