"""Free space is compared with what the checkpoints of a run take."""

import shutil
from collections import namedtuple

import jax
import numpy as np
import pytest

from adabatch_jax.runs.checkpoints.disk_space import check_free_space, checkpoint_bytes, free_bytes
from adabatch_jax.system.errors import StorageError

Usage = namedtuple("Usage", ["total", "used", "free"])


@pytest.fixture
def disk(monkeypatch):
    """Sets the bytes that are free; returns the folders that were asked about."""
    asked = []

    def free(num_bytes):
        monkeypatch.setattr(
            shutil, "disk_usage", lambda path: asked.append(path) or Usage(0, 0, num_bytes)
        )
        return asked

    return free


def test_bytes_of_a_state():
    none = checkpoint_bytes({})
    state = {"w": np.zeros((3, 5), np.float32), "n": np.int32(3), "key": jax.random.key(0)}
    assert checkpoint_bytes(state) - none == 60 + 4 + 8
    assert checkpoint_bytes(jax.eval_shape(lambda: state)) == checkpoint_bytes(state)
    assert 0 < none < 2**20


def test_the_disk_of_a_folder_that_is_not_there_yet(tmp_path, disk):
    asked = disk(7)
    assert free_bytes(tmp_path / "runs/a") == 7
    assert asked == [tmp_path]


def test_free_bytes_of_a_real_disk(tmp_path):
    assert free_bytes(tmp_path) > 0


def test_room_for_all_for_some_and_for_none(tmp_path, disk):
    disk(5000)  # the newest, the best, and the one being written
    assert check_free_space(tmp_path, 1000, newest=3) is None
    disk(4999)
    warning = check_free_space(tmp_path, 1000, newest=3)
    assert "has 4.9 KiB free" in warning and "5 more checkpoints of 1000 bytes each" in warning
    for step in (10, 20):
        (tmp_path / str(step)).mkdir()
    disk(3000)
    assert check_free_space(tmp_path, 1000, newest=3) is None
    disk(1000)
    assert "2 more checkpoints" in check_free_space(tmp_path, 1000, newest=2)
    assert check_free_space(tmp_path, 1000, newest=0) is None
    disk(999)
    with pytest.raises(StorageError, match=f"1000 bytes .*{tmp_path}.* 999 bytes"):
        check_free_space(tmp_path, 1000, newest=1)
