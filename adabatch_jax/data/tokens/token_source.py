"""Sources of sequences: windows of equal length over rows of token ids, read where they lie."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np

from adabatch_jax.data.parallel_reading import checked_indices
from adabatch_jax.data.tokens.token_files import Tokens, open_tokens
from adabatch_jax.data.tokens.token_mixture import TokenMixture
from adabatch_jax.schedules.text_reader import positive_integer
from adabatch_jax.system.errors import ExampleError, UsageError, did_you_mean

Documents = Literal["joined", "packed", "apart"]


class Windows(Protocol):
    """A way to cut a row of tokens into sequences; all are found without reading others."""

    def __len__(self) -> int: ...

    def read_into(self, row: int, index: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes a sequence into row `row` of `arrays`, which hold zeros."""


class TokenSource:
    """A source of sequences, see `token_source`.

    Attributes:
      sequence_length: the tokens of a sequence that something follows: those that are trained on.
      vocabulary_size: ids are 0 .. vocabulary_size - 1; None where nobody told.
    """

    def __init__(
        self,
        tokens: Tokens,
        sequence_length: int,
        documents: Documents = "joined",
        end_of_document: int | None = None,
        vocabulary_size: int | None = None,
    ):
        sequence_length = positive_integer(sequence_length, "sequence_length")
        if documents not in get_args(Documents):
            known = ", ".join(get_args(Documents))
            hint = did_you_mean(str(documents), get_args(Documents)) or "."
            raise UsageError(f"`documents` must be one of {known}, got {documents!r}{hint}")
        if documents != "joined" and tokens.starts is None and end_of_document is None:
            raise UsageError(
                f"{tokens.of} doesn't say where its documents end; give `end_of_document`, the id "
                "that stands between them."
            )
        self.sequence_length, self.vocabulary_size = sequence_length, vocabulary_size
        self._tokens = tokens
        self._decides = [sequence_length, documents, end_of_document]
        self._windows: Windows
        if documents == "joined":
            self._windows = _Joined(tokens, sequence_length)
        elif documents == "packed":
            self._windows = _Packed(tokens, sequence_length, end_of_document)
        else:
            self._windows = _Apart(tokens, sequence_length, end_of_document)
        self._has_mask = documents != "joined"
        if not len(self._windows):
            raise UsageError(
                f"{tokens.of} has {len(tokens):,} tokens, which make up no sequence of "
                f"{sequence_length:,} and the one that follows; take shorter sequences "
                "(--data.sequence-length), or more text."
            )
        self._is_packed = documents == "packed"

    def __len__(self) -> int:
        return len(self._windows)

    @property
    def num_classes(self) -> int | None:
        """What a network is told of the vocabulary."""
        return self.vocabulary_size

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Reads sequences, in any order and also several times.

        Raises:
          IndexError: an index is out of range.
          ExampleError: an id is none of the vocabulary.
        """
        indices = checked_indices(indices, len(self))
        shape = (len(indices), self.sequence_length)
        arrays = {"tokens": np.zeros((shape[0], shape[1] + 1), np.int32)}
        if self._has_mask:
            arrays["mask"] = np.zeros(shape, bool)
        if self._is_packed:
            arrays |= {
                "positions": np.zeros(shape, np.int32),
                "segments": np.zeros(shape, np.int32),
            }
        for row, index in enumerate(indices.tolist()):
            self._windows.read_into(row, index, arrays)
        if self._has_mask:
            arrays["weight"] = arrays["mask"].sum(axis=1, dtype=np.float32)
        self._check_ids(indices, arrays["tokens"])
        return arrays

    def digest(self) -> str:
        """A digest of the ids, of the documents, and of how sequences are cut."""
        starts = self._tokens.starts
        documents = (
            starts is not None and hashlib.sha256(starts.astype("<i8").tobytes()).hexdigest()
        )
        content = [self._tokens.digest(), self._has_mask and documents, *self._decides]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def _check_ids(self, indices: np.ndarray, ids: np.ndarray) -> None:
        limit = self.vocabulary_size
        if limit is None or not ids.size or 0 <= ids.min() <= ids.max() < limit:
            return
        row = int(np.flatnonzero(((ids < 0) | (ids >= limit)).any(axis=1))[0])
        wrong = ids[row][(ids[row] < 0) | (ids[row] >= limit)][0]
        raise ExampleError(
            f"sequence {indices[row]} of {self._tokens.of} holds the token {wrong}, and the "
            f"vocabulary has {limit:,}, from 0 on."
        )


def token_source(
    path: Any,
    sequence_length: int,
    *,
    documents: Documents = "joined",
    end_of_document: int | None = None,
    dtype: Any = "uint16",
    vocabulary_size: int | None = None,
) -> TokenSource | TokenMixture:
    """Opens files of token ids as a source of sequences; nothing is read before it is asked for.

    Example i of "joined" and "packed" is the tokens from `i * sequence_length` on, and one more:
    inputs are `tokens[:, :-1]`, targets `tokens[:, 1:]`, and each token is a target once. What
    doesn't fill a sequence at the end of a file is left out.

    Args:
      path: a file: `.bin` (nanoGPT's flat ids; with a header that of llm.c; beside an `.idx`
        Megatron's), `.npy`, or `.array_record` with a document's ids in each record. Several,
        `["a.bin", "b.bin"]`: the sequences of one after those of the other. A mapping,
        `{"web.bin": 0.7, "code.bin": 0.3}`: a mixture in these shares, see `TokenMixture`.
      sequence_length: tokens that are trained on in each example. The plan takes it as
        `tokens_per_example`.
      documents: "joined": nothing is known of documents. "packed": a sequence may hold several;
        then there are, of shape `(n, sequence_length)`, "segments" (int32, which one an input is
        of, from 0), "positions" (int32, its place in the document, or where that began in another
        sequence, in the sequence) and "mask" (False where the target is another document's first
        token). "apart": a sequence is of one document, whose last one is filled up with 0, where
        "mask" is False.
      end_of_document: the id at which documents end, in files that don't say it themselves.
      dtype: of the ids in a flat `.bin`, and in records.
      vocabulary_size: an id that isn't below it is an error, where it is read.

    Returns:
      A source whose `read` gives "tokens", int32 of shape `(n, sequence_length + 1)`, and with
      "mask" also "weight", float32 of shape `(n,)`, the number of targets: how often an example's
      own mean counts in that of a batch.

    Raises:
      UsageError: no such file, one of another kind, one with too few tokens, or unknown documents.
      StorageError: a file can't be read.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "train.bin")
    >>> np.arange(10, dtype=np.uint16).tofile(path)
    >>> source = token_source(path, sequence_length=3)
    >>> len(source), source.read(np.array([2, 0]))["tokens"].tolist()
    (3, [[6, 7, 8, 9], [0, 1, 2, 3]])
    """

    def opened(file: Any) -> TokenSource:
        try:
            file = Path(os.fspath(file)).expanduser()
        except TypeError:
            raise UsageError(
                f"`path` must be a file, a list of files or a mapping of files to weights, and has "
                f"{file!r}."
            ) from None
        tokens = open_tokens(file, str(file), dtype)
        return TokenSource(tokens, sequence_length, documents, end_of_document, vocabulary_size)

    if isinstance(path, Mapping):
        return TokenMixture([*map(opened, path)], [*path.values()])
    if isinstance(path, Sequence) and not isinstance(path, str | bytes):
        return TokenMixture([*map(opened, path)])
    return opened(path)


class _Joined:
    """Sequence i begins at token i * sequence_length."""

    def __init__(self, tokens: Tokens, sequence_length: int):
        self._tokens, self._length = tokens, sequence_length

    def __len__(self) -> int:
        return max(0, len(self._tokens) - 1) // self._length

    def read_into(self, row: int, index: int, arrays: Mapping[str, np.ndarray]) -> None:
        start = index * self._length
        arrays["tokens"][row] = self._tokens.ids[start : start + self._length + 1]


class _Packed(_Joined):
    """The same sequences, with the documents in them."""

    def __init__(self, tokens: Tokens, sequence_length: int, end_of_document: int | None):
        super().__init__(tokens, sequence_length)
        self._end = end_of_document

    def read_into(self, row: int, index: int, arrays: Mapping[str, np.ndarray]) -> None:
        super().read_into(row, index, arrays)
        begins = self._begins(index * self._length, arrays["tokens"][row])
        arrays["mask"][row] = True
        arrays["mask"][row, begins - 1] = False
        inner = begins[begins < self._length]
        arrays["segments"][row, inner] = 1
        np.cumsum(arrays["segments"][row], out=arrays["segments"][row])
        first = np.concatenate([[0], inner])[arrays["segments"][row]]
        arrays["positions"][row] = np.arange(self._length) - first

    def _begins(self, start: int, ids: np.ndarray) -> np.ndarray:
        """Where behind its first token documents begin in a sequence with these ids."""
        starts = self._tokens.starts
        if starts is None:
            return np.flatnonzero(ids[:-1] == self._end) + 1
        first = np.searchsorted(starts, start, "right")
        last = np.searchsorted(starts, start + len(ids), "left")
        return starts[first:last] - start


class _Apart:
    """Each document begins a sequence; one of n tokens makes up ceil((n - 1) / length) of them."""

    def __init__(self, tokens: Tokens, sequence_length: int, end_of_document: int | None):
        self._tokens, self._length = tokens, sequence_length
        starts = _starts(tokens, end_of_document) if tokens.starts is None else tokens.starts
        stops = np.append(starts[1:], len(tokens))
        self._starts, self._stops = starts, stops
        numbers = -(-np.maximum(stops - starts - 1, 0) // sequence_length)
        self._before = np.concatenate([[0], np.cumsum(numbers)])

    def __len__(self) -> int:
        return int(self._before[-1])

    def read_into(self, row: int, index: int, arrays: Mapping[str, np.ndarray]) -> None:
        document = np.searchsorted(self._before, index, "right") - 1
        start = int(self._starts[document] + (index - self._before[document]) * self._length)
        ids = self._tokens.ids[start : min(start + self._length + 1, int(self._stops[document]))]
        arrays["tokens"][row, : len(ids)] = ids
        arrays["mask"][row, : len(ids) - 1] = True


def _starts(tokens: Tokens, end_of_document: int | None) -> np.ndarray:
    """Where documents begin, from the id at which they end; reads all tokens once."""
    together, found = 2**24, [np.zeros(1, np.int64)]
    for start in range(0, len(tokens), together):
        ends = np.flatnonzero(np.asarray(tokens.ids[start : start + together]) == end_of_document)
        found.append(ends + start + 1)
    starts = np.concatenate(found)
    return starts[starts < len(tokens)]
