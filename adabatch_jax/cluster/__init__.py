"""Many processes that train as one: how they start, find each other, and talk beside the devices.

`initialize` is public, as `adabatch_jax.cluster.initialize`; rooms above take `Processes`. It knows
nothing of batches, and only `jax_internals` knows what JAX keeps to itself.

>>> import adabatch_jax as ab
>>> processes = ab.cluster.initialize()  # before anything asks for jax.devices()
>>> processes.index, processes.count
(0, 1)
"""

from adabatch_jax.cluster.processes import Failure, PeerFailed, Processes, current
from adabatch_jax.cluster.start_up import initialize

__all__ = ["Failure", "PeerFailed", "Processes", "current", "initialize"]
