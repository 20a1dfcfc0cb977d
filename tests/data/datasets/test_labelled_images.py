"""A dataset's metadata can't have a module imported that isn't tfds's own."""

import json
import shutil
import sys

import pytest

from adabatch_jax.data.datasets.known_datasets import dataset_spec
from adabatch_jax.data.datasets.labelled_images import check_feature_classes
from adabatch_jax.data.tfds_images import tfds_source
from adabatch_jax.system.errors import StorageError

EVIL = "evil_features.Image"
LEGACY = {"type": EVIL, "content": {"shape": [8, 8, 1]}}


@pytest.fixture
def hostile(digits_dir, tmp_path, monkeypatch):
    """`hostile(change)`: a copy of the digits with other features, beside an importable module."""
    (tmp_path / "evil_features.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(digits_dir, tmp_path / "data")
    path = tmp_path / "data" / "digits" / "1.0.0" / "features.json"

    def make(change):
        features = json.loads(path.read_text())
        path.write_text(json.dumps(change(features)))
        return tmp_path / "data"

    return make


def _image(features):
    return features["featuresDict"]["features"]["image"]


def _renamed_class(features):
    _image(features)["pythonClassName"] = EVIL
    return features


def _renamed_in_the_other_spelling(features):
    del _image(features)["pythonClassName"]
    _image(features)["python_class_name"] = EVIL
    return features


def _inside_a_text(features):
    image = _image(features)
    image.clear()
    image["pythonClassName"] = "tensorflow_datasets.core.features.sequence_feature.Sequence"
    image["jsonFeature"] = {"json": json.dumps({"feature": LEGACY, "length": 3})}
    return features


def _as_a_member_of_tfds(features):
    _image(features)["pythonClassName"] = "tensorflow_datasets.scripts.cli.main.Image"
    return features


@pytest.mark.parametrize(
    "change",
    [
        _renamed_class,
        _renamed_in_the_other_spelling,
        _inside_a_text,
        _as_a_member_of_tfds,
        lambda features: LEGACY,
    ],
)
def test_foreign_classes_are_refused_and_not_imported(change, hostile):
    data_dir = hostile(change)
    with pytest.raises(StorageError, match=r"digits.*names the class '.*\.Image', which is not"):
        tfds_source("digits", "train", data_dir)
    assert not {"evil_features", "tensorflow_datasets.scripts.cli.main"} & set(sys.modules)


def test_the_module_that_the_info_names_is_not_imported(hostile):
    data_dir = hostile(lambda features: features)
    path = data_dir / "digits" / "1.0.0" / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"moduleName": "evil_features.x"}))
    assert tfds_source("digits", "train", data_dir).num_classes == 10
    assert "evil_features" not in sys.modules


def test_datasets_of_other_names_are_checked_too(hostile):
    data_dir = hostile(_renamed_class)
    (data_dir / "digits").rename(data_dir / "others")
    with pytest.raises(StorageError, match="'others' .*class"):
        dataset_spec("others", data_dir)


@pytest.mark.parametrize("content", ["", "[" * 100_000])
def test_what_is_no_json_is_a_value_error(content, tmp_path):
    (tmp_path / "features.json").write_text(content)
    with pytest.raises(ValueError):
        check_feature_classes(tmp_path)
