"""What `text:FILE_OR_FOLDER` holds: texts, which are tokenized, or tokens; and its splits."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from adabatch_jax.config.settings import DataSettings
from adabatch_jax.config.value_texts import is_path, is_share, parse_share, text_path
from adabatch_jax.data.datasets.known_datasets import TextSpec
from adabatch_jax.data.datasets.own.shares import ALL, EVAL_NAMES, TRAIN_NAMES, first_of
from adabatch_jax.data.datasets.prepared_folders import resolve_data_dir
from adabatch_jax.data.tokens.token_files import (
    SUFFIXES,
    Tokens,
    join_tokens,
    open_tokens,
    read_description,
)
from adabatch_jax.data.tokens.tokenizers import BYTES, AnyTokenizer, open_tokenizer
from adabatch_jax.system.errors import UsageError, did_you_mean
from adabatch_jax.system.files import storage_errors

DEFAULT_SHARE = "10%"
TOKENIZER = "tokenizer.json"  # the name of its copy beside prepared tokens


@dataclasses.dataclass(frozen=True)
class OpenedText:
    """A text's tokens by split, "train", "test" and maybe "holdout", and what is known of them.

    `tokenizer` is None where only ids are known; `was_tokens` is whether they lay so in files, and
    nothing was tokenized.
    """

    tokens: dict[str, Tokens]
    vocabulary_size: int
    spec: TextSpec
    tokenizer: AnyTokenizer | None
    notes: tuple[str, ...] = ()
    was_tokens: bool = False


def prepared_folder(name: str, data_dir: str | None) -> Path:
    """Where `prepare` puts a text's tokens."""
    return resolve_data_dir(data_dir) / "texts" / name


def open_text(dataset: str, settings: DataSettings, sequence_length: int) -> OpenedText:
    """Opens what a dataset's text names, and tokenizes it where it isn't tokens already.

    A name that is prepared wins over a file or folder called so; `text:./name` is a path.

    Raises:
      UsageError: there is none, or something in it can't work; each has its sentence.
      StorageError: it can't be read.
    """
    named = text_path(dataset)
    path, prepared = Path(named).expanduser(), prepared_folder(named, settings.dir)
    if not is_path(named) and prepared.is_dir():
        path = prepared
    if not path.exists():
        raise UsageError(f"dataset: there is no file or folder {named!r} of text.")
    files = _files(path, named)
    opened = _of_tokens if files[0].name.endswith(SUFFIXES) else _of_texts
    return opened(files, path, named, settings, sequence_length)


def _of_texts(
    files: Sequence[Path], path: Path, of: str, settings: DataSettings, sequence_length: int
) -> OpenedText:
    tokenizer = open_tokenizer(settings.tokenizer)
    texts = {
        split: [_text(file, len(files) > 1 or tokenizer.digest is not None) for file in some]
        for split, some in _by_split(files, path, of).items()
    }
    parts, notes = _parts(of, texts, settings, _cut_texts)
    tokens = {name: _tokenized(f"{of} ({name})", part, tokenizer) for name, part in parts.items()}
    num_bytes = sum(map(len, parts["test"]))
    spec = TextSpec(
        sequence_length, settings.tokenizer or BYTES, tokenizer.digest, tokenizer.end_of_document,
        num_bytes / len(tokens["test"]),
    )  # fmt: skip
    return OpenedText(tokens, tokenizer.vocabulary_size, spec, tokenizer, notes)


def _of_tokens(
    files: Sequence[Path], path: Path, of: str, settings: DataSettings, sequence_length: int
) -> OpenedText:
    folder = path if path.is_dir() else path.parent
    told = read_description(folder) or {}
    opened_files = {
        split: [open_tokens(file, str(file), told.get("dtype", "uint16")) for file in some]
        for split, some in _by_split(files, path, of).items()
    }
    splits = {split: join_tokens(f"{of} ({split})", some) for split, some in opened_files.items()}
    tokens, notes = _parts(of, splits, settings, _cut_tokens)
    kept, tokenizer = folder / TOKENIZER, settings.tokenizer
    if told and tokenizer is None:
        tokenizer = str(kept) if kept.is_file() else BYTES
    opened = None if tokenizer is None else open_tokenizer(tokenizer)
    vocabulary_size = told.get("vocabulary_size", settings.vocabulary_size)
    if vocabulary_size is None and opened is not None:
        vocabulary_size = opened.vocabulary_size
    if vocabulary_size is None:
        vocabulary_size = 1 + max(some.largest() for some in tokens.values())
    digest, end = (None, None) if opened is None else (opened.digest, opened.end_of_document)
    if told and digest != told["tokenizer_digest"]:
        raise UsageError(
            f"data.tokenizer: {tokenizer} isn't the one that {of} was prepared with; leave it out."
        )
    spec = TextSpec(
        sequence_length, tokenizer, digest, told.get("end_of_document", end),
        told.get("bytes_per_token", 1.0 if tokenizer == BYTES else None),
    )  # fmt: skip
    return OpenedText(tokens, vocabulary_size, spec, opened, notes, was_tokens=True)


