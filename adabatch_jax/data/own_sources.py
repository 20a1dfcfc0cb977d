"""Sources that a user's own function returns, checked."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from adabatch_jax.config.own_functions import load_function
from adabatch_jax.config.settings import DataSettings
from adabatch_jax.config.value_texts import is_share
from adabatch_jax.data.datasets.own.shares import EVAL_NAMES
from adabatch_jax.data.sources import ArraySource, Source, array_source
from adabatch_jax.system.errors import UsageError, did_you_mean

Sources = dict[str, Source]


def sources_of_function(reference: str, settings: DataSettings) -> Sources:
    """Calls a user's function; its sources by split: "train", "test" and maybe "holdout".

    The function returns `(train, test)`, or a dict with "train" and "test" or "val". A mapping of
    arrays stands for their source.

    Raises:
      UsageError: there is no such function, or it returns something else.
    """
    function = load_function(reference, "dataset")
    splits = _returned(reference, function)
    train = _chosen(reference, splits, settings.train_split or "train", "train_split")
    default = next((name for name in EVAL_NAMES if name in splits), "test")
    test = _chosen(reference, splits, settings.test_split or default, "test_split")
    sources = {"train": train, "test": test}
    if settings.holdout_split is not None:
        sources["holdout"] = _chosen(reference, splits, settings.holdout_split, "holdout_split")
    return sources


def known_classes(source: Source) -> int | None:
    """How many classes a source has: what its `num_classes` says, else what its labels show."""
    told = getattr(source, "num_classes", None)
    if told is not None:
        return int(told)
    labels = source.arrays.get("label") if isinstance(source, ArraySource) else None
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu" or not labels.size:
        return None
    return int(labels.max()) + 1


def _returned(reference: str, function: Callable[[], Any]) -> Sources:
    try:
        returned = function()
    except (UsageError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise UsageError(
            f"dataset: {reference} fails with {type(error).__name__}: {error}."
        ) from error
    if isinstance(returned, tuple | list) and len(returned) == 2:
        returned = dict(zip(("train", "test"), returned, strict=True))
    if not isinstance(returned, Mapping) or not returned:
        raise UsageError(
            f"dataset: {reference} must return (train, test), two sources, or a dict of them, and "
            f"returned {type(returned).__name__}."
        )
    return {name: _source(reference, name, value) for name, value in returned.items()}


def _source(reference: str, name: str, value: Any) -> Source:
    if isinstance(value, Mapping):
        return array_source({key: np.asarray(array) for key, array in value.items()})
    if not (hasattr(value, "__len__") and callable(getattr(value, "read", None))):
        raise UsageError(
            f"dataset: {reference} returned as {name!r} a {type(value).__name__}, which is no "
            "source: it needs `__len__` and `read(indices)`, see array_source."
        )
    if not len(value):
        raise UsageError(f"dataset: {reference} returned as {name!r} a source without examples.")
    return value


def _chosen(reference: str, splits: Sources, name: str, field: str) -> Source:
    if name in splits:
        return splits[name]
    if is_share(name):
        raise UsageError(f"data.{field}: {reference} returns its splits itself; name one of them.")
    hint = did_you_mean(name, splits) or f"; it has {', '.join(splits)}."
    raise UsageError(f"data.{field}: {reference} has no split {name!r}{hint}")
