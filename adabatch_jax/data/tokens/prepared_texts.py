"""A user's own texts written as tokens: flat `.bin` files, as nanoGPT's, and what is known of them."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from adabatch_jax.config.settings import DataSettings
from adabatch_jax.data.datasets.preparation.staging import publish, staging_folder
from adabatch_jax.data.datasets.prepared_folders import resolve_data_dir
from adabatch_jax.data.tokens.texts import TOKENIZER, OpenedText, open_text, prepared_folder
from adabatch_jax.data.tokens.token_files import (
    DESCRIPTION,
    Tokens,
    read_description,
    token_type,
)
from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.files import storage_errors

_TOKENS_TOGETHER = 2**24


def prepare_text(
    dataset: str,
    name: str,
    data_dir: str | None = None,
    tokenizer: str | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Writes a text's tokens under a name, and returns their folder.

    Without a split to evaluate on its last tenth is one.

    Args:
      dataset: as `--dataset` takes it, `text:FILE_OR_FOLDER`.
      name: `text:NAME` are these tokens from now on: small letters, digits and "_".
      data_dir: where to put them; None means `default_data_dir()`.
      tokenizer: as `--data.tokenizer`.
      overwrite: replace what is there once the new one is complete.

    Raises:
      UsageError: something else has the name, or something in the text can't work.
      StorageError: files can't be read or written.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UsageError(f"--name: {name!r} must be of small letters, digits and '_'.")
    text = open_text(dataset, DataSettings(dir=data_dir, tokenizer=tokenizer), 1)
    if text.was_tokens:
        raise UsageError(f"{dataset} holds tokens already; --dataset {dataset} trains on them.")
    described, folder = _described(text), prepared_folder(name, data_dir)
    if folder.is_dir() and not overwrite:
        if (read_description(folder) or {}).get("digests") != described["digests"]:
            raise UsageError(
                f"--name: {name!r} is there already, and not of the same text as {dataset}; choose "
                "another name, or add --overwrite to replace it."
            )
        return folder
    root = resolve_data_dir(data_dir)
    with storage_errors(root), staging_folder(root) as staging:
        staged = staging / name
        staged.mkdir()
        for split, tokens in text.tokens.items():
            _write(staged / f"{split}.bin", tokens, np.dtype(described["dtype"]))
        if text.tokenizer.content is not None:
            (staged / TOKENIZER).write_bytes(text.tokenizer.content)
        (staged / DESCRIPTION).write_text(json.dumps(described, indent=2))
        publish(staged, folder, staging, overwrite)
    return folder


def _described(text: OpenedText) -> dict[str, Any]:
    return {
        "dtype": token_type(text.vocabulary_size).name,
        "vocabulary_size": text.vocabulary_size,
        "end_of_document": text.spec.end_of_document,
        "bytes_per_token": text.spec.bytes_per_token,
        "tokenizer_digest": text.spec.tokenizer_digest,
        "digests": {split: tokens.digest() for split, tokens in text.tokens.items()},
    }


def _write(path: Path, tokens: Tokens, dtype: np.dtype) -> None:
    with open(path, "wb") as file:
        for start in range(0, len(tokens), _TOKENS_TOGETHER):
            part = np.asarray(tokens.ids[start : start + _TOKENS_TOGETHER])
            file.write(part.astype(dtype).tobytes())
