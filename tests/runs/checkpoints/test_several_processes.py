"""A checkpoint that several processes write, with threads in their place."""

import jax.numpy as jnp
import numpy as np
import pytest

from adabatch_jax.cluster.processes import PeerFailed
from adabatch_jax.runs.checkpoints import checkpoint_files
from adabatch_jax.runs.checkpoints.array_parts import WHOLE, place_text
from adabatch_jax.runs.checkpoints.checkpoint_files import Contents, write_checkpoint
from adabatch_jax.runs.checkpoints.restoring import read_arrays
from adabatch_jax.runs.checkpoints.verifying import Damaged, check_checkpoint
from adabatch_jax.system.errors import StorageError
from tests.cluster.memory_store import together

RUN = {"step": 7, "format": 6}
ARRAYS = {
    "whole": np.arange(5),
    "cut": np.arange(24, dtype=np.float32).reshape(4, 6),
    "half": np.arange(8).astype(jnp.bfloat16),
    "empty": np.zeros((0, 4), np.float32),
    "a/name with: signs,@[1]": np.arange(6.0).reshape(2, 3),
}


def contents(index, count):
    """What one process has of them: of all but the first array some rows."""
    parts = {}
    for name, array in ARRAYS.items():
        if name == "whole":
            parts[name] = {} if index else {WHOLE: array}
            continue
        bounds = np.linspace(0, len(array), count + 1).astype(int)
        rows = slice(int(bounds[index]), int(bounds[index + 1]))
        where = (rows, *[slice(0, size) for size in array.shape[1:]])
        parts[name] = {place_text(where, array.shape): array[where]}
    described = {n: f"{a.dtype}{list(a.shape)}" for n, a in ARRAYS.items()}
    return Contents(RUN, described, parts)


@pytest.fixture(params=[1, 2, 4])
def path(request, tmp_path, monkeypatch):
    """A checkpoint of so many processes."""
    path, count = tmp_path / "checkpoints" / "7", request.param

    def write(processes):
        write_checkpoint(path, contents(processes.index, count), processes)

    assert together(monkeypatch, count, write)[0] == [None] * count
    return path


def test_it_is_read_as_it_was_saved(path):
    found = check_checkpoint(path)
    read = read_arrays(found, ARRAYS)
    for name, array in ARRAYS.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


def test_each_changed_byte_of_any_part_is_found(path):
    for file in sorted(path.rglob("parts-*/*")):
        content = file.read_bytes()
        if not content:
            continue
        for place in (0, len(content) - 1):
            changed = bytearray(content)
            changed[place] ^= 1
            file.write_bytes(changed)
            with pytest.raises(Damaged, match=f"{file.relative_to(path)} was changed"):
                check_checkpoint(path)
        file.write_bytes(content[:-1])
        with pytest.raises(Damaged, match="bytes instead of"):
            check_checkpoint(path)
        file.write_bytes(content)
    check_checkpoint(path)


@pytest.mark.parametrize("who", [0, 1])
def test_a_part_that_can_not_be_written_is_an_error_of_all(tmp_path, monkeypatch, who):
    path, write_parts = tmp_path / "checkpoints" / "7", checkpoint_files._write_parts

    def fail(temporary, contents, index):
        if index == who:
            raise OSError(28, "No space left on device")
        return write_parts(temporary, contents, index)

    monkeypatch.setattr(checkpoint_files, "_write_parts", fail)

    def write(processes):
        write_checkpoint(path, contents(processes.index, 2), processes)

    for error in together(monkeypatch, 2, write)[0]:
        assert isinstance(error, StorageError)
        assert "No space left on device" in str(error)
    assert not path.exists()


def test_a_process_that_is_gone_is_no_error_of_storage(tmp_path, monkeypatch):
    """So that no run goes on without it, and the exit code asks for a restart."""

    def gone(*args):
        raise PeerFailed("process 1 is gone.")

    monkeypatch.setattr(checkpoint_files, "from_all", gone)
    with pytest.raises(PeerFailed):
        write_checkpoint(tmp_path / "checkpoints" / "7", contents(0, 1))
