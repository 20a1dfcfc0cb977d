"""Memory of a phase's compiled update, without data and without running it."""

import functools

import jax
import jax.numpy as jnp

from adabatch_jax.config import TrainConfig
from adabatch_jax.data.datasets import dataset_spec
from adabatch_jax.errors import UsageError
from adabatch_jax.plan_table import PlanRow
from adabatch_jax.run import make_optimizer, network
from adabatch_jax.training.state import TrainState
from adabatch_jax.training.step import make_train_step


def update_bytes(config: TrainConfig, row: PlanRow) -> int:
    """Bytes that one update needs on each device: state, batch, and temporaries.

    The program is compiled for one device with its share of the rows; what devices tell each
    other comes on top.
    """
    step, state = _step_and_state(config, row.num_microbatches > 1)
    rows = (row.rows_per_device,)
    if row.num_microbatches > 1:
        rows = (row.num_microbatches, *rows)
    batch = {
        name: jax.ShapeDtypeStruct((*rows, *shape), dtype)
        for name, shape, dtype in (
            ("image", image_shape(config), jnp.uint8),
            ("label", (), jnp.int32),
            ("index", (), jnp.int32),
            ("epoch", (), jnp.int32),
            ("weight", (), jnp.float32),
        )
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    memory = step.lower(state, batch, key).compile().memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )


def image_shape(config: TrainConfig) -> tuple[int, int, int]:
    """(height, width, channels) of the images that the network gets."""
    shape, size = dataset_spec(config.dataset, config.data.dir).image_shape, config.data.image_size
    if size is not None:
        return (size, size, 3 if shape is None else shape[-1])
    if shape is None:
        raise UsageError(
            f"the images of {config.dataset} differ in size; give --data.image-size, or "
            "--no-memory for a table without memory."
        )
    return shape


@functools.lru_cache(maxsize=2)
def _step_and_state(config: TrainConfig, has_microbatches: bool):
    spec = dataset_spec(config.dataset, config.data.dir)
    params, model_state, loss_fn, _ = network(config, spec, image_shape(config))
    tx = make_optimizer(config, lambda count: jnp.float32(0.1))
    microbatch_size = config.microbatch_size if has_microbatches else None
    step = make_train_step(loss_fn, tx, microbatch_size=microbatch_size)
    return step, jax.eval_shape(
        lambda: TrainState.create(params=params, tx=tx, model_state=model_state)
    )
