"""Synthetic updates of a configuration: they run, on all devices or on one for all."""

import jax
import numpy as np
import pytest

from adabatch_jax.config import TrainConfig
from adabatch_jax.data.row_layout import Layouts
from adabatch_jax.reporting.planning.timed_updates import configured_updates


@pytest.mark.parametrize(
    ("num_devices", "used", "microbatch_size", "shape"),
    [
        (2, 2, None, (6,)),  # 5 rows, padded
        (16, 1, None, (1,)),  # one of 16 devices that aren't there
        (1, 1, 2, (3, 2)),
    ],
)
def test_a_compiled_update_takes_its_arguments(num_devices, used, microbatch_size, shape):
    updates = configured_updates(TrainConfig(), num_devices)
    layout = Layouts(microbatch_size, num_devices).of(5)
    program = updates.compiled([layout, layout])[layout]
    state, batch, key, constants = updates.arguments(layout)
    assert {name: leaf.shape[: len(shape)] for name, leaf in batch.items()} == dict.fromkeys(
        batch, shape
    )
    assert len(batch["image"].sharding.device_set) == updates.num_used_devices == used
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(state.params)]
    state, metrics = program.compiled(state, batch, key, constants)
    assert int(state.step) == 1 and np.isfinite(metrics["loss"])
    moved = [
        np.abs(np.asarray(leaf) - old).max()
        for leaf, old in zip(jax.tree.leaves(state.params), before, strict=True)
    ]
    assert 0 < max(moved) < 1
    # Each call goes on from the last one's state, and the layout is compiled once.
    updates.prepared(layout)(3)
    assert updates.compiled([layout])[layout] is program
