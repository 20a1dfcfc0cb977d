"""What is done where a checkpoint, or what is noted of it, can't be written."""

import jax.numpy as jnp
import pytest

from adabatch_jax.config.policies import Keeping
from adabatch_jax.runs.display.progress import Progress
from adabatch_jax.runs.folder.run_folder import RunFolder
from adabatch_jax.runs.run_checkpoints import RunCheckpoints
from adabatch_jax.system.errors import StorageError
from adabatch_jax.system.watchdog import Watchdog
from adabatch_jax.training.train_state import TrainState


class Said(Progress):
    def __init__(self):
        self.messages = []

    def message(self, text):
        self.messages.append(text)


@pytest.mark.parametrize("on_error", ["stop", "warn"])
def test_a_note_that_cannot_be_written_is_as_bad_as_a_checkpoint(tmp_path, on_error):
    state, said = TrainState(jnp.int32(3), {"w": jnp.ones(2)}, {}, ()), Said()
    with RunFolder(tmp_path) as folder, Watchdog(None, None) as watchdog:
        checkpoints = RunCheckpoints(folder, Keeping(on_error=on_error), watchdog, said)
        (tmp_path / "last_checkpoint.json").mkdir()
        checkpoints.save(3, state, {})
        if on_error == "stop":
            with pytest.raises(StorageError, match="cannot write .*last_checkpoint.json"):
                checkpoints.wait()
        else:
            checkpoints.wait()
            (message,) = said.messages
            assert message.startswith("warning: cannot write ")
            assert message.endswith("Is a directory. Training goes on without it.")
        checkpoints.check_is_saved(3)
        checkpoints.close()


def test_the_note_is_watched_like_the_checkpoint(tmp_path, monkeypatch):
    state, done = TrainState(jnp.int32(3), {"w": jnp.ones(2)}, {}, ()), []
    with RunFolder(tmp_path) as folder, Watchdog(None, None) as watchdog:
        checkpoints = RunCheckpoints(folder, Keeping(), watchdog, Progress())
        monkeypatch.setattr(folder, "note_saved", lambda step: done.append("noted"))
        monkeypatch.setattr(watchdog, "end", lambda token: done.append("watched no more"))
        checkpoints.save(3, state, {})
        checkpoints.close()
    assert done == ["noted", "watched no more"]
