"""The digits are those of scikit-learn, split as documented."""

import gzip
import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from adabatch_jax.data.datasets.preparation import prepare
from adabatch_jax.data.datasets.preparation.digits import (
    is_every_fifth_of_its_class,
    pixels_from_counts,
)
from adabatch_jax.data.sources import in_memory
from adabatch_jax.data.tfds_images import tfds_source
from adabatch_jax.system.errors import UsageError


def digits_rows():
    root = importlib.util.find_spec("sklearn").submodule_search_locations[0]
    path = os.path.join(root, "datasets", "data", "digits.csv.gz")
    with gzip.open(path, "rt") as file:
        return [[int(float(value)) for value in line.split(",")] for line in file]


def test_digits_are_split_by_class_in_file_order(digits_dir):
    expected = {"train": [], "test": []}
    seen = [0] * 10
    for row in digits_rows():
        label = row[-1]
        expected["test" if seen[label] % 5 == 4 else "train"].append(row)
        seen[label] += 1
    for split, rows in expected.items():
        arrays = in_memory(tfds_source("digits", split, digits_dir)).arrays
        counts = (arrays["image"].reshape(-1, 64).astype(int) * 16 + 127) // 255
        np.testing.assert_array_equal(counts, [row[:-1] for row in rows])
        np.testing.assert_array_equal(arrays["label"], [row[-1] for row in rows])
    assert [len(rows) for rows in expected.values()] == [1442, 355]


def test_digits_pixels_are_invertible_and_nearest():
    counts = np.arange(17)
    pixels = pixels_from_counts(counts.astype(np.uint8))
    assert pixels.dtype == np.uint8 and (pixels[0], pixels[-1]) == (0, 255)
    assert np.abs(pixels - counts * 255 / 16).max() <= 0.5
    np.testing.assert_array_equal((pixels.astype(int) * 16 + 127) // 255, counts)


def test_every_fifth_is_counted_within_each_class():
    labels = np.array([7] * 10 + [3] * 4 + [7] + [3])
    assert np.flatnonzero(is_every_fifth_of_its_class(labels)).tolist() == [4, 9, 15]


def test_digits_are_prepared_without_importing_scikit_learn_or_tensorflow(tmp_path):
    code = (
        "import sys; from adabatch_jax.data.datasets.preparation import prepare;"
        "prepare('digits', sys.argv[1]);"
        "assert not {'sklearn', 'tensorflow', 'jax'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_without_scikit_learn_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'pip install "adabatch_jax\[train\]"'):
        prepare("digits", tmp_path)
