"""Which examples a split is: one that is there, or a share of those that are.

Whether an example belongs to a share is decided by itself alone: by a hash of its path below the
folder, or of its contents. So order and other examples make no difference, and one that is added
moves none. Classes are shared out as it comes, not evenly.
"""

import hashlib
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import TypeVar

import numpy as np

from adabatch_jax.config.settings import DataSettings
from adabatch_jax.config.value_texts import is_share, parse_share
from adabatch_jax.data.datasets.own.records import Arrays, OwnData, Records
from adabatch_jax.system.errors import UsageError, did_you_mean

Examples = TypeVar("Examples", Records, Arrays)

DEFAULT_SHARE = "20%"
ALL = "all"  # the examples of data without splits
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing")
VALIDATION_NAMES = ("val", "valid", "validation", "dev")
EVAL_NAMES = (*TEST_NAMES, *VALIDATION_NAMES)


def chosen_splits(data: OwnData, settings: DataSettings) -> dict[str, Records | Arrays]:
    """The examples to train on, "train", and to evaluate on, "test" and maybe "holdout".

    Raises:
      UsageError: there is no such split, one has no examples, or a class isn't trained on.
    """
    splits = data.splits
    train = splits[
        _named(data, settings.train_split or first_of(splits, TRAIN_NAMES) or ALL, "train")
    ]
    wanted = {
        "test": settings.test_split or first_of(splits, EVAL_NAMES) or DEFAULT_SHARE,
        "holdout": settings.holdout_split,
    }
    wanted = {name: split for name, split in wanted.items() if split is not None}
    shares = {name: parse_share(split) for name, split in wanted.items() if is_share(split)}
    parts = shared_out(train, shares) if shares else {"train": train}
    for name, split in wanted.items():
        if name not in shares:
            parts[name] = splits[_named(data, split, name)]
    _check_parts(data, parts)
    return parts


def shared_out(examples: Examples, shares: Mapping[str, Fraction]) -> dict[str, Examples]:
    """Parts of examples by name, the rest as "train"."""
    if sum(shares.values()) >= 1:
        raise UsageError(
            "data.test_split and data.holdout_split: together they leave nothing to train on."
        )
    places = fractions_of(examples.share_keys())
    rest, start, parts = np.ones(len(places), bool), 0, {}
    for name, share in shares.items():
        stop = start + int(share * 2**64)
        inside = (places >= np.uint64(start)) & (places < np.uint64(stop))
        parts[name], start = examples.take(np.flatnonzero(inside)), stop
        rest &= ~inside
    return {"train": examples.take(np.flatnonzero(rest)), **parts}


def fractions_of(keys: Iterable[bytes]) -> np.ndarray:
    """Where each key lies in 0 .. 2**64 - 1: the first eight bytes of its sha256.

    >>> fractions_of([b"cat/1.png"]) / 2**64
    array([0.4149...])
    """
    digests = b"".join(hashlib.sha256(key).digest()[:8] for key in keys)
    return np.frombuffer(digests, ">u8").astype(np.uint64)


def has_eval_split(data: OwnData) -> bool:
    """Whether there are examples to evaluate on apart from the others."""
    return first_of(data.splits, EVAL_NAMES) is not None


def first_of(splits: Mapping[str, object], names: tuple[str, ...]) -> str | None:
    """The name that a split goes by, the first where there are several; None where it has none."""
    return next((name for name in names if name in splits), None)


def _named(data: OwnData, split: str, name: str) -> str:
    if split in data.splits and (split != ALL or name == "train"):
        return split
    if ALL in data.splits:
        raise UsageError(
            f"data.{name}_split: {data.of} has no splits, so there is no {split!r}; give a share "
            "of it, such as --data.test-split 20%."
        )
    known = did_you_mean(split, data.splits) or f"; it has {', '.join(data.splits)}."
    raise UsageError(f"data.{name}_split: {data.of} has no split {split!r}{known}")


def _check_parts(data: OwnData, parts: Mapping[str, Records | Arrays]) -> None:
    for name, part in parts.items():
        if not len(part):
            raise UsageError(
                f"{data.of}: nothing is left of its {sum(map(len, parts.values()))} images for "
                f"{name!r}; give other shares or splits."
            )
    trained = np.bincount(parts["train"].labels, minlength=len(data.class_names))
    if missing := [data.class_names[label] for label in np.flatnonzero(trained == 0)]:
        raise UsageError(
            f"{data.of}: no training image is of class {missing[0]!r}"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            + "; each class needs some, and labels must be 0, 1, 2 and so on without a gap."
        )
    if len(data.class_names) < 2:
        raise UsageError(
            f"{data.of} has only one class, {data.class_names[0]!r}; there is nothing to tell apart."
        )
