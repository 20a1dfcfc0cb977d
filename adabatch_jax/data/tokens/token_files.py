"""Token ids as they lie in files: flat arrays, memory-mapped, with or without documents."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from adabatch_jax.data.tokens.megatron_files import open_megatron
from adabatch_jax.data.tokens.token_records import open_records
from adabatch_jax.system.errors import StorageError, UsageError, one_line
from adabatch_jax.system.files import storage_errors

SUFFIXES = (".bin", ".npy", ".idx", ".array_record")

# What llm.c and modded-nanogpt write before the tokens: 256 int32, first the magic number.
_HEADER_BYTES = 1024
_TYPES_BY_MAGIC = {20240520: "<u2", 20240801: "<u4"}

# More tokens than these are sampled, so many at a time, by a digest.
_WHOLE_TOKENS = 2**28
_SAMPLED_TOKENS = 2**24
_TOKENS_TOGETHER = 2**14


class Ids(Protocol):
    """What holds token ids: a numpy array of one axis, or what answers like one."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: slice, /) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A row of token ids, of any length.

    Attributes:
      of: what errors call it.
      ids: the ids, whole numbers; a slice of them is an array.
      starts: int64, where in it each document begins; None where nobody told.
    """

    of: str
    ids: Ids
    starts: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, start: int, stop: int) -> "Tokens":
        """Those from one place to another; the first may be in the midst of a document."""
        starts = self.starts
        if starts is not None:
            inside = starts[(starts > start) & (starts < stop)]
            starts = np.append(0, inside - start)
        return dataclasses.replace(self, ids=_part(self.ids, start, stop), starts=starts)

    def largest(self) -> int:
        """The largest id; reads all."""
        at = range(0, len(self), _WHOLE_TOKENS // 8)
        return max(int(self.ids[start : start + at.step].max()) for start in at)

    def digest(self) -> str:
        """A sha256 of the ids, whatever type they are kept in.

        Of more than 2**28 evenly spread blocks are read, 2**24 ids in all.

        >>> ids = np.array([3, 1, 2])
        >>> Tokens("a", ids.astype(np.uint16)).digest() == Tokens("b", ids).digest()
        True
        """
        digest, block = hashlib.sha256(b"%d" % len(self)), _TOKENS_TOGETHER
        every = -(-len(self) // _SAMPLED_TOKENS) if len(self) > _WHOLE_TOKENS else 1
        for start in range(0, len(self), every * block):
            digest.update(np.asarray(self.ids[start : start + block]).astype("<u4").tobytes())
        return digest.hexdigest()


class JoinedIds:
    """The ids of several files as one row; a slice of it is read from those that it touches.

    >>> row = JoinedIds([np.arange(3), np.arange(10, 12)])
    >>> len(row), row[1:4].tolist(), row.part(2, 5)[:9].tolist()
    (5, [1, 2, 10], [2, 10, 11])
    """

    def __init__(self, parts: Sequence[Ids]):
        self._parts = parts
        self._begins = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self._begins[-1])

    def part(self, start: int, stop: int) -> "JoinedIds":
        """Those from one place to another, none of which are read."""
        return JoinedIds([_part(ids, *place) for ids, place in self._touched(start, stop)])

    def __getitem__(self, place: slice) -> np.ndarray:
        touched = self._touched(*place.indices(len(self))[:2])
        found = [np.asarray(ids[start:stop]) for ids, (start, stop) in touched]
        return found[0] if len(found) == 1 else np.concatenate(found or [np.zeros(0, np.int64)])

    def _touched(self, start: int, stop: int) -> list[tuple[Ids, tuple[int, int]]]:
        """The parts that a piece of the row lies in, and from where to where in them."""
        first = np.searchsorted(self._begins, start, "right") - 1
        last = np.searchsorted(self._begins, stop, "left")
        return [
            (ids, (max(start - begin, 0), min(stop - begin, len(ids))))
            for ids, begin in zip(self._parts[first:last], self._begins[first:last].tolist())
        ]


def _part(ids: Any, start: int, stop: int) -> Any:
    return ids[start:stop] if isinstance(ids, np.ndarray) else ids.part(start, stop)


def join_tokens(of: str, files: Sequence[Tokens]) -> Tokens:
    """The tokens of files as one row, a sequence of which may begin in one and end in another.

    Where documents begin is known if it is of all of them.
    """
    if len(files) == 1:
        return files[0]
    begins = np.cumsum([0, *map(len, files)]).tolist()
    starts = [tokens.starts + begin for tokens, begin in zip(files, begins)
              if tokens.starts is not None]  # fmt: skip
    known = np.concatenate(starts) if len(starts) == len(files) else None
    return Tokens(of, JoinedIds([tokens.ids for tokens in files]), known)


def open_tokens(path: Path, of: str, dtype: Any = "uint16") -> Tokens:
    """Opens a file of token ids; none is read.

    Args:
      path: `.bin` (flat; beside an `.idx` of Megatron's, either of the two), `.npy` (one axis) or
        `.array_record` (each record a document's ids).
      of: what errors call it.
      dtype: the type of a flat `.bin`, and of records.

    Raises:
      UsageError: there is no such file, or it holds something else.
      StorageError: it can't be read.
    """
    if not path.is_file():
        raise UsageError(f"there is no file of tokens {of!r}.")
    with storage_errors(path, action="read"):
        if path.suffix == ".idx" or (path.suffix == ".bin" and path.with_suffix(".idx").exists()):
            ids, starts = open_megatron(path.with_suffix(""), of)
        elif path.suffix == ".bin":
            ids, starts = _open_flat(path, of, _id_type(dtype)), None
        elif path.suffix == ".npy":
            ids, starts = _open_npy(path, of), None
        elif ".array_record" in path.name:
            ids, starts = open_records(path, of, _id_type(dtype))
        else:
            raise UsageError(f"{of!r} is no file of tokens; those end in {', '.join(SUFFIXES)}.")
    if not len(ids):
        raise UsageError(f"{of} holds no tokens.")
    # Documents without tokens begin where another does, or behind the end.
    return Tokens(of, ids, None if starts is None else np.unique(starts[starts < len(ids)]))


def token_type(vocabulary_size: int) -> np.dtype:
    """The type that token ids are written in.

    >>> token_type(50_257), token_type(128_256)
    (dtype('uint16'), dtype('uint32'))
    """
    return np.dtype("<u2" if vocabulary_size <= 2**16 else "<u4")


def read_description(folder: Path) -> dict[str, Any] | None:
    """What `prepare` wrote about the tokens in a folder; None where it wrote nothing."""
    path = folder / DESCRIPTION
    if not path.is_file():
        return None
    with storage_errors(path, action="read"):
        content = path.read_bytes()
    try:
        return {name: json.loads(content)[name] for name in _DESCRIBED}
    except (ValueError, LookupError, TypeError) as error:
        raise StorageError(f"{path} is damaged; prepare the text anew.") from error


DESCRIPTION = "tokens.json"
_DESCRIBED = (
    "dtype", "vocabulary_size", "end_of_document", "bytes_per_token", "tokenizer_digest", "digests",
)  # fmt: skip


def _id_type(dtype: Any) -> np.dtype:
    try:
        kind = np.dtype(dtype)
    except TypeError:
        kind = None
    if kind is None or kind.kind not in "iu":
        raise UsageError(
            f"`dtype` must be a type of whole numbers, such as 'uint32', got {dtype!r}."
        )
    return kind


def _open_flat(path: Path, of: str, dtype: np.dtype) -> np.ndarray:
    size, start = path.stat().st_size, 0
    with open(path, "rb") as file:
        magic = int.from_bytes(file.read(4), "little")
    if magic in _TYPES_BY_MAGIC and size >= _HEADER_BYTES:
        start, dtype = _HEADER_BYTES, np.dtype(_TYPES_BY_MAGIC[magic])
    if (size - start) % dtype.itemsize:
        raise UsageError(
            f"{of} has {size:,} bytes, which are no tokens of {dtype}, {dtype.itemsize} bytes each; it "
            "is of another type, or was cut off."
        )
    if size == start:
        return np.zeros(0, dtype)
    return np.asarray(np.memmap(path, dtype, "r", start))


def _open_npy(path: Path, of: str) -> np.ndarray:
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UsageError(f"{of} is no .npy file of numbers ({one_line(error)}).") from error
    if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype.kind not in "iu":
        found = f"{ids.dtype} of shape {ids.shape}" if isinstance(ids, np.ndarray) else "an .npz"
        raise UsageError(f"{of} holds {found}; tokens are whole numbers in one axis.")
    return np.asarray(ids)
