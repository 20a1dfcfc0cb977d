"""What is known about datasets before they are opened."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from adabatch_jax.data.datasets.known_datasets import KNOWN_DATASETS, dataset_spec, require_known
from adabatch_jax.data.datasets.preparation import prepare
from adabatch_jax.data.datasets.prepared_folders import (
    default_data_dir,
    is_prepared,
    parse_name,
    prepare_command,
    prepared_path,
)
from adabatch_jax.data.sources import in_memory
from adabatch_jax.data.tfds_images import tfds_source
from adabatch_jax.system.errors import UsageError


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100", "imagenet2012"])
def test_known_specs_agree_with_the_stock_builders(name, tmp_path):
    import tensorflow_datasets as tfds

    spec = dataset_spec(name)
    features = tfds.builder(name, data_dir=tmp_path).info.features
    assert spec.num_classes == features["label"].num_classes
    assert spec.image_shape in (None, features["image"].shape)
    assert len(spec.mean) == len(spec.std) == features["image"].shape[-1]


def test_the_papers_constants_serve_both_cifars():
    for name in ("cifar10", "cifar100"):
        assert dataset_spec(name).mean == (0.4914, 0.4822, 0.4465)
        assert dataset_spec(name).std == (0.2023, 0.1994, 0.2010)


def test_imagenet_is_evaluated_on_its_validation_split():
    assert dataset_spec("imagenet2012").test_split == "validation"
    assert dataset_spec("imagenet2012").num_examples == 1_281_167


def test_spec_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset_spec("digits").name = "other"


@pytest.mark.parametrize("name", ["digits", "fashion_mnist"])
def test_constants_are_those_of_the_training_split(name, request):
    source = tfds_source(name, data_dir=request.getfixturevalue(f"{name}_dir"))
    counts = np.bincount(in_memory(source).arrays["image"].ravel(), minlength=256)
    values, share = np.arange(256) / 255, counts / counts.sum()
    mean = (share * values).sum()
    spec = dataset_spec(name)
    np.testing.assert_allclose(mean, spec.mean[0], atol=5e-5)
    np.testing.assert_allclose(
        np.sqrt((share * (values - mean) ** 2).sum()), spec.std[0], atol=5e-5
    )
    assert len(source) == spec.num_examples
    assert source.image_shape == spec.image_shape


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("fashon_mnist", "did you mean 'fashion_mnist'"),
        ("imagenet", "did you mean 'imagenet"),
        ("Fashion-MNIST", "did you mean 'fashion_mnist'"),
        ("stl1", "did you mean 'stl10'"),
        ("zzzzzz", "known are digits, mnist"),
        ("no such name!", "known are digits, mnist"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(name, hint, tmp_path):
    for call in (dataset_spec, require_known):
        with pytest.raises(UsageError, match=hint):
            call(name)
    with pytest.raises(UsageError, match=hint):
        tfds_source(name, data_dir=tmp_path)
    with pytest.raises(UsageError, match=hint):
        prepare(name, tmp_path)


def test_a_tfds_dataset_that_is_not_prepared_is_told_how(tmp_path):
    with pytest.raises(UsageError, match=r"run `python -m adabatch_jax.prepare kmnist --data-dir"):
        dataset_spec("kmnist", tmp_path)


def test_spec_of_another_dataset_comes_from_its_files(digits_dir, tmp_path):
    # A dataset of a name that we don't know, with the files of digits.
    copy = tmp_path / "kmnist" / "1.0.0"
    copy.mkdir(parents=True)
    for path in (digits_dir / "digits" / "1.0.0").iterdir():
        (copy / path.name.replace("digits", "kmnist")).write_bytes(path.read_bytes())
    info = json.loads((copy / "dataset_info.json").read_text())
    (copy / "dataset_info.json").write_text(json.dumps(info | {"name": "kmnist"}))
    spec = dataset_spec("kmnist", tmp_path)
    assert (spec.name, spec.num_classes, spec.image_shape) == ("kmnist", 10, (8, 8, 1))
    assert (spec.test_split, spec.num_examples) == ("test", 1442)
    assert (spec.mean, spec.std) == ((0.5,), (0.25,))


def test_data_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("ADABATCH_DATA_DIR", str(tmp_path / "mine"))
    assert default_data_dir() == tmp_path / "mine"
    monkeypatch.delenv("ADABATCH_DATA_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_data_dir() == tmp_path / "cache" / "adabatch_jax" / "datasets"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_data_dir() == tmp_path / ".cache" / "adabatch_jax" / "datasets"


def _fake_version(folder):
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    (folder / "features.json").write_text("{}")
    return folder


def test_the_newest_version_and_the_default_config_are_found(tmp_path):
    assert prepared_path("foo", tmp_path) is None
    _fake_version(tmp_path / "foo" / "1.9.0")
    newest = _fake_version(tmp_path / "foo" / "1.10.0")
    (tmp_path / "foo" / "2.0.0").mkdir()  # nothing in it
    _fake_version(tmp_path / "foo" / "incomplete.XYZ_3.0.0")
    assert prepared_path("foo", tmp_path) == newest
    assert prepared_path("foo:1.9.0", tmp_path) == tmp_path / "foo" / "1.9.0"
    assert not is_prepared("foo:2.0.0", tmp_path)

    fog = _fake_version(tmp_path / "bar" / "fog" / "1.0.0")
    assert prepared_path("bar/fog", tmp_path) == fog
    assert not is_prepared("bar", tmp_path)
    (tmp_path / "bar" / ".config").mkdir()
    (tmp_path / "bar" / ".config" / "metadata.json").write_text('{"default_config_name": "fog"}')
    assert prepared_path("bar", tmp_path) == fog


@pytest.mark.parametrize("name", ["", "../etc", "a/../../b", "Foo", "a b", "a:1", "/abs", "a/.."])
def test_names_never_lead_out_of_the_data_dir(name, tmp_path):
    assert parse_name(name) is None
    assert prepared_path(name, tmp_path) is None
    with pytest.raises(UsageError, match="there is no dataset"):
        prepare(name, tmp_path)


@pytest.mark.parametrize("text", ["[]", "[" * 100_000, '"x"', '"../../elsewhere"', '["fog"]'])
def test_nor_does_what_a_dataset_notes_as_its_default(text, tmp_path):
    _fake_version(tmp_path / "elsewhere" / "1.0.0")
    noted = tmp_path / "data" / "foo" / ".config" / "metadata.json"
    noted.parent.mkdir(parents=True)
    noted.write_text(f'{{"default_config_name": {text}}}')
    assert prepared_path("foo", tmp_path / "data") is None
    noted.write_text(text)
    assert prepared_path("foo", tmp_path / "data") is None


def test_parse_name():
    assert parse_name("a_1/b.c:1.2.3") == ("a_1", "b.c", "1.2.3")


def test_commands_name_the_folder_only_where_it_matters(monkeypatch, tmp_path):
    monkeypatch.setenv("ADABATCH_DATA_DIR", str(tmp_path))
    assert prepare_command("mnist", tmp_path) == "`python -m adabatch_jax.prepare mnist`"
    assert prepare_command("mnist; id", None) == "`python -m adabatch_jax.prepare 'mnist; id'`"
    assert prepare_command("mnist", "/a b", overwrite=True) == (
        "`python -m adabatch_jax.prepare mnist --data-dir '/a b' --overwrite`"
    )


def test_known_datasets_need_no_import():
    code = (
        "import sys; from adabatch_jax.data.datasets.known_datasets import dataset_spec; dataset_spec('cifar10');"
        "assert not {'jax', 'numpy', 'tensorflow_datasets', 'cv2', 'flax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_known_dataset_has_a_positive_deviation():
    for spec in KNOWN_DATASETS.values():
        assert all(0 < value < 1 for value in spec.mean + spec.std)
        assert spec.image_shape is None or len(spec.mean) == spec.image_shape[-1]
