"""The 1,797 handwritten digits that ship inside scikit-learn, 8x8 pixels each.

The test split is every fifth example of each class in the file's order (its examples number 4,
9, 14, ... counted from 0): 355 examples; the other 1,442 are the training split. Both keep the
file's order.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from adabatch_jax.data.datasets.preparation.record_writing import Split
from adabatch_jax.data.datasets.tfds_import import import_tfds
from adabatch_jax.system.errors import UsageError

NAME = "digits"


def splits() -> dict[str, Split]:
    """The examples of both splits; a UsageError where scikit-learn isn't installed."""
    rows = _rows()
    images, labels = pixels_from_counts(rows[:, :-1]).reshape(-1, 8, 8, 1), rows[:, -1]
    is_test = is_every_fifth_of_its_class(labels)
    return {
        "train": Split(images[~is_test], {"label": labels[~is_test]}),
        "test": Split(images[is_test], {"label": labels[is_test]}),
    }


def pixels_from_counts(counts: np.ndarray) -> np.ndarray:
    """Scales ink counts 0..16 to uint8 pixels 0..255, the nearest to `counts * 255 / 16`.

    Invertible: `(pixels * 16 + 127) // 255` gives the counts back.

    >>> pixels_from_counts(np.array([0, 1, 8, 16], np.uint8))
    array([  0,  16, 128, 255], dtype=uint8)
    """
    return ((counts.astype(np.int32) * 255 + 8) // 16).astype(np.uint8)


def is_every_fifth_of_its_class(labels: np.ndarray) -> np.ndarray:
    """Marks the examples number 4, 9, 14, ... of each class, counted from 0.

    >>> is_every_fifth_of_its_class(np.array([0, 0, 0, 1, 0, 0, 1]))
    array([False, False, False, False, False,  True, False])
    """
    marked = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        marked[np.flatnonzero(labels == label)[4::5]] = True
    return marked


def builder_class() -> type:
    """The tfds builder that describes the dataset, without examples; it isn't registered."""
    tfds = import_tfds()

    class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Handwritten digits, 8x8, from the UCI optical recognition set."""

        name = NAME
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = {
                "image": tfds.features.Image(shape=(8, 8, 1)),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                description="1,797 handwritten digits of 8x8 pixels, as scikit-learn ships them.",
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
                homepage="https://doi.org/10.24432/C50P49",
                disable_shuffling=True,
            )

    return Digits


def _rows() -> np.ndarray:
    # find_spec doesn't import scikit-learn, which would take a second.
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(
            "the digits ship with scikit-learn, which isn't installed; "
            'install it with `pip install "adabatch_jax[train]"`.'
        )
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    return np.loadtxt(path, delimiter=",", dtype=np.uint8)
