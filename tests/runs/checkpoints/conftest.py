"""States that hold a bit of everything, folders of checkpoints of one, and who writes them."""

from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from adabatch_jax.data.mesh import data_mesh
from adabatch_jax.runs.checkpoints.checkpoint_files import Contents, write_checkpoint
from adabatch_jax.runs.checkpoints.checkpoints import Checkpoints
from adabatch_jax.runs.checkpoints.verifying import check_checkpoint, newest_good
from adabatch_jax.runs.display.progress import Progress
from adabatch_jax.system.watchdog import Watchdog
from adabatch_jax.training.train_state import TrainState


def plain_state(seed=0):
    """On one device."""
    rng = np.random.default_rng(seed)
    params = {"w": rng.normal(size=(8, 3)).astype(np.float32), "b": jnp.full(3, 0.1, jnp.bfloat16)}
    state = TrainState.create(params=params, tx=optax.sgd(0.1, momentum=0.9))
    state.model_state["keys"] = jax.random.split(jax.random.key(seed), 4)
    return state


def laid_out(state, num_devices, is_sharded):
    """The same values on several devices: what they divide is sharded, or all is replicated."""
    mesh = data_mesh(jax.local_devices()[:num_devices])

    def put(leaf):
        divides = is_sharded and leaf.ndim and leaf.shape[0] % num_devices == 0
        spec = PartitionSpec("data") if divides else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(put, state)


def bits(state):
    """Every leaf as (kind, dtype, shape, bytes)."""

    def of(leaf):
        kind = "jax" if isinstance(leaf, jax.Array) else type(leaf).__name__
        if kind == "jax" and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        return kind, str(array.dtype), array.shape, array.tobytes()

    return jax.tree.map(of, state)


def written(directory, state, step=5, **run):
    """Writes a checkpoint, and finds it."""
    path = directory / str(step)
    write_checkpoint(path, Contents.of(state, {"step": step, **run}))
    return check_checkpoint(path)


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory):
    """A folder with steps 3 and 7, of `plain_state(3)` and `plain_state(7)`; not to be changed."""
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    for step in (3, 7):
        written(directory, plain_state(step), step, samples=32 * step)
    return directory


class Said(Progress):
    def __init__(self):
        self.messages = []

    def message(self, text):
        self.messages.append(text)


def opened(directory, newest=2, **further):
    options = {"best": None, "every": None, "on_error": "stop", "on_saved": lambda step: None}
    options |= {"watchdog": Watchdog(None, None), "progress": Progress(), **further}
    return closing(Checkpoints(directory, newest=newest, **options))


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def restored(directory, step):
    found, _ = newest_good(directory)
    assert found.step == step
    with opened(directory, 1) as checkpoints:
        state = checkpoints.restore(found, plain_state())
        assert checkpoints.latest == step
    return state
