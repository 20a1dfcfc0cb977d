"""Tokenizers: bytes, which are built in, or a JSON file of the package `tokenizers`."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adabatch_jax.data.tokens.token_files import token_type
from adabatch_jax.system.errors import UsageError, one_line
from adabatch_jax.system.files import storage_errors

BYTES = "bytes"
_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")


class Bytes:
    """Each byte is a token; byte 0, which no text holds, stands between documents."""

    vocabulary_size = 256
    end_of_document: int | None = 0
    content = digest = None  # of the file that it doesn't need

    def encode(self, texts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The ids of texts, which are arrays of their bytes."""
        return list(texts)

    def encode_text(self, text: str) -> list[int]:
        """The ids of a text."""
        return [*text.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; what is no UTF-8 is shown as U+FFFD.

        >>> Bytes().decode([72, 105, 195])
        'Hi\ufffd'
        """
        return bytes(ids).decode(errors="replace")


@dataclasses.dataclass(frozen=True)
class JsonTokenizer:
    """A tokenizer that a JSON file of the package `tokenizers` describes.

    Attributes:
      of: what errors call it.
      content: of the file.
    """

    of: str
    content: bytes = dataclasses.field(repr=False)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise UsageError(
                f"the tokenizer {self.of} needs the package tokenizers; pip install "
                '"adabatch_jax[tokenizers]" brings it.'
            ) from None
        try:
            tokenizer = Tokenizer.from_str(self.content.decode())
        except Exception as error:  # of tokenizers, without a type of its own
            raise UsageError(
                f"{self.of} is no tokenizer as the package tokenizers saves one "
                f"({one_line(error)})."
            ) from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @functools.cached_property
    def vocabulary_size(self) -> int:
        """Ids are below it."""
        return max(self._tokenizer.get_vocab().values()) + 1

    @functools.cached_property
    def end_of_document(self) -> int | None:
        """The id that stands between documents; None where the tokenizer knows none."""
        ids = map(self._tokenizer.token_to_id, _ENDS)
        return next((number for number in ids if number is not None), None)

    @functools.cached_property
    def digest(self) -> str:
        """A sha256 of the file."""
        return hashlib.sha256(self.content).hexdigest()

    def encode(self, texts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The ids of texts, which are arrays of UTF-8 bytes; no special tokens are added."""
        decoded = [text.tobytes().decode() for text in texts]
        encoded = self._tokenizer.encode_batch_fast(decoded, add_special_tokens=False)
        dtype = token_type(self.vocabulary_size)
        return [np.array(one.ids, dtype) for one in encoded]

    def encode_text(self, text: str) -> list[int]:
        """The ids of a text; no special tokens are added."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        return self._tokenizer.decode(list(ids))


AnyTokenizer = Bytes | JsonTokenizer


def open_tokenizer(setting: str | None, flag: str = "data.tokenizer") -> AnyTokenizer:
    """The tokenizer that a setting names: "bytes" or None, or the path of a JSON file.

    `flag` is where the user named it, for errors.

    Raises:
      UsageError: there is no such file, or it is none of a tokenizer, or the package isn't there.

    >>> open_tokenizer(None).vocabulary_size
    256
    """
    if setting in (None, BYTES):
        return Bytes()
    path = Path(setting).expanduser()
    if not path.is_file():
        raise UsageError(
            f"{flag}: there is no file {setting!r}; give a JSON file of the package "
            "tokenizers, or bytes."
        )
    with storage_errors(path, action="read"):
        tokenizer = JsonTokenizer(setting, path.read_bytes())
    tokenizer.vocabulary_size  # so that what is wrong with it is told here
    return tokenizer
