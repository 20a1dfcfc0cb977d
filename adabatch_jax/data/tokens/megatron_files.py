"""Megatron's indexed datasets: `NAME.bin` with the ids, `NAME.idx` with where documents begin.

The index, little-endian: the magic bytes; the version, uint64; a code of the ids' type, uint8; the
numbers of sequences and of entries of the document index, uint64; of each sequence its length,
int32, and the byte at which it begins, int64; the document index, int64: with which sequence each
document begins, and at its end the number of sequences.
(megatron/core/datasets/indexed_dataset.py)
"""

import struct
from pathlib import Path

import numpy as np

from adabatch_jax.system.errors import UsageError

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # 6 and 7 are floats


def open_megatron(stem: Path, of: str) -> tuple[np.ndarray, np.ndarray]:
    """The ids, memory-mapped, and where each document begins.

    Raises:
      UsageError: a file is missing, or they aren't what they should be.
    """
    index, data = Path(f"{stem}.idx"), Path(f"{stem}.bin")
    for path in (index, data):
        if not path.is_file():
            raise UsageError(f"{of}: Megatron's pair lacks {path.name}.")
    content = index.read_bytes()
    if len(content) < _HEADER.size or content[: len(_MAGIC)] != _MAGIC:
        raise UsageError(f"{index} is no index of Megatron's: it doesn't begin with MMIDIDX.")
    _, version, code, num_sequences, num_entries = _HEADER.unpack_from(content)
    if version != 1:
        raise UsageError(f"{index} is of version {version}; this reads version 1.")
    if code not in _TYPES:
        raise UsageError(f"{index} has the type code {code}, which is none of whole numbers.")
    # Behind these may follow one mode for each sequence, of other things than text.
    whole = _HEADER.size + 12 * num_sequences + 8 * num_entries
    if len(content) not in (whole, whole + num_sequences):
        raise UsageError(
            f"{index} has {len(content):,} bytes and should have {whole:,}; it was cut off."
        )
    lengths = np.frombuffer(content, "<i4", num_sequences, _HEADER.size).astype(np.int64)
    pointers = np.frombuffer(content, "<i8", num_sequences, _HEADER.size + 4 * num_sequences)
    documents = np.frombuffer(content, "<i8", num_entries, _HEADER.size + 12 * num_sequences)
    dtype = np.dtype(_TYPES[code])
    begins = np.concatenate([[0], np.cumsum(lengths)])
    if (lengths < 0).any() or (pointers != begins[:-1] * dtype.itemsize).any():
        raise UsageError(f"{index}: the sequences don't lie one after the other in {data.name}.")
    if data.stat().st_size != begins[-1] * dtype.itemsize:
        raise UsageError(
            f"{data} has {data.stat().st_size:,} bytes and its index tells of "
            f"{begins[-1] * dtype.itemsize:,}; it was cut off, or belongs to another index."
        )
    if (np.diff(documents) < 0).any() or (documents[[0, -1]] != (0, num_sequences)).any():
        raise UsageError(f"{index}: its documents don't make up its sequences.")
    ids = np.asarray(np.memmap(data, dtype, "r")) if begins[-1] else np.zeros(0, dtype)
    return ids, begins[documents[:-1]]
