"""What is done about a checkpoint when it is saved."""

import jax.numpy as jnp

from adabatch_jax.config.policies import Keeping
from adabatch_jax.runs.checkpoints.run_checkpoints import RunCheckpoints
from adabatch_jax.runs.display.progress import NullProgress
from adabatch_jax.system.watchdog import Watchdog
from adabatch_jax.training.train_state import TrainState


def test_the_note_is_watched_like_the_checkpoint(tmp_path, monkeypatch):
    state, done = TrainState(jnp.int32(3), {"w": jnp.ones(2)}, {}, ()), []
    with Watchdog(None, None) as watchdog:
        monkeypatch.setattr(watchdog, "end", lambda token: done.append("watched no more"))
        checkpoints = RunCheckpoints(
            tmp_path, Keeping(), watchdog, NullProgress(), lambda step: done.append("noted")
        )
        checkpoints.save(3, state, {})
        checkpoints.close()
    assert done == ["noted", "watched no more"]
