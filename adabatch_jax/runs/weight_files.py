"""Files of named arrays: safetensors, whose format is a few lines, and numpy's npz."""

import io
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from adabatch_jax.system.errors import NotAsWritten, UsageError
from adabatch_jax.system.files import read_file, storage_errors, write_atomically

SUFFIXES = (".safetensors", ".npz")

Arrays = dict[str, np.ndarray]

# Little-endian all of them, as on every machine that JAX runs on.
_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
    "F8_E4M3": jnp.float8_e4m3fn, "F8_E5M2": jnp.float8_e5m2,
}  # fmt: skip
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


def check_suffix(path: Path, setting: str) -> None:
    """Raises a UsageError unless a file's name says that it is one of these."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{setting}: {str(path)!r} must end in {' or '.join(SUFFIXES)}.")


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], made_for: str) -> None:
    """Writes arrays, whole or not at all; `made_for` is what safetensors' readers ask: pt, flax.

    Raises:
      UsageError: an array is of a type that the file can't hold.
      StorageError: the file can't be written.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in sorted(arrays.items())}
    for name, array in arrays.items():
        if array.dtype not in _NAMES or (path.suffix == ".npz" and array.dtype.kind == "V"):
            raise UsageError(
                f"{name} is of type {array.dtype}, which no {path.suffix} holds"
                f"{'; a .safetensors does.' if array.dtype in _NAMES else '.'}"
            )
    if path.suffix == ".npz":
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        write_atomically(path, buffer.getvalue())
    else:
        write_atomically(path, _safetensors(arrays, made_for))


def read_arrays_of_file(path: Path) -> Arrays:
    """Reads the arrays of a file; none of it is unpickled.

    Raises:
      StorageError: it can't be read, or it isn't what its name says.
    """
    with storage_errors(path, action="read"):
        content = read_file(path)
    try:
        return _of_npz(content) if path.suffix == ".npz" else _of_safetensors(content)
    except (ValueError, LookupError, TypeError, AttributeError, zipfile.BadZipFile, EOFError,
            RecursionError) as error:  # fmt: skip
        raise NotAsWritten(f"{path} is damaged: it is no {path.suffix} file ({error}).") from error


def _safetensors(arrays: Mapping[str, np.ndarray], made_for: str) -> bytes:
    header, end = {"__metadata__": {"format": made_for}}, 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        header[name] = {
            "dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [begin, end],
        }  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the data are aligned
    return b"".join(
        [len(text).to_bytes(8, "little"), text, *map(np.ndarray.tobytes, arrays.values())]
    )


def _of_safetensors(content: bytes) -> Arrays:
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 + length:
        raise ValueError("its header is cut off")
    header, arrays = json.loads(content[8 : 8 + length]), {}
    for name, about in header.items():
        if name == "__metadata__":
            continue
        dtype, shape = np.dtype(_DTYPES[about["dtype"]]), tuple(about["shape"])
        begin, end = about["data_offsets"]
        is_inside = 0 <= begin <= end <= len(content) - 8 - length
        if not is_inside or end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} is cut off")
        data = content[8 + length + begin : 8 + length + end]
        arrays[name] = np.frombuffer(data, dtype).reshape(shape)
    return arrays


def _of_npz(content: bytes) -> Arrays:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