def _files(path: Path, of: str) -> list[Path]:
    """The files of a text, sorted by path; what begins with a dot is left out.

    Where there are tokens the other files, of which they may have been made, are left out too.
    """
    if not path.is_dir():
        return [path]
    with storage_errors(path, action="read"):
        found = sorted(file for file in path.rglob("*") if file.is_file())
    inside = [(file, file.relative_to(path).parts) for file in found]
    files = [file for file, parts in inside if not any(part[0] == "." for part in parts)]
    tokens = [file for file in files if file.name.endswith(SUFFIXES)]
    # Of Megatron's pairs one is enough.
    files = [file for file in tokens if file.suffix != ".idx"] or files
    if not files:
        raise UsageError(f"dataset: the folder {of} holds no texts.")
    return files


def _by_split(files: Sequence[Path], path: Path, of: str) -> dict[str, list[Path]]:
    """Files by the split that their name, or their folder's, begins with: `train.txt`, `val/1`.

    Of tokens it is any word of the name: `fineweb_train_000001.bin`.
    """
    names, splits = (*TRAIN_NAMES, *EVAL_NAMES), {}
    for file in files:
        first = file.relative_to(path).parts[0] if file != path else ""
        words = re.split("[._-]", first)
        words = words if file.name.endswith(SUFFIXES) else words[:1]
        split = next((word for word in words if word in names), ALL)
        splits.setdefault(split, []).append(file)
    if ALL in splits and len(splits) > 1:
        raise UsageError(
            f"dataset: {of} has splits ({', '.join(s for s in splits if s != ALL)}), and "
            f"{splits[ALL][0].relative_to(path)} is in none of them."
        )
    return splits


def _text(file: Path, is_checked: bool) -> np.ndarray:
    """A file's bytes, memory-mapped."""
    with storage_errors(file, action="read"):
        size = file.stat().st_size
        content = np.asarray(np.memmap(file, np.uint8, "r")) if size else np.zeros(0, np.uint8)
    if is_checked:
        together = 2**24
        for start in range(0, size, together):
            zeros = np.flatnonzero(content[start : start + together] == 0)
            if len(zeros):
                raise UsageError(
                    f"dataset: {file} is no text: byte {start + zeros[0]:,} is 0; remove it."
                )
    return content


def _parts(of, splits: Mapping, settings: DataSettings, cut) -> tuple[dict, tuple[str, ...]]:
    """Texts or tokens by use, from those by split; `cut` takes shares off the end."""
    named = first_of(splits, EVAL_NAMES)
    wanted = {"test": settings.test_split or named or DEFAULT_SHARE}
    if settings.holdout_split is not None:
        wanted["holdout"] = settings.holdout_split
    chosen = settings.train_split or first_of(splits, TRAIN_NAMES) or ALL
    train, parts = _chosen(of, splits, chosen, "train"), {}
    shares = {name: parse_share(split) for name, split in wanted.items() if is_share(split)}
    if sum(shares.values()) >= 1:
        raise UsageError(
            "data.test_split and data.holdout_split: together they leave nothing to train on."
        )
    for name, split in wanted.items():
        if name in shares:
            # Of the whole: what is cut off is a larger share of what is left.
            before = sum([share for n, share in shares.items() if n in parts], Fraction(0))
            train, parts[name] = cut(train, shares[name] / (1 - before))
        else:
            parts[name] = _chosen(of, splits, split, name)
    notes = ()
    if settings.test_split is None and named is None:
        notes = (
            f"note: {of} has no test split: its last {DEFAULT_SHARE} are kept out to evaluate on "
            "(--data.test-split)",
        )
    return {"train": train, **parts}, notes


def _chosen(of: str, splits: Mapping, split: str, name: str) -> Any:
    if split in splits:
        return splits[split]
    known = did_you_mean(split, splits) or f"; it has {', '.join(splits)}."
    if ALL in splits:
        known = "; it has no splits, give a share of it, such as --data.test-split 10%."
    raise UsageError(f"data.{name}_split: {of} has no split {split!r}{known}")


def _cut_texts(texts: Sequence[np.ndarray], share: Fraction) -> tuple[list, list]:
    """Texts without their last share of bytes, and that; no character is cut in two."""
    left = math.floor(sum(map(len, texts)) * (1 - share))
    first, last = [], []
    for text in texts:
        at = min(max(left, 0), len(text))
        while 0 < at < len(text) and text[at] & 0xC0 == 0x80:  # inside of a UTF-8 character
            at += 1
        left -= len(text)
        first += [text[:at]] if at else []
        last += [text[at:]] if at < len(text) else []
    return first, last


def _cut_tokens(whole: Tokens, share: Fraction) -> tuple[Tokens, Tokens]:
    at = math.floor(len(whole) * (1 - share))
    return whole.part(0, at), whole.part(at, len(whole))


def _tokenized(of: str, texts: Sequence[np.ndarray], tokenizer: AnyTokenizer) -> Tokens:
    """The tokens of documents, with the id that ends one between each two."""
    try:
        documents = tokenizer.encode(texts)
    except UnicodeDecodeError as error:
        raise UsageError(
            f"dataset: {of} is no text in UTF-8 ({error.reason} at byte {error.start:,} of a file)."
        ) from None
    documents = [ids for ids in documents if len(ids)]
    if not documents:
        raise UsageError(f"dataset: {of} holds no text.")
    end = tokenizer.end_of_document
    if end is not None:
        documents[:-1] = [np.append(ids, np.array([end], ids.dtype)) for ids in documents[:-1]]
    together = documents[0] if len(documents) == 1 else np.concatenate(documents)
    # What stands between documents says where they are, here as in the `.bin` that `prepare` writes.
    lengths = [0, *map(len, documents[:-1])]
    return Tokens(of, together, np.cumsum(lengths) if end is None else None)
