"""Files of named arrays: read back by themselves and by safetensors' own reader, never unpickled."""

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from adabatch_jax.runs.weight_files import read_arrays_of_file, write_arrays
from adabatch_jax.system.errors import NotAsWritten, UsageError

ARRAYS = {
    "params.w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "params.half": np.asarray(jnp.arange(3, dtype=jnp.bfloat16)),
    "params.none": np.zeros((0, 4), np.float64),
    "model_state.count": np.array(7, np.uint32),
    "model_state.mask": np.array([True, False, True]),
}


def same(one, other):
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert (array.dtype, array.shape) == (other[name].dtype, other[name].shape), name
        assert array.tobytes() == other[name].tobytes(), name


def test_safetensors_is_read_back(tmp_path):
    write_arrays(tmp_path / "w.safetensors", ARRAYS, "flax")
    same(read_arrays_of_file(tmp_path / "w.safetensors"), ARRAYS)


def test_the_package_of_that_name_reads_and_writes_the_same(tmp_path):
    package = pytest.importorskip("safetensors.numpy", reason="pip install safetensors")
    arrays = {name: array for name, array in ARRAYS.items() if name != "params.half"}
    write_arrays(tmp_path / "ours.safetensors", arrays, "pt")
    same(package.load_file(tmp_path / "ours.safetensors"), arrays)
    package.save_file(arrays, tmp_path / "theirs.safetensors")
    same(read_arrays_of_file(tmp_path / "theirs.safetensors"), arrays)


def test_the_format_by_hand(tmp_path):
    """8 bytes of length, a JSON header that fills whole 8 bytes, raw little-endian data."""
    write_arrays(tmp_path / "w.safetensors", ARRAYS, "pt")
    content = (tmp_path / "w.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0 and header.pop("__metadata__") == {"format": "pt"}
    begin, end = header["params.w"]["data_offsets"]
    assert header["params.w"]["dtype"] == "F32" and header["params.half"]["dtype"] == "BF16"
    data = np.frombuffer(content[8 + length :][begin:end], "<f4")
    np.testing.assert_array_equal(data, np.arange(6))
    ends = [about["data_offsets"] for about in header.values()]
    assert [b for b, _ in ends] == [0, *(e for _, e in ends[:-1])]  # no holes
    assert ends[-1][1] == len(content) - 8 - length


def test_npz_is_numpys_own(tmp_path):
    arrays = {name: array for name, array in ARRAYS.items() if name != "params.half"}
    write_arrays(tmp_path / "w.npz", arrays, "flax")
    with np.load(tmp_path / "w.npz") as file:
        same(dict(file), arrays)
    same(read_arrays_of_file(tmp_path / "w.npz"), arrays)
    with pytest.raises(UsageError, match="params.half is of type bfloat16.* a .safetensors does"):
        write_arrays(tmp_path / "w.npz", ARRAYS, "flax")


def test_nothing_is_unpickled(tmp_path):
    np.savez(tmp_path / "w.npz", w=np.array([print], object))
    with pytest.raises(NotAsWritten, match="w.npz is damaged"):
        read_arrays_of_file(tmp_path / "w.npz")


def test_damaged_files_are_told(tmp_path):
    path = tmp_path / "w.safetensors"
    write_arrays(path, ARRAYS, "flax")
    whole = path.read_bytes()
    header = json.dumps({"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}).encode()
    for content in (
        b"", whole[:5], whole[:40], whole[:-1], b"\xff" * 100, len(header).to_bytes(8, "little") + header,
        (2).to_bytes(8, "little") + b"[]", (9).to_bytes(8, "little") + b'{"w": {}}',
        (9).to_bytes(8, "little") + b'{"w": 3} ',
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(NotAsWritten, match="w.safetensors is damaged"):
            read_arrays_of_file(path)


def test_neither_torch_nor_safetensors_is_imported():
    code = (
        "import sys; import adabatch_jax.runs.weight_files;"
        "sys.exit(bool({'torch', 'safetensors'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
